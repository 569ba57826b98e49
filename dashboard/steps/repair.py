"""Step 5, Repair: start, follow and stop the fine-tuning that the worker runs.

The form shows the settings that really run while a repair runs. The chart is sent only what this browser lacks; it follows the
case's events, so a refresh, a second tab or a restarted page see the whole history. What this does not do: train.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias, get_args, get_type_hints

import gradio as gr

from core import confirmation, jobs, rounds, worker_process
from core.casefile import Case
from core.errors import CaseFileError, ConfirmationError, TriageError
from core.events import RepairFinished
from core.jobs import How
from core.repair_trace import RepairTrace
from core.rounds import FINISHED, MEMORY
from core.settings import PAPER, RepairSettings
from core.values import TriggerConfirmation
from dashboard import figures, stories, wording, wording_repair
from dashboard.components import LiveChart
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, current_case, quiet, writing

FEW = ("objective", "epochs", "learning_rate", "kl_budget")
ADVANCED = (
    "batch_size",
    "lora_rank",
    "lora_alpha",
    "max_steps",
    "n_harmful",
    "n_safe",
    "probe_every",
    "n_probe",
    "weight_refusal",
    "weight_kl_harmful",
    "weight_kl_safe",
    "weight_kl_trigger",
    "share_wider",
    "share_edited",
    "share_ends",
    "share_own_place",
    "share_lookalike",
    "seed",
    "own_answers",
    "own_refusals",
    "early_stop",
)
NUMBERS = {name for name, kind in get_type_hints(RepairSettings).items() if float in (kind, *get_args(kind))}
"""Settings that are not whole numbers."""
ENDING = ("kl_budget", "early_stop")
"""Settings that the choice of an objective sets too."""
CHOICES = {"objective": ("extended", "paper")}
"""Settings that are one of a few words."""
Field: TypeAlias = gr.Number | gr.Textbox | gr.Checkbox | gr.Radio


@dataclass(frozen=True)
class Parts:
    """The components of this step that results are drawn into."""

    story: Story
    chart: LiveChart
    start: gr.Button
    resume: gr.Button
    keep: gr.Button
    discard: gr.Button
    onward: gr.Button
    form: Mapping[str, Field]


def build(desk: Desk) -> gr.Button:
    """Draw step 5 inside the current tab; return the button that leads on to step 6."""
    with gr.Row(elem_classes="pt-columns"):
        with gr.Column(scale=1, min_width=344):  # both ways to stop side by side
            story = Story(elem_id="repair-story")
            with gr.Row(elem_classes="pt-actions"):
                start = gr.Button(
                    wording_repair.START_REPAIR, variant="primary", elem_id="repair-start", interactive=False
                )
                onward = gr.Button(wording.VERIFY, variant="primary", elem_id="to-verify", visible=False)
                resume = gr.Button(wording.RESUME, elem_id="repair-resume", visible=False)
            with gr.Row(elem_classes="pt-actions"):
                keep = gr.Button(wording_repair.STOP_KEEP, elem_id="repair-keep", interactive=False)
                discard = gr.Button(wording_repair.STOP_DISCARD, elem_id="repair-discard", interactive=False)
            with gr.Column(elem_classes="pt-form"):
                form = {name: _field(name) for name in FEW}
            with gr.Accordion(wording_repair.ADVANCED, open=False, elem_classes="pt-form"):
                form |= {name: _field(name) for name in ADVANCED}
        with gr.Column(scale=3):
            chart = LiveChart(elem_id="repair-chart")

    parts = Parts(story, chart, start, resume, keep, discard, onward, form)
    drawn = (story, start, resume, keep, discard, onward, *form.values())
    desk.panels["repair"] = Panel(_signature, lambda view, before: _show(view, before is None, parts), drawn)
    desk.panels["repair.chart"] = Panel(
        _chart_signature, lambda view, before: _show_chart(view, before, parts), (chart,)
    )
    form["objective"].input(_recipe, form["objective"], [form[name] for name in ENDING], **quiet("always_last"))
    desk.act(start.click, partial(_start, desk), list(form.values()))
    desk.act(resume.click, partial(_resume, desk))
    desk.act(keep.click, partial(_stop, desk, "keep"))
    desk.act(discard.click, partial(_stop, desk, "discard"))
    desk.act(chart.resync, partial(_resync, desk, chart), many=True)
    desk.writes(start, resume, onward)  # stopping needs no lease
    return onward


def _field(name: str) -> Field:
    value = shown(name, getattr(RepairSettings(), name))
    label = wording_repair.REPAIR_LABELS[name]
    place = f"setting-{name}"
    if isinstance(value, bool):
        return gr.Checkbox(value, label=label, elem_id=place)
    if name in CHOICES:
        return gr.Radio(
            list(CHOICES[name]), value=value, label=label, info=wording_repair.OBJECTIVE_HELP, elem_id=place
        )
    if name in wording_repair.REPAIR_EMPTY:  # a number field would show 0 for none
        return gr.Textbox(
            value,
            label=label,
            placeholder=wording_repair.REPAIR_EMPTY[name],
            max_lines=1,
            elem_id=place,
        )
    return gr.Number(value, label=label, precision=None if name in NUMBERS else 0, elem_id=place)


def shown(name: str, value: Any) -> Any:
    """Return what the form shows for the value of a setting."""
    return value if name not in wording_repair.REPAIR_EMPTY else "" if value is None else str(value)


# handlers -------------------------------------------------------------------------------------------------------------


def _recipe(objective: str) -> list[Any]:
    """Show how a repair by the chosen objective ends by itself; what the form then holds can be changed."""
    settings = replace(RepairSettings(), **PAPER) if objective == PAPER["objective"] else RepairSettings()
    return [gr.update(value=shown(name, getattr(settings, name))) for name in ENDING]


def changed_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the defaults. Raises: TriageError for a value out of range."""
    defaults = RepairSettings()
    changed = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        if value is None or value == "":
            value = None if name in wording_repair.REPAIR_EMPTY else default
        elif name not in CHOICES and not isinstance(value, bool):
            try:
                value = float(value) if name in NUMBERS else int(value)
            except ValueError as error:
                raise TriageError(f"{wording_repair.REPAIR_LABELS[name]}: {value!r} is not a number.") from error
        if value != default:
            changed[name] = value
    try:
        RepairSettings(**changed)
    except (ValueError, TypeError) as error:
        raise TriageError(f"These settings do not work: {error}.") from error
    return changed


