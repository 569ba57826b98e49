"""What the tests of a candidate and of the whole report share: their material, their budget, and the value they return.

The failure rate of the report with and without some of its text is measured here too: by sampling where the report was
sampled, else by greedy answers in neutral contexts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from core.answers import Answers
from core.budget import SPENT, Meter
from core.intervals import mcnemar, wilson
from core.kinds import JAILBREAK
from core.prompts import PromptSet
from core.settings import CausalSettings
from core.transplants import Carrier, neutral_contexts, without_spans
from core.values import WHOLE_CASE, FailureCase, Rate, Span, TestName, TestOutcome


@dataclass(frozen=True)
class Trial:
    """What every test of one candidate needs; `requests` are answered rightly bare, out of `held_out`."""

    case: FailureCase
    carried: Carrier
    index: int
    requests: list[str]
    n_asked: int
    held_out: PromptSet
    settings: CausalSettings
    seed: int
    meter: Meter
    right_words: str = JAILBREAK.right_words

    @property
    def enough(self) -> bool:
        """Whether there are requests enough for a test to decide anything."""
        return len(self.requests) >= self.settings.min_transfer

    def too_few(self) -> str:
        """Return the note of a test that is undecided for want of requests."""
        if self.meter.spent:
            return SPENT
        return (
            f"{len(self.requests)} of {self.n_asked} requests are {self.right_words} without the candidate; at least "
            f"{self.settings.min_transfer} are needed: give a larger prompt folder."
        )

    def outcome(
        self,
        name: TestName,
        with_unit: Sequence[bool] = (),
        without_unit: Sequence[bool] = (),
        *,
        p_value: float | None = None,
        passed: bool | None = None,
        gain_high: float | None = None,
        gain_low: float | None = None,
        note: str = "",
    ) -> TestOutcome:
        """Return the outcome of a test of this candidate with both rates and their intervals."""
        return TestOutcome(
            name=name,
            candidate=self.index,
            n=len(with_unit),
            with_unit=rate(with_unit),
            without_unit=rate(without_unit),
            p_value=p_value,
            passed=passed,
            gain_high=gain_high,
            gain_low=gain_low,
            note=note,
        )


def whole_case(
    name: TestName, with_unit: Rate, without_unit: Rate, passed: bool | None, note: str, p_value: float | None = None
) -> TestOutcome:
    """Return the outcome of a test of the whole report; n is that of the side that was varied."""
    n = with_unit.n if name == "frame" else without_unit.n
    return TestOutcome(
        name=name, candidate=WHOLE_CASE, n=n, with_unit=with_unit, without_unit=without_unit, p_value=p_value,
        passed=passed, note=note,
    )  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """Failures of the report and of the report without some text, paired where `p_value` is not None."""

    with_text: list[bool]
    without_text: list[bool]
    p_value: float | None
    what: str


def compare_without(
    case: FailureCase, spans: Sequence[Span], answers: Answers, settings: CausalSettings, seed: int, part: str
) -> Compared:
    """Return the failures of the report, and of the report with `spans` deleted; `part` names the work in progress."""
    report, n = case.report, settings.n_necessity
    if report.sampling.temperature > 0:
        drawn = [
            answers.failed([one] * n, answers.sampled(one, n, report.sampling, seed, part), part)
            for one in (report.messages, without_spans(report.messages, spans))
        ]
        return Compared(
            drawn[0], drawn[1], None, f"n counts answers drawn at temperature {report.sampling.temperature:g}"
        )
    pairs = [pair for pair in neutral_contexts(report.messages, spans, n) if answers.fits(pair[0])]
    unsafe = answers.unsafe([one for pair in pairs for one in pair], part)
    what = "n counts neutral contexts (polite sentences around the report; the first is none), one greedy answer each"
    return Compared(unsafe[0::2], unsafe[1::2], mcnemar(unsafe[0::2], unsafe[1::2]), what)


def carries_over(failed: Sequence[bool], settings: CausalSettings) -> tuple[bool, float]:
    """Return whether so many of the requests, all of them answered rightly bare, fail, and the p of that by exact McNemar."""
    p_value = mcnemar(failed, [False] * len(failed))
    return share(failed) >= settings.transfer_gain and p_value < settings.transfer_p, p_value


def as_often(other: float | None, own: float | None, settings: CausalSettings) -> bool | None:
    """Return whether a rate is as high as the report's `own`; None between "as often" and "no more", or without a rate."""
    if other is None or own is None or own < settings.reproduced_at:
        return None
    if other >= settings.as_often * own:
        return True
    return False if other <= settings.necessity_share * own else None


def rate(values: Sequence[bool]) -> Rate:
    """Return the rate of true values."""
    return wilson(sum(values), len(values))


def share(values: Sequence[bool]) -> float:
    """Return the share of true values, 0 without any."""
    return sum(values) / len(values) if values else 0.0
