"""Part of step 4: the analyst labels some of this model's answers; how often the judge is right, and rates corrected by it."""

from functools import partial

import gradio as gr

from core import labels, rounds
from dashboard import tables, wording_labels
from dashboard.components import TableView
from dashboard.components.answer_labels import AnswerLabels
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, sent, writing


def build(desk: Desk, analyst: gr.Textbox) -> None:
    """Draw the part inside the current tab; labels are saved under the name in `analyst`."""
    with gr.Accordion(wording_labels.LABELLING, open=False, elem_id="labelling"):
        sheet = AnswerLabels(elem_id="label-answers")
        with gr.Row(elem_classes="pt-actions"):
            save = gr.Button(wording_labels.SAVE_LABELS, elem_id="label-save", scale=0, min_width=120)
        story = Story(elem_id="label-story")
        matrix = TableView(elem_id="label-matrix")
        rates = TableView(elem_id="label-rates")
    desk.panels["labelling.sheet"] = Panel(_sheet_signature, lambda view, _: _show_sheet(view, sheet), (sheet,))
    outputs = (story, matrix, rates)
    desk.panels["labelling"] = Panel(_signature, lambda view, _: _show(view, *outputs), outputs)
    desk.act(save.click, partial(_save, desk), [sheet, analyst])
    desk.writes(save)


def _save(desk: Desk, session: Session, value: dict | None, analyst: str | None) -> Next:
    given = sent(value, "labels", dict) if value else {}
    labels.label(writing(desk, session), {str(key): str(one) for key, one in given.items()}, analyst or "")
    return Next(session=session)


def _sheet_signature(view: View) -> object:
    return view.stamp(labels.ANSWERS, labels.FILE), view.case is None


def _show_sheet(view: View, sheet: AnswerLabels) -> Updates:
    if view.case is None:
        return {sheet: gr.update(value=tables.answer_labels("", None, labels.Labels()))}
    found, kept = labels.answers(view.case), labels.stored(view.case)
    return {sheet: gr.update(value=tables.answer_labels(view.case.path.name, found, kept))}


def _signature(view: View) -> object:
    results = ("triage.json", "verification.json", "confirmation.json", rounds.FINISHED)
    return view.stamp(labels.ANSWERS, labels.FILE, *results), view.case is None


def _show(view: View, story: Story, matrix: TableView, rates: TableView) -> Updates:
    found = labels.answers(view.case) if view.case else None
    told = labels.agreement(view.case) if view.case else None
    return {
        story: gr.update(value=wording_labels.judge_story(found, told)),
        matrix: gr.update(value=tables.confusion_table(told), visible=told is not None),
        rates: gr.update(value=tables.corrected_table(told), visible=told is not None),
    }
