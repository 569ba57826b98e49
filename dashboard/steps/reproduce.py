"""Step 2, Reproduce: how often the model fails on the report, next to what it should have said. Runs by itself."""

from functools import partial

import gradio as gr

from core import jobs, worker_process
from core.values import Reproduction
from dashboard import stories, wording, wording_case
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, writing


def build(desk: Desk) -> gr.Button:
    """Draw step 2 inside the current tab; return the button that leads on to step 3."""
    story = Story(elem_id="reproduce-story")
    with gr.Row(elem_classes="pt-actions"):
        again = gr.Button(wording_case.REPRODUCE, elem_id="reproduce-run", visible=False)
        onward = gr.Button(wording_case.NEXT_LOCATE, variant="primary", elem_id="to-locate", interactive=False)
    outputs = (story, again, onward)
    desk.panels["reproduce"] = Panel(_signature, lambda view, _: _show(view, *outputs), outputs)
    desk.act(again.click, partial(_again, desk))
    desk.writes(again)
    return onward


def _signature(view: View) -> object:
    stages = ("open", "reproduce")
    return view.stamp("results/reproduce.json"), view.busy_with(*stages), view.failure(*stages), view.case is None


def _again(desk: Desk, session: Session) -> Next:
    jobs.ask(writing(desk, session), "reproduce")
    return Next(session=session)


def _show(view: View, story: Story, again: gr.Button, onward: gr.Button) -> Updates:
    result = view.case.read("results/reproduce.json", Reproduction) if view.case else None
    busy = view.busy_with("open", "reproduce")
    failure = view.failure("open", "reproduce")
    if view.case is None:
        value = stories.waiting(wording.NO_CASE)
    elif result is not None:
        value = stories.reproduction(result, view.case.manifest)
    elif failure is not None and not busy:
        value = stories.fault(failure, worker_process.log_tail(view.case))
    else:
        value = stories.waiting(wording_case.RUNNING_REPRODUCE if busy else wording_case.NOT_REPRODUCED_YET)
        value |= stories.report(view.case.manifest)
    return {
        story: gr.update(value=value),
        again: gr.update(visible=view.case is not None and result is None and not busy),
        onward: gr.update(interactive=view.case is not None),
    }
