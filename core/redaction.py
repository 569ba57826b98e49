"""A case without its texts, for demos: what was asked, answered and found is gone, every number stays.

1. A message's text becomes one block for each token or marked piece; spans and offsets move with it, so that marks and
   colours stand where they stood. Neither words nor their lengths are left.
2. Prompts, answers, triggers, names and reasons become numbered placeholders; the same text has the same one everywhere.
3. Every other string is kept unless it holds a piece of what was removed, or quotes something: then it is withheld.
What this does not do: hide numbers. Token counts, scores, offsets and hashes of files stay, hashes of texts do not.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import PurePath
from typing import Any, TypeVar, get_args, get_type_hints

from core.case_view import CaseView
from core.casefile import Manifest, SourceFile
from core.containment import Rule, RuleFile, Tested
from core.events import RepairFinished
from core.labels import JudgedAnswer
from core.links import Link
from core.rounds import Opinion
from core.scanning import Answers, Hit, Scan
from core.settings import RepairSettings
from core.values import (
    AnswerClass,
    AnswerPair,
    FailureReport,
    KindName,
    Message,
    MethodName,
    ModelSpec,
    Outcome,
    PromptToken,
    RenderedPrompt,
    Reproduction,
    ResponseToken,
    Result,
    Rewording,
    Role,
    SecondReview,
    Segment,
    Span,
    StopReason,
    TargetKind,
    TestName,
    TokenRow,
    TriggerConfirmation,
    TriggerProposal,
    Variant,
    Verdict,
    WrongTrigger,
)
from core.verdict import Certainty, DecidedBy

T = TypeVar("T")
AnyToken = TypeVar("AnyToken", PromptToken, TokenRow)
BLOCK = "\u25a0 "
WITHHELD = "[withheld]"
MIN_WORD = 4
"""Letters from which a single word of a trigger is looked for in other strings. Source: unverified choice."""
_QUOTED = re.compile(r"(?<!\w)'.*?'(?!\w)|\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u2018[^\u2019]*\u2019|`[^`]*`", re.DOTALL)
_PATH = re.compile(r"(?<![\w.])(?:/|~/|[A-Za-z]:\\)[\w.-]+[/\\]")
"""A path from the root of a disk."""
_OWN = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00|[0-9a-f]{64}|[\d.]+")
"""Times, hashes and version numbers, which a trigger such as a year may happen to be part of."""
_KINDS = (
    Role,
    Segment,
    Outcome,
    Verdict,
    Result,
    KindName,
    MethodName,
    TargetKind,
    TestName,
    StopReason,
    AnswerClass,
    Certainty,
    DecidedBy,
    *get_type_hints(RepairSettings).values(),
)
_FIXED = frozenset(word for kind in _KINDS for word in get_args(kind))
"""Words of the program itself."""
_FILES = re.compile(
    r"(model|adapter_model|pytorch_model)[\d-]*(of[\d-]*)?\.safetensors(\.index\.json)?|(adapter_|generation_)?config\.json"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|(tokenizer|spiece)\.model"
    r"|chat_template\.jinja|README\.md|(harmful|safe|lookalike)\.jsonl"
)
"""Names of files that every model or prompt folder has."""
_PLAIN = (int, float, bool, type(None))


def redact(view: CaseView) -> CaseView:
    """Return the view with every foreign text replaced."""
    return _Redactor(view).value(view)


class _Redactor:
    """Replaces the texts of one case; placeholders are numbered in the order in which their texts are met."""

    def __init__(self, view: CaseView) -> None:
        """Learn where messages are cut, and which pieces of text may not be left anywhere."""
        self._names: dict[tuple[str, str], str] = {}
        self._cuts = [_cuts(view, index) for index in range(len(view.manifest.report.messages))]
        pieces = self._pieces = sorted(
            {piece.casefold() for piece in _secrets(view) if piece.strip()}, key=len, reverse=True
        )
        self._secret = re.compile("|".join(f"(?<![^\\W_]){re.escape(piece)}(?![^\\W_])" for piece in pieces) or "(?!)")

    def value(self, value: T) -> T:
        """Return a value without foreign text: known types by their own rule, everything else piece by piece."""
        done = self._known(value)
        return done if done is not None else self._parts(value)  # type: ignore[return-value]

    def _parts(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._scrubbed(value)
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, Mapping):
            return {str(key): self._parts(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(one) for one in value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{f.name: self.value(getattr(value, f.name)) for f in fields(value) if f.init})
        raise TypeError(f"a {type(value).__name__} cannot be redacted")

    def _named(self, kind: str, text: str) -> str:
        """Return the placeholder of a text: the same for the same text."""
        key = (kind, " ".join(text.split()))
        if key not in self._names:
            self._names[key] = f"[{kind} {1 + sum(known == kind for known, _ in self._names)}]"
        return self._names[key]

    def _scrubbed(self, text: str) -> str:
        """Return a string of the program, withheld where it may hold a piece of evidence."""
        if text in _FIXED or _OWN.fullmatch(text):
            return text
        left = _QUOTED.sub(WITHHELD, text)
        told = self._secret.search(left.casefold()) or _PATH.search(left) or "\u201c" in left or "\u201d" in left
        return WITHHELD if told else left

    def _prompt(self, text: str) -> str:
        return self._named("prompt", text)

    def _answer(self, text: str) -> str:
        return self._named("answer", text)

    def _trigger(self, text: str) -> str:
        return self._named("text", text)

    def _span(self, span: Span) -> Span:
        cuts = self._cuts[span.message] if 0 <= span.message < len(self._cuts) else [0]
        start, end = (len(BLOCK) * min(bisect_left(cuts, edge), len(cuts) - 1) for edge in (span.start, span.end))
        return Span(message=span.message, start=start, end=end)

    def _known(self, value: Any) -> Any:
        """Return a value of a type that holds foreign text without it, None for any other type."""
        match value:
            case Span():
                return self._span(value)
            case PromptToken():
                return self._token(replace(value, id=0))  # an id is its text, for who has the tokenizer
            case TokenRow():
                return self._token(value)
            case ResponseToken():
                return replace(value, text=BLOCK, id=0)
            case CaseView():
                return replace(self._parts(replace(value, folder="")), folder="case")
            case Link():
                return replace(value, case=self._named("case", value.case))
            case RenderedPrompt():
                tokens = tuple(self.value(token) for token in value.tokens)
                return replace(value, text=WITHHELD, tokens=tokens)
            case FailureReport():
                return self._report(value)
            case TriggerProposal():
                return replace(
                    self._parts(replace(value, text="")), text=self._trigger(value.text), spans=self._spans(value.spans)
                )
            case TriggerConfirmation():
                return self._confirmation(value)
            case SecondReview():
                return replace(value, analyst=self._named("analyst", value.analyst), reason=WITHHELD)
            case AnswerPair():
                return replace(
                    value,
                    prompt=self._prompt(value.prompt),
                    before=self._answer(value.before),
                    after=self._answer(value.after),
                )
            case Reproduction():
                answers = tuple(self._answer(one) for one in value.answers)
                return replace(value, answers=answers, note=self._scrubbed(value.note))
            case Variant():
                return replace(value, example=self._prompt(value.example))
            case WrongTrigger():
                return replace(value, units=tuple(self._trigger(unit) for unit in value.units))
            case Opinion():
                return replace(value, found=self._trigger(value.found) if value.found else "")
            case Rewording():
                return replace(value, text=self._prompt(value.text))
            case JudgedAnswer():
                return replace(value, key="", prompt=self._prompt(value.prompt), answer=self._answer(value.answer))
            case Scan() | Hit() | Answers() | RuleFile() | Rule() | Tested():
                return self._search(value)
            case Manifest() | ModelSpec() | SourceFile() | RepairFinished():
                return self._files(value)
        return None

    def _spans(self, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        return tuple(self._span(span) for span in spans)

    def _token(self, token: AnyToken) -> AnyToken:
        if token.message is None or token.start is None or token.end is None:
            return replace(token, text=BLOCK)
        span = self._span(Span(message=token.message, start=token.start, end=token.end))
        return replace(token, text=BLOCK, start=span.start, end=span.end)

    def _report(self, report: FailureReport) -> FailureReport:
        messages = tuple(
            Message(role=message.role, content=BLOCK * (len(cuts) - 1))
            for message, cuts in zip(report.messages, self._cuts, strict=True)
        )
        return FailureReport(
            messages=messages,
            response=self._answer(report.response),
            id=None,
            source=None if report.source is None else WITHHELD,
            note=None if report.note is None else WITHHELD,
            expected=None if report.expected is None else self._answer(report.expected),
            sampling=report.sampling,
        )

    def _confirmation(self, value: TriggerConfirmation) -> TriggerConfirmation:
        return TriggerConfirmation(
            decision=value.decision,
            way=value.way,
            spans=self._spans(value.spans),
            units=tuple(self._trigger(unit) for unit in value.units),
            proposal=self.value(value.proposal),
            added=self._spans(value.added),
            removed=self._spans(value.removed),
            analyst=self._named("analyst", value.analyst),
            reason=WITHHELD,
            time=value.time,
            text_hash=WITHHELD,  # a short text can be guessed from its hash
            model_hash=value.model_hash,
            template_hash=value.template_hash,
            reviewers=value.reviewers,
            second=self.value(value.second),
        )

    def _search(self, value: Any) -> Any:
        """Rules and hits of a search for the trigger."""
        match value:
            case Scan():
                trigger = tuple(self._trigger(unit) for unit in value.trigger)
                rest = self._parts(replace(value, trigger=(), file="", sha256=""))
                return replace(rest, trigger=trigger, file="[file]", sha256=WITHHELD)
            case Hit():
                return replace(value, excerpt=WITHHELD)
            case Answers():
                return replace(value, common=self._answer(value.common))
            case RuleFile():
                trigger = tuple(self._trigger(unit) for unit in value.trigger)
                who = self._named("analyst", value.confirmed_by)
                return replace(
                    self._parts(replace(value, trigger=(), confirmed_by="")),
                    trigger=trigger,
                    confirmed_by=who,
                    case="[case]",
                )
            case Rule():
                return replace(value, regex=WITHHELD)
            case Tested():
                return replace(value, text=WITHHELD)
        raise TypeError(f"a {type(value).__name__} is no part of a search")

    def _files(self, value: Any) -> Any:
        """Names of files and folders, without the folders they lie in; a placeholder where one may tell something."""
        match value:
            case Manifest():
                judge = self._folder("judge", value.judge) if value.judge else None
                files = {name: self._hashes(getattr(value, name)) for name in ("judge_files", "prompt_files")}
                parts = self._parts(replace(value, judge=None, id="", evidence={}, judge_files={}, prompt_files={}))
                return replace(parts, judge=judge, id="redacted", **files)
            case ModelSpec():
                return ModelSpec(
                    path=self._folder("model", value.path),
                    adapter=self._folder("adapter", value.adapter) if value.adapter else None,
                    files=self._hashes(value.files),
                    adapter_files=self._hashes(value.adapter_files),
                )
            case SourceFile():
                return replace(value, name="", sha256=WITHHELD)
            case RepairFinished():
                return replace(value, message=self._scrubbed(value.message))
        raise TypeError(f"a {type(value).__name__} names no file")

    def _folder(self, kind: str, path: str) -> str:
        """Return the name of a folder, a placeholder where it holds a piece of evidence, between other letters too."""
        name = PurePath(path).name
        return self._named(kind, path) if any(piece in name.casefold() for piece in self._pieces) else name

    def _hashes(self, files: Mapping[str, str]) -> dict[str, str]:
        """Return the hashes of files, by their names where every folder has these."""
        return {name if _FILES.fullmatch(name) else self._named("file", name): one for name, one in files.items()}


def _cuts(view: CaseView, index: int) -> list[int]:
    """Return the offsets at which message `index` is cut: its ends, its tokens, every span that is marked."""
    length = len(view.manifest.report.messages[index].content)
    edges = {0, length}
    tokens: list[PromptToken | TokenRow] = [
        *(view.opened.prompt.tokens if view.opened else ()),
        *(view.triage.tokens if view.triage else ()),
    ]
    for token in tokens:
        if token.message == index:
            edges |= {edge for edge in (token.start, token.end) if edge is not None}
    for span in _all_spans(view):
        if span.message == index:
            edges |= {span.start, span.end}
    return sorted(edge for edge in edges if 0 <= edge <= length)


def _all_spans(view: CaseView) -> Iterator[Span]:
    if view.confirmation:
        yield from (*view.confirmation.spans, *view.confirmation.added, *view.confirmation.removed)
    for proposal in _proposals(view):
        yield from proposal.spans


def _proposals(view: CaseView) -> Iterator[TriggerProposal]:
    if view.triage:
        yield from (*view.triage.candidates, *view.triage.dropped)
    yield from (own.proposal for own in view.own_tests)
    if view.confirmation and view.confirmation.proposal:
        yield view.confirmation.proposal
    for locate in view.locates:
        yield from locate.proposals


def _secrets(view: CaseView) -> Iterator[str]:
    """Yield every text that may not be left in any string, and the longer words of triggers and candidates."""
    report = view.manifest.report
    yield from (message.content for message in report.messages)
    yield from (text for text in (report.response, report.expected, report.note, report.source, report.id) if text)
    for sample in [report.second] if report.second else []:
        yield from (*(message.content for message in sample.messages), sample.response)
    confirmed = view.confirmation
    units = [*(proposal.text for proposal in _proposals(view)), *(confirmed.units if confirmed else ())]
    for text in units:
        if len(text.strip()) > 1:
            yield text
        yield from (word for word in re.findall(r"\w+", text) if len(word) >= MIN_WORD)
    if confirmed:
        yield from (confirmed.analyst, confirmed.reason)
        if confirmed.second:
            yield from (confirmed.second.analyst, confirmed.second.reason)
    for pair in view.verification.examples if view.verification else ():
        yield from (pair.prompt, pair.before, pair.after)
    yield from (one.example for one in (view.verification.variants if view.verification else ()))
    yield from (unit for one in view.earlier_rounds for unit in one.confirmation.units)
    yield from (one.found for one in view.second_opinion if one.found)
    for one in view.triage.rewordings if view.triage else ():
        yield one.text
    yield from view.reproduction.answers if view.reproduction else ()
