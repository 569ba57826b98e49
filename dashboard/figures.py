"""Results to component values: pure functions, formatting only, no decision and no state.

Every function returns the plain `value` of one component in `dashboard.components` (shapes are in their docstrings).
Text that reaches Plotly is html-escaped here, because Plotly draws pseudo HTML; text for the other components is raw,
because they only ever use `textContent`. What this does not do: read files, compute scores, judge results.
"""

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from core.events import StepDone
from core.intervals import percent
from core.repair_trace import RepairTrace
from core.report_text import DESCRIBED
from core.values import (
    WHOLE_CASE,
    LocateResult,
    Message,
    OpenResult,
    Rate,
    TestOutcome,
    Verification,
)
from dashboard import wording, wording_locate, wording_repair, wording_tests, wording_verify

CLIP_PERCENTILE = 98
"""Scores beyond this percentile of |score| share the last colour. Source: ui.md section 3."""
RATE_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Named by hand: plotly's own percentages have no space. Source: unverified choice (every fifth)."""

Value = dict[str, object]


def shown(text: str, limit: int = 60) -> str:
    """`text` with control, format and odd space characters made visible, cut where that is longer than `limit` characters."""
    named = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    parts: list[str] = []
    room = limit
    for character in text:
        odd = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        odd = odd or (unicodedata.category(character) == "Zs" and character != " ")
        part = named.get(character) or (f"‹U+{ord(character):04X}›" if odd else character)
        room -= len(part)
        if room < 0:
            return "".join(parts) + "…"
        parts.append(part)
    return "".join(parts)


def finite(number: float | None) -> float | None:
    """`number` in six figures, None when there is none or it is not finite."""
    return None if number is None or not math.isfinite(number) else float(f"{number:.6g}")


# ---------------------------------------------------------------------------------------------- tokens


def token_rows(opened: OpenResult, messages: Sequence[Message]) -> list[Value]:
    """The tokens as TokenView wants them; with `messages` each text is its exact slice of the raw evidence."""
    rows: list[Value] = []
    for token in opened.prompt.tokens:
        text = token.text
        if messages and token.message is not None and token.start is not None:
            text = messages[token.message].content[token.start : token.end]
        rows.append(
            {
                "text": text,
                "segment": token.segment,
                "message": token.message,
                "start": token.start,
                "end": token.end,
                "id": token.id,
            }
        )
    return rows


def _legend(scores: Sequence[float | None], name: str) -> Value | None:
    values = [score for score in scores if score is not None]
    if not values:
        return None
    largest = max(abs(value) for value in values)
    clip = float(np.percentile(np.abs(values), CLIP_PERCENTILE)) or largest
    return {"min": min(values), "max": max(values), "clip": clip, "name": name}


def token_view(
    opened: OpenResult,
    located: LocateResult | None = None,
    *,
    messages: Sequence[Message] = (),
    selected: Iterable[int] = (),
    suggested: Iterable[int] = (),
    highlight: Iterable[int] = (),
) -> Value:
    """TokenView value of the prompt. With `messages` each token shows its exact slice of the raw evidence."""
    count = len(opened.prompt.tokens)
    scores: list[float | None] = [None] * count
    labels = [-1] * count
    if located:
        scores = [finite(s) if use else None for s, use in zip(located.scores, located.scored, strict=True)]
        labels = list(located.labels)
    return {
        "tokens": token_rows(opened, messages),
        "scores": scores,
        "signed": bool(located and located.signed),
        "labels": labels,
        "selected": sorted(selected),
        "suggested": sorted(suggested),
        "highlight": sorted(highlight),
        "granularity": "token",
        "legend": _legend(scores, wording_locate.method_name(located.method)) if located else None,
        "empty": wording.NO_PROMPT,
    }


def response_view(opened: OpenResult, selected: Iterable[int] = ()) -> Value:
    """TokenView value of the reported answer, whose tokens may be selected as the target."""
    end = 0
    tokens = []
    for token in opened.response:
        start, end = end, end + len(token.text)
        tokens.append({"text": token.text, "segment": "user", "message": 0, "start": start, "end": end, "id": token.id})
    return {
        "tokens": tokens,
        "scores": [None] * len(tokens),
        "signed": False,
        "labels": [-1] * len(tokens),
        "selected": sorted(selected),
        "suggested": [],
        "highlight": [],
        "granularity": "token",
        "legend": None,
        "empty": wording.NO_PROMPT,
    }


def saliency_views(
    opened: OpenResult, verification: Verification, messages: Sequence[Message] = ()
) -> tuple[Value, Value]:
    """TokenView values before and after repair, each token's share of all saliency, on one colour scale: gradients of an answer that has
    become unlikely are larger all over, so that only where they lie can be compared.
    """
    scored = [token.segment == "user" for token in opened.prompt.tokens]
    both = [
        _shares([finite(value) if use else None for value, use in zip(values, scored, strict=False)])
        for values in (verification.saliency_before, verification.saliency_after)
    ]
    together = [share for shares in both for share in shares if share is not None]
    legend, signed = _legend(together, wording_verify.SALIENCY), any(share < 0 for share in together)
    views = []
    for shares in both:
        view = token_view(opened, messages=messages)
        view["scores"], view["legend"], view["signed"] = shares, legend, signed
        views.append(view)
    return views[0], views[1]


def _shares(scores: Sequence[float | None]) -> list[float | None]:
    """Return scores as shares of the sum of their sizes."""
    total = sum(abs(score) for score in scores if score is not None) or 1.0
    return [None if score is None else finite(score / total) for score in scores]


# ---------------------------------------------------------------------------------------------- still figures


