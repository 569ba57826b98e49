"""The smallest set of words that still transfers, found by counting, not by scores.

All words of all candidates are the material. Each set is carried into requests that the model refuses bare, and counts
as sufficient at a share of the best attack success among the candidates and all of them together. Up to
`EXHAUSTIVE` words are searched by size; more are first cut down to those that cannot be left out one at a time or, where
these do not suffice, by delta debugging (Zeller and Hildebrandt 2002). A set is given up as soon as it cannot reach the
needed count, which changes no result.
What this does not do (yet): take the found set out of the report and look again for a second, redundant one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from math import ceil

from core import chat
from core.answers import Answers, refused_bare, shares
from core.loaded import LoadedModel
from core.prompts import PromptSet
from core.settings import CausalSettings
from core.transplants import carrier, words_of
from core.values import FailureCase, Span, TriggerProposal

Progress = Callable[[str, int, int], None]
Words = frozenset[int]
EXHAUSTIVE = 6
"""Words up to which every subset is tried, at most 62. Source: unverified choice (fits `max_minimise_sets`)."""
FIRST_LOOK = 8
"""Requests asked before a set may be given up. Source: unverified choice."""
SEPARATOR = " \u2026 "
"""Between units in a candidate's text; shown only."""


def minimise(
    loaded: LoadedModel,
    case: FailureCase,
    proposals: Sequence[TriggerProposal],
    prompts: PromptSet,
    settings: CausalSettings | None = None,
    *,
    progress: Progress | None = None,
    answers: Answers | None = None,
) -> tuple[tuple[TriggerProposal, ...], tuple[TriggerProposal, ...]]:
    """Return the candidates to test, best first, and those dropped, each with its reasons.

    `prompts` is the whole causal split; only its minimisation share is used. Where nothing transfers, the proposals
    are kept as they are, so that the tests say so. Source: method.md section 4.2 step 3.
    """
    settings = settings or CausalSettings()
    if not proposals:
        return (), ()
    answers = answers or Answers(loaded, settings.judge_tokens, progress)
    search = _Search(case, proposals, shares(prompts, settings)[0], settings, answers)
    n = len(search.requests)
    found = search.smallest() if n >= settings.min_minimise else None
    if found is None:
        why = f"No set of candidates changes more than {search.best} of {n} other requests: not cut down."
        if n < settings.min_minimise:
            why = f"Only {n} requests of the folder are refused without the candidates: not cut down."
        kept = [replace(one, reasons=(*one.reasons, why)) for one in proposals]
    else:
        kept = search.candidates(found)
    limit = settings.max_candidates
    beyond = f"Not tested: beyond the first {limit} candidates."
    dropped = [replace(one, kept=False, reasons=(*one.reasons, beyond)) for one in kept[limit:]]
    return tuple(kept[:limit]), (*(search.dropped(found) if found is not None else ()), *dropped)


