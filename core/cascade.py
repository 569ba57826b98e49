"""The causal cascade of one reproduced report: candidates to tests to a verdict, what decides first.

1. Minimise the union of all candidates to the smallest set of words that transfers (minimise.py). A system prompt or an
   earlier turn is a candidate where the report does not fail without it.
2. Take it out and look again, while the report still fails: the rest is located and minimised once more.
3. Test every candidate that is kept (causal.py); all of them taken out together where one alone is not necessary. Where the smallest
   set transfers and does not explain the failure (words of the request that are weaker than it, or it stays without them), the
   strongest set is tested as well.
4. Without a trigger: the report's wording around other requests; where these fail that wording is minimised too, else the
   whole request; then other wordings of the request and, where it fails without a candidate, other requests as they are
   (whole_case.py).
5. The table decides (verdict.py). Nothing is tested on a report that is not reproduced.

Composes only: the model is asked through `Answers`, locating is a function that the caller gives. What this does not do:
read or write the case folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core import again, whole_case
from core.answers import Answers
from core.budget import Meter
from core.causal import test_candidate
from core.loaded import LoadedModel
from core.minimise import EXHAUSTIVE, Minimised, is_small, search
from core.occlusion import planned
from core.progress import Progress
from core.prompts import PromptSet
from core.proposals import ends, neighbours, sentences
from core.rewrites import N_REWRITES
from core.settings import AttributionSettings, CausalSettings
from core.text_spans import last_user, merge_spans, spans_to_positions
from core.transplants import quoted, text_of
from core.values import Budget, FailureCase, Rate, Reproduction, Rewording, Span, TestOutcome, TriggerProposal
from core.verdict import OF_A_CANDIDATE, Decision, decide, reproduced

Locate = Callable[[FailureCase], Sequence[TriggerProposal]]
"""Returns the candidates of a case, best first."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the cascade found, by which tests, and at what cost."""

    candidates: tuple[TriggerProposal, ...]
    dropped: tuple[TriggerProposal, ...]
    tests: tuple[TestOutcome, ...]
    decision: Decision
    logic: str
    rewordings: tuple[Rewording, ...]
    budget: Budget


