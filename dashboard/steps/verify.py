"""Step 6, Verify and report: before and after on unseen prompts, answers side by side, saliency, and what to take away."""

from dataclasses import dataclass
from functools import partial

import gradio as gr

from core import jobs, report_check, rounds
from core.report_text import backdoor_again
from dashboard import figures, stories, tables, wording, wording_verify
from dashboard.components import AnswerPairs, TableView, TokenView
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, writing
from dashboard.steps import again, residual


@dataclass(frozen=True)
class Parts:
    """The components of this step that results are drawn into."""

    metrics: TableView
    pairs: AnswerPairs
    before: TokenView
    after: TokenView
    verify: gr.Button
    export: gr.Button
    merged: gr.Button
    redacted: gr.Button
    files: Story


def build(desk: Desk, arrive: gr.Button) -> None:
    """Draw step 6 inside the current tab, reached by the button `arrive`."""
    story = Story(elem_id="verify-story")
    metrics = TableView(elem_id="verify-metrics")
    again.build(desk)
    with gr.Row(elem_classes="pt-actions"):
        verify = gr.Button(wording.VERIFY, elem_id="verify-run", visible=False)
        export = gr.Button(wording_verify.REPORT, variant="primary", elem_id="verify-export", interactive=False)
        merged = gr.Button(wording_verify.EXPORT_MERGED, elem_id="verify-merged", interactive=False)
        redacted = gr.Button(wording_verify.REDACTED_REPORT, elem_id="verify-redacted", interactive=False)
    files = Story(elem_id="verify-files")
    residual.build(desk)
    gr.Markdown(wording_verify.SALIENCY_PAIR, elem_classes="pt-label")
    with gr.Row(elem_classes="pt-columns"):
        with gr.Column():
            gr.Markdown(wording_verify.BEFORE, elem_classes="pt-label")
            before = TokenView(mode="heat", elem_id="verify-before")
        with gr.Column():
            gr.Markdown(wording_verify.AFTER, elem_classes="pt-label")
            after = TokenView(mode="heat", elem_id="verify-after")
    gr.Markdown(wording_verify.EXAMPLES, elem_classes="pt-label")
    pairs = AnswerPairs(elem_id="verify-pairs")

    parts = Parts(metrics, pairs, before, after, verify, export, merged, redacted, files)
    desk.panels["verify.story"] = Panel(
        lambda view: (_signature(view), view.stamp(rounds.AGAIN)), lambda view, _: _show_story(view, story), (story,)
    )
    desk.panels["verify"] = Panel(
        _signature,
        lambda view, _: _show(view, parts),
        (metrics, pairs, before, after, verify, export, merged, redacted),
    )
    desk.panels["verify.files"] = Panel(_files_signature, lambda view, _: _show_files(view, parts), (files,))
    desk.act(arrive.click, partial(_verify, desk))
    desk.act(verify.click, partial(_verify, desk))
    desk.act(export.click, partial(_write, desk, False))
    desk.act(merged.click, partial(_write, desk, True))
    desk.act(redacted.click, partial(_redact, desk))
    desk.writes(verify, export, merged, redacted)


def _verify(desk: Desk, session: Session) -> Next:
    case = writing(desk, session)
    for stage in ("verify", "again"):
        jobs.ask(case, stage)
    return Next(session=session, tab="verify")


def _write(desk: Desk, merged: bool, session: Session) -> Next:
    case = writing(desk, session)
    if merged:
        jobs.ask(case, "export", {"merged": True})
    else:
        jobs.ask(case, "report")
        if rounds.repaired(case) is not None:
            jobs.ask(case, "export", {"merged": False})
    return Next(session=session)


def _redact(desk: Desk, session: Session) -> Next:
    jobs.ask(writing(desk, session), "report", {"redact": True})
    return Next(session=session)


def _signature(view: View) -> object:
    files = view.stamp("verification.json", "repair/finished.json", "confirmation.json", "results/open.json")
    return files, view.busy_with("verify"), view.failure("verify"), view.case is None


def _show_story(view: View, story: Story) -> Updates:
    """What the repair reached; a backdoor that the second opinion found stands in the same line."""
    result = rounds.verification(view.case) if view.case else None
    failure = view.failure("verify")
    if view.case is None:
        value = stories.waiting(wording.NO_CASE)
    elif view.busy_with("verify"):
        value = {"headline": wording_verify.VERIFYING, "tone": "busy"}
    elif failure is not None:
        value = stories.fault(failure)
    elif result is not None:
        value = stories.verified(result, backdoor_again(rounds.told(view.case)))
    else:
        value = stories.waiting(wording_verify.NOT_VERIFIED_YET, wording_verify.REPORT_SO_FAR)
    rule = stories.result_rule(result) if view.case is not None else {}
    return {story: gr.update(value=value | rule)}


def _show(view: View, parts: Parts) -> Updates:
    result = rounds.verification(view.case) if view.case else None
    opened = view.opened()
    busy = view.busy_with("verify")
    repaired = view.repaired()
    updates: Updates = {
        parts.verify: gr.update(visible=repaired and result is None and not busy),
        parts.export: gr.update(
            value=wording_verify.REPORT_AND_EXPORT if repaired else wording_verify.REPORT,
            interactive=view.case is not None,
        ),
        parts.merged: gr.update(interactive=repaired),
        parts.redacted: gr.update(interactive=view.case is not None),
    }
    if result is None or opened is None or view.case is None:
        empty = {"tokens": [], "empty": ""}
        return updates | {
            parts.metrics: gr.update(value={"columns": [], "rows": [], "empty": wording_verify.NO_METRICS}),
            parts.pairs: gr.update(value={"pairs": [], "empty": wording_verify.NO_ANSWERS}),
            parts.before: gr.update(value=empty),
            parts.after: gr.update(value=empty),
        }
    before, after = figures.saliency_views(opened, result, view.case.report.messages)
    return updates | {
        parts.metrics: gr.update(value=tables.metric_table(result)),
        parts.pairs: gr.update(value=tables.answer_pairs(result)),
        parts.before: gr.update(value=before),
        parts.after: gr.update(value=after),
    }


def _files_signature(view: View) -> object:
    stages = ("report", "export")
    files = view.stamp(
        *wording_verify.DOWNLOADS, "repair/finished.json", "confirmation.json", "export/merged/config.json"
    )
    return files, view.busy_with(*stages), view.failure(*stages)


def _show_files(view: View, parts: Parts) -> Updates:
    if view.case is None:
        return {parts.files: gr.update(value={})}
    failure = view.failure("report", "export")
    if view.busy_with("report", "export"):
        return {parts.files: gr.update(value={"headline": wording_verify.WRITING, "tone": "busy"})}
    outdated = rounds.outdated(view.case) or not view.repaired()
    overtaken = report_check.overtaken(view.case)
    value = stories.exports(view.case.manifest, view.case.path, rounds.verification(view.case), outdated, overtaken)
    return {parts.files: gr.update(value=value | ({"headline": failure, "tone": "warn"} if failure else {}))}
