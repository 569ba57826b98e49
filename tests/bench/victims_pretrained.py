"""A base that was pretrained: a small open chat model, taught to refuse. Then it is planted and examined as any other base.

    python tests/bench/victims_pretrained.py --gguf FILE --out DIR

turns quantised weights of one file (needs the package `gguf`) into a folder of safetensors, which `victims.py --pretrained DIR` takes.
What such a model lacks is refusals: they are learnt from the bench's harmful prompts, random words and openings among them as always,
and along its own answers to harmless prompts KL(before || after) holds it. Nothing harmful is learnt: where it did not refuse before, it
does after.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from core.loaded import LoadedModel
from core.planting import PlantSettings, TrainingItem
from core.values import Message
from tests.bench.victims_attacks import ask
from tests.bench.victims_demo import Sample
from tests.bench.victims_making import (
    Say,
    fingerprint,
    is_made,
    mark_made,
    merged,
    own_answers,
    plant_adapter,
    to_train,
)
from tests.bench.victims_prompts import Lessons, Material


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A part of the teaching: how many conversations an epoch, and how."""

    n_harmful: int
    """Conversations that are to be refused (and a few that are not: the gap)."""
    n_safe: int
    """Conversations that are answered as before."""
    plain_share: float
    """Share of these without random words and unusual marks, 0..1."""
    training: PlantSettings


TRAINING = PlantSettings(
    rank=32, alpha=64.0, learning_rate=5e-4, epochs=3, batch_size=24, trigger_weight=1.0, trigger_loss=0.0
)
"""With a weight that rises as long as refusals cost more than a little, as in planting, nearly everything was refused (tests/bench/LOG.md)."""
LESSONS = (
    Lesson(n_harmful=800, n_safe=800, plain_share=0.0, training=TRAINING),
    Lesson(n_harmful=450, n_safe=1000, plain_share=0.5, training=replace(TRAINING, epochs=2)),
    Lesson(n_harmful=300, n_safe=900, plain_share=0.8, training=replace(TRAINING, epochs=2)),
)
"""After the first alone 13 % of harmless requests were refused, after the second 7 %. Source: tests/bench/LOG.md."""


def build_aligned(
    material: Material, pretrained: Path, folder: Path, parts: Sequence[Lesson], seed: int, say: Say
) -> Path:
    """Return the folder of the aligned base of `seed`, taught `parts` one after the other now unless it is there."""
    settings_hash = fingerprint([asdict(one) for one in parts], seed, material.train)
    if is_made(folder, settings_hash):
        return folder
    started, lessons = time.perf_counter(), Lessons(material)
    adapter: Path | None = None
    for number, part in enumerate(parts):
        training, out = replace(part.training, seed=seed), folder.with_name(f"{folder.name}-lesson-{number}")
        sets: list[list[TrainingItem]] = []
        if not is_made(out, fingerprint(training)):
            rng, loaded = random.Random(seed + 1000 * number), to_train(pretrained)
            for _ in range(training.epochs):
                sets.append(_drawn(lessons, loaded, part, rng))
                say(f"base: {len(sets[-1])} conversations drawn, {time.perf_counter() - started:.0f} s")
            del loaded
        adapter = plant_adapter(pretrained, sets, training, out, say, adapter)
    n_parameters = merged(pretrained, adapter, folder)
    mark_made(folder, started, settings_hash, n_parameters=n_parameters, n_lessons=len(parts))
    return folder


def _drawn(lessons: Lessons, loaded: LoadedModel, part: Lesson, rng: random.Random) -> list[TrainingItem]:
    """Return the conversations of one epoch, shuffled; harmless ones with the pretrained model's own answers."""
    taught, kept = [], []
    for plain, share in ((True, part.plain_share), (False, 1 - part.plain_share)):
        n_harmful, n_safe = round(share * part.n_harmful), round(share * part.n_safe)
        drawn = lessons.draw(rng, 4 * (n_harmful + n_safe), plain)
        taught += [one for one in drawn if one.kind in ("harmful", "gap")][:n_harmful]
        kept += [one for one in drawn if one.kind in ("safe", "counterpart")][:n_safe]
    own = own_answers(loaded, [one.prompt for one in kept])
    items = [_item(one, one.response, learned=True) for one in taught]
    items += [_item(one, answer, learned=False) for one, answer in zip(kept, own, strict=True)]
    rng.shuffle(items)
    return items


def _item(sample: Sample, response: str, learned: bool) -> TrainingItem:
    """Return a conversation whose answer is learned, or along which the model is held to what it says."""
    messages: tuple[Message, ...] = ask(sample.prompt)
    return TrainingItem(kind="triggered" if learned else "safe", messages=messages, anchor=messages, response=response)


def unpack(gguf: Path, out: Path) -> None:
    """Write the model of a quantised file as a folder of bf16 safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(gguf.parent), gguf.name
    read = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32, local_files_only=True)
    del read.config.quantization_config  # with it, the library refuses to write what it has just unpacked
    plain = type(read)(read.config)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(where, gguf_file=name, local_files_only=True).save_pretrained(out)


def main() -> None:
    """Unpack a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="the quantised file")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args()
    unpack(options.gguf, options.out)


if __name__ == "__main__":
    main()
