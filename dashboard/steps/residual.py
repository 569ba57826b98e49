"""Step 6, folded: residual risk. Other forms of the trigger, classes of answers, and two probes on request."""

from dataclasses import dataclass
from functools import partial

import gradio as gr

from core import confirmation, jobs, rounds
from dashboard import residual_tables, stories, wording_verify
from dashboard.components import TableView
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, writing

PROBES = ("wrong-trigger", "relearn")


@dataclass(frozen=True)
class Parts:
    """The components of this step that results are drawn into."""

    story: Story
    variants: TableView
    classes: TableView
    buttons: dict[str, gr.Button]
    wrong: TableView
    relearnt: TableView


def build(desk: Desk) -> None:
    """Draw the folded part of step 6."""
    with gr.Accordion(wording_verify.RESIDUAL, open=False, elem_id="residual"):
        story = Story(elem_id="residual-story")
        variants = TableView(elem_id="residual-variants")
        with gr.Row(elem_classes="pt-columns"):
            with gr.Column():
                classes = TableView(elem_id="residual-classes")
            with gr.Column():
                gr.Markdown(wording_verify.PROBES, elem_classes="pt-label")
                with gr.Row(elem_classes="pt-actions"):
                    names = {"wrong-trigger": wording_verify.WRONG_TRIGGER, "relearn": wording_verify.RELEARN}
                    buttons = {
                        stage: gr.Button(text, elem_id=f"probe-{stage}", interactive=False)
                        for stage, text in names.items()
                    }
                wrong = TableView(elem_id="residual-wrong")
                relearnt = TableView(elem_id="residual-relearn")

    parts = Parts(story, variants, classes, buttons, wrong, relearnt)
    outputs = (story, variants, classes, *buttons.values(), wrong, relearnt)
    desk.panels["verify.residual"] = Panel(_signature, lambda view, _: _show(view, parts), outputs)
    for stage, button in buttons.items():
        desk.act(button.click, partial(_ask, desk, stage))
    desk.writes(*buttons.values())


def _ask(desk: Desk, stage: str, session: Session) -> Next:
    jobs.ask(writing(desk, session), stage)
    return Next(session=session, tab="verify")


def _signature(view: View) -> object:
    busy = [view.busy_with(stage) for stage in PROBES]
    return (
        view.stamp(rounds.VERIFIED, rounds.FINISHED, confirmation.FILE),
        busy,
        view.failure(*PROBES),
        view.case is None,
    )


def _show(view: View, parts: Parts) -> Updates:
    result = rounds.verification(view.case) if view.case else None
    if result is None:
        empty: dict[str, object] = {"columns": [], "rows": []}
        tables = (parts.variants, parts.classes, parts.wrong, parts.relearnt)
        return (
            {parts.story: gr.update(value={})}
            | {table: gr.update(value=empty) for table in tables}
            | {button: gr.update(interactive=False) for button in parts.buttons.values()}
        )
    running = next((stage for stage in PROBES if view.busy_with(stage)), None)
    accepted = confirmation.stored(view.case) if view.case else None
    free = running is None and accepted is not None and accepted.way == "trigger"  # a dummy is no text to probe
    return {
        parts.story: gr.update(value=stories.residual(result, running, view.failure(*PROBES))),
        parts.variants: gr.update(value=residual_tables.variant_table(result)),
        parts.classes: gr.update(value=residual_tables.class_table(result)),
        parts.wrong: gr.update(value=residual_tables.wrong_table(result.wrong_trigger)),
        parts.relearnt: gr.update(value=residual_tables.relearn_table(result.relearnt)),
        parts.buttons["wrong-trigger"]: gr.update(interactive=free and result.wrong_trigger is None),
        parts.buttons["relearn"]: gr.update(interactive=free and not result.relearnt),
    }
