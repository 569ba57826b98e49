"""Heat map of the prompt's tokens and editor of trigger spans, in one component.

    TokenView(mode="heat")   read only; click or Enter on a token: event `select` {position: int}
    TokenView(mode="edit")   keyboard and mouse editing; every change: event `input` {selected: [int, ...]}
                             Ctrl+Enter: event `confirm` {}, unless `confirms` is False

    view.input(fn, ...), view.select(fn, ...), view.confirm(fn, ...); in fn: `event: gr.EventData`, `event.selected`,
    `event.position`. The value as an input of any handler also carries the current `selected`.
    Do not return the view itself as an output of its own `input` handler: a fast typist would be set back.

value = {
  "tokens":      [{"text": str, "segment": "template|system|user|assistant", "message": int|null,
                   "start": int|null, "end": int|null, "id": int}, ...]      position = index
  "scores":      [float|null, ...]     null: not scored, drawn quietly
  "signed":      bool                  diverging map with neutral at 0, else sequential
  "labels":      [int, ...]            1 stands out (numbered by rank), 0 not, -1 not scored
  "selected":    [int, ...]            positions; several spans are several runs
  "suggested":   [int, ...]            dashed underline
  "granularity": "token|word|sentence" the user may switch it
  "legend":      {"min": float, "max": float, "clip": float, "name": str} | null
  "highlight":   [int, ...]            framed and scrolled into view (click in the map)
  "empty":       str                   shown when there are no tokens
}   built by figures.token_view(...)

Only tokens with a message (not the chat template) can be selected. Nothing is trimmed; odd characters are shown as chips.
"""

from typing import Any, Literal

import gradio as gr

from dashboard.components.assets import script

_TEMPLATE = (
    '<div class="pt-tokens"><div class="pt-tokens-bar"></div><div class="pt-tokens-text"></div>'
    '<div class="pt-tokens-foot"></div><div class="pt-tokens-help" hidden></div></div>'
)


class TokenView(gr.HTML):
    """The prompt as text with marks; see the module docstring for value and events."""

    def __init__(
        self,
        value: dict | None = None,
        *,
        mode: Literal["heat", "edit"] = "heat",
        spoken: str | None = None,
        confirms: bool = True,
        **options: Any,
    ) -> None:
        """Start empty unless `value` is given; `spoken` is what a screen reader calls it; `options` are Gradio's own (`elem_id`, ...)."""
        spoken = spoken or ("prompt, select the trigger" if mode == "edit" else "prompt, tokens by score")
        super().__init__(
            value=value or {"tokens": []},
            html_template=_TEMPLATE,
            js_on_load=script("token_view", mode=mode, spoken=spoken, confirms=confirms),
            apply_default_css=False,
            **options,
        )
        self.mode, self.spoken, self.confirms = (
            mode,
            spoken,
            confirms,
        )  # else Gradio takes these words of the script for events

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