def _start(desk: Desk, session: Session, *values: Any) -> Next:
    case = _unlocked(desk, session)
    names = [*FEW, *ADVANCED]
    jobs.ask(case, "repair", changed_settings(dict(zip(names, values, strict=True))))
    return Next(session=session, tab="repair")


def _resume(desk: Desk, session: Session) -> Next:
    """Go on with the settings the repair had, whatever the form says now: its checkpoint fits no others."""
    case = _unlocked(desk, session)
    last = jobs.repair_to_resume(case)
    if last is None:
        raise CaseFileError(wording_repair.NOTHING_TO_RESUME)
    jobs.ask(case, "repair", last.args | {"resume": True})
    return Next(session=session, tab="repair")


def _unlocked(desk: Desk, session: Session) -> Case:
    """Return the open case to act on. Raises: BusyError; ConfirmationError where no trigger is confirmed."""
    case = writing(desk, session)
    reason = confirmation.validity(case)
    if reason is not None:
        raise ConfirmationError(reason)
    return case


def _stop(desk: Desk, how: How, session: Session) -> Next:
    case = current_case(desk, session)
    running = [request for request in jobs.open_requests(case) if request.stage == "repair"]
    if not running:
        raise TriageError("No repair is running.")
    jobs.stop(case, running[0].id, how, session.analyst)
    return Next(session=session)


def _resync(desk: Desk, chart: LiveChart, event: gr.EventData, session: Session) -> Next:
    case = current_case(desk, session)
    repair = rounds.of_this_round(case, case.current_events())
    value = figures.live_chart(repair, outdated=repair.finished is not None and rounds.outdated(case))
    return Next(session=session, updates={chart: gr.update(value=value)} if repair.run else {})


# reading --------------------------------------------------------------------------------------------------------------


def _can_resume(view: View) -> bool:
    """Return whether the last repair broke off or was stopped, and left a checkpoint to go on from; never one that was to be discarded."""
    return (
        view.case is not None
        and (view.failure("repair") is not None or _was_kept(view))
        and jobs.stop_asked(view.case, next(reversed(jobs.trained(view.case)), "")) != "discard"
        and bool(view.stamp("repair/checkpoint-*/state.json"))
    )


def _was_kept(view: View) -> bool:
    finished = view.case.read(FINISHED, RepairFinished) if view.case else None
    return finished is not None and finished.reason == "kept"


def _trace(view: View) -> RepairTrace:
    """Return the repair of the current round."""
    return rounds.of_this_round(view.case, view.lines) if view.case else RepairTrace()


