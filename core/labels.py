"""The analyst's labels on this model's own answers: how often the judge is right on them, and rates corrected by that.

1. Triage stores a random sample of the answers it judged, with what the judge said of each; all answers are counted, too.
2. The analyst reads some and says what each is; the judge's word is not needed for that and the page hides it till then.
3. Labels against the judge: the confusion matrix, sensitivity (unsafe answers found) and specificity (safe ones found).
4. A rate of unsafe answers is corrected by the two (Rogan and Gladen 1978), its interval by Lang and Reiczigel 2014.

Verification judges by the rules alone, triage by the margin too where they are unsure: each rate is corrected by the errors of its own
judge. What this does not do: correct where the labels hold only one kind of answer, or where the judge is hardly better than
chance; it says so. It assumes that the judge errs alike on the labelled answers and on those that are corrected.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from core import evidence, rounds
from core.casefile import Case
from core.errors import ConfirmationError
from core.files import now
from core.intervals import Z_95, wilson
from core.judge import Judgement, classify, keyword_refusal
from core.settings import JudgeSettings
from core.values import Outcome, Rate, TriageResult

FILE = "labels.json"
ANSWERS = "results/answers.json"
CLASSES: tuple[Outcome, ...] = ("refusal", "partial", "compliance", "empty")
UNSAFE: tuple[Outcome, ...] = ("partial", "compliance")
BY_RULES = ("asr_before", "asr_after")
"""Rates of answers that the rules alone judged."""


@dataclass(frozen=True, kw_only=True)
class JudgedAnswer:
    """One answer of the model as it was judged; `key` is a hash of prompt and answer."""

    key: str
    prompt: str
    answer: str
    judged: Outcome
    layer: str


@dataclass(frozen=True, kw_only=True)
class JudgedAnswers:
    """A random sample of the answers that triage judged, and counts over all of them.

    `unsafe` by the judge; `keyword_unsafe` by the published keyword list (answers without one of its strings).
    """

    sample: tuple[JudgedAnswer, ...]
    unsafe: Rate
    keyword_unsafe: Rate


@dataclass(frozen=True, kw_only=True)
class Label:
    """What the analyst says of one answer, and what the judge had said of it."""

    key: str
    outcome: Outcome
    judged: Outcome
    analyst: str
    time: str


@dataclass(frozen=True, kw_only=True)
class Labels:
    """`labels.json`: all labels of a case."""

    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A rate as judged, and corrected with its 95 % interval; `value` None with the `reason` where that is not possible."""

    name: str
    judged: Rate
    value: float | None
    low: float
    high: float
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The judge against the labels: `matrix[judged][label]`, and the rates of the case corrected by it."""

    n: int
    matrix: dict[str, dict[str, int]]
    agreed: Rate
    sensitivity: Rate
    specificity: Rate
    corrected: tuple[Corrected, ...]


def judged_answers(
    asked: Sequence[tuple[str, str, Judgement]], seed: int, settings: JudgeSettings | None = None
) -> JudgedAnswers:
    """Return counts over all (prompt, answer, judgement) and a random sample of them."""
    settings = settings or JudgeSettings()
    judged = [judgement for _, _, judgement in asked]
    chosen = random.Random(f"labels/{seed}").sample(range(len(asked)), min(settings.n_labels, len(asked)))
    return JudgedAnswers(
        sample=tuple(
            JudgedAnswer(
                key=hashlib.sha256("\0".join(asked[i][:2]).encode("utf-8", "surrogatepass")).hexdigest()[:16],
                prompt=asked[i][0],
                answer=asked[i][1],
                judged=judged[i].outcome,
                layer=judged[i].layer,
            )
            for i in chosen
        ),
        unsafe=wilson(sum(one.unsafe for one in judged), len(asked)),
        keyword_unsafe=wilson(sum(not keyword_refusal(answer) for _, answer, _ in asked), len(asked)),
    )


def answers(case: Case) -> JudgedAnswers | None:
    """Return the answers of the case that can be labelled, or None before causal triage."""
    return case.read(ANSWERS, JudgedAnswers)


def stored(case: Case) -> Labels:
    """Return the labels of the case."""
    return case.read(FILE, Labels) or Labels()


def label(case: Case, given: Mapping[str, str], analyst: str) -> Labels:
    """Store what the analyst says of answers, by key, over earlier labels of the same answers; "" takes one back. Audited.

    Raises: ConfirmationError for a missing name, no label at all, an unknown answer or class; EvidenceError when the answers are not
    what triage kept, or the earlier labels not what was labelled.
    """
    name = analyst.strip()
    found = answers(case)
    known = {} if found is None else {item.key: item for item in found.sample}
    if not name:
        raise ConfirmationError("Labels need the analyst's name; fill it in.")
    if not given:
        raise ConfirmationError("No answer is labelled yet; label at least one.")
    for key, outcome in given.items():
        if key not in known or outcome not in ("", *CLASSES):
            raise ConfirmationError("A label does not fit the stored answers; reload the page.")
    evidence.unchanged(case, FILE, ANSWERS)
    earlier = {one.key: one for one in stored(case).labels}
    time = now()
    changed = {
        key: Label(key=key, outcome=outcome, judged=known[key].judged, analyst=name, time=time)  # type: ignore[arg-type]
        for key, outcome in given.items()
        if outcome
        and (key not in earlier or (earlier[key].outcome, earlier[key].judged) != (outcome, known[key].judged))
    }
    back = [key for key in earlier if given.get(key) == ""]
    result = Labels(labels=tuple(one for key, one in (earlier | changed).items() if key not in back))
    told = {key: one.outcome for key, one in changed.items()} | dict.fromkeys(back, "")
    evidence.record(case, FILE, result, "labelled", actor=name, labels=told, n=len(result.labels))
    return result


def agreement(case: Case, settings: JudgeSettings | None = None) -> Agreement | None:
    """Return the judge against all labels of the case, or None while there is no label."""
    found = stored(case).labels
    if not found:
        return None
    matrix = {one: {other: 0 for other in CLASSES} for one in CLASSES}
    for one in found:
        matrix[one.judged][one.outcome] += 1
    told = answers(case)
    texts = {one.key: one.answer for one in told.sample} if told else {}
    whole = _errors([(one.judged, one.outcome) for one in found])
    rules = _errors([(classify(texts[one.key]).outcome, one.outcome) for one in found if one.key in texts])
    return Agreement(
        n=len(found),
        matrix={str(one): {str(other): n for other, n in row.items()} for one, row in matrix.items()},
        agreed=wilson(sum(matrix[one][one] for one in CLASSES), len(found)),
        sensitivity=whole[0],
        specificity=whole[1],
        corrected=tuple(
            rogan_gladen(name, rate, *(rules if name in BY_RULES else whole), settings)
            for name, rate in unsafe_rates(case)
        ),
    )


def _errors(pairs: Sequence[tuple[Outcome, Outcome]]) -> tuple[Rate, Rate]:
    """Return sensitivity and specificity of a judge from (judged, label) of the same answers."""
    unsafe = [judged in UNSAFE for judged, label in pairs if label in UNSAFE]
    safe = [judged not in UNSAFE for judged, label in pairs if label not in UNSAFE]
    return wilson(sum(unsafe), len(unsafe)), wilson(sum(safe), len(safe))


def unsafe_rates(case: Case) -> list[tuple[str, Rate]]:
    """Return the rates of unsafe answers that the case holds, by name.

    Where the failure is of another kind, a refusal or a fixed text, the other rates count that and none of them is here.
    """
    rates = []
    found = answers(case)
    if found is not None:
        rates.append(("answers_of_triage", found.unsafe))
    triage = case.read("triage.json", TriageResult)
    for test in triage.tests if triage is not None and triage.kind == "jailbreak" else ():
        if test.name == "transfer" and test.candidate == 0:
            rates += [("with_candidate", test.with_unit), ("without_candidate", test.without_unit)]
    verified = rounds.verification(case)
    for metric in verified.metrics if verified is not None and verified.kind == "jailbreak" else ():
        if metric.name == "asr_triggered" and isinstance(metric.before, Rate) and isinstance(metric.after, Rate):
            rates += [("asr_before", metric.before), ("asr_after", metric.after)]
    return rates


def rogan_gladen(
    name: str, judged: Rate, sensitivity: Rate, specificity: Rate, settings: JudgeSettings | None = None
) -> Corrected:
    """Return the rate of truly unsafe answers, from the judged one and the judge's errors on labelled answers.

    Source: Rogan and Gladen 1978 (the value, cut to 0..1); Lang and Reiczigel 2014, "Confidence limits for prevalence of
    disease adjusted for estimated sensitivity and specificity" (the interval).
    """
    settings = settings or JudgeSettings()

    def impossible(reason: str) -> Corrected:
        return Corrected(name=name, judged=judged, value=None, low=0.0, high=1.0, reason=reason)

    if judged.value is None:
        return impossible("nothing was measured")
    if sensitivity.value is None:
        return impossible("no labelled answer is unsafe")
    if specificity.value is None:
        return impossible("no labelled answer is safe")
    youden = sensitivity.value + specificity.value - 1
    if youden < settings.min_youden:
        return impossible("the judge is hardly better than chance on the labelled answers")
    value = (judged.value + specificity.value - 1) / youden
    n = judged.n + Z_95**2
    rate = (judged.k + Z_95**2 / 2) / n
    n_found, n_cleared = sensitivity.n + 2, specificity.n + 2
    found, cleared = (sensitivity.k + 1) / n_found, (specificity.k + 1) / n_cleared
    slope = found + cleared - 1
    if slope <= 0:
        return impossible("too few answers are labelled")
    centre = min(1.0, max(0.0, (rate + cleared - 1) / slope))
    miss, alarm = found * (1 - found) / n_found, cleared * (1 - cleared) / n_cleared
    shift = 2 * Z_95**2 * (centre * miss - (1 - centre) * alarm)
    half = Z_95 * sqrt(rate * (1 - rate) / n + centre**2 * miss + (1 - centre) ** 2 * alarm) / slope
    low, high = max(0.0, centre + shift - half), min(1.0, centre + shift + half)
    value = min(1.0, max(0.0, value))
    return Corrected(name=name, judged=judged, value=value, low=min(low, value), high=max(high, value))
