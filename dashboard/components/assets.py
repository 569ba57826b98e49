"""Front-end files of the components: read once when the page is built, never filled with data.

Scripts are constant text (`common.js` + the component's own file); data reaches them only through `props.value`.
Styles are constant too: `page_head()` returns them as one `<style>` element, together with nothing that names
another host. What this does not do: serve files; plotly.js is mounted by the page at `PLOTLY_URL`.
"""

import json
from functools import cache

from core.shipped import ASSETS

PLOTLY_URL = "/vendor/plotly.min.js"
PLOTLY_HEAD = f'<script src="{PLOTLY_URL}"></script>'
WATCH_URL = "/alive"


@cache
def script(name: str, **fixed: str | float) -> str:
    """JavaScript of the component `name`: its constants, the shared helpers, its own file, in a scope of their own.

    `fixed` are constants of the page's own code, never data. They stand in the script because Gradio forgets extra
    properties of a component that is updated before its tab was first shown.
    """
    folder = ASSETS / "components"
    common = (folder / "common.js").read_text(encoding="utf-8")
    own = (folder / f"{name}.js").read_text(encoding="utf-8")
    return f"(() => {{\nconst fixed = {json.dumps(fixed)};\n" + common + "\n" + own + "\n})();"


@cache
def page_css() -> str:
    """All style rules of the page: `style.css`, then the component files."""
    files = [ASSETS / "style.css", *sorted((ASSETS / "components").glob("*.css"))]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def page_head() -> str:
    """The `<style>` element for `launch(head=...)`; unlike `launch(css=...)` its rules are not re-scoped by Gradio."""
    return f"<style>\n{page_css()}\n</style>"
