"""Results to tables, answer pairs and the status line: pure functions, formatting only.

The twins of `dashboard.figures`: every chart and map has its table here. Text is raw: the components only ever use
`textContent`. What this does not do: read files, compute scores, judge results.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from core import jobs
from core.intervals import percent
from core.labels import CLASSES, Agreement, JudgedAnswers, Labels
from core.report_text import DESCRIBED, UNSAFE_RATES
from core.scanning import Scan
from core.values import (
    WHOLE_CASE,
    LocateResult,
    Message,
    OpenResult,
    Rate,
    TestOutcome,
    TriggerProposal,
    Verification,
)
from dashboard import wording, wording_confirm, wording_labels, wording_locate, wording_tests, wording_verify
from dashboard.figures import Value, finite, shown, token_rows

REASONS_SHOWN = 1
"""Reasons a candidate's row gives; the report has them all. Source: unverified choice."""
CANDIDATES_SHOWN = 3
"""Candidates of step 4 before the rest is folded; tested ones are always shown. Source: unverified choice."""


def table(
    caption: str,
    file: str | None,
    columns: Sequence[dict[str, str]],
    rows: Sequence[Mapping[str, object]],
    *,
    empty: str = "",
    selected: int | None = None,
    at_once: int | None = None,
) -> Value:
    """TableView value; `file` names its CSV, `at_once` the rows before the rest is folded."""
    return {
        "caption": caption,
        "file": file,
        "empty": empty,
        "columns": columns,
        "rows": rows,
        "selected": selected,
        "at_once": at_once,
    }


def plain_rows(cells: Iterable[Mapping[str, object]]) -> list[Value]:
    """Rows that stand for nothing that can be chosen."""
    return [{"key": None, "cells": one} for one in cells]


def rate_cell(rate: Rate | None) -> Value | None:
    """Cell of kind `rate`."""
    if rate is None:
        return None
    return {"value": rate.value, "k": rate.k, "n": rate.n, "low": rate.low, "high": rate.high}


def token_table(opened: OpenResult, located: LocateResult, messages: Sequence[Message] = ()) -> Value:
    """TableView value: the sortable twin of heat map, strip and map. Row keys are token positions."""
    order = sorted(
        (i for i, use in enumerate(located.scored) if use), key=lambda i: abs(located.scores[i]), reverse=True
    )
    rank = {position: index + 1 for index, position in enumerate(order)}
    rows = []
    for position, token in enumerate(token_rows(opened, messages)):
        scored = located.scored[position]
        cells = {
            "position": position,
            "text": {"text": shown(str(token["text"])), "csv": token["text"]},
            "id": token["id"],
            "segment": token["segment"],
            "span": "" if token["start"] is None else f"{token['message']}:{token['start']}–{token['end']}",
            "score": finite(located.scores[position]) if scored else None,
            "rank": rank.get(position),
            "cluster": wording_locate.cluster_word(located.labels[position]),
            "adaptive": wording_locate.cluster_word(located.adaptive_labels[position]),
        }
        rows.append({"key": position, "cells": cells})
    return table(wording_locate.TOKEN_TABLE, "tokens.csv", wording_locate.TOKEN_COLUMNS, rows, empty=wording.NO_PROMPT)


def _noted(sentences: Sequence[str]) -> Value:
    """Cell of kind `note`: the first sentence, the others folded."""
    return {"text": sentences[0] if sentences else "", "rest": " ".join(sentences[1:]), "csv": " ".join(sentences)}


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=\.)\s+|;\s+(?![^(]*\))", text) if part]


def _share(score: float) -> Value:
    return {"text": percent(finite(score)), "sort": finite(score), "csv": finite(score)}


