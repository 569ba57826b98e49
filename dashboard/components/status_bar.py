"""One line on every step: case, model, device, what runs now and its progress, queue, connection, analyst.

value = {
  "case": str, "model": str, "device": str, "analyst": str
  "state": "empty|starting|idle|running|failed|stopping", "stage": str, "message": str
  "done": int, "total": int (0: unknown), "queue": [str, ...]
}   built by tables.status(...)

The connection is watched in the browser: a small request every 4 s. Refused twice, the bar says that the page process does
not respond; when it is back (asked every second), or answers with another text (it was started anew in between), the page reloads
itself, which re-attaches it to the case in its address. A slow answer changes nothing.
"""

from typing import Any

import gradio as gr

from dashboard.components.assets import WATCH_URL, script

_TEMPLATE = '<div class="pt-status" role="status" aria-live="polite"></div>'


class StatusBar(gr.HTML):
    """The status line; see the module docstring for its value."""

    def __init__(self, value: dict | None = None, *, watch_url: str = WATCH_URL, **options: Any) -> None:
        """`watch_url` is a small path of this page; its text names the page process."""
        super().__init__(
            value=value or {"state": "empty"},
            html_template=_TEMPLATE,
            js_on_load=script("status_bar", watch_url=watch_url),
            apply_default_css=False,
            **options,
        )
        self.watch_url = watch_url  # Gradio takes a quoted word of the script that names no attribute for an event

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
