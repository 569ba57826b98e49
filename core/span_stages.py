"""The stages about a span that the analyst marked: test it, and find its smallest part that is enough."""

from core import causal, confirmation, evidence, jobs, minimise, whole_case
from core.budget import Meter
from core.errors import ConfirmationError
from core.events import StageFinished
from core.serial import from_json, to_json
from core.session import Run
from core.settings import CausalSettings
from core.text_spans import spans_to_positions
from core.transplants import text_of
from core.triage_stages import reproduction_of
from core.values import MinimisedSpan, Span, TriggerProposal
from core.verdict import decide


def _marked(run: Run, stage: str) -> tuple[TriggerProposal, str]:
    """Return the spans the analyst marked as a candidate, and the name of the question about them."""
    messages = run.failure.report.messages
    spans = confirmation.checked_spans(messages, [from_json(Span, dict(s)) for s in run.args["spans"]])
    if not spans:
        raise ConfirmationError("No text is marked; mark at least one token.")
    positions = spans_to_positions(run.failure.prompt, spans)
    candidate = TriggerProposal(
        spans=spans,
        text=text_of(messages, spans),
        token_positions=positions,
        score=0.0,
        reasons=("marked by the analyst",),
    )
    return candidate, jobs.request_key(run.case, stage, {"spans": [to_json(span) for span in spans]})


def test_span(run: Run) -> StageFinished:
    """Run the counterfactual tests on spans the analyst marked, on prompts that minimisation did not see."""
    candidate, key = _marked(run, "test")
    settings = CausalSettings()
    tests = causal.test_candidate(
        run.loaded,
        run.failure,
        candidate,
        0,
        run.splits.causal,
        settings,
        reference=run.session.reference(run.case),
        seed=run.case.manifest.seed,
        progress=run.progress,
        answers=run.answers(),
    )
    decision = decide(  # as of any candidate, but for its size: a long text is what the analyst asks about
        reproduction_of(run),
        tests,
        [True],
        settings,
        request=[whole_case.is_request(run.failure, candidate.spans, settings)],
        own=[whole_case.is_own(run.failure, candidate.spans)],
        unsafe=run.kind.pool == "harmful",
    )
    data = {"proposal": candidate, "tests": list(tests), "verdict": decision.verdict, "decided_by": decision.decided_by}
    told = {"spans": candidate.text, "verdict": decision.verdict}
    name = evidence.record(run.case, f"results/test-{key}.json", data, "tested", actor="engine", **told)
    headline = f"Tested {candidate.text!r}: {decision.verdict}"
    return StageFinished(stage="test", headline=headline, files=(name,), verdict=decision.verdict)


def minimise_span(run: Run) -> StageFinished:
    """Find the smallest part of spans the analyst marked that still changes other requests."""
    candidate, key = _marked(run, "minimise")
    settings = CausalSettings()
    meter = Meter(settings.max_calls, run.loaded)
    found = minimise.search(
        run.failure, [candidate], run.splits.causal, settings, run.answers(), meter, marked=candidate.token_positions
    )
    smallest = found.kept[0] if found.found else None
    result = MinimisedSpan(
        marked=candidate,
        smallest=smallest,
        rate=found.rate,
        whole=found.whole,
        why=" ".join(reason for reason in found.kept[0].reasons if reason not in candidate.reasons),
        logic=found.logic,
        budget=meter.budget(),
    )
    told = {"spans": candidate.text, "smallest": smallest.text if smallest else None}
    name = evidence.record(run.case, f"results/minimise-{key}.json", result, "minimised", actor="engine", **told)
    headline = f"Minimised {candidate.text!r}: {smallest.text!r}" if smallest else f"{candidate.text!r} is not cut down"
    return StageFinished(stage="minimise", headline=headline, files=(name,))
