"""Part of step 3: what only the analyst can give the tests, the request in other words and the template it should be served with.

They stand in for the paraphrases and plain wordings that are made by rule, which know English alone. Of one case: another case
begins with empty fields.
"""

import gradio as gr

from core.errors import TriageError
from core.rewrites import given as checked
from core.settings import TEMPLATE_BYTES
from dashboard import wording_locate
from dashboard.desk import Desk, Panel


def build(desk: Desk) -> list[gr.Textbox]:
    """Draw the fields, folded away; return them in the order of `given`."""
    with gr.Accordion(wording_locate.OWN_WORDINGS, open=False, elem_id="locate-wordings"):
        gr.Markdown(wording_locate.OWN_WORDINGS_HELP, elem_classes="pt-label")
        with gr.Row():
            paraphrases = gr.Textbox(
                label=wording_locate.PARAPHRASES, lines=4, max_lines=8, elem_id="locate-paraphrases"
            )
            rewrites = gr.Textbox(label=wording_locate.REWRITES, lines=4, max_lines=8, elem_id="locate-rewrites")
        template = gr.Textbox(
            label=wording_locate.REFERENCE_TEMPLATE,
            lines=2,
            max_lines=8,
            elem_id="locate-template",
            elem_classes="pt-mono",
        )
    fields = [paraphrases, rewrites, template]
    desk.panels["wordings"] = Panel(
        lambda view: view.case and view.case.path,
        lambda view, _: {field: gr.update(value="") for field in fields},
        tuple(fields),
    )
    return fields


def given(paraphrases: str | None, rewrites: str | None, template: str | None) -> dict[str, object]:
    """Return the arguments of triage that the fields hold, a wording a line; none for empty ones. Raises: TriageError."""
    first, second = (
        [line.strip() for line in (text or "").splitlines() if line.strip()] for text in (paraphrases, rewrites)
    )
    args = checked(first, second)
    if template and template.strip():
        if len(template.encode("utf-8", "replace")) > TEMPLATE_BYTES:
            raise TriageError(f"The reference template is larger than {TEMPLATE_BYTES:,} bytes; check what was pasted.")
        args["reference_template"] = template
    return args