def candidate_table(
    proposals: Sequence[TriggerProposal],
    selected: int | None = None,
    dropped: Sequence[TriggerProposal] | None = None,
) -> Value:
    """TableView value: candidates, best first; row keys are their numbers.

    With `dropped` (step 4) those follow with the keys -1, -2, ..., each with the reason that decided first.
    """
    rows: list[Value] = []
    for number, proposal in [*enumerate(proposals), *((-1 - at, one) for at, one in enumerate(dropped or ()))]:
        kept = number >= 0
        word = wording_tests.KEPT if kept else wording_tests.DROPPED
        cells: Value = {
            "number": number + 1 if kept else len(proposals) - number,
            "text": {"text": shown(proposal.text, 120), "csv": proposal.text},
            "units": len(proposal.spans),
            "score": _share(proposal.score),
            "state": {"text": word, "mark": "yes" if kept else "no"},
            "reasons": " ".join(proposal.reasons[:REASONS_SHOWN])
            if dropped is None
            else _noted([*proposal.reasons[-1:], *proposal.reasons[:-1]]),
        }
        rows.append({"key": number, "cells": cells})
    return table(
        wording_locate.CANDIDATES,
        None if dropped is None else "candidates.csv",
        wording_locate.CANDIDATE_COLUMNS if dropped is None else wording_tests.CANDIDATE_COLUMNS,
        rows,
        empty=wording_locate.NO_CANDIDATES,
        selected=selected,
        at_once=None if dropped is None else max(len(proposals), CANDIDATES_SHOWN),
    )


def outcome_table(tests: Sequence[TestOutcome], candidate: int = 0, own: str | None = None) -> Value:
    """TableView value: the tests that decide, of one candidate and of the whole report; `own` is an analyst's span."""
    rows = []
    for test in tests:
        if test.name in DESCRIBED or test.candidate not in (candidate, WHOLE_CASE):
            continue
        cells = {
            "test": {"text": wording_tests.test_name(test.name), "title": wording_tests.TEST_HELP[test.name]},
            "with": rate_cell(test.with_unit),
            "without": rate_cell(test.without_unit),
            "p": {"text": wording.p_value(test.p_value), "sort": test.p_value, "csv": test.p_value},
            "result": wording_tests.passed(test.passed, test.name),
            "note": _noted(_sentences(test.note)),
        }
        rows.append(cells)
    return table(
        wording_tests.tests_of(own),
        "tests.csv",
        wording_tests.TEST_COLUMNS,
        plain_rows(rows),
        empty=wording_tests.NO_TESTS,
    )


def described_table(tests: Sequence[TestOutcome], candidate: int = 0) -> Value:
    """TableView value: the tests of one candidate that describe and decide nothing."""
    rows = [
        {
            "test": {"text": wording_tests.test_name(test.name), "title": wording_tests.TEST_HELP[test.name]},
            "with": rate_cell(test.with_unit),
            "without": rate_cell(test.without_unit),
            "note": wording_tests.described_note(test.note),
        }
        for test in tests
        if test.name in DESCRIBED and test.candidate == candidate
    ]
    return table(wording_tests.DESCRIBED_TABLE, "described.csv", wording_tests.DESCRIBED_COLUMNS, plain_rows(rows))


def scan_table(found: Scan | None) -> Value:
    """TableView value: the hits of a scan; excerpts are inert already."""
    hits = found.hits if found else ()
    rows = [{"line": h.line, "rule": h.rule, "outcome": h.outcome or "", "excerpt": h.excerpt} for h in hits]
    return table(
        wording_confirm.scanned(found.file, found.headline, found.notes) if found else "",
        "scan.csv",
        wording_confirm.SCAN_COLUMNS,
        plain_rows(rows),
        empty=wording_confirm.NO_HITS if found else "",
    )


def _measure(value: Rate | float | None) -> object:
    if isinstance(value, Rate):
        return rate_cell(value)
    return {"text": wording.number(value), "sort": value, "csv": value}


