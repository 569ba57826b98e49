"""The analyst's decision about the trigger, and the check that it still fits.

A confirmation binds spans to the hashes of the text, the model and the chat template; any change of these voids it. Where
the case asks for two reviewers, a second analyst of another name must agree with exactly this confirmation; a new decision
voids the agreement. Names are what was typed: this keeps an honest pair from skipping a step, and proves no identity.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from core import evidence
from core.casefile import Case
from core.errors import CaseFileError, ConfirmationError
from core.files import digest, now
from core.lookalikes import IS_IGNORED, LOOKALIKES
from core.serial import to_json
from core.settings import DummySettings
from core.text_spans import check_spans, merge_spans, span_text, units_of
from core.values import (
    FailureCase,
    Message,
    ModelSpec,
    OpenResult,
    SecondReview,
    Span,
    TriageResult,
    TriggerConfirmation,
    TriggerProposal,
)

FILE = "confirmation.json"
MAX_NAME, MAX_REASON = 200, 10_000
"""Characters of the analyst's name and reason. Source: unverified choice."""
_LATIN = str.maketrans({other: letter for letter, others in LOOKALIKES.items() for other in others})
_DECISIONS: dict[str, Literal["accepted", "edited", "rejected"]] = {
    "accept": "accepted", "edit": "edited", "reject": "rejected", "dummy": "accepted",
}  # fmt: skip
DUMMY_VERDICTS = ("DISTRIBUTED", "INCONCLUSIVE")
"""Verdicts under which a dummy trigger may be planted and unlearnt. Source: method.md section 4.3."""


def text_hash(messages: Sequence[Message]) -> str:
    """Return the SHA-256 of the conversation's roles and raw contents."""
    return digest([[message.role, message.content] for message in messages])


def model_hash(spec: ModelSpec) -> str:
    """Return the SHA-256 over the file hashes of the model and its adapter; the folder's place does not matter."""
    return digest([spec.files, spec.adapter_files])


def seal(confirmation: TriggerConfirmation) -> str:
    """Return the SHA-256 of what a second analyst agrees with: all of the confirmation but the agreement."""
    return digest(to_json(replace(confirmation, second=None)))


def same_name(one: str, other: str) -> bool:
    """Return whether two names read the same: case, spacing, width, unseen marks and look-alike letters do not count."""

    def folded(name: str) -> list[str]:
        plain = IS_IGNORED.sub("", unicodedata.normalize("NFKC", name))
        # letters look alike in one case only (a capital eta like H), so both orders are compared
        forms = (plain.casefold().translate(_LATIN), plain.translate(_LATIN).casefold())
        return ["".join(c for c in form if c.isalnum()) for form in forms]

    return any(mine == theirs for mine, theirs in zip(folded(one), folded(other), strict=True))


def check(
    confirmation: TriggerConfirmation | None, case: FailureCase, spec: ModelSpec, reviewers: int = 1
) -> TriggerConfirmation:
    """Return the confirmation when it accepts a trigger, still fits text, model and template, and has its names.

    `reviewers`: different names that the case asks for, where it is more than the confirmation itself does.
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
    if max(reviewers, confirmation.reviewers) > 1:
        _check_second(confirmation)
    return confirmation


def _check_second(confirmation: TriggerConfirmation) -> None:
    """Raise ConfirmationError unless an analyst of another name agreed with this confirmation."""
    second = confirmation.second
    if second is None:
        raise ConfirmationError(
            f"This case needs two names and has one, {confirmation.analyst}; a second analyst must agree "
            "(page: Confirm, command line: confirm --second)."
        )
    if same_name(second.analyst, confirmation.analyst):
        raise ConfirmationError("Both names under the confirmation are the same; another analyst must agree.")
    if second.confirms != seal(confirmation):
        raise ConfirmationError("The confirmation changed after the second analyst agreed; agree again.")


def checked_spans(messages: Sequence[Message], spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return the spans sorted, overlapping ones merged. Raises: ConfirmationError when one lies outside the text."""
    check_spans(messages, spans)
    return merge_spans(spans)


