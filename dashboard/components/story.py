"""A headline with its facts, as inert text: what a step found, in the order a reader needs it.

    Story(value=None)

value = {
  "headline": str, "tone": "plain|good|bad|warn|busy|muted", "line": str        one sentence under the headline
  "facts":    [[label, text], ...]                                              shown as a quiet list
  "quotes":   [{"label": str, "text": str, "tone": "plain|good|bad|muted"}, ...]   verbatim, monospaced, scrolls when long
  "links":    [{"text": str, "href": str, "download": bool}, ...]               only paths of this page ("/case/...")
  "note":     str                                                               a quiet line below
  "why":      str, "why_label": str                                             behind a disclosure
}
An empty value draws nothing and takes no room.
"""

from typing import Any

import gradio as gr

from dashboard.components.assets import script

_TEMPLATE = '<div class="pt-story" aria-live="polite"></div>'


class Story(gr.HTML):
    """Headline, facts and quotes; see the module docstring for its value."""

    def __init__(self, value: dict | None = None, **options: Any) -> None:
        """Start empty unless `value` is given."""
        super().__init__(
            value=value or {},
            html_template=_TEMPLATE,
            js_on_load=script("story"),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
