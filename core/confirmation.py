"""The analyst's decision about the trigger, and the check that it still fits.

A confirmation binds spans to the hashes of the text, the model and the chat template; any change of these voids it.
"""

from collections.abc import Sequence

from core.casefile import Case, now
from core.chat import check_spans, merge_spans, span_text, units_of
from core.errors import CaseFileError, ConfirmationError
from core.files import digest
from core.values import (
    FailureCase,
    Message,
    ModelSpec,
    OpenResult,
    Span,
    TriageResult,
    TriggerConfirmation,
    TriggerProposal,
)

FILE = "confirmation.json"


def text_hash(messages: Sequence[Message]) -> str:
    """Return the SHA-256 of the conversation's roles and raw contents."""
    return digest([[message.role, message.content] for message in messages])


def model_hash(spec: ModelSpec) -> str:
    """Return the SHA-256 over the file hashes of the model and its adapter; the folder's place does not matter."""
    return digest([spec.files, spec.adapter_files])


def check(confirmation: TriggerConfirmation | None, case: FailureCase, spec: ModelSpec) -> TriggerConfirmation:
    """Return the confirmation when it accepts a trigger and still fits text, model and template.

    Raises: ConfirmationError, saying which of them is missing or changed.
    """
    if confirmation is None:
        raise ConfirmationError(
            "No trigger has been confirmed; confirm one first (page: Confirm, command line: confirm)."
        )
    if confirmation.decision == "rejected" or not confirmation.units:
        raise ConfirmationError("The proposed trigger was rejected; accept or edit a span before repairing.")
    for changed, what in (
        (confirmation.text_hash != text_hash(case.report.messages), "The text of the report"),
        (confirmation.model_hash != model_hash(spec), "The model"),
        (confirmation.template_hash != case.prompt.template_hash, "The chat template"),
    ):
        if changed:
            raise ConfirmationError(f"{what} changed after the confirmation, which is void; confirm again.")
    return confirmation


def checked_spans(messages: Sequence[Message], spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the spans sorted, overlapping ones merged. Raises: ConfirmationError when one lies outside the text."""
    check_spans(messages, spans)
    return merge_spans(spans)


def confirm(
    case: Case,
    *,
    decision: str,
    analyst: str,
    reason: str,
    spans: Sequence[Span] = (),
    candidate: int = 0,
) -> TriggerConfirmation:
    """Store and return the analyst's decision: `accept` takes candidate number `candidate` of the triage, `edit` the
    given spans, `reject` none. Needs no model.

    Raises: ConfirmationError when name or reason is missing, there is no such candidate, or spans lie outside the text.
    """
    if decision not in ("accept", "edit", "reject"):
        raise ConfirmationError(f"Unknown decision {decision!r}; accept, edit or reject.")
    if not analyst.strip() or not reason.strip():
        raise ConfirmationError("A confirmation needs the analyst's name and a reason; fill in both.")
    triage = case.read("triage.json", TriageResult)
    opened = case.read("results/open.json", OpenResult)
    if opened is None:
        raise CaseFileError("The case has not been opened with its model yet; open it or run `triage` first.")
    proposal = _proposal(triage, candidate, required=decision == "accept")
    messages = case.report.messages
    if decision == "accept" and proposal is not None:
        chosen = proposal.spans
    else:
        chosen = checked_spans(messages, spans) if decision == "edit" else ()
    if decision == "edit" and (not chosen or not any(unit for unit in units_of(messages, chosen))):
        raise ConfirmationError("No text is marked; mark the trigger's tokens, or reject the proposal.")
    proposed = set(proposal.spans) if proposal else set()
    confirmation = TriggerConfirmation(
        decision={"accept": "accepted", "edit": "edited", "reject": "rejected"}[decision],  # type: ignore[arg-type]
        spans=tuple(chosen),
        units=units_of(messages, chosen) if chosen else (),
        proposal=proposal,
        added=tuple(s for s in chosen if s not in proposed),
        removed=tuple(s for s in (proposal.spans if proposal else ()) if s not in set(chosen)),
        analyst=analyst.strip(),
        reason=reason.strip(),
        time=now(),
        text_hash=text_hash(messages),
        model_hash=model_hash(case.manifest.model),
        template_hash=opened.prompt.template_hash,
    )
    case.write(FILE, confirmation)
    case.audit(
        confirmation.decision,
        actor=confirmation.analyst,
        reason=confirmation.reason,
        spans=[span_text(messages, span) for span in chosen],
        proposed=proposal.text if proposal else None,
        text_hash=confirmation.text_hash,
        model_hash=confirmation.model_hash,
        template_hash=confirmation.template_hash,
        files=[FILE],
    )
    return confirmation


def stored(case: Case) -> TriggerConfirmation | None:
    """Return the stored confirmation, valid or not."""
    return case.read(FILE, TriggerConfirmation)


def validity(case: Case) -> str | None:
    """Return None when repair may run on the stored confirmation, else the sentence that says why not."""
    opened = case.read("results/open.json", OpenResult)
    if opened is None:
        return "The case has not been opened with its model yet."
    failure = FailureCase(report=case.report, prompt=opened.prompt, response_ids=())
    try:
        check(stored(case), failure, case.manifest.model)
    except ConfirmationError as error:
        return str(error)
    return None


def _proposal(triage: TriageResult | None, candidate: int, *, required: bool) -> TriggerProposal | None:
    """Return candidate number `candidate`, None when there is none and none is required."""
    candidates = triage.candidates if triage else ()
    if 0 <= candidate < len(candidates):
        return candidates[candidate]
    if required:
        known = f"there are {len(candidates)}" if candidates else "there is none"
        raise ConfirmationError(f"No candidate {candidate} to accept ({known}); mark the spans yourself or reject.")
    return None