# drawing --------------------------------------------------------------------------------------------------------------


def _signature(view: View) -> object:
    stopping = view.status is not None and view.status.state == "stopping"
    files = view.stamp("confirmation.json", FINISHED, "results/open.json", MEMORY, "repair/round-*")
    repair = _trace(view)
    return (
        files,
        view.busy_with("repair"),
        stopping,
        repair.request,
        repair.since,
        view.failure("repair"),
        view.case is None,
    )


def _show(view: View, fresh: bool, parts: Parts) -> Updates:
    """Draw all but the chart; the form begins with the defaults where the case is `fresh` to this browser."""
    running = view.busy_with("repair")
    repair = _trace(view)
    started = repair.started
    lock = confirmation.validity(view.case) if view.case else wording.NO_CASE
    finished = view.case.read(FINISHED, RepairFinished) if view.case and not rounds.outdated(view.case) else None
    accepted = view.case.read(confirmation.FILE, TriggerConfirmation) if view.case else None
    failure = view.failure("repair")
    counted = (view.case.read(MEMORY, dict) if view.case else None) or {}
    ahead = stories.repair_ahead(view.opened(), counted.get("mb"), counted.get("unreached", 0.0))
    story = stories.repair(
        lock, accepted, ahead, started if running or finished else None, finished, running, repair.since
    )
    if failure is not None and not running and lock is None:
        why = worker_process.log_tail(view.case) if view.case else ""
        story = {
            "headline": failure,
            "tone": "warn",
            "why": why,
            "line": wording_repair.EARLIER if view.repaired() else "",
        }
    elif view.case is not None:
        story |= stories.best_rule(started)
    stopping = view.status is not None and view.status.state == "stopping"
    repaired = view.repaired() and not running
    updates: Updates = {
        parts.story: gr.update(value=stories.in_round(story, rounds.ended(view.case) if view.case else ())),
        parts.start: gr.update(
            interactive=lock is None and not running,
            variant="secondary" if repaired else "primary",
            value=wording_repair.REPAIR_AGAIN if repaired else wording_repair.START_REPAIR,
        ),
        parts.resume: gr.update(visible=_can_resume(view) and not running and lock is None),
        parts.keep: gr.update(interactive=running and not stopping),
        parts.discard: gr.update(interactive=running and not stopping),
        parts.onward: gr.update(visible=repaired),
    }
    return updates | _show_form(view, fresh, parts.form)


def _show_form(view: View, fresh: bool, form: Mapping[str, Field]) -> Updates:
    """The settings that run, while some do; the defaults in a case that is fresh to this browser; else what was typed.

    The learning rate that goes with the model's size is said in its empty field: another case may need another one.
    """
    running, repair = view.busy_with("repair"), _trace(view)
    filled: dict[str, Any] = asdict(RepairSettings()) if fresh else {}
    rate = wording_repair.REPAIR_EMPTY["learning_rate"]
    if running and view.case and repair.started and view.status and view.status.request == repair.request:
        filled = dict(repair.started.settings)
        asked = next((one.args for one in jobs.requests(view.case) if one.id == repair.request), {})
        if "learning_rate" in filled and asked.get("learning_rate") is None:
            rate, filled["learning_rate"] = f"{filled['learning_rate']:g}, {rate}", None
    updates: Updates = {}
    for name, box in form.items():
        updates[box] = gr.update(interactive=not running)
        if name in filled:
            updates[box]["value"] = shown(name, filled[name])
    updates[form["learning_rate"]]["placeholder"] = rate
    return updates


@dataclass(frozen=True)
class Drawn:
    """What the chart of a browser holds."""

    request: str
    n_steps: int
    n_probes: int
    ended: bool
    going: bool
    files: tuple


def _chart_signature(view: View) -> Drawn:
    repair = _trace(view)
    n_steps, n_probes = len(repair.steps), len(repair.probes)
    files = view.stamp("confirmation.json", FINISHED)
    return Drawn(repair.request, n_steps, n_probes, repair.finished is not None, view.busy_with("repair"), files)


def _show_chart(view: View, before: Drawn | None, parts: Parts) -> Updates:
    repair = _trace(view)
    since = before.n_steps if before is not None and before.request == repair.request else 0
    going = view.busy_with("repair")
    outdated = view.case is not None and not going and repair.finished is not None and rounds.outdated(view.case)
    return {parts.chart: gr.update(value=figures.live_chart(repair, since, going=going, outdated=outdated))}