def metric_table(verification: Verification) -> Value:
    """TableView value: before and after on the same unseen prompts."""
    rows = []
    for metric in verification.metrics:
        cells = {
            "metric": wording_verify.metric_name(metric.name),
            "before": _measure(metric.before),
            "after": _measure(metric.after),
            "meaning": metric.meaning,
        }
        rows.append(cells)
    return table(
        wording_verify.METRIC_TABLE,
        "before-after.csv",
        wording_verify.METRIC_COLUMNS,
        plain_rows(rows),
        empty=wording_verify.NO_METRICS,
    )


def answer_pairs(verification: Verification) -> Value:
    """AnswerPairs value: example answers before and after."""
    pairs = [
        {
            "kind": wording_verify.pair_kind(pair.kind),
            "prompt": pair.prompt,
            "before": pair.before,
            "after": pair.after,
            "before_outcome": wording.outcome(pair.before_outcome),
            "after_outcome": wording.outcome(pair.after_outcome),
        }
        for pair in verification.examples
    ]
    labels = {"before": wording_verify.BEFORE, "after": wording_verify.AFTER}
    return {"pairs": pairs, "labels": labels, "empty": wording_verify.NO_ANSWERS}


def answer_labels(case: str, found: JudgedAnswers | None, kept: Labels) -> Value:
    """AnswerLabels value: the sampled answers of a case; the judge's word only on those whose label is saved."""
    saved = {one.key: one.outcome for one in kept.labels}
    items = [
        {
            "key": item.key,
            "prompt": item.prompt,
            "answer": item.answer,
            "saved": saved.get(item.key),
            "judged": wording.judged_by(item.judged, item.layer) if item.key in saved else None,
        }
        for item in (found.sample if found else ())
    ]
    return {
        "case": case,
        "items": items,
        "labels": {item["key"]: item["saved"] for item in items if item["saved"]},
        "choices": [{"id": one, "word": wording.outcome(one)["word"]} for one in CLASSES],
        "judge": wording_labels.JUDGE_SAID,
        "help": wording_labels.LABEL_HELP,
        "empty": wording_labels.NOTHING_TO_LABEL,
    }


def confusion_table(told: Agreement | None) -> Value:
    """TableView value: what the judge said (rows) against what the analyst said (columns)."""
    words: dict[str, str] = {one: wording.outcome(one)["word"] for one in CLASSES}
    rows = [{"judged": words[judged], **row} for judged, row in (told.matrix if told is not None else {}).items()]
    columns = [{"key": "judged", "label": wording_labels.JUDGE_BY_ANALYST, "kind": "text"}]
    columns += [{"key": one, "label": words[one], "kind": "number"} for one in CLASSES]
    return table(wording_labels.CONFUSION_TABLE, "confusion.csv", columns, plain_rows(rows))


def corrected_table(told: Agreement | None) -> Value:
    """TableView value: rates of unsafe answers as judged, and corrected by the labels."""
    rows = [
        {
            "rate": UNSAFE_RATES[one.name],
            "judged": rate_cell(one.judged),
            "corrected": {"text": wording_labels.corrected(one), "sort": one.value, "csv": one.value},
        }
        for one in (told.corrected if told is not None else ())
    ]
    return table(wording_labels.CORRECTED_TABLE, "corrected.csv", wording_labels.CORRECTED_COLUMNS, plain_rows(rows))


def status(
    *,
    case: str = "",
    model: str = "",
    device: str = "",
    analyst: str = "",
    state: str = "empty",
    stage: str = "",
    message: str = "",
    done: int = 0,
    total: int = 0,
    queue: Sequence[str] = (),
) -> Value:
    """StatusBar value."""
    return {
        "case": case,
        "model": model,
        "device": device,
        "analyst": analyst,
        "state": state,
        "word": wording.state_word(state),
        "stage": jobs.doing_now(stage),
        "message": message,
        "done": done,
        "total": total,
        "queue": [jobs.doing_now(name) for name in queue],
    }