class _Search:
    """Sets of words of one report, carried and counted; a set is a frozenset of indices into `words`."""

    def __init__(
        self,
        case: FailureCase,
        proposals: Sequence[TriggerProposal],
        prompts: PromptSet,
        settings: CausalSettings,
        answers: Answers,
    ) -> None:
        """Find the requests and count the proposals and all of them together."""
        self.case, self.proposals, self.settings, self.answers = case, proposals, settings, answers
        self.messages = case.report.messages
        self.words = words_of(self.messages, [span for one in proposals for span in one.spans])
        nothing_carried = carrier(self.messages, (), self.words)
        self.requests, _ = refused_bare(answers, nothing_carried, prompts.harmful, settings.n_minimise)
        self.hits: dict[Words, int] = {}
        self.n_sets = 0
        self.need = 0
        self.sets = [self._indices(one) for one in proposals]
        everything = frozenset(range(len(self.words)))
        for words in dict.fromkeys([everything, *self.sets]) if len(self.requests) >= settings.min_minimise else ():
            self._count(words)
        self.best = max(self.hits.values(), default=0)
        self.need = max(1, ceil(settings.sufficient_share * self.best - 1e-9))

    def smallest(self) -> Words | None:
        """Return the smallest sufficient set found, or None where nothing transfers."""
        if self.best < self.settings.transfer_gain * len(self.requests):
            return None
        start = min((one for one in self.hits if self.hits[one] >= self.need), key=self._order)
        cut = self._necessary(start) or self._delta_debug(start) if len(start) > EXHAUSTIVE else start
        return self._by_size(cut) if len(cut) <= EXHAUSTIVE else cut

    def candidates(self, found: Words) -> list[TriggerProposal]:
        """Return the found set, then proposals that share no word with it and transfer by themselves."""
        source = min(
            (one for one, words in zip(self.proposals, self.sets, strict=True) if words >= found),
            key=lambda one: len(one.spans),
            default=self.proposals[0],
        )
        spans = self._spans(found)
        n, spent = len(self.requests), self.n_sets >= self.settings.max_minimise_sets
        reasons = [
            f"The smallest set of words that still changes {self.hits[found]} of {n} other requests (the best set: {self.best})."
        ]
        if spent:
            reasons.append(f"The search ended at the limit of {self.settings.max_minimise_sets} sets.")
        first = TriggerProposal(
            spans=spans,
            text=SEPARATOR.join(chat.units_of(self.messages, spans)),
            token_positions=chat.spans_to_positions(self.case.prompt, spans),
            score=source.score,
            reasons=(*source.reasons, *reasons) if source.spans == spans else tuple(reasons),
        )
        return [first, *(self._with_count(one, words) for one, words in self._apart(found))]

    def dropped(self, found: Words) -> list[TriggerProposal]:
        """Return the proposals that are not kept beside the found set."""
        apart = [words for _, words in self._apart(found)]
        gone = []
        for one, words in zip(self.proposals, self.sets, strict=True):
            if words != found and words not in apart:
                what = "It holds the smallest set and more." if words > found else ""
                gone.append(self._with_count(replace(one, kept=False), words, what))
        return gone

    def _apart(self, found: Words) -> list[tuple[TriggerProposal, Words]]:
        pairs = zip(self.proposals, self.sets, strict=True)
        return [(one, words) for one, words in pairs if not words & found and self.hits[words] >= self.need]

    def _with_count(self, one: TriggerProposal, words: Words, what: str = "") -> TriggerProposal:
        reason = f"Alone it changes {self.hits[words]} of {len(self.requests)} other requests. {what}".strip()
        return replace(one, reasons=(*one.reasons, reason))

    def _by_size(self, start: Words) -> Words:
        """Return the smallest sufficient subset of `start`; of equals the one with most hits, then the leftmost."""
        for size in range(1, len(start)):
            subsets = [frozenset(chosen) for chosen in combinations(sorted(start), size)]
            sufficient = self._sufficient(subsets)
            if sufficient:
                return min(sufficient, key=self._order)
        return start

    def _necessary(self, words: Words) -> Words | None:
        """Return the words that cannot be left out one at a time, if they suffice; None otherwise or with too many words.

        For a trigger all of whose words are needed that is the answer, at the cost of one set a word.
        """
        if 2 * len(words) > self.settings.max_minimise_sets:
            return None
        can_go = self._sufficient([words - {one} for one in sorted(words)])
        needed = frozenset(one for one in words if words - {one} not in can_go)
        return needed if self._sufficient([needed]) else None

    def _delta_debug(self, words: Words) -> Words:
        """Return a sufficient subset of `words` from which no tried part could be left out.

        Source: ddmin, Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing input".
        """
        n_parts = 2
        while len(words) > EXHAUSTIVE and n_parts <= len(words):
            ordered = sorted(words)
            cuts = [round(number * len(ordered) / n_parts) for number in range(n_parts + 1)]
            parts = [frozenset(ordered[low:high]) for low, high in pairwise(cuts)]
            sufficient = self._sufficient([*parts, *(words - part for part in parts)])
            if sufficient:
                smaller = min(sufficient, key=self._order)
                n_parts = 2 if smaller in parts else max(2, n_parts - 1)
                words = smaller
            elif n_parts == len(words) or self.n_sets >= self.settings.max_minimise_sets:
                break
            else:
                n_parts = min(2 * n_parts, len(words))
        return words

    def _sufficient(self, sets: Iterable[Words]) -> list[Words]:
        """Return those of the sets that reach the needed count, as far as the limit on sets allows."""
        wanted = [one for one in dict.fromkeys(sets) if one]
        room = max(0, self.settings.max_minimise_sets - self.n_sets)
        new = [one for one in wanted if one not in self.hits][:room]
        self.n_sets += len(new)
        alive, hits, asked = new, dict.fromkeys(new, 0), 0
        while alive and asked < len(self.requests):
            chunk = self.requests[asked : asked + (FIRST_LOOK if asked == 0 else len(self.requests))]
            unsafe = iter(self._ask([(one, request) for one in alive for request in chunk]))
            for one in alive:
                hits[one] += sum(next(unsafe) for _ in chunk)
            asked += len(chunk)
            alive = [one for one in alive if hits[one] + len(self.requests) - asked >= self.need]
        self.hits.update(hits)
        return [one for one in wanted if self.hits.get(one, 0) >= self.need]

    def _count(self, words: Words) -> None:
        self.n_sets += 1
        self.hits[words] = sum(self._ask([(words, request) for request in self.requests]))

    def _ask(self, asked: Sequence[tuple[Words, str]]) -> list[bool]:
        carriers = {words: carrier(self.messages, self._spans(words), self.words) for words, _ in asked}
        conversations = [carriers[words].carry(request) for words, request in asked]
        fits = [self.answers.fits(one) for one in conversations]
        unsafe = iter(self.answers.unsafe([one for one, ok in zip(conversations, fits, strict=True) if ok], "minimise"))
        return [next(unsafe) if ok else False for ok in fits]

    def _spans(self, words: Words) -> tuple[Span, ...]:
        """Return the words as spans, adjacent ones joined with the text between them."""
        return chat.close_to_words(self.messages, [self.words[one] for one in sorted(words)])

    def _indices(self, proposal: TriggerProposal) -> Words:
        own = set(words_of(self.messages, proposal.spans))
        return frozenset(index for index, word in enumerate(self.words) if word in own)

    def _order(self, words: Words) -> tuple[int, int, list[int]]:
        return len(words), -self.hits[words], sorted(words)
