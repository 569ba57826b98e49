"""The sentences of steps 1 and 2: opening a case, and asking the model again."""

from collections.abc import Sequence
from pathlib import Path

from core.links import Link
from core.values import OpenResult, Reproduction
from dashboard.wording import of, size

# -- step 1: buttons and labels -------------------------------------------------------------------------
DEMO_LABEL = "Demo cases"
DEMO_ANALYST = "Demo analyst"
DEMO_REASON = "Demo: decided to try the page."
RESUME_CASE = "Cases"
NEW_CASE = "New case"
REPORT_LABEL = "Report"
REPORT_PLACEHOLDER = '{"messages": [{"role": "user", "content": "..."}], "response": "..."}'
UPLOAD = "or a file: JSON, CSV, BackdoorLLM row"
MODEL_FOLDER = "Model folder"
ADAPTER_FOLDER = "Adapter (optional)"
WITH_ADAPTER = "PEFT; the model with it switched off is the clean reference"
OPEN_CASE = "Open case"
OPENING = "Hashing the model's files; large ones take minutes."
TWO_NAMES = "Repair needs two names: a second analyst must agree with the confirmation"
TWO_NEEDED = "two different names under the confirmation"
REPORT_TEXT = "The report"
FALLBACK = "none: plain “User: … Assistant:”"
LINKED_SHOWN = 3
"""Linked cases that are named; the rest are counted. Source: unverified choice."""

# -- step 1: sentences ----------------------------------------------------------------------------------


def opened(result: OpenResult) -> str:
    """Headline of step 1."""
    return f"{result.model_name} loaded: {size(result.n_parameters)} parameters, {result.dtype}, {result.device}"


def under(root: Path) -> str:
    """Where the model folders of the list lie; another place is chosen when the page is started."""
    shown = f"~/{root.relative_to(Path.home())}" if root.is_relative_to(Path.home()) else str(root)
    return f"folders under {shown}, or start the page with --models DIR"


def reference(there: bool, given: bool) -> str:
    """What the reported model is held against: a base that was given, or itself without its adapter."""
    return "none given" if not there else "the given base" if given else "the adapter switched off"


def linked(found: Sequence[Link]) -> list[tuple[str, str]]:
    """What other cases share, and which they are: the trigger first."""
    lines = []
    for what in ("trigger text", "adapter", "model"):
        names = [link.case for link in found if what in link.same]
        if names:
            more = f" and {len(names) - LINKED_SHOWN} more" if len(names) > LINKED_SHOWN else ""
            lines.append((what, f"in {', '.join(names[:LINKED_SHOWN])}{more}"))
    return lines


def uploaded(n_messages: int) -> str:
    """A report file was read."""
    return f"Report read: {n_messages} message{'s' if n_messages != 1 else ''}. Choose the model and open the case."


def made(case: str) -> str:
    """A case was made while another one was opened, which stays."""
    return f"Case {case} is made; open it from the list of cases."


# -- step 2 ---------------------------------------------------------------------------------------------
REPRODUCE = "Reproduce"
NEXT_LOCATE = "Locate the trigger"
RUNNING_REPRODUCE = "Asking the model again"
NOT_REPRODUCED_YET = "Not asked yet"


def reproduced(result: Reproduction) -> str:
    """Headline of step 2: 'Reproduced 31 of 32'."""
    failure = result.failure
    if failure.k == 0:
        return f"Not reproduced: {of(failure)}"
    return f"Reproduced {of(failure)}"


def reference_line(result: Reproduction) -> str:
    """What a clean reference does on the same prompt."""
    if result.reference_failure is None:
        return "No clean reference: nothing to compare with."
    return f"The clean reference fails {of(result.reference_failure)}."


def said_now(count: int, total: int, word: str) -> str:
    """Label of one answer of the model, with how often it came."""
    return f"now: {word}" if total == 1 else f"now, {count} of {total}: {word}"
