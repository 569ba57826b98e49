"""Three stacked panels on one step axis that follow a repair: loss parts, KL with its budget, rates with intervals.

    LiveChart(value=None); event `resync` {have: int}: the chart lacks steps before `from`; answer with a full value.

value = {
  "run":    str                 id of the repair, kept when it is resumed; another one clears the chart and its zoom
  "from":   int                 number of steps the chart must already hold (0: this value is complete)
  "step": [int], "loss": [float|null], "refusal": [...], "kl_harmful": [...], "kl_safe": [...], "kl_trigger": [...],
  "kl": [...]                  a term that is off is null throughout and has no line
  "marks":  [{"step": int, "panel": "loss|kl", "text": "NaN|inf|0"}]
  "probes": {"step": [int], "asr": [[value, low, high], ...], "asr_name": str, "refusal": [...], "agreement": [...],
             "safe_refused": [...], "kl": [float|null], "best": [bool]}                        always complete (few)
  "budget": float|null, "meter": str (share of the budget that is used, in words), "total": int|null, "state": "empty|running|ended", "summary": str
}   built by figures.live_chart(repair, since=0)

Zoom survives updates (`Plotly.react`, `uirevision`). While a repair runs the step axis ends at `total`, afterwards at the last
step that ran. Before the start the axes are there, greyed. Dark and light follow the
page at once. All points are kept; more than 3,000 are thinned for display only.
"""

from typing import Any

import gradio as gr

from dashboard.components.assets import PLOTLY_HEAD, script

_TEMPLATE = (
    '<div class="pt-live"><div class="pt-live-bar"></div><div class="pt-live-plot"></div>'
    '<div class="pt-live-summary" aria-hidden="true"></div><div class="pt-live-spoken pt-unseen" aria-live="polite"></div></div>'
)


class LiveChart(gr.HTML):
    """The repair as it runs; see the module docstring for value and event."""

    def __init__(self, value: dict | None = None, **options: Any) -> None:
        """Start greyed out unless `value` is given."""
        super().__init__(
            value=value or {"run": "", "from": 0, "state": "empty"},
            html_template=_TEMPLATE,
            js_on_load=script("live_chart"),
            head=PLOTLY_HEAD,
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
