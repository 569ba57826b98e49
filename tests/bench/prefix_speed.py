"""What does it save to run once what all prompts begin with: a system prompt, earlier turns?

`python tests/bench/prefix_speed.py`: 48 requests of 24 tokens behind a system prompt of 32, 128 and 512, answered with 16 tokens and scored
along 16, beside the same with each prompt run from its first token. Both give the same answers, and scores but for rounding.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from core import shared_prefix
from tests.bench.result import row, write
from tests.bench.speed import in_turn, random_ids, random_llama, ratio_row

N_REQUESTS, N_OWN, N_ANSWER, VOCABULARY = 48, 24, 16, 32_000
SYSTEM = (32, 128, 512)


def unshared(run: Callable[[], object]) -> Callable[[], object]:
    """Return `run` without shared beginnings."""

    def alone() -> object:
        with patch.object(shared_prefix, "LEAST", sys.maxsize):
            return run()

    return alone


def main() -> None:
    """Time both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded, rows = random_llama("medium"), []
    answers = [random_ids(N_ANSWER, VOCABULARY, 10_000 + seed) for seed in range(N_REQUESTS)]
    for n_system in SYSTEM:
        system = random_ids(n_system, VOCABULARY, 0)
        prompts = [[*system, *random_ids(N_OWN, VOCABULARY, 1 + seed)] for seed in range(N_REQUESTS)]

        def answered(prompts: list[list[int]] = prompts) -> object:
            return loaded.generate(prompts, max_new_tokens=N_ANSWER)

        def scored(prompts: list[list[int]] = prompts) -> object:
            return np.concatenate(loaded.logprobs(prompts, answers))

        assert answered() == unshared(answered)()
        np.testing.assert_allclose(scored(), unshared(scored)(), rtol=1e-3, atol=1e-3)
        for name, run in (("answers", answered), ("scores", scored)):
            pairs = in_turn(run, unshared(run), options.repeats, warm=False)
            rows.append(ratio_row(f"{n_system} shared tokens, {name}: shared / each prompt whole", pairs))
    rows += [row("requests", N_REQUESTS, n=1), row("tokens of each request", N_OWN, n=1)]
    write("prefix_speed", seed=0, rows=rows)


if __name__ == "__main__":
    main()
