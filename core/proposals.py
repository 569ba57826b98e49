"""Groups of tokens to candidates a person can read: character spans closed to whole words, best first.

All tokens that stand out together are the first candidate, with several units when they are scattered (a composite
trigger); then each unit alone. An empty tuple is a finding. A candidate is not a trigger until the tests say so.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from core.intervals import percent
from core.rewrites import SENTENCE
from core.text_spans import last_user, merge_spans, positions_to_spans, spans_to_positions
from core.transplants import close_units, core_span, text_of, touches
from core.values import FailureCase, Span, TokenClusters, TriggerProposal

RULES = {
    "two_means": "2-means",
    "occlusion_sqrt": "2-means of the square root of each drop",
    "occlusion_floor": "a share of the largest drop",
    "occlusion_either": "2-means of the square root of each drop, or a share of the largest",
    "occlusion_both": "2-means of the square root of each drop, and a share of the largest",
}
"""How tokens were told apart, in words, by the method of their clusters."""

END_WORDS = (4, 8, 16)
"""Words at the start and the end of a message that are tried together. Source: unverified choice."""


def propose(case: FailureCase, clusters: TokenClusters, scores: np.ndarray) -> tuple[TriggerProposal, ...]:
    """Return candidates from the tokens labelled 1: the whole set first, then its units by score; possibly none.

    Adjacent tokens form a unit; units are widened to whole words, and units that only white space parts are one.
    `score` is the share (0..1) of all support on scored tokens; `scores` (n_prompt,), negative ones count as 0.
    """
    messages = case.report.messages
    marked = [int(i) for i in np.flatnonzero(clusters.labels > 0)]
    if not marked:
        return ()
    spans = close_units(messages, positions_to_spans(case.prompt, marked))
    if not spans:  # a plain space or line break is in every prompt
        return ()
    scored = clusters.labels >= 0
    support = np.where(scored, np.maximum(scores, 0.0), 0.0)
    reasons = [_marked_reason(clusters, len(marked), int(scored.sum()))]
    whole = _candidate(case, spans, support, reasons, len(marked))
    if len(spans) == 1:
        return (whole,)
    part = (f"One of the {len(spans)} units that stand out together.",)
    units = [_candidate(case, (span,), support, list(part), None) for span in spans]
    return (whole, *sorted(units, key=lambda unit: (-unit.score, unit.token_positions)))


def union(named: Sequence[tuple[str, Sequence[TriggerProposal]]]) -> tuple[TriggerProposal, ...]:
    """Return the candidates of several attributions, each text once, best first; `named`: (method, its candidates).

    The first method gives all of its candidates, the others what they mark as a whole. Each has the methods that found it
    among its reasons. Source: method.md section 4.2 step 1.
    """
    found: dict[tuple[Span, ...], TriggerProposal] = {}
    methods: dict[tuple[Span, ...], list[str]] = {}
    for number, (method, proposals) in enumerate(named):
        for one in proposals if number == 0 else proposals[:1]:
            found.setdefault(one.spans, one)
            methods.setdefault(one.spans, []).append(method)
    return tuple(
        replace(one, reasons=(*one.reasons, f"Marked by {', '.join(methods[spans])}.")) for spans, one in found.items()
    )


def neighbours(case: FailureCase, proposals: Sequence[TriggerProposal]) -> tuple[Span, ...]:
    """Return the text of all candidates with one word on either side of each unit: more that may belong to the trigger."""
    messages = case.report.messages
    wider = []
    for span in {span for one in proposals for span in one.spans}:
        content = messages[span.message].content
        before = content[: span.start].rstrip()
        after = re.match(r"\s*\S+", content[span.end :])
        start = len(before) - len(before.rsplit(maxsplit=1)[-1]) if before else span.start
        end = span.end + after.end() if after else span.end
        wider.append(replace(span, start=start, end=end))
    return merge_spans(wider)


def sentences(case: FailureCase, proposals: Sequence[TriggerProposal]) -> tuple[Span, ...]:
    """Return the sentences in which candidates stand, whole, but not that of the request itself: more yet that may belong to the
    trigger.
    """
    messages = case.report.messages
    spans = merge_spans(span for one in proposals for span in one.spans)
    request = [core_span(messages)]
    found = [
        Span(message=number, start=sentence.start(), end=sentence.end())
        for number in sorted({span.message for span in spans})
        for sentence in SENTENCE.finditer(messages[number].content)
    ]
    return merge_spans(one for one in found if touches(one, spans) and not touches(one, request))


def ends(case: FailureCase, spans: Sequence[Span]) -> tuple[tuple[Span, ...], ...]:
    """Return the first and the last few words of the last user message, of several lengths, each by itself and both together, that
    hold words of `spans`: what may belong to text that stands before or after a request, and is no sentence of its own.
    """
    messages = case.report.messages
    last = last_user(messages)
    words = [
        Span(message=last, start=one.start(), end=one.end()) for one in re.finditer(r"\S+", messages[last].content)
    ]
    found: list[tuple[Span, ...]] = []
    for n in END_WORDS:
        first, final = (replace(cut[0], end=cut[-1].end) for cut in (words[:n], words[-n:]))
        found += [(first,), (final,)] if n < len(words) else []
        found += [(first, final)] if 2 * n < len(words) else []
    return tuple(one for one in found if any(touches(span, spans) for span in one))


def _candidate(
    case: FailureCase, spans: tuple[Span, ...], support: np.ndarray, reasons: list[str], n_marked: int | None
) -> TriggerProposal:
    messages = case.report.messages
    positions = tuple(spans_to_positions(case.prompt, spans))
    total = float(support.sum())
    score = float(support[list(positions)].sum()) / total if total > 0 else 0.0
    reasons.append(f"It carries {percent(score)} of the support for the reported answer.")
    if n_marked is not None and len(positions) > n_marked:
        reasons.append(f"Widened from {n_marked} to {len(positions)} tokens, to whole words.")
    if len(spans) > 1:
        reasons.append(f"{len(spans)} separate units: they may work only together.")
    return TriggerProposal(
        spans=spans, text=text_of(messages, spans), token_positions=positions, score=score, reasons=tuple(reasons)
    )


def _marked_reason(clusters: TokenClusters, n_marked: int, n_scored: int) -> str:
    boundary = "" if clusters.boundary is None else f" above {clusters.boundary:.3g}"
    tokens = "token stands" if n_marked == 1 else "tokens stand"
    reason = f"{n_marked} of {n_scored} {tokens} out{boundary} ({RULES.get(clusters.method, clusters.method)})."
    if 2 * n_marked > n_scored:
        reason += " That is more than half of the text: a style or a scenario rather than a phrase."
    return reason
