"""The case report: one self-contained HTML page, and the same as plain data, from what the case folder holds.

Offline, printable on A4, light and dark, without any script; a content-security policy in the page forbids loading
anything. All text of the report, the model and the analyst is evidence: it is escaped, and characters that do not show
themselves (zero-width, bidirectional, look-alike letters) are made visible. A case that has come half-way gives a
report of that half. Each report holds its stamp (case_view.py), by which report_check.py renders it again and compares.
What this does not do: compute. Every number is read from the case.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from core import best_checkpoint
from core import report_figures as figures
from core import report_text as text
from core import result as repair_result
from core.case_view import CaseView, Stamp, gather
from core.casefile import Case
from core.events import CheckpointScored
from core.files import digest
from core.intervals import percent
from core.redaction import redact
from core.repair_trace import RepairTrace
from core.serial import from_json, to_json
from core.settings import RepairSettings, VerificationSettings
from core.shipped import ASSETS
from core.values import OpenResult, Span

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = ASSETS / "report"
SHOWN_METHODS = 2
"""Saliency maps in the report. Source: unverified choice."""
SHOWN_PROBES = 12
"""Probes in the report's table, beside the kept one; the JSON keeps all. Source: unverified choice."""
SHOWN_HITS = 20
"""Hits of a scan in the report's table; the scan's own file lists more. Source: unverified choice."""
METHOD_NAMES = {
    "paper": "gradient norm, whole response (paper mode)",
    "gradient_norm": "gradient norm",
    "gradient_x_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion: what deleting the token takes away",
}


@dataclass(frozen=True, kw_only=True)
class SaliencyMap:
    """One method's scores over the user's messages, drawn."""

    title: str
    signed: bool
    low: float
    high: float
    clip: float
    messages: tuple[Markup, ...]


