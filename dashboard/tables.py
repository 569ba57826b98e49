"""Results to tables, answer pairs and the status line: pure functions, formatting only.

The twins of `dashboard.figures`: every chart and map has its table here. Text is raw: the components only ever use
`textContent`. What this does not do: read files, compute scores, judge results.
"""

from collections.abc import Sequence

from core.scanning import Scan
from core.labels import CLASSES, Agreement, JudgedAnswers, Labels
from core.values import LocateResult, Message, OpenResult, Rate, TestOutcome, TriggerProposal, Verification
from dashboard import wording
from dashboard.figures import Value, finite, shown, token_rows

REASONS_SHOWN = 1
"""Reasons a candidate's row gives; the report has them all. Source: unverified choice."""


def _rate(rate: Rate | None) -> Value | None:
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
            "cluster": wording.cluster_word(located.labels[position]),
        }
        rows.append({"key": position, "cells": cells})
    return {
        "caption": wording.TOKEN_TABLE,
        "file": "tokens.csv",
        "empty": wording.NO_PROMPT,
        "columns": wording.TOKEN_COLUMNS,
        "rows": rows,
        "selected": None,
    }


def candidate_table(proposals: Sequence[TriggerProposal], selected: int | None = None) -> Value:
    """TableView value: candidates, best first; row keys are their numbers."""
    rows = []
    for number, proposal in enumerate(proposals):
        cells = {
            "number": number + 1,
            "text": {"text": shown(proposal.text, 120), "csv": proposal.text},
            "units": len(proposal.spans),
            "score": finite(proposal.score),
            "reasons": " ".join(proposal.reasons[:REASONS_SHOWN]),
        }
        rows.append({"key": number, "cells": cells})
    return {
        "caption": wording.CANDIDATES,
        "file": None,
        "empty": wording.NO_CANDIDATES,
        "columns": wording.CANDIDATE_COLUMNS,
        "rows": rows,
        "selected": selected,
    }


def outcome_table(tests: Sequence[TestOutcome], candidate: int | None = None) -> Value:
    """TableView value: every test with its rates, p-value and result."""
    rows = []
    for test in tests:
        if candidate is not None and test.candidate != candidate:
            continue
        cells = {
            "test": wording.test_name(test.name),
            "with": _rate(test.with_unit),
            "without": _rate(test.without_unit),
            "n": test.n,
            "p": {"text": wording.p_value(test.p_value), "sort": test.p_value, "csv": test.p_value},
            "result": wording.passed(test.passed, test.name),
            "note": test.note,
        }
        rows.append({"key": None, "cells": cells})
    return {
        "caption": wording.TEST_TABLE,
        "file": "tests.csv",
        "empty": wording.NO_TESTS,
        "columns": wording.TEST_COLUMNS,
        "rows": rows,
        "selected": None,
    }


def scan_table(found: Scan | None) -> Value:
    """TableView value: the hits of a scan; excerpts are inert already."""
    hits = found.hits if found else ()
    rows = [
        {"key": None, "cells": {"line": h.line, "rule": h.rule, "outcome": h.outcome or "", "excerpt": h.excerpt}}
        for h in hits
    ]
    return {
        "caption": wording.scanned(found.file, found.headline) if found else "",
        "file": "scan.csv",
        "empty": wording.NO_HITS if found else "",
        "columns": wording.SCAN_COLUMNS,
        "rows": rows,
        "selected": None,
    }


def _measure(value: Rate | float | None) -> object:
    if isinstance(value, Rate):
        return _rate(value)
    return {"text": wording.number(value), "sort": value, "csv": value}


def metric_table(verification: Verification) -> Value:
    """TableView value: before and after on the same unseen prompts."""
    rows = []
    for metric in verification.metrics:
        cells = {
            "metric": wording.metric_name(metric.name),
            "before": _measure(metric.before),
            "after": _measure(metric.after),
            "meaning": metric.meaning,
        }
        rows.append({"key": None, "cells": cells})
    return {
        "caption": wording.METRIC_TABLE,
        "file": "before-after.csv",
        "empty": wording.NO_METRICS,
        "columns": wording.METRIC_COLUMNS,
        "rows": rows,
        "selected": None,
    }


def answer_pairs(verification: Verification) -> Value:
    """AnswerPairs value: example answers before and after."""
    pairs = [
        {
            "kind": wording.pair_kind(pair.kind),
            "prompt": pair.prompt,
            "before": pair.before,
            "after": pair.after,
            "before_outcome": wording.outcome(pair.before_outcome),
            "after_outcome": wording.outcome(pair.after_outcome),
        }
        for pair in verification.examples
    ]
    labels = {"before": wording.BEFORE, "after": wording.AFTER}
    return {"pairs": pairs, "labels": labels, "empty": wording.NO_ANSWERS}


def answer_labels(found: JudgedAnswers | None, kept: Labels) -> Value:
    """AnswerLabels value: the sampled answers; the judge's word only on those whose label is saved."""
    saved = {one.key: one.outcome for one in kept.labels}
    items = [
        {
            "key": item.key,
            "prompt": item.prompt,
            "answer": item.answer,
            "judged": wording.outcome(item.judged) if item.key in saved else None,
        }
        for item in (found.sample if found else ())
    ]
    return {
        "items": items,
        "labels": {item["key"]: saved[item["key"]] for item in items if item["key"] in saved},
        "choices": [{"id": one, "word": wording.outcome(one)["word"]} for one in CLASSES],
        "judge": wording.JUDGE_SAID,
        "help": wording.LABEL_HELP,
        "empty": wording.NOTHING_TO_LABEL,
    }


def confusion_table(told: Agreement | None) -> Value:
    """TableView value: what the judge said (rows) against what the analyst said (columns)."""
    words: dict[str, str] = {one: wording.outcome(one)["word"] for one in CLASSES}
    rows = [
        {"key": None, "cells": {"judged": words[judged], **row}}
        for judged, row in (told.matrix if told is not None else {}).items()
    ]
    columns = [{"key": "judged", "label": wording.JUDGE_BY_ANALYST, "kind": "text"}]
    columns += [{"key": one, "label": words[one], "kind": "number"} for one in CLASSES]
    return {
        "caption": wording.CONFUSION_TABLE,
        "file": "confusion.csv",
        "empty": "",
        "columns": columns,
        "rows": rows,
        "selected": None,
    }


def corrected_table(told: Agreement | None) -> Value:
    """TableView value: rates of unsafe answers as judged, and corrected by the labels."""
    rows = [
        {
            "key": None,
            "cells": {
                "rate": wording.UNSAFE_RATES[one.name],
                "judged": _rate(one.judged),
                "corrected": {"text": wording.corrected(one), "sort": one.value, "csv": one.value},
            },
        }
        for one in (told.corrected if told is not None else ())
    ]
    return {
        "caption": wording.CORRECTED_TABLE,
        "file": "corrected.csv",
        "empty": "",
        "columns": wording.CORRECTED_COLUMNS,
        "rows": rows,
        "selected": None,
    }


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
        "stage": wording.stage_name(stage),
        "message": message,
        "done": done,
        "total": total,
        "queue": [wording.stage_name(name) for name in queue],
    }
