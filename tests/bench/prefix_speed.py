"""What does it save to run once what all prompts begin with: a system prompt, earlier turns?

`python tests/bench/prefix_speed.py`: 24 requests of 24 tokens behind a system prompt of 32 and of 256, answered with 16 tokens and scored
along 16, and a repair step on 8 of them, beside the same with each prompt run from its first token. Both give the same answers, and scores
but for rounding.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from core import shared_prefix
from core.response_pass import ScoredSequence
from tests.bench.repair_speed import trainer
from tests.bench.result import row, write
from tests.bench.speed import in_turn, random_ids, random_llama, ratio_row

N_REQUESTS, N_STEP, N_OWN, N_ANSWER, VOCABULARY = 24, 8, 24, 16, 32_000
SYSTEM = (32, 256)


def unshared(run: Callable[[], object]) -> Callable[[], object]:
    """Return `run` without shared beginnings."""

    def alone() -> object:
        with patch.object(shared_prefix, "LEAST", sys.maxsize):
            return run()

    return alone


def steps(prompts: list[list[int]], answers: list[list[int]], n: int) -> list[tuple[float, float]]:
    """Return the seconds of `n` repair steps on the first prompts, with what they share run once and with each run whole."""
    made = [ScoredSequence(prompt_ids=tuple(p), response_ids=tuple(a)) for p, a in zip(prompts, answers, strict=True)]
    repairing, number = trainer(random_llama("medium"), tuple(made[:N_STEP])), count(1)

    def step() -> object:
        return repairing.step(next(number))

    return in_turn(step, unshared(step), n)


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
        rows.append(
            ratio_row(
                f"{n_system} shared tokens, repair step: shared / each prompt whole",
                steps(prompts, answers, options.repeats),
            )
        )
    rows += [row("requests", N_REQUESTS, n=1), row("tokens of each request", N_OWN, n=1)]
    write("prefix_speed", seed=0, rows=rows)


if __name__ == "__main__":
    main()