def _shown_probes(repair: RepairTrace) -> list[CheckpointScored]:
    """Return the first, the last, the kept and evenly spaced probes in between."""
    probes = repair.probes
    stride = -(-len(probes) // SHOWN_PROBES) or 1
    best = repair.finished.best_step if repair.finished else None
    return [p for i, p in enumerate(probes) if i % stride == 0 or i == len(probes) - 1 or p.step == best]


def report_json(case: Case, stamp: Stamp | None = None) -> dict[str, Any]:
    """Return the report as plain data: the stored values, the sentences the page shows, and its stamp with its content."""
    view = shown_view(case, stamp)
    data = _content(view)
    return {"stamp": to_json(replace(view.stamp, content=digest(data))), **data}


def shown_view(case: Case, stamp: Stamp | None = None) -> CaseView:
    """Return what the report shows: the case as gathered, without its texts where the stamp says redacted."""
    view = gather(case, stamp)
    return redact(view) if view.stamp.redacted else view


def _content(view: CaseView) -> dict[str, Any]:
    """Return the data of the report without its stamp."""
    parts: Mapping[str, object] = {
        "case": view.manifest,
        "model": view.opened,
        "reproduction": view.reproduction,
        "triage": view.triage,
        "own_tests": view.own_tests,
        "confirmation": view.confirmation,
        "containment": view.rules,
        "scans": view.scans,
        "repair": view.repair,
        "verification": view.verification,
        "second_opinion": view.second_opinion,
        "rounds": view.earlier_rounds,
        "labels": view.agreement,
        "linked": view.linked,
    }
    judged = view.judged
    rates = None if judged is None else {"unsafe": judged.unsafe, "keyword_list_unsafe": judged.keyword_unsafe}
    data = {
        "headline": _headline(view),
        **{name: None if value is None else to_json(value) for name, value in parts.items()},
        "judged": None if rates is None else to_json(rates),
        "confirmation_void": view.void if view.confirmation else None,
        "residual_risk": list(_residual(view)),
        "methods": [{"name": name, "how": how} for name, how in text.METHODS],
        "rules": [{"name": name, "how": list(how)} for name, how in _rules(view)],
        "limits": list(text.LIMITS),
        "identifiers": [{"edition": e, "id": i, "name": n} for e, i, n in text.IDENTIFIERS],
        "commands": list(_commands(view)),
    }
    return {name: _finite(value) for name, value in data.items()}


def _finite(value: object) -> object:
    """Return plain data with null for every number that is none (a loss that diverged), which JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render_report(case: Case, stamp: Stamp | None = None) -> str:
    """Return the report as one HTML page. The same case and stamp always give the same page."""
    view = shown_view(case, stamp)
    verification, triage = view.verification, view.triage
    confirmed = view.confirmation.spans if view.confirmation and view.confirmation.decision != "rejected" else ()
    repair = view.repair
    budget = repair.started.settings.get("kl_budget") if repair.started else None
    best = repair.finished.best_step if repair.finished else None
    chart = figures.repair_chart(repair.steps, repair.probes, budget, best) if repair.steps else None
    template = _environment().get_template("report.html.j2")
    page: str = template.render(
        view=view,
        stamp=json.dumps(to_json(replace(view.stamp, content=digest(_content(view))))),
        headline=text.verdict_sentence(triage),
        result=text.result_sentence(verification, view.second_opinion),
        certainty=text.CERTAINTIES.get(triage.certainty, triage.certainty) if triage and triage.verdict else "",
        decided_by=text.DECIDERS.get(triage.decided_by, triage.decided_by) if triage else "",
        story=text.story(triage, view.confirmation, verification),
        shown_hits=SHOWN_HITS,
        conversation=_conversation(view, confirmed),
        maps=_saliency_maps(view),
        chart=chart,
        probes=_shown_probes(repair),
        stop_reason=text.REASONS[repair.finished.reason] if repair.finished else None,
        metrics=text.order(verification.metrics) if verification else (),
        before_after=_before_after_maps(view),
        rules=_rules(view),
        settings=text.settings_used(triage, verification),
        residual=_residual(view),
        commands=_commands(view),
        text=text,
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _headline(view: CaseView) -> str:
    sentence = text.verdict_sentence(view.triage)
    result = text.result_sentence(view.verification, view.second_opinion)
    return f"{sentence}. {result}." if result else f"{sentence}."


def _residual(view: CaseView) -> tuple[str, ...]:
    ending = view.repair.finished
    return text.residual_risk(
        view.triage,
        view.confirmation,
        view.verification,
        view.second_opinion,
        earlier=view.earlier_rounds,
        repaired=ending is not None and ending.adapter is not None,
        tested=[own.proposal.spans for own in view.own_tests],
    )


def _commands(view: CaseView) -> tuple[str, ...]:
    settings = view.repair.started.settings if view.repair.started else None
    return text.commands(
        view.manifest,
        view.folder,
        view.triage,
        view.confirmation,
        settings,
        view.earlier_rounds,
        view.verification,
        bool(view.second_opinion),
    )


def _rules(view: CaseView) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the rules that a repair and its result go by, with the settings of those of the case, or the defaults."""
    repair = view.repair.started.settings if view.repair.started else {}
    verification = view.verification.settings if view.verification else {}
    return (
        (best_checkpoint.TITLE, best_checkpoint.rule(from_json(RepairSettings, repair))),
        (repair_result.TITLE, repair_result.rule(from_json(VerificationSettings, verification))),
    )


def _conversation(view: CaseView, confirmed: tuple[Span, ...]) -> list[tuple[str, Markup]]:
    """Return (role, content with its marks) of every message."""
    candidates = [candidate.spans for candidate in view.triage.candidates] if view.triage else []
    messages = view.manifest.report.messages
    return [(m.role, figures.marked_message(i, m, candidates, confirmed)) for i, m in enumerate(messages)]


# saliency -----------------------------------------------------------------------------------------------------------

Scores = dict[int, list[tuple[int, int, float]]]
"""By message: `(start, end, score)` of its scored tokens."""


def _saliency_maps(view: CaseView) -> list[SaliencyMap]:
    """Return the maps shown: from the triage where there is one, else from what was located; causal methods first."""
    found: dict[str, Scores] = {}
    for row in view.triage.tokens if view.triage else ():
        if row.message is None or row.start is None or row.end is None or row.segment != "user":
            continue
        for name, score in row.scores.items():
            found.setdefault(name, {}).setdefault(row.message, []).append((row.start, row.end, score))
    for locate in view.locates:
        if not found.get(locate.method) and view.opened:
            scores = [s for s in _by_message(view.opened, locate.scores, locate.scored).items() if s[1]]
            found[locate.method] = dict(scores)
    names = sorted(found, key=lambda name: (not name.startswith("occlusion"), name != "paper", name))
    return [_saliency_map(view, METHOD_NAMES.get(name, name), found[name]) for name in names[:SHOWN_METHODS]]


def _by_message(opened: OpenResult, scores: tuple[float, ...], scored: tuple[bool, ...] | None) -> Scores:
    found: Scores = {}
    for token, score in zip(opened.prompt.tokens, scores, strict=False):
        if token.message is None or token.start is None or token.end is None or token.segment != "user":
            continue
        if scored is None or scored[token.position]:
            found.setdefault(token.message, []).append((token.start, token.end, score))
    return found


def _shares(scores: Scores) -> Scores:
    """Return scores as shares of the sum of their sizes."""
    total = sum(abs(score) for tokens in scores.values() for _, _, score in tokens) or 1.0
    return {
        message: [(start, end, score / total) for start, end, score in tokens] for message, tokens in scores.items()
    }


def _saliency_map(view: CaseView, title: str, scores: Scores, clip: float | None = None) -> SaliencyMap:
    values = [score for tokens in scores.values() for _, _, score in tokens]
    clip = figures.clip_of(values) if clip is None else clip
    contents = view.manifest.report.messages
    drawn = [
        figures.coloured(figures.scored_pieces(contents[message].content, tokens), clip)
        for message, tokens in sorted(scores.items())
        if message < len(contents)
    ]
    low, high = min(values, default=0.0), max(values, default=0.0)
    return SaliencyMap(title=title, signed=low < 0, low=low, high=high, clip=clip, messages=tuple(drawn))


def _before_after_maps(view: CaseView) -> list[SaliencyMap]:
    """Return the saliency of the reported prompt before and after repair, each token's share of all of it, on one scale."""
    if not view.verification or not view.opened or not view.verification.saliency_before:
        return []
    before, after = (
        _shares(_by_message(view.opened, values, None))
        for values in (view.verification.saliency_before, view.verification.saliency_after)
    )
    clip = figures.clip_of([score for side in (before, after) for tokens in side.values() for _, _, score in tokens])
    return [_saliency_map(view, "before", before, clip), _saliency_map(view, "after", after, clip)]


# template -----------------------------------------------------------------------------------------------------------


def _show(value: object) -> object:
    """Return what a template expression prints: strings are evidence unless they are `Markup` already."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return figures.visible(value)
    return value


@cache
def _environment() -> "Environment":
    """Return the one template environment: everything escaped, odd characters shown, unknown names an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        attribute=escape,
        percent=percent,
        rate=figures.rate_text,
        bar=figures.interval_bar,
        when=text.when,
        duration=text.duration,
        sentence=text.sentence,
        sig=lambda number: f"{number:.3g}",
    )
    return environment
