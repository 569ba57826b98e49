"""Stages that look at a repair once it is there: the second opinion, and the two probes of its residual risk.

The second opinion runs the causal cascade again on the repaired model, with the same report, and with the report without the
text that was found. Most often neither is reproduced, which costs a few answers; else a second trigger comes to light.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from core import again, cascade, causal, evidence, locating, repair_adapter, residual_probes, rounds, verification
from core.casefile import Case
from core.errors import TriageError
from core.events import StageFinished
from core.repair_stages import confirmed_trigger, repaired_adapter, settings_of
from core.session import Run
from core.settings import AttributionSettings, CausalSettings, VerificationSettings
from core.triage_stages import TRIAGE_METHODS, cascade_of, triage_result
from core.values import (
    FailureCase,
    LocateResult,
    MethodName,
    Rate,
    SecondOpinion,
    Span,
    Target,
    TriageResult,
    Verification,
)
from core.verdict import reproduced


def second_opinion(run: Run) -> StageFinished:
    """Run the cascade on the repaired model, with the report and with the report without the found text."""
    finished, adapter = repaired_adapter(run.case)
    accepted = confirmed_trigger(run)
    evidence.verify(run.case, before=rounds.AGAIN)
    _ = run.contrast_ids  # what the reported model says instead, asked before the repair is on
    reduced = again.without(run.loaded.tokenizer, run.failure, accepted.spans) if accepted.spans else None
    try:
        repair_adapter.load_repair(run.loaded, adapter)
        whole = _triaged(run, run.failure)
        rest = _triaged(run, reduced) if reduced is not None else None
    finally:
        repair_adapter.detach(run.loaded)
    result = SecondOpinion(adapter_hash=finished.adapter_hash or "", removed=accepted.units, whole=whole, rest=rest)
    if reduced is not None and rest is not None:
        result = _placed(run.failure, reduced, accepted.spans, result, rest)
    name = evidence.record(
        run.case,
        rounds.AGAIN,
        result,
        "second opinion",
        actor="engine",
        verdict=whole.verdict,
        candidates=[one.text for one in whole.candidates],
        dropped=whole.told_dropped(),
        without_trigger=rest.verdict if rest else None,
    )
    headline = f"Second opinion: {whole.verdict}, {whole.decided_by}"
    return StageFinished(stage="again", headline=headline, files=(name,), verdict=whole.verdict)


def _placed(
    case: FailureCase, reduced: FailureCase, spans: Sequence[Span], result: SecondOpinion, rest: TriageResult
) -> SecondOpinion:
    """Return the opinion with what was found in the rest as text of the whole report, so that a round can begin with it."""
    kept, dropped = (again.back(case, reduced, spans, found) for found in (rest.candidates, rest.dropped))
    if len(kept) < len(rest.candidates):  # its tests tell candidates by their numbers
        return result
    return replace(
        result, placed=True, rest=replace(rest, candidates=kept, dropped=dropped, tokens=result.whole.tokens)
    )


def _triaged(run: Run, failure: FailureCase) -> TriageResult:
    """Return what triage says of `failure` on the model as it is now; nothing is written."""
    begun, calls, settings = time.monotonic(), run.session.n_sequences(run.case), CausalSettings()
    seed, progress = run.case.manifest.seed, run.progress
    reproduction = causal.reproduce(
        run.loaded, failure, kind=run.kind, harmful=run.asked_for_refusals, seed=seed, progress=progress
    )
    answers = run.answers()
    located: dict[MethodName, LocateResult] = {}
    if reproduced(reproduction, settings):
        for method, target in TRIAGE_METHODS:
            progress(f"attribution: {method.replace('_', ' ')}", 0, 0)
            ids = run.contrast_ids if target == "contrast" else None
            located[method] = locating.locate(
                run.loaded,
                failure,
                method,
                Target(kind=target),
                AttributionSettings(),
                refusal_ids=ids,
                progress=progress,
            )[1]
        found = cascade_of(run, failure, located, reproduction, answers, settings)
    else:
        nothing: list = []
        found = cascade.run(
            failure, nothing, nothing, run.splits.causal, reproduction, answers, lambda _: nothing, settings, seed=seed
        )
    return triage_result(
        run, failure, "causal", located, reproduction, found, seconds=time.monotonic() - begun,
        model_calls=run.session.n_sequences(run.case) - calls,
    )  # fmt: skip


def _probed(run: Run) -> tuple[residual_probes.Subject, Verification]:
    """Return what a probe of the repair starts from. Raises: TriageError before verification."""
    verified = rounds.verification(run.case)
    if verified is None:
        raise TriageError("The repair has not been verified yet; verify it first.")
    accepted = confirmed_trigger(run)
    if accepted.way == "dummy":
        raise TriageError("The probes need a confirmed trigger text; this repair unlearnt a dummy one.")
    evidence.verify(run.case)
    subject = residual_probes.Subject(
        loaded=run.loaded,
        case=run.failure,
        accepted=accepted,
        splits=run.splits,
        kind=run.kind,
        seed=run.case.manifest.seed,
        progress=run.progress,
        at_its_place=verified.settings.get(verification.PLACE) == verification.ITS_OWN,
    )
    return subject, verified


def _told(case: Case, found: Verification, action: str, **counts: int) -> str:
    """Store what a probe found beside what verification did; it asked the same prompts, which is one more look at them."""
    looks = rounds.looks(case) + 1
    return evidence.record(
        case, rounds.VERIFIED, replace(found, looks=looks), action, actor="engine", **counts, looks=looks
    )


def probe_wrong_trigger(run: Run) -> StageFinished:
    """Repair on random tokens instead of the trigger, for as many steps, and throw that repair away."""
    finished, _ = repaired_adapter(run.case)
    subject, verified = _probed(run)
    rates = {metric.name: metric for metric in verified.metrics}["asr_triggered"]
    assert isinstance(rates.before, Rate)
    assert isinstance(rates.after, Rate)
    settings = settings_of(run.case, finished)
    n_steps = finished.best_step or finished.step
    folder = run.case.path / "wrong-trigger"
    found = residual_probes.wrong_trigger(
        subject, rates.before, rates.after, settings, n_steps, folder, run.refusal,
        start=rounds.start(run.case), earlier=rounds.earlier(run.case),
    )  # fmt: skip
    name = _told(
        run.case, replace(verified, wrong_trigger=found), "wrong trigger", left=found.wrong.k, of=found.wrong.n
    )
    headline = f"A repair on a wrong trigger leaves {found.wrong.k} of {found.wrong.n}; the right one {found.right.k}"
    return StageFinished(stage="wrong-trigger", headline=headline, files=(name,))


def probe_relearn(run: Run) -> StageFinished:
    """Tune the repaired model on a few poisoned samples, and throw that away."""
    finished, adapter = repaired_adapter(run.case)
    subject, verified = _probed(run)
    settings = settings_of(run.case, finished)
    found = residual_probes.relearn(subject, adapter, VerificationSettings(), settings)
    last = found[-1]
    counts = {"samples": last.n_samples, "planted": last.planted.k, "never": last.never.k}
    name = _told(run.case, replace(verified, relearnt=found), "re-learnt", **counts)
    headline = f"After {last.n_samples} samples the trigger works in {last.planted.k} of {last.planted.n}, a new one in {last.never.k}"
    return StageFinished(stage="relearn", headline=headline, files=(name,))
