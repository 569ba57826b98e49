"""Answers of the model to be labelled by a person, by mouse or keyboard, as inert text.

    AnswerLabels(value=None)   event `input` {labels: {key: class}} on every change; the value as an input of any handler
                               also carries the current `labels`, with "" for a saved one that was taken away
    keys on a row: arrows move, 1-4 label and go on to the next, 0 takes the label away

value = {
  "case":    str      what was labelled and is not saved yet stays over updates of the same case, in each row
  "items":   [{"key": str, "prompt": str, "answer": str, "saved": class|null, "judged": {"word": str, "mark": str}|null}, ...]
             judged: null until the row's label is saved, so that the judge does not sway the reader
  "labels":  {key: class, ...},  "choices": [{"id": class, "word": str}, ...],  "judge": str, "help": str, "empty": str
}   built by tables.answer_labels(...)
"""

from typing import Any

import gradio as gr

from dashboard.components.assets import script

_TEMPLATE = '<div class="pt-labels"></div>'


class AnswerLabels(gr.HTML):
    """Answers with their classes to choose; see the module docstring for value and event."""

    def __init__(self, value: dict | None = None, **options: Any) -> None:
        """Start empty unless `value` is given."""
        super().__init__(
            value=value or {"items": []},
            html_template=_TEMPLATE,
            js_on_load=script("answer_labels"),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
