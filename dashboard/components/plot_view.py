"""One still Plotly figure that follows the theme and links its points to prompt tokens.

    PlotlyView(value=None, height=240); event `select` {position: int} on a click on a point with customdata.

value = {
  "data": [trace, ...], "layout": {...}   Plotly JSON; colours may be "theme:text|muted|grid|back|accent|cool|pass|fail"
  "height": int, "key": str               the same key keeps the zoom
  "highlight": [int, ...]                 points whose customdata is in it get a ring
  "summary": str                          read by screen readers, shown when there is nothing to draw
}   built by token_plots.strip / token_plots.token_map / figures.forest. All text is html-escaped there: Plotly draws pseudo HTML.
"""

from typing import Any

import gradio as gr

from dashboard.components.assets import PLOTLY_HEAD, script

_TEMPLATE = '<div class="pt-plot"><div class="pt-plot-area"></div><div class="pt-plot-empty"></div></div>'


class PlotlyView(gr.HTML):
    """A still figure; see the module docstring for value and event."""

    def __init__(self, value: dict | None = None, *, height: int = 240, **options: Any) -> None:
        """Reserve `height` pixels, so that nothing jumps when the figure arrives."""
        super().__init__(
            value=value or {"data": [], "layout": {}, "summary": ""},
            html_template=_TEMPLATE,
            js_on_load=script("plot_view", plot_height=height),
            head=PLOTLY_HEAD,
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
