"""Step 1, Case: open a demo case with one click, resume a case, or start one from a report and a model folder.

Opening asks the worker for `open` and `reproduce` and leads on to step 2. What this does not do: load a model.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs

import gradio as gr

from core import jobs, lease, links
from core.casefile import Case
from core.errors import CaseFileError, TriageError
from core.files import dump
from core.serial import to_json
from dashboard import session as intake
from dashboard import stories, wording, wording_case
from dashboard.components.story import Story
from dashboard.desk import Desk, Next, Panel, Session, Updates, View, quiet
from dashboard.steps import confirm

Fields = tuple[gr.Textbox, gr.Textbox]
Lists = tuple[gr.Dropdown, gr.Dropdown, gr.Dropdown]
SEARCH_JS = """(...values) => {
  values.splice(values.length - 2, 2, window.patcherStart || "", window.patcherKept || "");
  return values;
}"""
"""Gives the load handler the query string the page was opened with (a step's own listener may have changed it since), and
what this tab keeps over a refresh (page.js)."""


def build(desk: Desk, page: gr.Blocks, tab: gr.Tab, fields: Fields) -> None:
    """Draw step 1 inside the current `tab`; `fields` (analyst, reason) are filled in for demo cases."""
    demos = []
    summary = Story(elem_id="case-summary")
    with gr.Row(elem_classes="pt-columns"):
        with gr.Column(scale=2):
            gr.Markdown(wording_case.DEMO_LABEL, elem_classes="pt-label")
            for demo in intake.demo_cases(desk.roots):
                button = gr.Button(demo.title, elem_id=f"demo-{demo.id}", elem_classes="pt-choice")
                demos.append((button, demo.id))
            with gr.Row(elem_classes="pt-line-row"):
                cases = gr.Dropdown([], label=wording_case.RESUME_CASE, elem_id="case-list", scale=4)
                resume = gr.Button(wording.RESUME, elem_id="case-resume", scale=1, min_width=88)
        with gr.Column(scale=3):
            gr.Markdown(wording_case.NEW_CASE, elem_classes="pt-label")
            pasted = gr.Textbox(
                label=wording_case.REPORT_LABEL,
                placeholder=wording_case.REPORT_PLACEHOLDER,
                lines=5,
                max_lines=12,
                elem_id="report-text",
            )
            with gr.Row():
                models = gr.Dropdown(
                    [],
                    label=wording_case.MODEL_FOLDER,
                    info=wording_case.under(desk.roots.models),
                    elem_id="model-folder",
                )
                adapters = gr.Dropdown(
                    [], label=wording_case.ADAPTER_FOLDER, info=wording_case.WITH_ADAPTER, elem_id="adapter-folder"
                )
            with gr.Row(elem_classes="pt-line-row"):
                upload = gr.UploadButton(
                    wording_case.UPLOAD, file_types=[".json", ".jsonl", ".csv", ".txt"], elem_id="report-file"
                )
                create = gr.Button(wording_case.OPEN_CASE, variant="primary", elem_id="case-open")
            two = gr.Checkbox(False, label=wording_case.TWO_NAMES, elem_id="case-two-names", container=False)
    with gr.Accordion(wording_case.REPORT_TEXT, open=False):
        report = Story(elem_id="case-report")

    lists = (cases, models, adapters)
    desk.panels["case"] = Panel(
        lambda view: (
            view.stamp("case.json", "results/open.json", "triage.json", "confirmation.json"),
            view.failure("open"),
        ),
        lambda view, _: _show(view, summary, report),
        (summary, report),
    )
    drawn = (*lists, *fields)
    boxes = [gr.Textbox(visible=False) for _ in range(2)]
    desk.act(page.load, partial(_attach, desk, lists, fields), boxes, extra=drawn, js=SEARCH_JS)
    tab.select(lambda: _listed(desk, lists), None, list(lists), **quiet())
    for button, name in demos:
        desk.act(button.click, partial(_open_demo, desk, lists, fields, name), extra=drawn)
    desk.act(resume.click, partial(_resume, desk, lists, fields), [cases], extra=drawn)
    desk.act(upload.upload, partial(_uploaded, pasted), [upload], extra=(pasted,))
    form = [pasted, models, adapters, upload, two]
    desk.work(
        create, wording_case.OPENING, partial(_prepare, desk), partial(_created, desk, lists, fields), form, extra=drawn
    )


def _show(view: View, summary: Story, report: Story) -> Updates:
    if view.case is None:
        return {summary: gr.update(value=stories.waiting(wording.NO_CASE)), report: gr.update(value={})}
    manifest = view.case.manifest
    value = stories.case(manifest, view.opened(), links.find(view.case))
    failure = view.failure("open")
    if failure is not None:
        value |= {"headline": failure, "tone": "warn"}
    return {summary: gr.update(value=value), report: gr.update(value=stories.report(manifest))}


def _begin(case: Case, session: Session) -> None:
    lease.take(case, session.analyst, session.browser)
    jobs.ask(case, "open")
    jobs.ask(case, "reproduce")


def _listed(desk: Desk, lists: Lists) -> Updates:
    """Fill the lists with the cases and folders that there are now."""
    names = (intake.list_cases(desk.roots), intake.list_models(desk.roots), ["", *intake.list_adapters(desk.roots)])
    return {box: gr.update(choices=found) for box, found in zip(lists, names, strict=True)}


def _entered(desk: Desk, lists: Lists, fields: Fields, session: Session, case: Case, tab: str) -> Next:
    """Return what opening a case leads to."""
    updates = _listed(desk, lists) | _prefill(desk, fields, case)
    return Next(session=session.at(case.path.name), tab=tab, updates=updates)


def _open_demo(desk: Desk, lists: Lists, fields: Fields, demo_id: str, session: Session) -> Next:
    case = intake.create_demo(desk.roots, demo_id)
    _begin(case, session)
    return _entered(desk, lists, fields, session, case, "reproduce")


def _prefill(desk: Desk, fields: Fields, case: Case) -> Updates:
    """Fill in what a demo's analyst would type; leave the fields of any other case empty."""
    demo = desk.roots.demo.resolve() in Path(case.manifest.model.path).parents
    words = (wording_case.DEMO_ANALYST, wording_case.DEMO_REASON) if demo else ("", "")
    return {field: gr.update(value=text) for field, text in zip(fields, words, strict=True)}


def _resume(desk: Desk, lists: Lists, fields: Fields, session: Session, case_id: str | None) -> Next:
    """Open the case; ask for its model unless another analyst writes it."""
    case = intake.find_case(desk.roots, case_id)
    if lease.may_write(case, session.analyst, session.browser):
        lease.take(case, session.analyst, session.browser)
        jobs.ask(case, "open")
    return _entered(desk, lists, fields, session, case, reached(case))


def _uploaded(pasted: gr.Textbox, session: Session, path: str | None) -> Next:
    """Check the uploaded report and show it, in the format of the project, where a pasted one would stand."""
    report = intake.read_intake(None, path)
    text = dump(to_json(report))
    return Next(
        session=session, say=wording_case.uploaded(len(report.messages)), updates={pasted: gr.update(value=text)}
    )


def _prepare(
    desk: Desk, pasted: str | None, model: str | None, adapter: str | None, upload: str | None, two: bool | None
) -> Callable[[], Case]:
    """Check what the form holds; return what makes a case of it, which hashes the model's files."""
    report = intake.read_intake(pasted, None)
    folder = intake.named_folder(desk.roots, model or "", "model")
    extra = intake.named_folder(desk.roots, adapter, "adapter") if adapter else None
    source = intake.intake_source(pasted or "", upload)
    name, reviewers = report.id or folder.name, 2 if two else 1
    return partial(intake.create_case, desk.roots, name, report, folder, extra, source, reviewers)


def _created(desk: Desk, lists: Lists, fields: Fields, session: Session, made: tuple[str, Case]) -> Next:
    """Open the new case, unless another one was opened meanwhile."""
    before, case = made
    if session.case != before:
        return Next(session=session, say=wording_case.made(case.path.name), updates=_listed(desk, lists))
    _begin(case, session)
    return _entered(desk, lists, fields, session, case, "reproduce")


def _attach(
    desk: Desk,
    lists: Lists,
    fields: Fields,
    session: Session,
    search: str | None,
    kept: str | None,
) -> Next:
    """Fill the lists, and re-attach to the case that the address names.

    A refreshed page gave its lease back as it was left, and takes it again unless somebody else writes by now; the name and reason
    that were typed stay, and what was chosen in step 4. This may be answered after the analyst's first click, or while that is at
    work: its message and case then stay.
    """
    updates = _listed(desk, lists)
    query = parse_qs((search or "").lstrip("?"))
    wanted = query.get("case", [""])[0]
    if session.case or not wanted:
        return Next(updates=updates, say=None)
    try:
        case = intake.find_case(desk.roots, wanted)
    except CaseFileError as error:
        return Next(updates=updates, say=str(error))
    step, over = query.get("step", [""])[0], parse_qs(str(kept or ""), keep_blank_values=True)
    updates |= _prefill(desk, fields, case)
    typed = zip(fields, ("analyst", "reason"), strict=True)
    updates |= {field: gr.update(value=over[name][0]) for field, name in typed if name in over}
    session = replace(session.at(case.path.name), analyst=updates[fields[0]]["value"])
    session = confirm.chosen(case, session, over.get("chosen", [""])[0])
    if wanted in over.get("left", []):
        with suppress(TriageError):
            lease.take(case, session.analyst, session.browser)
    return Next(session=session, tab=step if step in STEP_IDS else reached(case), say=None, updates=updates)


STEP_IDS = ("case", "reproduce", "locate", "confirm", "repair", "verify")


def reached(case: Case) -> str:
    """Return the furthest step that the case has something for."""
    marks = (
        ("verify", "verification.json"),
        ("repair", "confirmation.json"),
        ("confirm", "triage.json"),
        ("reproduce", "results/reproduce.json"),
    )
    return next((step for step, name in marks if (case.path / name).is_file()), "reproduce")
