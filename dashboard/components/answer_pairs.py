"""The same prompts answered before and after repair, side by side, as inert text.

value = {
  "pairs": [{"kind": str, "prompt": str, "before": str, "after": str,
             "before_outcome": {"word": str, "mark": str, "tone": "plain|bad|good"}, "after_outcome": {...}}, ...]
  "labels": {"before": str, "after": str}, "empty": str
}   built by tables.answer_pairs(verification)
"""

from typing import Any

import gradio as gr

from dashboard.components.assets import script

_TEMPLATE = '<div class="pt-pairs"></div><div class="pt-pairs-below" aria-hidden="true"></div>'


class AnswerPairs(gr.HTML):
    """Answers before and after; see the module docstring for its value."""

    def __init__(self, value: dict | None = None, **options: Any) -> None:
        """Start empty unless `value` is given."""
        super().__init__(
            value=value or {"pairs": []},
            html_template=_TEMPLATE,
            js_on_load=script("answer_pairs"),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