def marked_spans(messages: Sequence[Message], spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return `checked_spans`. Raises: ConfirmationError, also where no text is marked."""
    chosen = checked_spans(messages, spans)
    if not any(units_of(messages, chosen) if chosen else ()):
        raise ConfirmationError("No text is marked; mark the trigger's tokens, or reject the proposal.")
    return chosen


def check_typed(analyst: str, reason: str) -> None:
    """Raise ConfirmationError unless name and reason are there, of bounded length, and text that can be stored."""
    if not analyst.strip() or not reason.strip():
        raise ConfirmationError("A decision needs the analyst's name and a reason; fill in both.")
    if len(analyst) > MAX_NAME or len(reason) > MAX_REASON:
        raise ConfirmationError(f"A name has at most {MAX_NAME} characters, a reason {MAX_REASON:,}; shorten it.")
    if any("\ud800" <= character <= "\udfff" for character in analyst + reason):
        raise ConfirmationError(
            "The name or the reason holds half of a surrogate pair, which is no text; type it again."
        )


def takes_dummy(triage: TriageResult | None) -> bool:
    """Return whether a dummy trigger may be confirmed: the failure is an unsafe answer, of which no text was found."""
    return triage is not None and triage.verdict in DUMMY_VERDICTS and triage.kind == "jailbreak"


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
    given spans, `reject` none. `dummy` names no text: a dummy trigger shall be planted and unlearnt (`takes_dummy`). Needs no model.

    Raises: ConfirmationError when name or reason is missing, there is no such candidate, or spans lie outside the text.
    """
    if decision not in _DECISIONS:
        raise ConfirmationError(f"Unknown decision {decision!r}; one of {', '.join(_DECISIONS)}.")
    check_typed(analyst, reason)
    evidence.unchanged(case, "triage.json", "results/open.json")
    triage = case.read("triage.json", TriageResult)
    opened = case.read("results/open.json", OpenResult)
    if opened is None:
        raise CaseFileError("The case has not been opened with its model yet; open it or run `triage` first.")
    if decision == "dummy" and not takes_dummy(triage):
        if triage is not None and triage.kind != "jailbreak":
            raise ConfirmationError("A dummy trigger is planted for unsafe answers only; mark a span instead.")
        raise ConfirmationError(
            f"A dummy trigger is for the verdicts {' and '.join(DUMMY_VERDICTS)}, where no text can be confirmed; "
            f"this case has {(triage.verdict if triage else None) or 'none'}."
        )
    proposal = _proposal(triage, candidate, required=decision == "accept")
    messages = case.report.messages
    if decision == "accept" and proposal is not None:
        chosen = proposal.spans
    else:
        chosen = marked_spans(messages, spans) if decision == "edit" else ()
    proposed = set(proposal.spans) if proposal else set()
    confirmation = TriggerConfirmation(
        decision=_DECISIONS[decision],
        spans=tuple(chosen),
        units=units_of(messages, chosen) if chosen else (DummySettings().trigger,) if decision == "dummy" else (),
        way="dummy" if decision == "dummy" else "trigger",
        proposal=proposal,
        added=tuple(s for s in chosen if s not in proposed),
        removed=tuple(s for s in (proposal.spans if proposal else ()) if s not in set(chosen)),
        analyst=analyst.strip(),
        reason=reason.strip(),
        time=now(),
        text_hash=text_hash(messages),
        model_hash=model_hash(case.manifest.model),
        template_hash=opened.prompt.template_hash,
        reviewers=case.intake.reviewers,
    )
    evidence.record(
        case,
        FILE,
        confirmation,
        confirmation.decision,
        actor=confirmation.analyst,
        reason=confirmation.reason,
        way=confirmation.way,
        spans=[span_text(messages, span) for span in chosen],
        proposed=proposal.text if proposal else None,
        text_hash=confirmation.text_hash,
        model_hash=confirmation.model_hash,
        template_hash=confirmation.template_hash,
    )
    return confirmation


def agree(case: Case, *, analyst: str, reason: str) -> TriggerConfirmation:
    """Store and return the confirmation with a second analyst's agreement.

    Raises: ConfirmationError when name or reason is missing, the name is the first analyst's, or there is nothing to
    agree with; EvidenceError when that is not what was confirmed.
    """
    check_typed(analyst, reason)
    evidence.unchanged(case, FILE)
    first = stored(case)
    if first is None or first.decision == "rejected":
        raise ConfirmationError("There is no confirmation to agree with; accept or edit a trigger first.")
    if same_name(first.analyst, analyst):
        raise ConfirmationError(f"{first.analyst} confirmed this trigger; an analyst of another name must agree.")
    _check_fit(case, replace(first, reviewers=1), reviewers=1)
    second = SecondReview(analyst=analyst.strip(), reason=reason.strip(), time=now(), confirms=seal(first))
    agreed = replace(first, second=second)
    evidence.record(case, FILE, agreed, "agreed", actor=second.analyst, reason=second.reason, confirms=second.confirms)
    return agreed


def stored(case: Case) -> TriggerConfirmation | None:
    """Return the stored confirmation, valid or not."""
    return case.read(FILE, TriggerConfirmation)


def validity(case: Case) -> str | None:
    """Return None when repair may run on the stored confirmation, else the sentence that says why not."""
    try:
        _check_fit(case, stored(case), case.intake.reviewers)
    except ConfirmationError as error:
        return str(error)
    return None


def _check_fit(case: Case, confirmation: TriggerConfirmation | None, reviewers: int) -> None:
    """Run `check` against the prompt as the model was last opened with. Raises: ConfirmationError."""
    opened = case.read("results/open.json", OpenResult)
    if opened is None:
        raise ConfirmationError("The case has not been opened with its model yet.")
    failure = FailureCase(report=case.report, prompt=opened.prompt, response_ids=())
    check(confirmation, failure, case.manifest.model, reviewers)


def _proposal(triage: TriageResult | None, candidate: int, *, required: bool) -> TriggerProposal | None:
    """Return candidate number `candidate`, None when there is none and none is required."""
    candidates = triage.candidates if triage else ()
    if 0 <= candidate < len(candidates):
        return candidates[candidate]
    if required:
        known = f"there are {len(candidates)}" if candidates else "there is none"
        raise ConfirmationError(f"No candidate {candidate} to accept ({known}); mark the spans yourself or reject.")
    return None
