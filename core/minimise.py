"""The smallest set of words that still transfers, found by counting, not by scores.

All words of all candidates, and a word on either side, are the material. Each set is carried into requests that are
answered rightly bare, and counts as sufficient at a share of the best attack success among the candidates and all of them
together. Up to `EXHAUSTIVE` words are searched by size; more are first cut down to those that cannot be left out one at a
time or, where these do not suffice, by delta debugging (Zeller and Hildebrandt 2002). A set is given up as soon as it
cannot reach the needed count, which changes no result. Of the smallest set words, alone or at the ends of a phrase, are left
out that the others do nearly as much without, and what is left must hold on requests that it was not chosen on as well. In the
end a word is cut to the tokens that stand out in it, and marks at its ends are left out, where nothing is lost by that. A set of
more than half of the prompt, or of many sentences, is a finding only where each of its words is needed, other words of the same
form do not do the same, and it is not the request itself: a style, an order of clauses or a scenario has no text of its own.
What this does not do: look for a second text that works by itself beside these words (`again.py` prepares that).
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from math import ceil

from core import whole_case
from core.answers import Answers, eligible, shares
from core.budget import Meter
from core.intervals import wilson
from core.loaded import LoadedModel
from core.progress import Progress
from core.prompts import PromptSet
from core.rewrites import SENTENCE
from core.settings import CausalSettings
from core.shams import same_form
from core.text_spans import positions_to_spans, span_text, spans_to_positions
from core.transplants import carrier, close_units, quoted, takes_all, text_of, touches, without_spans, words_of
from core.values import FailureCase, Message, Rate, Span, TriggerProposal
from core.word_logic import Counts, Words, logic_of

EXHAUSTIVE = 6
"""Words up to which every subset is tried, at most 62. Source: unverified choice (fits `max_minimise_sets`)."""
MARKS = ".,;:!?\"'()"
"""Marks of punctuation that may stand at the ends of a text and not belong to it. Source: unverified choice."""
FIRST_LOOK = 8
"""Requests asked before a set may be given up. Source: unverified choice."""


@dataclass(frozen=True, kw_only=True)
class Minimised:
    """Candidates to test, best first, and those dropped, each with its reasons; `logic` of the first one's words.

    `found` is whether the first candidate is a set that transfers, `needed` whether each of its words is needed and it is not
    the request itself (looked into where it is more than a small part of the prompt). `rate` and `whole` are the shares of
    other requests that fail with that set (with the words left out of it that only lend weight), and with the first proposal as it
    was given; None where nothing was counted. `strongest` is the small set that changes more of them than the found one, and most, with
    its share.
    """

    kept: tuple[TriggerProposal, ...] = ()
    dropped: tuple[TriggerProposal, ...] = ()
    logic: str = ""
    found: bool = False
    needed: bool = False
    rate: Rate | None = None
    whole: Rate | None = None
    strongest: tuple[TriggerProposal, Rate] | None = None


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
    """Return the candidates to test, best first, and those dropped, as `search` finds them."""
    settings = settings or CausalSettings()
    answers = answers or Answers(loaded, settings.judge_tokens, progress)
    result = search(case, proposals, prompts, settings, answers, Meter(settings.max_calls, loaded))
    return result.kept, result.dropped


def search(
    case: FailureCase,
    proposals: Sequence[TriggerProposal],
    prompts: PromptSet,
    settings: CausalSettings,
    answers: Answers,
    meter: Meter,
    *,
    around: Sequence[Span] = (),
    marked: Sequence[int] = (),
    taken: Sequence[Span] = (),
    also: Sequence[Sequence[Span]] = (),
) -> Minimised:
    """Return the smallest set of words that transfers, beside it what transfers by itself, and the logic of its words.

    `prompts` is the whole causal split; only its minimisation share is asked. `around` is more text that may belong to the
    trigger; `marked` are token positions that stand out, to cut words to; `taken` is text that was found before and never
    comes along; `also` are more sets of spans to begin from. Where nothing transfers, the proposals are kept as they are, so
    that the tests say so.
    Source: method.md section 4.2 step 3.
    """
    if not proposals:
        return Minimised()
    one = _Search(case, proposals, prompts, settings, answers, meter, around, marked, taken, also)
    n = len(one.requests)
    found = one.smallest() if n >= settings.min_minimise else None
    small = found is None or is_small(case, one.spans_of(found), settings)
    lacking = one.not_needed(found) if found is not None and not small else ""
    needed = not small and not lacking
    if found is not None and lacking:
        large = f"The smallest set of words that changes other requests ({len(found)}) is more than half of the prompt or stands all over it"
        why = f"{large}, and {lacking}."
        found = None
    elif n < settings.min_minimise and meter.spent:
        why = "The budget of sequences had no room to cut it down."
    elif n < settings.min_minimise:
        why = f"Only {n} of {one.n_asked} requests asked are {answers.kind.right_words} without the candidates: not cut down."
    else:
        why = f"No set of candidates changes more than {one.best} of {n} other requests: not cut down."
    logic = ""
    gone: list[TriggerProposal] = []
    if found is None:
        kept, gone = one.wholes(why)
    else:
        kept, gone = one.candidates(found), one.dropped(found)
        logic = one.logic(found)
    limit = settings.max_candidates
    beyond = f"Not tested: beyond the first {limit} candidates."
    gone += [replace(candidate, kept=False, reasons=(*candidate.reasons, beyond)) for candidate in kept[limit:]]
    return Minimised(
        kept=tuple(kept[:limit]),
        dropped=tuple(gone),
        logic=logic,
        found=found is not None,
        needed=needed,
        rate=None if found is None else wilson(max(one.hits[found], one.reached), n),
        whole=wilson(one.hits[one.sets[0]], n) if one.sets[0] in one.hits else None,
        strongest=None if found is None else one.strongest(found),
    )


def is_small(case: FailureCase, spans: Sequence[Span], settings: CausalSettings) -> bool:
    """Return whether the spans are words of a few sentences, and a few words or no more than half of those that are not the model's
    own."""
    messages = case.report.messages
    n_words = len(words_of(messages, spans))
    everything = sum(len(message.content.split()) for message in messages if message.role != "assistant")
    sentences = [
        Span(message=number, start=found.start(), end=found.end())
        for number, message in enumerate(messages)
        for found in SENTENCE.finditer(message.content)
    ]
    spread = sum(touches(one, spans) for one in sentences)
    few = n_words <= max(settings.small_words, settings.large_share * everything)
    return few and spread <= settings.small_sentences


class _Search:
    """Sets of words of one report, carried and counted; a set is a frozenset of indices into `words`."""

    def __init__(
        self,
        case: FailureCase,
        proposals: Sequence[TriggerProposal],
        prompts: PromptSet,
        settings: CausalSettings,
        answers: Answers,
        meter: Meter,
        around: Sequence[Span],
        marked: Sequence[int],
        taken: Sequence[Span],
        also: Sequence[Sequence[Span]],
    ) -> None:
        """Find the requests and count the proposals and, where none of them changes nearly all, all of the material together."""
        self.case, self.proposals, self.settings, self.answers, self.meter = case, proposals, settings, answers, meter
        self.messages, self.marked = case.report.messages, marked
        proposed = words_of(self.messages, [span for one in proposals for span in one.spans])
        material = sorted({*proposed, *words_of(self.messages, around)}, key=lambda word: (word.message, word.start))
        self.words = tuple(word for word in material if not touches(word, taken))
        self.removed = (*self.words, *taken)
        self.nothing = carrier(self.messages, (), self.removed)
        self.requests: list[str] = []
        self.n_asked = 0
        self.fresh = shares(prompts, settings, answers.kind)[0]
        self.safe = prompts.safe
        if meter.allows(2 * settings.n_minimise):
            kind, n = answers.kind, settings.n_minimise
            self.requests, self.n_asked = eligible(answers, self.nothing, self.fresh, kind, n, meter)
            self.fresh = replace(self.fresh, **{kind.pool: kind.requests(self.fresh)[self.n_asked :]})
        self.hits: dict[Words, int] = {}
        self.most: dict[Words, int] = {}  # what a set can change at most; more than its hits where it was given up
        self.n_sets = 0
        self.need = 0
        self.reached = 0
        self.unconfirmed = ""
        self.sets = [self._indices(one.spans) for one in proposals]
        together = frozenset[int]().union(*self.sets)
        if len(self.requests) >= settings.min_minimise:
            self._count([together, *self.sets, *(self._indices(spans) for spans in also)])
        everything = frozenset(range(len(self.words)))
        n = len(self.requests)
        if self.hits and everything not in self.hits and max(self.hits.values()) < settings.sufficient_share * n:
            self._count([everything])
        self.best = max(self.hits.values(), default=0)
        self.need = max(1, ceil(settings.sufficient_share * self.best - 1e-9))

    def smallest(self) -> Words | None:
        """Return the smallest sufficient set found, or None where nothing transfers."""
        if not self._transfers(self.best):
            return None
        start = min((one for one in self.hits if self.hits[one] >= self.need), key=self._order)
        cut = self._necessary(start) or self._delta_debug(start) if len(start) > EXHAUSTIVE else start
        return self._confirmed(self._without_weights(self._by_size(cut) if len(cut) <= EXHAUSTIVE else cut))

    def not_needed(self, found: Words) -> str:
        """Return why the words of `found` cannot be said to be needed, "" where everything that was proposed loses most of what it changes
        when one of them is left out of it, on the mean: so with a fixed text, while a style has words to spare. Never of most of the
        request's own words.
        """
        whole = max((one for one in self.hits if self.hits[one] >= self.need), key=len)
        rests = [whole - {one} for one in sorted(found)]
        if not self.meter.allows((len(rests) + 1) * len(self.requests) + 1):
            return "the budget of sequences had no room to see whether each of them is needed"
        if self._is_request(found):
            return "they are most of the request itself"
        left = sum(self._ask([(rest, request) for rest in rests for request in self.requests]))
        if left > self.settings.needed_share * self.hits[whole] * len(rests):
            return "not each of them is needed: a style or a scenario rather than a phrase"
        n = self._other_words(found)
        if n > self.settings.needed_share * self.hits[found]:
            form = "other words with the same marks and capitals in their place change"
            return f"{form} {n} of {len(self.requests)}: an order or a format rather than a phrase"
        return ""

    def _is_request(self, found: Words) -> bool:
        """Return whether `found` are most of the request's own words and what is left of it does not tell that they were put into it:
        without them the report is still a request that is answered rightly.
        """
        spans = self.spans_of(found)
        if not whole_case.is_request(self.case, spans, self.settings):
            return False
        if takes_all(self.messages, spans):
            return True
        rest = [without_spans(self.messages, spans)]
        return not self.answers.right(rest, self.answers.texts(rest, "minimise"), "minimise")[0]

    def _other_words(self, found: Words) -> int:
        """Return how many of the requests change with other words in place of those of `found`, drawn anew for each request."""
        carried = carrier(self.messages, self.spans_of(found), self.removed)
        words = [word for item in self.safe for word in item.prompt.split()]
        draw = same_form(carried.units, words, random.Random(0))
        forms = [(request, draw()) for request in self.requests]
        return sum(self._unsafe([carried.carry(request, form) for request, form in forms if form]))

    def candidates(self, found: Words) -> list[TriggerProposal]:
        """Return the found set, then proposals that share no word with it and transfer by themselves."""
        source, spans = self._source(found), self._trimmed(found)
        n, spent = len(self.requests), self.n_sets >= self.settings.max_minimise_sets
        best = f" (the best set: {self.best})" if self.best > self.hits[found] else ""
        what = (
            "A set of words that holds on other requests too"
            if self.unconfirmed
            else "The smallest set of words that still"
        )
        reasons = [f"{what} changes {self.hits[found]} of {n} other requests{best}."]
        if spent:
            reasons.append(f"The search ended at the limit of {self.settings.max_minimise_sets} sets.")
        if self.meter.spent:
            reasons.append("The search ended at the limit of the budget.")
        if self.unconfirmed:
            reasons.append(self.unconfirmed)
        if spans != self.spans_of(found):
            reasons.append("Words cut to the part that is needed.")
        reasons = [*source.reasons, *reasons] if source.spans == spans else reasons
        apart = [self._with_count(one, words) for one, words in self._apart(found)]
        return [self._candidate(spans, source, reasons), *apart]

    def strongest(self, found: Words) -> tuple[TriggerProposal, Rate] | None:
        """Return the set that changes most of the other requests, the smallest of equals, of those that change more than `found`,
        are a small part of the prompt and not the request itself, and its share; None without any.
        """
        n = len(self.requests)
        for words in sorted(self.hits, key=lambda one: (-self.hits[one], self._order(one))):
            spans = self.spans_of(words)
            if self.hits[words] <= self.hits[found]:
                return None
            if is_small(self.case, spans, self.settings) and not whole_case.is_request(self.case, spans, self.settings):
                reason = f"Of the small sets that were tried this one changes most: {self.hits[words]} of {n} other requests."
                return self._candidate(spans, self._source(words), [reason]), wilson(self.hits[words], n)
        return None

    def _source(self, words: Words) -> TriggerProposal:
        """Return the proposal of fewest units that holds `words`, else the first."""
        holding = [one for one, other in zip(self.proposals, self.sets, strict=True) if other >= words]
        return min(holding, key=lambda one: len(one.spans), default=self.proposals[0])

    def _candidate(self, spans: tuple[Span, ...], source: TriggerProposal, reasons: Sequence[str]) -> TriggerProposal:
        return TriggerProposal(
            spans=spans,
            text=text_of(self.messages, spans),
            token_positions=spans_to_positions(self.case.prompt, spans),
            score=source.score,
            reasons=tuple(reasons),
        )

    def wholes(self, why: str) -> tuple[list[TriggerProposal], list[TriggerProposal]]:
        """Return the proposals that no earlier one holds, and the others as dropped; for when nothing transfers."""
        kept: list[TriggerProposal] = []
        gone: list[TriggerProposal] = []
        seen: list[Words] = []
        for one, words in zip(self.proposals, self.sets, strict=True):
            part = any(words <= other for other in seen)
            reasons = (*one.reasons, why, *(["It is part of a candidate that is tested."] if part else []))
            (gone if part else kept).append(replace(one, kept=not part, reasons=reasons))
            seen.append(words)
        return kept, gone

    def logic(self, found: Words) -> str:
        """Return in plain words how the words of `found` work."""
        names = [quoted(span_text(self.messages, word)) for word in self.words]
        return logic_of(found, names, Counts(self.hits, self.most, len(self.requests), self.need))

    def dropped(self, found: Words) -> list[TriggerProposal]:
        """Return the proposals that are not kept beside the found set."""
        apart = [words for _, words in self._apart(found)]
        gone = []
        for one, words in zip(self.proposals, self.sets, strict=True):
            if words != found and words not in apart:
                what = "It holds the smallest set and more." if words > found else ""
                gone.append(self._with_count(replace(one, kept=False), words, what))
        return gone

    def _trimmed(self, found: Words) -> tuple[Span, ...]:
        """Return the spans of `found`, cut at the ends of its units to the tokens that stand out and without marks of punctuation,
        where nothing is lost and what is cut off does not set the report off by itself.
        """
        spans = self.spans_of(found)
        for number in range(len(spans)):
            for shorter in (self._hull, self._unmarked):
                one = shorter(spans[number])
                if one is None or one == spans[number] or not self.meter.allows(len(self.requests) + 2):
                    continue
                tried = (*spans[:number], one, *spans[number + 1 :])
                carried = carrier(self.messages, tried, self.removed)
                enough = sum(self._unsafe([carried.carry(request) for request in self.requests])) >= self.hits[found]
                if enough and self._fails_without(tried) <= self._fails_without(spans):
                    spans = tried
        return spans

    def _fails_without(self, spans: tuple[Span, ...]) -> bool:
        """Return whether the report still fails without these spans."""
        return not takes_all(self.messages, spans) and self._unsafe([without_spans(self.messages, spans)])[0]

    def _unmarked(self, span: Span) -> Span | None:
        """Return a unit without the marks of punctuation at its ends, None where it has nothing else."""
        text = span_text(self.messages, span)
        kept = text.strip(MARKS)
        start = span.start + len(text) - len(text.lstrip(MARKS))
        return replace(span, start=start, end=start + len(kept)) if kept else None

    def _hull(self, span: Span) -> Span | None:
        """Return the part of a unit from its first to its last marked token, None without any."""
        at = set(spans_to_positions(self.case.prompt, [span])) & set(self.marked)
        own = [one for one in positions_to_spans(self.case.prompt, sorted(at)) if one.message == span.message]
        if not own:
            return None
        start, end = max(span.start, own[0].start), min(span.end, own[-1].end)
        content = self.messages[span.message].content
        while start < end and content[start].isspace() and not content[start:end].isspace():
            start += 1
        return replace(span, start=start, end=end)

    def _transfers(self, hits: int) -> bool:
        return hits >= self.settings.transfer_gain * len(self.requests)

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

    def _without_weights(self, words: Words) -> Words:
        """Return `words` without those, alone or at an end of a phrase, that the others do nearly as much without, the least missed first.

        Such a word lends weight, as any word of a harmful request does: with it a few more requests fail, and others would do as
        well. Of a trigger's own words none can go: what they do they do together. A phrase gets no gaps, in which any word might do.
        """
        self.reached = self.hits[words]
        while len(words) > 1 and self.n_sets < self.settings.max_minimise_sets:
            rests = [words - {one} for one in self._outer(words)]
            enough = self._nearly(self.best + len(self.others)) - len(self.others)
            rests = [one for one in rests if self.most.get(one, len(self.requests)) >= enough]
            self._count([one for one in rests if self.hits.get(one, -1) != self.most.get(one)])
            left = min(rests, key=self._order, default=words)
            if left == words or not self._transfers(self.hits[left]) or not self._holds(left):
                break
            words = left
        return words

    def _outer(self, words: Words) -> list[int]:
        """Return those of the words that start or end a unit."""
        units = self.spans_of(words)
        starts, ends = {(one.message, one.start) for one in units}, {(one.message, one.end) for one in units}
        own = [(at, self.words[at]) for at in sorted(words)]
        return [at for at, one in own if (one.message, one.start) in starts or (one.message, one.end) in ends]

    def _confirmed(self, words: Words) -> Words:
        """Return `words` or, where these do not hold, the smallest of the larger sets that does: of many sets that are tried, one
        that seems enough may owe it to the requests it was chosen on.
        """
        n_asked = (EXHAUSTIVE + 2) * len(self.others)
        if not self.others or not self.meter.allows(n_asked) or self._holds(words):
            return words
        larger = [one for one in self.hits if one > words and self.hits[one] >= self.need]
        tried = sorted(larger, key=self._order)[:EXHAUSTIVE]
        found = next((one for one in tried if self._holds(one)), self._top)
        told = f"{len(self.others)} requests that they were not chosen on, this one {self._on_others(found)}"
        self.unconfirmed = f"The smallest set that seemed enough changes {self._on_others(words)} of {told}."
        return found

    def _holds(self, words: Words) -> bool:
        """Return whether a set does nearly as much as the best one, on the requests that sets are chosen on and on the others; False
        where the budget has no room to ask.
        """
        if not self.meter.allows(2 * len(self.others)):
            return False
        both = [self.hits[one] + self._on_others(one) for one in (words, self._top)]
        return both[0] >= self._nearly(both[1])

    def _nearly(self, hits: int) -> int:
        """Return how many requests, to the nearest whole one, are nearly as many as `hits`."""
        return round(self.settings.spare_share * hits)

    @property
    def _top(self) -> Words:
        """The set that changes most, the largest of equals."""
        return max(self.hits, key=lambda one: (self.hits[one], len(one), sorted(one)))

    @cached_property
    def others(self) -> list[str]:
        """As many requests again, that no set is chosen on; none where they are few or the budget has no room for them."""
        n = self.settings.n_minimise
        if not self.meter.allows(2 * n):
            return []
        found, _ = eligible(self.answers, self.nothing, self.fresh, self.answers.kind, n, self.meter)
        return found if len(found) >= self.settings.min_minimise else []

    def _on_others(self, words: Words) -> int:
        return sum(self._ask([(words, request) for request in self.others]))

    def _necessary(self, words: Words) -> Words | None:
        """Return the words that cannot be left out, if they suffice; None otherwise or with too many words.

        Each is left out alone first: for a trigger all of whose words are needed that is the answer, at the cost of one set a word.
        Where the others cannot go all at once they go one by one. What is left changes one request less at most.
        """
        if 2 * len(words) > self.settings.max_minimise_sets:
            return None
        enough = self.hits[words] - 1
        rests = {one: words - {one} for one in sorted(words)}
        can_go = self._sufficient(rests.values(), enough)
        spare = sorted((one for one in words if rests[one] in can_go), key=lambda one: (-self.hits[rests[one]], one))
        needed = words - frozenset(spare)
        if self._sufficient([needed], enough):
            return needed
        if len(spare) > 2 * EXHAUSTIVE:
            return needed if self._sufficient([needed]) else None
        for one in spare:
            if self._sufficient([words - {one}], enough):
                words = words - {one}
        return words

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

    def _sufficient(self, sets: Iterable[Words], need: int = 0) -> list[Words]:
        """Return those of the sets that reach the needed count, or `need` where that is more, as far as the limit on sets allows."""
        need = max(need, self.need)
        wanted = [one for one in dict.fromkeys(sets) if one]
        room = max(0, self.settings.max_minimise_sets - self.n_sets)
        new = [one for one in wanted if one not in self.hits][:room]
        self.n_sets += len(new)
        alive, hits, asked = new, dict.fromkeys(new, 0), 0
        while alive and asked < len(self.requests):
            chunk = self.requests[asked : asked + (FIRST_LOOK if asked == 0 else len(self.requests))]
            if not self.meter.allows(len(alive) * len(chunk)):
                hits = {one: count for one, count in hits.items() if one not in alive}
                break
            unsafe = iter(self._ask([(one, request) for one in alive for request in chunk]))
            for one in alive:
                hits[one] += sum(next(unsafe) for _ in chunk)
            asked += len(chunk)
            left = len(self.requests) - asked
            can_reach = [one for one in alive if hits[one] + left >= self.need]
            self.most.update({one: hits[one] + left for one in alive if not left or one not in can_reach})
            alive = can_reach
        self.hits.update(hits)
        return [one for one in wanted if self.hits.get(one, 0) >= need]

    def _count(self, sets: Iterable[Words]) -> None:
        """Count the sets on every request, as many as the budget allows; the others count as 0."""
        new = list(dict.fromkeys(sets))
        self.n_sets += len(new)
        self.hits.update(dict.fromkeys(new, 0))
        asked = [one for one in new if one]
        while asked and not self.meter.allows(len(asked) * len(self.requests)):
            asked.pop()
        unsafe = iter(self._ask([(one, request) for one in asked for request in self.requests]))
        self.hits.update({one: sum(next(unsafe) for _ in self.requests) for one in asked})
        self.most.update({one: self.hits[one] for one in asked})

    def _ask(self, asked: Sequence[tuple[Words, str]]) -> list[bool]:
        carriers = {words: carrier(self.messages, self.spans_of(words), self.removed) for words, _ in asked}
        return self._unsafe([carriers[words].carry(request) for words, request in asked])

    def _unsafe(self, conversations: Sequence[tuple[Message, ...]]) -> list[bool]:
        fits = [self.answers.fits(one) for one in conversations]
        unsafe = iter(self.answers.unsafe([one for one, ok in zip(conversations, fits, strict=True) if ok], "minimise"))
        return [next(unsafe) if ok else False for ok in fits]

    def spans_of(self, words: Words) -> tuple[Span, ...]:
        """Return the words as spans, adjacent ones joined with the text between them."""
        return close_units(self.messages, [self.words[one] for one in sorted(words)])

    def _indices(self, spans: Sequence[Span]) -> Words:
        own = set(words_of(self.messages, spans))
        return frozenset(index for index, word in enumerate(self.words) if word in own)

    def _order(self, words: Words) -> tuple[int, int, list[int]]:
        return len(words), -self.hits[words], sorted(words)
