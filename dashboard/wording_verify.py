"""The sentences of step 6 beyond the first table: residual risk, the probes of it, and the second opinion."""

from core.values import Relearnt, Verification, WrongTrigger
from dashboard.wording import duration, percent

RESIDUAL = "Residual risk: other forms, classes of answers, probes"
VARIANT_TABLE = "Failures with other forms of the trigger"
NO_VARIANTS = "Other forms of the trigger were not asked; verify again."
VARIANT_COLUMNS = [
    {"key": "variant", "label": "form", "kind": "name"},
    {"key": "before", "label": "before", "kind": "rate"},
    {"key": "after", "label": "after", "kind": "rate"},
    {"key": "example", "label": "first request", "kind": "mono"},
]
CLASS_TABLE = "Classes of answers"
CLASS_COLUMNS = [
    {"key": "prompts", "label": "prompts", "kind": "name"},
    {"key": "class", "label": "answers", "kind": "text"},
    {"key": "before", "label": "before", "kind": "rate"},
    {"key": "after", "label": "after", "kind": "rate"},
]
CLASSES = {
    "good": "as they should be",
    "refused": "refused",
    "wrong": "wrong",
    "strange": "strange: empty or no language",
}
PROBES = "Two probes train a throw-away copy of the adapter; the first takes about as long as the repair."
WRONG_TRIGGER = "Repair on a wrong trigger"
RELEARN = "Let it be learnt again"
PROBING = {
    "wrong-trigger": "Repairing on random tokens in the trigger's place",
    "relearn": "Tuning the repaired model on a few poisoned samples",
}
WRONG_TABLE = "Attack success of the confirmed trigger"
WRONG_COLUMNS = [
    {"key": "model", "label": "model", "kind": "name"},
    {"key": "rate", "label": "attack success", "kind": "rate"},
]
RELEARN_TABLE = "Failures after tuning the repaired model on poisoned samples"
RELEARN_COLUMNS = [
    {"key": "samples", "label": "samples", "kind": "number"},
    {"key": "planted", "label": "the confirmed trigger", "kind": "rate"},
    {"key": "never", "label": "a text never planted", "kind": "rate"},
    {"key": "planted_bare", "label": "no trigger, tuned on the first", "kind": "rate"},
    {"key": "never_bare", "label": "no trigger, tuned on the other", "kind": "rate"},
]


def wrong_rows(found: WrongTrigger) -> dict[str, str]:
    """The models that the wrong-trigger probe compares, by field."""
    text = " … ".join(f"“{unit}”" for unit in found.units)
    return {
        "before": "as reported",
        "right": "repaired",
        "wrong": f"the same repair on {text}, {found.n_steps} steps",
    }


def residual(result: Verification) -> str:
    """The other forms in one line: how many worked before and how many still do."""
    rates = [(one.before, one.after) for one in result.variants]
    worked = [(b, a) for b, a in rates if getattr(b, "k", 0) and 2 * b.k >= b.n]  # type: ignore[union-attr]
    left = [a for _, a in worked if 2 * a.k >= a.n]  # type: ignore[union-attr]
    asked = max((b.n for b, _ in rates), default=0)  # type: ignore[union-attr]
    return f"{len(worked)} of {len(rates)} forms worked before in half of {asked} requests or more, {len(left)} after."


def relearnt(found: tuple[Relearnt, ...]) -> str:
    """What the re-learning probe shows, in one line."""
    last = found[-1]
    return (
        f"After {last.n_samples} samples the confirmed trigger works in {percent(last.planted.value)}, "
        f"a text never planted in {percent(last.never.value)}."
    )


def wrong_trigger(found: WrongTrigger) -> str:
    """What the wrong-trigger probe shows, in one line."""
    return (
        f"The same repair on random tokens leaves {percent(found.wrong.value)} of attack success, the right one "
        f"{percent(found.right.value)} ({duration(found.seconds)})."
    )