def run(
    case: FailureCase,
    proposals: Sequence[TriggerProposal],
    marked: Sequence[int],
    prompts: PromptSet,
    reproduction: Reproduction,
    answers: Answers,
    locate: Locate,
    settings: CausalSettings | None = None,
    *,
    reference: LoadedModel | None = None,
    given: Sequence[Rewording] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> Findings:
    """Return the findings for candidates `proposals`, best first; `prompts` is the whole causal split.

    `given` are wordings that the analyst typed. Source: method.md section 4.2.
    """
    one = _Cascade(case, prompts, reproduction, answers, settings or CausalSettings(), reference, given, seed, progress)
    if not reproduced(reproduction, one.settings):
        one.drop_all(proposals, "Not tested: the report is not reproduced.")
    else:
        one.find(proposals, marked, locate)
        if one.undecided and answers.kind.pool == "harmful":
            one.whole_case(locate)
    return one.findings()


class _Cascade:
    """One run: candidates, outcomes and texts gathered so far."""

    def __init__(
        self,
        case: FailureCase,
        prompts: PromptSet,
        reproduction: Reproduction,
        answers: Answers,
        settings: CausalSettings,
        reference: LoadedModel | None,
        given: Sequence[Rewording],
        seed: int,
        progress: Progress | None,
    ) -> None:
        """Nothing found yet."""
        self.case, self.prompts, self.reproduction, self.answers = case, prompts, reproduction, answers
        self.settings, self.reference, self.seed, self.progress = settings, reference, seed, progress
        self.given = given
        self.meter = Meter(settings.max_calls, answers.loaded, *([reference] if reference else []))
        self.room = round(settings.tests_share * settings.max_calls)
        self.cut = False
        self.kept: list[TriggerProposal] = []
        self.needed: set[tuple[Span, ...]] = set()
        self.dropped: list[TriggerProposal] = []
        self.tests: list[TestOutcome] = []
        self.rewordings: tuple[Rewording, ...] = ()
        self.logics: dict[tuple[Span, ...], str] = {}

    def find(self, proposals: Sequence[TriggerProposal], marked: Sequence[int], locate: Locate) -> None:
        """Minimise, look again, and test what is kept."""
        proposals = [*self._segments(self.case), *proposals]
        first = self._smallest(proposals, marked)
        self.dropped = list(first.dropped)
        self._keep(first.kept, first.logic)
        if first.found:
            self._look_again(locate, 0)
        self._test_from(0)
        if first.strongest and self.decide().decided_by in ("strength", "necessity"):
            why = "Tested since the smallest set explains too little of the failure."
            strongest = first.strongest[0]
            start = len(self.kept)
            self._keep([replace(strongest, reasons=(*strongest.reasons, why))])
            self._test_from(start)

    def _keep(self, found: Sequence[TriggerProposal], logic: str = "") -> None:
        """Keep what is not kept yet; `logic` is that of the first."""
        known = {one.spans for one in self.kept}
        self.kept += [one for one in found if one.spans not in known]
        if logic:
            self.logics[found[0].spans] = logic

    def _smallest(self, proposals: Sequence[TriggerProposal], marked: Sequence[int]) -> Minimised:
        """Return the smallest set of words of what stands out or, where that changes too few requests to be all of the trigger, of
        the rest of its sentences and of the ends of the message as well.
        """
        around = neighbours(self.case, proposals)
        found = self._search(proposals, around=around, marked=marked)
        if not self._is_weak(found.rate):
            return found
        rest = sentences(self.case, proposals)
        units = merge_spans(span for one in proposals for span in one.spans)
        at_ends = ends(self.case, found.kept[0].spans if found.found else units)
        if rest or at_ends:
            with_one = [merge_spans([*rest, unit]) for unit in units] if rest else []
            around = merge_spans([*around, *rest, *(span for one in at_ends for span in one)])
            also = [*with_one[:EXHAUSTIVE], *at_ends]
            wider = self._search(proposals, around=around, marked=marked, also=also)
            if wider.found and self._is_weak(found.rate, wider.rate):
                return wider
            each = [one for one in (found.strongest, wider.strongest) if one]
            return replace(found, strongest=max(each, key=lambda one: one[1].k, default=None))
        return found

    def _search(
        self,
        proposals: Sequence[TriggerProposal],
        *,
        around: Sequence[Span] = (),
        marked: Sequence[int] = (),
        taken: Sequence[Span] = (),
        also: Sequence[Sequence[Span]] = (),
        room: int | None = None,
    ) -> Minimised:
        """Return what is left of the proposals, and remember a long text all of whose words are needed; `room` is left to tests."""
        with self.meter.leaving(self.room if room is None else room):
            found = search(
                self.case, proposals, self.prompts, self.settings, self.answers, self.meter,
                around=around, marked=marked, taken=taken, also=also,
            )  # fmt: skip
        if found.needed:
            self.needed.add(found.kept[0].spans)
        return found

    def _is_weak(self, rate: Rate | None, other: Rate | None = None) -> bool:
        """Return whether a text (None: none was found) changes too few requests to be all of the trigger: of all, or of those that
        `other` changes.
        """
        found, wanted = (0.0 if rate is None else rate.value or 0.0), (1.0 if other is None else other.value or 0.0)
        return found < self.settings.sufficient_share * wanted

    def _segments(self, case: FailureCase) -> list[TriggerProposal]:
        """Return as candidates the whole messages before the last one without which the report, or what is left of it, does not fail.

        Attribution scores what the user wrote; a system prompt or an earlier turn is left out as a whole first.
        """
        messages, found = case.report.messages, []
        for number, message in enumerate(messages):
            if number == last_user(messages) or message.role == "assistant" or not message.content.strip():
                continue
            span = Span(message=number, start=0, end=len(message.content))
            rest = again.without(self.answers.loaded.tokenizer, case, [span])
            if rest is not None and self._fails(rest) is False:
                reason = f"Without the {message.role} message number {number + 1} the report does not fail."
                found.append(
                    TriggerProposal(
                        spans=(span,),
                        text=text_of(messages, (span,)),
                        token_positions=spans_to_positions(case.prompt, (span,)),
                        score=0.0,
                        reasons=(reason,),
                    )
                )
        return found

    def _look_again(self, locate: Locate, start: int) -> None:
        """Take what was found, the candidates from `start` on, out of the report and look for more, while what is left
        still fails: at most `max_looks` times.
        """
        for look in range(self.settings.max_looks):
            taken = merge_spans(span for one in self.kept[start:] for span in one.spans)
            rest = again.without(self.answers.loaded.tokenizer, self.case, taken)
            if rest is None or whole_case.is_request(self.case, taken, self.settings) or not self._fails(rest):
                return
            what = "Without it the report still fails" if look == 0 else "Without all of these it still fails"
            with self.meter.leaving(max(self._n_tests, self.room)):
                has_room = self.meter.allows(self._look_cost(rest))
            if not has_room:
                told = f"{what}; for another look the budget of sequences has no room."
                self.kept[start:] = [replace(one, reasons=(*one.reasons, told)) for one in self.kept[start:]]
                return
            found = self._in_rest(rest, taken, locate)
            names = ", ".join(quoted(one.text) for one in found.kept)
            told = f": another text works by itself, {names}." if found.found else "; no further text was found."
            self.kept[start:] = [replace(one, reasons=(*one.reasons, what + told)) for one in self.kept[start:]]
            if not found.found:
                return
            why = "Found in the report after what was found before was taken out and the report still failed."
            first = self.kept[start].spans
            logic = f"{self.logics.get(first, '')} OR, by itself: {names}. {found.logic}".strip()
            self._keep([replace(one, reasons=(*one.reasons, why)) for one in found.kept], logic)
            self.logics[first] = logic
            self.dropped += found.dropped

    def _look_cost(self, rest: FailureCase) -> int:
        """Return how many sequences locating takes in `rest` at most, and the start of a search after it."""
        n_scored = sum(token.segment == "user" for token in rest.prompt.tokens)
        return 1 + planned(n_scored, AttributionSettings()) + 3 * self.settings.n_minimise

    def _in_rest(self, rest: FailureCase, taken: Sequence[Span], locate: Locate) -> Minimised:
        """Return what transfers in the report without `taken`: of what stands out there or, where several texts hide each
        other, of all the wording around the request.
        """
        wording = whole_case.frame_proposal(rest)
        for proposals in ([*self._segments(rest), *locate(rest)], [wording] if wording else []):
            mapped = again.back(self.case, rest, taken, proposals)
            around = neighbours(self.case, mapped)
            found = self._search(mapped, around=around, taken=taken)
            if found.found:
                return found
        return Minimised()

    def _test_from(self, start: int) -> None:
        """Test the candidates from `start` on, and the report without any: in the analyst's wordings that do without, else with all
        taken out that carry over (all, where none does), where one alone is not necessary.
        """
        for index in range(start, len(self.kept)):
            self._test(self.kept[index], index)
        self.tests = [test for test in self.tests if test.name != "bare"]
        passed = {
            name: {test.candidate for test in self.tests if test.name == name and test.passed}
            for name in ("transfer", "necessity")
        }
        numbers = sorted(passed["transfer"]) or list(range(len(self.kept)))
        out = [self.kept[number] for number in numbers]
        otherwise = self._said_otherwise(out)
        if otherwise is not None:
            self.tests.append(otherwise)
        elif not passed["necessity"].issuperset(numbers):
            what = "All candidates" if len(out) == len(self.kept) else "The candidates that carry over"
            self.tests.append(
                whole_case.bare(self.case, out, self.answers, self.meter, self.settings, seed=self.seed, what=what)
            )

    def _said_otherwise(self, tested: Sequence[TriggerProposal]) -> TestOutcome | None:
        """Return, where a candidate is among the request's own words, how the analyst's wordings fare that do without it."""
        if not any(whole_case.is_own(self.case, one.spans) for one in tested):
            return None
        failure = self.reproduction.failure
        return whole_case.free(self.case, tested, failure, self.answers, self.meter, self.settings, self.given)

    def _fails(self, case: FailureCase) -> bool | None:
        """Return whether the model fails on a shortened report, as often as counts as reproduced; None where the budget has no room."""
        sampling, n = case.report.sampling, self.settings.reproduce_samples
        greedy = sampling.temperature == 0
        if not self.meter.allows(1 if greedy else n):
            return None
        if greedy:
            return self.answers.unsafe([case.report.messages], "look again")[0]
        texts = self.answers.sampled(case.report.messages, n, sampling, self.seed, "look again")
        failed = self.answers.failed([case.report.messages] * n, texts, "look again")
        return sum(failed) >= self.settings.reproduced_at * n

    @property
    def _n_tests(self) -> int:
        """Sequences that the deciding tests of one candidate take, about."""
        settings = self.settings
        return 4 * (settings.n_transfer + settings.n_necessity) + settings.n_shams * settings.n_sham_prompts

    @property
    def _n_worded(self) -> int:
        """Sequences that other wordings and other requests take at most."""
        return self.settings.n_paraphrases + N_REWRITES + whole_case.n_requests(self.settings)

    def _test(self, candidate: TriggerProposal, index: int) -> None:
        settings = self.settings
        whole = 3 * settings.n_frame + 2 * settings.n_necessity + self._n_worded
        with self.meter.leaving(min(whole, self.room)):
            self.tests += test_candidate(
                self.answers.loaded, self.case, candidate, index, self.prompts, self.settings,
                reference=self.reference, seed=self.seed, progress=self.progress, answers=self.answers, meter=self.meter,
                others=[span for one in self.kept for span in one.spans],
            )  # fmt: skip

    def whole_case(self, locate: Locate) -> None:
        """Test the report's wording, find a trigger in it where there is one, and test other wordings."""
        frame = whole_case.frame(self.case, self.prompts, self.answers, self.meter, self.settings)
        self.tests.append(frame)
        wording = whole_case.frame_proposal(self.case) if frame.passed else None
        text = wording or whole_case.everything(self.case)
        if text:
            self._search_more(text, locate)
        if not self.undecided:
            return
        failure = self.reproduction.failure
        outcomes, self.rewordings = whole_case.reworded(
            self.case, failure, self.answers, self.meter, self.settings, self.given
        )
        self.tests += outcomes
        if any(test.name == "necessity" and test.passed is False for test in self.tests):
            asked = whole_case.requests(failure, self.prompts, self.answers, self.meter, self.settings)
            self.tests.append(asked)

    def _search_more(self, text: TriggerProposal, locate: Locate) -> None:
        """Cut a large part of the report down to what carries over, and test that where it is new and a small part."""
        before = self.meter.n_refused
        found = self._search([text], room=min(self._n_tests + self._n_worded, self.room))
        cut = self.meter.n_refused > before
        self.cut = cut and not found.found
        known = {one.spans for one in self.kept}
        new = [one for one in found.kept if one.spans not in known] if found.found else []
        new = [one for one in new if not whole_case.is_request(self.case, one.spans, self.settings)]
        if cut:  # not cut down to the end, it may be what is kept already, and more
            new = [one for one in new if not any(_holds(one, kept) for kept in self.kept)]
        if new:
            start = len(self.kept)
            self._keep(new, found.logic if new[0] is found.kept[0] else "")
            self._look_again(locate, start)
            self._test_from(start)

    @property
    def undecided(self) -> bool:
        """Whether no trigger is established; an alignment gap needs the tests of the wording as well."""
        return self.decide().verdict not in OF_A_CANDIDATE

    def decide(self) -> Decision:
        """Return the verdict on what is known so far."""
        return decide(
            self.reproduction,
            self.tests,
            [one.spans in self.needed or is_small(self.case, one.spans, self.settings) for one in self.kept],
            self.settings,
            request=[whole_case.is_request(self.case, one.spans, self.settings) for one in self.kept],
            own=[whole_case.is_own(self.case, one.spans) for one in self.kept],
            unsafe=self.answers.kind.pool == "harmful",
            spent=self.meter.spent,
            cut=self.cut,
            own_base=self.reference is None,
        )

    def drop_all(self, proposals: Sequence[TriggerProposal], why: str) -> None:
        """Keep no candidate, and say why."""
        self.dropped += [replace(one, kept=False, reasons=(*one.reasons, why)) for one in proposals]
        self.kept = []

    def _put_first(self, index: int) -> None:
        """Let the candidate that decided be the first, which is the one that is proposed; outcomes keep to their candidates."""
        self.kept.insert(0, self.kept.pop(index))
        places = {index: 0} | {before: before + 1 for before in range(index)}
        self.tests = [replace(test, candidate=places.get(test.candidate, test.candidate)) for test in self.tests]

    def findings(self) -> Findings:
        """Return everything found, the candidate that decided first; where the verdict is DISTRIBUTED no text is marked."""
        decision = self.decide()
        if decision.verdict == "DISTRIBUTED":
            self.drop_all(self.kept, "Not marked: no short text carries the failure, the wording as a whole does.")
        elif decision.candidate and decision.verdict in OF_A_CANDIDATE:
            self._put_first(decision.candidate)
            decision = replace(decision, candidate=0)
        return Findings(
            candidates=tuple(self.kept),
            dropped=tuple(self.dropped),
            tests=tuple(self.tests),
            decision=decision,
            logic=self.logics.get(self.kept[0].spans, "") if self.kept else "",
            rewordings=self.rewordings,
            budget=self.meter.budget(),
        )


def _holds(one: TriggerProposal, other: TriggerProposal) -> bool:
    """Return whether the text of `other` is all part of `one`."""
    return all(any(span.within(wider) for wider in one.spans) for span in other.spans)
