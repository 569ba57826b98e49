"""Does paper-mode localisation grow in proportion to the prompt, outside attention, from 128 to 8,192 tokens?

`python tests/bench/locate_length.py`. Attention is quadratic by nature; for the bar it is replaced by a function that hands
the values on, so that everything else is timed. `deviation from a line` is the largest distance of the seconds from the line
a + b x tokens that fits all lengths best by relative least squares, as a share of it: what a pass costs by itself (Python, kernels
at few rows) is in a. `deviation from proportion` takes the mean seconds per token instead. Seconds with attention stand beside.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.attribution import attribute
from core.values import Target
from tests.bench.result import row, write
from tests.bench.speed import median_row, random_case, random_llama

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
N_RESPONSE = 32


def handed_on(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: object, **more: object
):
    """Return the values in the place of what attention would make of them; queries and keys keep a part in the gradient."""
    return (value + query + key).transpose(1, 2), None


def main() -> None:
    """Time all lengths and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ALL_ATTENTION_FUNCTIONS.register("handed_on", handed_on)
    rows, outside = [], {}
    for attention in ("handed_on", "sdpa"):
        loaded = random_llama("medium")
        loaded.model.set_attn_implementation(attention)
        for n_prompt in LENGTHS if attention == "handed_on" else (128, 1024, 8192):
            case, spent = random_case(n_prompt, N_RESPONSE), []
            for _ in range(1 + options.repeats * (4 if n_prompt < 1024 else 1) if attention == "handed_on" else 1):
                begun = time.process_time()
                attribute(loaded, case, "paper", Target())
                spent.append(time.process_time() - begun)
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
    write("locate_length", seed=0, rows=rows)


if __name__ == "__main__":
    main()
