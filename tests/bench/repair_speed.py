"""What does a repair step, KL and optimiser included, cost beside a bare PEFT LoRA step with cross-entropy alone?

`python tests/bench/repair_speed.py`. Both train the same LoRA on the same random Llama with the same sequences: half of them
harmful (refusal and KL), half safe (KL). The bare step is `get_peft_model`, the model's own loss, `backward()`: no KL, no
optimiser. `all logits` is that plain call; with `response logits` the bare step too asks for those of the answers alone.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from core.frames import TriggerFrame
from core.loaded import LoadedModel
from core.repair_data import RepairData
from core.repair_training import Trainer
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings
from tests.bench.result import row, write
from tests.bench.speed import in_turn, median_row, random_ids, random_llama, ratio_row

N_PROMPT, N_RESPONSE, VOCABULARY = 64, 32, 32_000


def sequences(n: int, n_prompt: int, n_response: int, vocabulary: int) -> tuple[ScoredSequence, ...]:
    """Return random prompts with random answers, all of one length."""
    ids = [random_ids(n_prompt + n_response, vocabulary, seed) for seed in range(n)]
    return tuple(ScoredSequence(prompt_ids=tuple(i[:n_prompt]), response_ids=tuple(i[n_prompt:])) for i in ids)


def trainer(loaded: LoadedModel, made: tuple[ScoredSequence, ...], **changes: object) -> Trainer:
    """Return a trainer on these sequences, the first half harmful and refused, the others safe."""
    half = len(made) // 2
    settings = RepairSettings(objective="paper", batch_size=len(made), epochs=1000, **changes)
    data = RepairData(
        loaded=loaded, frame=TriggerFrame(user_units=("x",)), wider=None, settings=settings, harmful=(), harm=made[:half],
        held=(True,) * half, benign=(), safe=made[half:], anchors=(),
        items={"harm": tuple(range(half)), "safe": tuple(range(len(made) - half))},
    )  # fmt: skip
    return Trainer(loaded, data, ResponsePass(loaded, settings), settings)


def bare_model(loaded: LoadedModel) -> PeftModel:
    """Return a plain model with a LoRA like the repair's on every linear layer."""
    settings = RepairSettings()
    config = LoraConfig(
        r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(loaded.model, config)


def bare(model: PeftModel, made: tuple[ScoredSequence, ...], keep: bool) -> None:
    """Take one forward and backward pass with cross-entropy over the answers."""
    ids = torch.tensor([one.prompt_ids + one.response_ids for one in made])
    n_prompt, n_response = len(made[0].prompt_ids), len(made[0].response_ids)
    model.zero_grad()
    if keep:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=n_response + 1).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, n_prompt:].flatten()).backward()
    else:
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < n_prompt, -100)
        model(input_ids=ids, labels=labels, use_cache=False).loss.backward()


def main() -> None:
    """Time both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made, rows = sequences(8, N_PROMPT, N_RESPONSE, VOCABULARY), []
    for size in ("medium", "tiny"):
        repairing, plain = trainer(random_llama(size), made), bare_model(random_llama(size))
        step = iter(range(1, 10_000))
        for keep, name in ((False, "all logits"), (True, "response logits")):
            pairs = in_turn(lambda: repairing.step(next(step)), partial(bare, plain, made, keep), options.repeats)  # noqa: B023
            held = "<= 1.15" if size == "medium" else None
            rows.append(ratio_row(f"{size}: repair step / bare LoRA step with {name}", pairs, held))
        rows.append(median_row(f"{size}: repair step, seconds", [one for one, _ in pairs]))
    rows += [row("sequences", len(made), n=1), row("tokens of each", N_PROMPT + N_RESPONSE, n=1)]
    write("repair_speed", seed=0, rows=rows)


if __name__ == "__main__":
    main()
