"""Step 6: the second opinion on the repaired model in one line, and another round where it finds a backdoor again."""

from dataclasses import dataclass
from functools import partial

import gradio as gr

from core import confirmation, jobs, lease, rounds
from core.errors import TriageError
from dashboard import stories, wording_verify
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, writing


@dataclass(frozen=True)
class Parts:
    """The components of this step that results are drawn into."""

    story: Story
    ask: gr.Button
    onward: gr.Button


def build(desk: Desk) -> None:
    """Draw the line with its two buttons."""
    story = Story(elem_id="again-story")
    with gr.Row(elem_classes="pt-actions"):
        ask = gr.Button(wording_verify.ASK_AGAIN, elem_id="again-run", visible=False)
        onward = gr.Button(wording_verify.NEXT_ROUND, elem_id="again-next", visible=False)
    parts = Parts(story, ask, onward)
    desk.panels["verify.again"] = Panel(_signature, lambda view, _: _show(view, parts), (story, ask, onward))
    desk.act(ask.click, partial(_ask, desk))
    desk.act(onward.click, partial(_open, desk))
    desk.writes(ask, onward)


def _ask(desk: Desk, session: Session) -> Next:
    jobs.ask(writing(desk, session), "again")
    return Next(session=session, tab="verify")


def _open(desk: Desk, session: Session) -> Next:
    """Open the next round, and go to where it is confirmed."""
    case = writing(desk, session)
    if jobs.status(case).state in jobs.AT_WORK:
        raise TriageError(wording_verify.BUSY)
    number = rounds.open_next(case, lease.writer(case))
    return Next(session=session.at(session.case), tab="confirm", say=wording_verify.round_opened(number))


def _signature(view: View) -> object:
    files = view.stamp(rounds.AGAIN, rounds.FINISHED, confirmation.FILE, "repair/round-*")
    return files, view.busy_with("again"), view.failure("again"), view.case is None


def _show(view: View, parts: Parts) -> Updates:
    case = view.case
    found = rounds.opinion(case) if case else None
    busy, failure, repaired = view.busy_with("again"), view.failure("again"), view.repaired()
    number = rounds.number(case) if case else 1
    stalled = rounds.nothing_gained(case) if case else ""
    return {
        parts.story: gr.update(
            value=stories.second_opinion(found, number, stalled, busy, failure if repaired else None)
        ),
        parts.ask: gr.update(visible=repaired and found is None and not busy),
        parts.onward: gr.update(visible=case is not None and not busy and rounds.can_open(case)),
    }
