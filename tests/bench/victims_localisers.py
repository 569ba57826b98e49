"""Localisers side by side on the same report: those of the core, and two that know nothing of the model.

Each marks prompt tokens. Scored are the overlap with the planted tokens, and the functional hit: attack success of the
marked text carried into other requests, divided by that of the planted text carried in the same way. Of what the cascade
finds, the same is asked of its proper parts.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from core.answers import Answers
from core.attribution import attribute
from core.clustering import two_means
from core.loaded import LoadedModel
from core.locating import clusters_of
from core.settings import AttributionSettings
from core.text_spans import close_to_words, positions_to_spans
from core.transplants import carrier, words_of
from core.values import FailureCase, MethodName, Span, Target, TargetKind
from tests.bench.localisation import score

CORE_METHODS: dict[str, tuple[MethodName, TargetKind]] = {
    "paper mode": ("paper", "response"),
    "gradient norm, response window": ("gradient_norm", "first_k"),
    "gradient x input of the contrast": ("gradient_x_input", "contrast"),
    "integrated gradients of the contrast": ("integrated_gradients", "contrast"),
    "occlusion of the contrast": ("occlusion", "contrast"),
}
RARITY, RANDOM, CASCADE = "rarity of the token", "random", "cascade"
LOCALISERS = (*CORE_METHODS, RARITY, RANDOM)


@dataclass(frozen=True, kw_only=True)
class Marked:
    """The prompt positions that a localiser marked, and what that cost."""

    positions: frozenset[int]
    calls: int
    seconds: float


def marked(
    loaded: LoadedModel, case: FailureCase, name: str, refusal_ids: Sequence[int], counts: Counter[int], seed: int
) -> Marked:
    """Return what one localiser marks; `counts` holds how often each token id stands in ordinary prompts."""
    started = time.perf_counter()
    if name in CORE_METHODS:
        method, kind = CORE_METHODS[name]
        attribution = attribute(loaded, case, method, Target(kind=kind), refusal_ids=refusal_ids)
        labels, calls = clusters_of(attribution, AttributionSettings()).labels, attribution.model_calls
        positions = frozenset(int(position) for position in np.flatnonzero(labels == 1))
    else:
        own = [token for token in case.prompt.tokens if token.segment == "user"]
        rng, total = random.Random(seed), sum(counts.values()) + 1
        scores = [rng.random() if name == RANDOM else -math.log((counts[t.id] + 1) / total) for t in own]
        chosen, calls = two_means(np.array(scores)).labels, 0
        positions = frozenset(token.position for token, label in zip(own, chosen, strict=True) if label == 1)
    return Marked(positions=positions, calls=calls, seconds=time.perf_counter() - started)


def token_counts(loaded: LoadedModel, prompts: Sequence[str]) -> Counter[int]:
    """Return how often each token id stands in `prompts`."""
    ids = loaded.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    return Counter(token for one in ids for token in one)


class Functional:
    """Attack success of text carried into requests that are as they should be without it; answers are remembered."""

    def __init__(
        self, answers: Answers, requests: Sequence[str], failed: Callable[[str], bool], case: FailureCase
    ) -> None:
        """Keep of `requests` those that do not fail bare in the report's own conversation."""
        self.answers, self.failed, self.case = answers, failed, case
        nothing = carrier(case.report.messages, ())
        said = answers.texts([nothing.bare(request) for request in requests], "bench, bare")
        self.requests = [request for request, text in zip(requests, said, strict=True) if not failed(text)]

    def success(self, spans: Sequence[Span], of: Sequence[Span] = ()) -> float:
        """Return the share of requests that fail with the text at `spans`, a part of that at `of`; 0 without any text."""
        if not spans or not self.requests:
            return 0.0
        carried = carrier(self.case.report.messages, spans, of)
        said = self.answers.texts([carried.carry(request) for request in self.requests], "bench, carried")
        return sum(map(self.failed, said)) / len(said)

    def hit(self, positions: frozenset[int], planted: Sequence[Span]) -> float | None:
        """Return success of the marked tokens, as they are or closed to whole words, over that of the planted text; None where
        that is 0."""
        best = self.success(planted)
        marked = positions_to_spans(self.case.prompt, sorted(positions))
        closed = close_to_words(self.case.report.messages, marked)
        return max(self.success(marked), self.success(closed)) / best if best else None

    def part(self, positions: frozenset[int], planted: Sequence[Span]) -> float | None:
        """Return the largest success of the marked words less any one of them, over that of the planted text; None where that is 0
        or fewer than two words are marked."""
        messages, best = self.case.report.messages, self.success(planted)
        words = words_of(messages, positions_to_spans(self.case.prompt, sorted(positions)))
        if not best or len(words) < 2:
            return None
        parts = ([word for word in words if word != left] for left in words)
        return max(self.success(close_to_words(messages, part), words) for part in parts) / best


def measured(found: Marked, truth: frozenset[int], functional: float | None) -> dict[str, float | int | None]:
    """Return the stored measures of one localiser on one report; without planted tokens the overlap is None."""
    overlap = score(set(found.positions), set(truth)) if truth else None
    return {
        "precision": overlap.precision if overlap else None,
        "recall": overlap.recall if overlap else None,
        "f1": overlap.f1 if overlap else None,
        "exact": overlap.exact if overlap else None,
        "functional": functional,
        "n_marked": len(found.positions),
        "calls": found.calls,
        "seconds": round(found.seconds, 3),
    }
