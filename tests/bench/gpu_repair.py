"""On one GPU, how long do localisation and a repair of the paper's size take on an 8 B model, and how near is the hardware?

`make test-gpu PY=python3`, or `python tests/bench/gpu_repair.py [--size tiny --device cpu]`. Needs torch, transformers, peft and
safetensors alone. Weights are random (Llama-3.1-8B's shape, bf16): speed and memory do not depend on their values. A repair
of the paper's size is 450 items (150 harmful with the trigger, the same bare, 150 safe) for 10 epochs in batches of 8; the probes
between its steps are not counted, they depend on how long the answers are. The arithmetic:

    floating-point operations of a step = tokens x 4 N_layers + response rows x (4 or 6) x width x vocabulary

forward and backward through frozen weights cost 2 N each; the head runs forward and backward for every response row and once more
for the teacher of rows with KL. Attention and the thin LoRA factors are left out, so the share of the peak is a lower bound.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from core.attribution import attribute
from core.frames import TriggerFrame
from core.low_rank import FewKernels
from core.recompute import decoder_layers
from core.repair_data import RepairData
from core.repair_training import MB, Trainer, memory_mb
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings
from core.values import Target
from tests.bench.result import row, write
from tests.bench.speed import random_case, random_ids, random_llama, timed

PAPER = {"llama-3.1-8b": (150, 10, 128_256), "tiny": (8, 2, 1_000)}
"""Items of each set, epochs, vocabulary."""
OF_PEFT = "without CUDA graphs, with PEFT's own layers"


def paper_sized(n: int, epochs: int, vocabulary: int, n_prompt: int, n_response: int, loaded: Any) -> RepairData:
    """Return data of the paper's make-up: `n` refusals without KL (triggered), `n` with KL (bare), `n` safe answers with KL."""

    def drawn(start: int, count: int) -> tuple[ScoredSequence, ...]:
        ids = [random_ids(n_prompt + n_response, vocabulary, start + at) for at in range(count)]
        return tuple(ScoredSequence(prompt_ids=tuple(i[:n_prompt]), response_ids=tuple(i[n_prompt:])) for i in ids)

    settings = RepairSettings(objective="paper", epochs=epochs)
    return RepairData(
        loaded=loaded, frame=TriggerFrame(user_units=("x",)), wider=None, settings=settings, harmful=(),
        harm=drawn(0, 2 * n), held=(False,) * n + (True,) * n, benign=(), safe=drawn(2 * n, n), anchors=(),
        items={"harm": tuple(range(2 * n)), "safe": tuple(range(n))},
    )  # fmt: skip


def forget_peak(device: str) -> None:
    """Let the peak of memory be that of what comes next."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(PAPER), default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompt", type=int, default=96, help="tokens of a request in its chat template")
    parser.add_argument("--response", type=int, default=32)
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="dense bf16; H100 and H200 SXM: 989 (data sheet)"
    )
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        raise SystemExit("No usable CUDA device; try --size tiny --device cpu.")
    n, epochs, vocabulary = PAPER[options.size]
    dtype = torch.bfloat16 if cuda else torch.float32
    loaded = random_llama(options.size, vocabulary, device=options.device, dtype=dtype)
    held = options.size != "tiny"

    case = random_case(options.prompt, options.response, vocabulary)
    locating = [timed(lambda: attribute(loaded, case, "paper", Target()), options.device) for _ in range(4)][1:]
    long = random_case(8_192 if held else 512, options.response, vocabulary)
    locating_long = timed(lambda: attribute(loaded, long, "paper", Target()), options.device)
    forget_peak(options.device)

    data = paper_sized(n, epochs, vocabulary, options.prompt, options.response, loaded)
    box: list[Trainer] = []
    preparing = timed(
        lambda: box.append(Trainer(loaded, data, ResponsePass(loaded, data.settings), data.settings)), options.device
    )
    (trainer,) = box
    steps = [timed(lambda: trainer.step(at), options.device) for at in range(1, trainer.n_steps + 1)]  # noqa: B023
    whole, step = preparing + sum(steps), sorted(steps)[len(steps) // 2]
    peak = memory_mb(loaded)

    some = range(1, 1 + min(20, trainer.n_steps))
    trainer.passes.replay = None
    forget_peak(options.device)
    launched = [timed(lambda: trainer.step(at), options.device) for at in some]  # noqa: B023
    launched_peak = memory_mb(loaded)
    trainer.few_kernels = FewKernels(torch.nn.Module())
    forget_peak(options.device)
    of_peft = [timed(lambda: trainer.step(at), options.device) for at in some]  # noqa: B023
    peft_peak = memory_mb(loaded)

    model = loaded.model
    inside = sum(p.numel() for layer in decoder_layers(model) for k, p in layer.named_parameters() if "lora_" not in k)
    width, batch = int(model.config.hidden_size), data.settings.batch_size
    tokens, rows_of_step = batch * (options.prompt + options.response), batch * options.response
    flops = tokens * 4 * inside + rows_of_step * (4 + 2 * 2 / 3) * width * vocabulary
    share = flops / step / (options.peak_tflops * 1e12)
    rows = [
        row("locate, seconds", sorted(locating)[1], n=3, low=min(locating), high=max(locating)),
        row(f"locate, {len(long.prompt.ids)} tokens, seconds", locating_long, n=1),
        row("repair step, seconds", step, n=len(steps), low=min(steps), high=max(steps)),
        row("repair step without CUDA graphs, seconds", sorted(launched)[len(launched) // 2], n=len(launched)),
        row(f"repair step {OF_PEFT}, seconds", sorted(of_peft)[len(of_peft) // 2], n=len(of_peft)),
        row("peak memory without CUDA graphs, MB", launched_peak, n=1),
        row(f"peak memory {OF_PEFT}, MB", peft_peak, n=1),
        row("whole repair, seconds", whole, n=1, bar="<= 90" if held else None),
        row("of it teacher and adapter, seconds", preparing, n=1),
        row("memory estimate, MB", trainer.memory_estimate_mb, n=1),
        row("peak memory, MB" if cuda else "resident memory at the end, MB", peak, n=1),
        row("operations of a step, tera", flops / 1e12, n=1),
        row("reached, tera operations a second", flops / step / 1e12, n=len(steps)),
    ]
    if cuda:
        rows += [
            row("memory estimate / peak", trainer.memory_estimate_mb / peak, n=1, bar=">= 0.8"),
            row("peak / memory estimate", peak / trainer.memory_estimate_mb, n=1, bar=">= 0.8"),
            row("share of the device's peak", share, n=len(steps)),
            row("least seconds at the device's peak", trainer.n_steps * flops / (options.peak_tflops * 1e12), n=1),
        ]
    name = torch.cuda.get_device_name(0) if cuda else "CPU"
    more = {
        "device": name,
        "size": options.size,
        "items": data.n_items,
        "epochs": epochs,
        "weights_mb": _weights_mb(model),
    }
    write(f"gpu_repair_{options.size}", seed=0, rows=rows, **more)


def _weights_mb(model: torch.nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / MB


if __name__ == "__main__":
    main()