def layout(**changes: object) -> Value:
    made: Value = {
        "margin": {"l": 48, "r": 24, "t": 24, "b": 40},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "pan",
    }
    made.update(changes)
    return made


def _interval_trace(name: str, rates: list[tuple[Rate, float]], colour: str, symbol: str) -> Value:
    drawn = [(rate, y) for rate, y in rates if rate.value is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "cliponaxis": False,
        "x": [rate.value for rate, _ in drawn],
        "y": [y for _, y in drawn],
        "marker": {"size": 10, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, rate.high - (rate.value or 0)) for rate, _ in drawn],
            "arrayminus": [max(0.0, (rate.value or 0) - rate.low) for rate, _ in drawn],
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        },
        "hoverinfo": "text",
        "hovertext": [html.escape(f"{name}: {wording.rate(rate)}") for rate, _ in drawn],
    }


def forest(tests: Sequence[TestOutcome], candidate: int = 0) -> Value:
    """PlotlyView value: failure rate and 95 % interval of each test that decides, with and without the text (or sham)."""
    deciding = [test for test in tests if test.name not in DESCRIBED]
    chosen = [test for test in deciding if test.candidate in (candidate, WHOLE_CASE)]
    rows = list(reversed(chosen))
    gap = 0.16
    planted = [(t.with_unit, i + gap) for i, t in enumerate(rows) if t.name != "sham"]
    shams = [(t.with_unit, i + gap) for i, t in enumerate(rows) if t.name == "sham"]
    without = [(t.without_unit, i - gap) for i, t in enumerate(rows)]
    data = [
        _interval_trace(wording_tests.WITH, planted, "theme:accent", "circle"),
        _interval_trace(wording_tests.SHAM, shams, "theme:muted", "diamond-open"),
        _interval_trace(wording_tests.WITHOUT, without, "theme:cool", "circle-open"),
    ]
    made = layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 12}},
        xaxis={
            "range": [-0.02, 1.02],
            "tickvals": list(RATE_TICKS),
            "ticktext": [percent(tick) for tick in RATE_TICKS],
            "title": {"text": wording_tests.RATE_AXIS},
            "zeroline": False,
        },
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": [wording_tests.test_name(t.name) for t in rows],
            "range": [-0.6, max(0.6, len(rows) - 0.4)],
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    )
    made["margin"] = {"l": 96, "r": 24, "t": 32, "b": 44}
    return {
        "data": data if chosen else [],
        "layout": made,
        "height": 96 + 40 * max(3, len(rows)),
        "key": f"forest-{candidate}-{len(rows)}",
        "highlight": [],
        "summary": "" if chosen else wording_tests.NO_TESTS,
    }


# ---------------------------------------------------------------------------------------------- live


def _triple(rate: Rate) -> list[float | None]:
    return [finite(rate.value), finite(rate.low), finite(rate.high)]


def _step_columns(steps: Sequence[StepDone]) -> Value:
    names = {
        "loss": "loss",
        "refusal": "refusal_loss",
        "kl_harmful": "kl_harmful_loss",
        "kl_safe": "kl_safe_loss",
        "kl_trigger": "kl_trigger_loss",
        "kl": "kl_nats_per_token",
    }
    columns: Value = {"step": [step.step for step in steps]}
    marks = []
    for key, attribute in names.items():
        values = [getattr(step, attribute) for step in steps]
        columns[key] = [finite(value) for value in values]
        panel = "kl" if key == "kl" else "loss"
        for step, value in zip(steps, values, strict=True):
            if value is not None and not math.isfinite(value):
                marks.append({"step": step.step, "panel": panel, "text": "NaN" if math.isnan(value) else "inf"})
    columns["marks"] = marks
    return columns


def live_chart(repair: RepairTrace, since: int = 0, *, going: bool | None = None, outdated: bool = False) -> Value:
    """LiveChart value of a repair. `going`: whether one runs, which its events may not say yet or any more; None: they do. `outdated`:
    whether another text was confirmed since.

    `since`: how many steps this browser already has; later values then carry only what is new (probes are few and
    always complete). After a `resync` event, call with 0.
    """
    steps, probes, started, finished = repair.steps, repair.probes, repair.started, repair.finished
    spent = repair.probe.kl_nats_per_token if repair.probe else None
    set_budget = started.settings.get("kl_budget") if started else None
    budget = set_budget if isinstance(set_budget, float) else None
    since = since if since <= len(steps) else 0
    over = finished is not None if going is None else not going
    state = "empty" if started is None else "ended" if over else "running"
    return {
        "run": repair.run,
        "from": since,
        **_step_columns(steps[since:]),
        "probes": {
            "step": [probe.step for probe in probes],
            "asr": [_triple(probe.asr_triggered) for probe in probes],
            "asr_name": wording_repair.ATTACK_SUCCESS_OF_DUMMY
            if any(probe.asr_wording is not None for probe in probes)
            else wording_repair.ATTACK_SUCCESS,
            "refusal": [_triple(probe.refusal_untriggered) for probe in probes],
            "agreement": [_triple(probe.agreement_safe) for probe in probes],
            "safe_refused": [
                _triple(probe.refusal_triggered_safe) if probe.refusal_triggered_safe else [None] * 3
                for probe in probes
            ],
            "kl": [finite(probe.kl_nats_per_token) for probe in probes],
            "best": [probe.best for probe in probes],
        },
        "budget": budget,
        "used": spent / budget if spent is not None and budget else None,
        "meter": wording_repair.budget_used(spent, budget) if spent is not None and budget else "",
        "total": started.n_steps if started else None,
        "state": state,
        "summary": wording_repair.live_summary(repair, going, outdated),
    }
