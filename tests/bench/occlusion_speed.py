"""What does batched occlusion of a 64-token prompt cost beside the plain loop: N + 1 forward passes, one prompt after another?

`python tests/bench/occlusion_speed.py`. The bar is that of the whole response, which takes the loop N + 1 passes. The default question is
the contrast, reported answer against refusal, of 12 tokens each: two answers a prompt, so that the loop takes 2 (N + 1) passes, and
sharing has more to save. `all logits` is the plain call of the model, `response logits` tells the model to compute those of the answer
alone. Both give the same drops.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from core.attribution import attribute
from core.loaded import LoadedModel
from core.values import FailureCase, Target
from tests.bench.result import row, write
from tests.bench.speed import in_turn, median_row, random_case, random_ids, random_llama, ratio_row

N_PROMPT, N_RESPONSE, VOCABULARY = 64, 32, 32_000


def plain(
    loaded: LoadedModel, case: FailureCase, answers: Sequence[tuple[float, list[int]]], keep: bool
) -> torch.Tensor:
    """Return the drop of each prompt token by one forward pass a prompt and answer; `answers` have their signs."""
    ids, found = case.prompt.ids, []
    with torch.no_grad():
        for gone in (None, *range(len(ids))):
            prompt, total = [one for at, one in enumerate(ids) if at != gone], 0.0
            for sign, answer in answers:
                inputs = torch.tensor([[*prompt, *answer]])
                more = {"logits_to_keep": len(answer) + 1} if keep else {}
                logits = loaded.model(input_ids=inputs, use_cache=False, **more).logits[0, -len(answer) - 1 : -1]
                chosen = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
                total += sign * float(chosen.sum())
            found.append(total)
    return found[0] - torch.tensor(found[1:])


def main() -> None:
    """Time both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    loaded, case = random_llama("medium"), random_case(N_PROMPT, N_RESPONSE)
    refusal = random_ids(N_RESPONSE, VOCABULARY, 1)
    for target, n_passes, bar in (
        (Target(kind="response"), "N + 1 passes", "<= 0.35"),
        (Target(kind="contrast"), "2 (N + 1) passes", None),
    ):
        ours = partial(attribute, loaded, case, "occlusion", target, refusal_ids=refusal)
        answers = [(1.0, list(case.response_ids))]
        if target.kind == "contrast":
            answers = [(1.0, list(case.response_ids[: target.k])), (-1.0, refusal[: target.k])]
        scores = torch.tensor(ours().scores)
        torch.testing.assert_close(scores, plain(loaded, case, answers, True), rtol=1e-3, atol=1e-3)
        for keep, name in ((False, "all logits"), (True, "response logits")):
            pairs = in_turn(ours, partial(plain, loaded, case, answers, keep), options.repeats, warm=False)
            rows.append(ratio_row(f"medium, {target.kind}: occlusion / {n_passes} with {name}", pairs, bar))
        rows.append(median_row(f"medium, {target.kind}: occlusion, seconds", [one for one, _ in pairs]))
    rows += [row("prompt tokens", N_PROMPT, n=1), row("response tokens", N_RESPONSE, n=1)]
    write("occlusion_speed", seed=0, rows=rows)


if __name__ == "__main__":
    main()
