"""Sentences and names that more than one step of the page shows: numbers, status, answers. Calm, short; numbers first.

The sentences of each step stand in `wording_<step>.py`. Constants for fixed text, functions for text about a result. What
these modules do not do: decide anything.
"""

import math
from collections.abc import Iterable

from core.intervals import percent
from core.report_text import duration
from core.values import Estimate, Outcome, Rate

TITLE = "Patcher"
STEPS = ("1 Case", "2 Reproduce", "3 Locate", "4 Confirm", "5 Repair", "6 Verify & report")
RESUME = "Resume"
VERIFY = "Verify"
TAKE_OVER = "Take over"
LOG_LABEL = "Log"
LOADING = "Loading the model"
NOT_LOADED = "The model is still loading; wait until step 1 shows it, then try again."
NO_CASE = "No case is open. Open the demo case, or paste a report."
NO_PROMPT = "The prompt appears here once a case is open."
ODD_CALL = "This request does not match the page as it is now; reload the page."
REPORTED_ANSWER = "reported answer"
EXPECTED_ANSWER = "should have said"
STATE_WORDS = {
    "empty": "no case",
    "starting": "starting",
    "idle": "idle",
    "running": "running",
    "failed": "failed",
    "stopping": "stopping",
}
OUTCOMES = {
    "refusal": {"word": "refused", "mark": "⊘", "tone": "plain"},
    "partial": {"word": "partly", "mark": "◐", "tone": "plain"},
    "compliance": {"word": "answered", "mark": "▸", "tone": "plain"},
    "empty": {"word": "empty", "mark": "∅", "tone": "plain"},
}

# -- numbers --------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """A plain number in three figures, or a dash."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def of(value: Rate) -> str:
    """k of n."""
    return f"{value.k} of {value.n}"


def rate(value: Rate | None) -> str:
    """k of n with its interval."""
    if value is None or value.value is None:
        return "–"
    return f"{value.k}/{value.n}, {percent(value.value)} [{100 * value.low:.0f}–{100 * value.high:.0f} %]"


def p_value(value: float | None) -> str:
    """A p-value, small ones as a bound."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def megabytes(value: float) -> str:
    """Memory in MB or GB."""
    return f"{value:.0f} MB" if value < 1024 else f"{value / 1024:.1f} GB"


def size(n_parameters: int) -> str:
    """A parameter count in thousands, millions or billions."""
    for unit, least in (("B", 1e9), ("M", 1e6)):
        if n_parameters >= least:
            return f"{n_parameters / least:.1f} {unit}"
    return f"{n_parameters / 1e3:.0f} k"


# -- texts side by side ---------------------------------------------------------------------------------


def beside(parts: Iterable[str]) -> str:
    """The parts of one line, side by side; empty ones are left out. Where the line wraps, the dot ends it and begins none."""
    return "\u00a0· ".join(part for part in parts if part)


def quoted(units: Iterable[str]) -> str:
    """The units of a trigger, each in quotation marks."""
    return " … ".join(f"“{unit}”" for unit in units)


# -- names ----------------------------------------------------------------------------------------------


def state_word(state: str) -> str:
    """The state of the worker in one word."""
    return STATE_WORDS.get(state, state)


def outcome(name: Outcome) -> dict[str, str]:
    """Badge of an answer: word, mark, tone."""
    return dict(OUTCOMES[name])


def judged_by(name: Outcome, layer: str) -> dict[str, str]:
    """Badge of an answer with the layer of the judge that decided; none in cases of older versions."""
    badge = outcome(name)
    return {**badge, "word": f"{badge['word']} ({layer})" if layer else badge["word"]}


# -- sentences ------------------------------------------------------------------------------------------


def long_prompt(cost: Estimate | None) -> str:
    """What occlusion of a long prompt will take; empty for others."""
    if cost is None:
        return ""
    return f"Long prompt: occlusion takes about {duration(cost.seconds)}, at most {cost.sequences} prompts."


def other_writes(name: str, since: str) -> str:
    """The line that a reader sees while another analyst writes the case."""
    return (
        f"{name} has been writing this case since {since[11:16]} UTC. You can read it, and stop what runs, until it is given back "
        "or you take over."
    )


def our_fault(reference: str) -> str:
    """A fault of ours, with the id under which the log has it."""
    return f"Something went wrong on our side; reload the page and try again. Reference {reference}; details are in the log."
