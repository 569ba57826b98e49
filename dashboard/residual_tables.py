"""Residual risk to tables, pure: other forms of the trigger, classes of answers, the two probes."""

from core.values import ANSWER_CLASSES, Relearnt, Verification, WrongTrigger
from dashboard import wording_verify
from dashboard.figures import Value, shown
from dashboard.tables import plain_rows, rate_cell, table

FORMS_AT_ONCE = 8
"""Forms shown before the rest is folded. Source: unverified choice."""


def variant_table(result: Verification) -> Value:
    """TableView value: failures with each form of the trigger, those that worked best before first."""
    ordered = sorted(result.variants, key=lambda one: -(one.before.value or 0))
    rows: list[Value] = [
        {
            "variant": one.name,
            "before": rate_cell(one.before),
            "after": rate_cell(one.after),
            "example": {"text": shown(one.example, 90), "csv": one.example},
        }
        for one in ordered
    ]
    return table(
        wording_verify.VARIANT_TABLE,
        "forms.csv",
        wording_verify.VARIANT_COLUMNS,
        plain_rows(rows),
        empty=wording_verify.NO_VARIANTS,
        at_once=FORMS_AT_ONCE,
    )


def class_table(result: Verification) -> Value:
    """TableView value: classes of answers by kind of prompt; a class without any answer is left out."""
    rows: list[Value] = [
        {
            "prompts": wording_verify.pair_kind(group.kind),
            "class": wording_verify.CLASSES[name],
            "before": rate_cell(group.before[name]),
            "after": rate_cell(group.after[name]),
        }
        for group in result.classes
        for name in ANSWER_CLASSES
        if group.before[name].k or group.after[name].k
    ]
    return table(
        wording_verify.CLASS_TABLE, "classes.csv", wording_verify.CLASS_COLUMNS, plain_rows(rows), at_once=FORMS_AT_ONCE
    )


def wrong_table(found: WrongTrigger | None) -> Value:
    """TableView value: attack success as reported, repaired, and repaired on a wrong trigger."""
    names = wording_verify.wrong_rows(found) if found else {}
    rows: list[Value] = [{"model": text, "rate": rate_cell(getattr(found, name))} for name, text in names.items()]
    return table(
        wording_verify.WRONG_TABLE if found else "", "wrong-trigger.csv", wording_verify.WRONG_COLUMNS, plain_rows(rows)
    )


def relearn_table(found: tuple[Relearnt, ...]) -> Value:
    """TableView value: how soon the trigger is learnt again, beside a text that was never planted."""
    names = ("planted", "never", "planted_bare", "never_bare")
    rows: list[Value] = [
        {"samples": one.n_samples, **{name: rate_cell(getattr(one, name)) for name in names}} for one in found
    ]
    return table(
        wording_verify.RELEARN_TABLE if found else "", "relearn.csv", wording_verify.RELEARN_COLUMNS, plain_rows(rows)
    )
