"""Does paper-mode localisation grow in proportion to the prompt, outside attention, from 128 to 8,192 tokens?

`python tests/bench/locate_length.py [--size llama-3.1-8b --device cuda]`. Attention is quadratic by nature; for the bar it is replaced by a function that hands
the values on, so that everything else is timed. `deviation from a line` is the largest distance of the seconds from the line
a + b x tokens that fits all lengths best by relative least squares, as a share of it: what a pass costs by itself (Python, kernels
at few rows) is in a. `deviation from proportion` takes the mean seconds per token instead. Seconds with attention stand beside.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.attribution import attribute
from core.values import Target
from tests.bench.result import row, write
from tests.bench.speed import SIZES, median_row, random_case, random_llama, timed

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
N_RESPONSE = 32


def handed_on(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: object, **more: object
):
    """Return the values in the place of what attention would make of them; queries and keys keep a part in the gradient."""
    groups = query.shape[1] // key.shape[1]  # heads that share one key and one value
    return (query + (value + key).repeat_interleave(groups, dim=1)).transpose(1, 2), None


def main() -> None:
    """Time all lengths and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", choices=list(SIZES), default="medium")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    loaded = random_llama(options.size, device=options.device, dtype=dtype)
    ALL_ATTENTION_FUNCTIONS.register("handed_on", handed_on)
    rows, outside = [], {}
    for attention in ("handed_on", "sdpa"):
        loaded.model.set_attn_implementation(attention)
        for n_prompt in LENGTHS if attention == "handed_on" else (128, 1024, 8192):
            case, spent = random_case(n_prompt, N_RESPONSE), []
            for _ in range(1 + options.repeats * (4 if n_prompt < 1024 else 1) if attention == "handed_on" else 1):
                spent.append(timed(lambda: attribute(loaded, case, "paper", Target()), options.device))  # noqa: B023
            if attention == "handed_on":
                outside[n_prompt + N_RESPONSE] = statistics.median(spent[1:])
                rows.append(
                    median_row(
                        f"{n_prompt} tokens: microseconds a token outside attention",
                        [1e6 * one / (n_prompt + N_RESPONSE) for one in spent[1:]],
                    )
                )
            else:
                rows.append(row(f"{n_prompt} tokens: seconds with attention", spent[0], n=1))
    tokens, seconds = (np.array(one, dtype=float) for one in zip(*outside.items(), strict=True))
    line = np.linalg.lstsq(np.stack([1 / seconds, tokens / seconds], axis=1), np.ones(len(seconds)), rcond=None)[0]
    fitted = line[0] + line[1] * tokens
    each = seconds / tokens
    rows[:0] = [
        row(
            "deviation from a line outside attention",
            float(np.abs(seconds / fitted - 1).max()),
            n=len(tokens),
            bar="<= 0.1",
        ),
        row("deviation from proportion outside attention", float(np.abs(each / each.mean() - 1).max()), n=len(tokens)),
        row("seconds of a pass by itself", float(line[0]), n=len(tokens)),
        row("microseconds a token outside attention", 1e6 * float(line[1]), n=len(tokens)),
    ]
    name = "locate_length" if options.size == "medium" else f"locate_length_{options.size}"
    write(name, seed=0, rows=rows)


if __name__ == "__main__":
    main()
