"""A sortable, accessible table with a CSV download made in the browser.

    TableView(value=None); event `select` {key: str|int} on a click or Enter on a row that has a key.

value = {
  "caption": str, "file": "tokens.csv"|null (no download), "empty": str
  "columns": [{"key": str, "label": str, "kind": "text|name|mono|number|rate|mark|note", "title": str?}, ...]
  "rows":    [{"key": str|int|null, "cells": {column key: cell}}, ...]
  "selected": key|null, "at_once": int|null   rows shown before the rest is folded
}
A cell is str | number | null, or {"text": str, "sort": number|str|null, "csv": str|number|null, "title": str|null,
"mark": "pass|fail|open|yes|no"|null, "rest": str|null}; `rest` is folded below the text, `yes` and `no` have no colour.
A cell of kind `rate` is {"value", "k", "n", "low", "high"} or null: drawn as a dot on its interval with "k/n".
Built by dashboard.tables: token_table, candidate_table, outcome_table, metric_table.
"""

from typing import Any

import gradio as gr

from dashboard.components.assets import script

_TEMPLATE = '<div class="pt-table"><div class="pt-table-bar"></div><div class="pt-table-scroll"></div></div>'


class TableView(gr.HTML):
    """A table; see the module docstring for value and event."""

    def __init__(self, value: dict | None = None, **options: Any) -> None:
        """Start empty unless `value` is given."""
        super().__init__(
            value=value or {"columns": [], "rows": []},
            html_template=_TEMPLATE,
            js_on_load=script("table_view"),
            apply_default_css=False,
            **options,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
