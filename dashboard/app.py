"""Composes the six steps into one page. Draws and connects; every number comes from the case folder."""

from dashboard.server import POLICY, UPLOAD_SECONDS, launch_options  # isort: skip  (sets the environment before gradio is imported)

import gradio as gr

from core import lease
from dashboard import wording
from dashboard.components import PLOTLY_URL, page_head, script
from dashboard.desk import QUEUE_SIZE, Desk
from dashboard.memory import forget_replaced
from dashboard.session import Roots
from dashboard.steps import case, confirm, labelling, locate, repair, reproduce, verify

ADDRESS_JS = """(text) => {
  const wanted = new URLSearchParams(text), url = new URL(window.location);
  for (const name of ["case", "step"]) if (wanted.get(name)) url.searchParams.set(name, wanted.get(name));
  window.history.replaceState(null, "", url);
  window.patcherOpened();
  window.patcherChosen(wanted.get("chosen"));
}"""
STEP_JS = """() => {
  const url = new URL(window.location);
  if (url.searchParams.get("case")) { url.searchParams.set("step", "%s"); window.history.replaceState(null, "", url); }
}"""
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
FONT_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Return the look of Gradio's own widgets: flat, dense, one accent, no shadow, fonts of the system."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.gray,
        font=FONT,
        font_mono=FONT_MONO,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_sm,
        text_size=gr.themes.sizes.text_sm,
    )


def build(roots: Roots) -> gr.Blocks:
    """Return the page for these folders."""
    cache = (UPLOAD_SECONDS, UPLOAD_SECONDS)
    with gr.Blocks(title=wording.TITLE, analytics_enabled=False, fill_width=True, delete_cache=cache) as page:
        desk = Desk(roots)
        typed = confirm.fields()
        desk.choices["analyst"] = typed[0]
        with gr.Tabs(elem_id="steps") as desk.tabs:
            tabs = dict(zip(case.STEP_IDS, wording.STEPS, strict=True))
            with _tab("case", tabs) as tab:
                case.build(desk, page, tab, typed)
            with _tab("reproduce", tabs):
                to_locate = reproduce.build(desk)
            with _tab("locate", tabs):
                locate.build(desk, to_locate)
            with _tab("confirm", tabs):
                confirm.build(desk, typed)
                labelling.build(desk, typed[0])
            with _tab("repair", tabs):
                to_verify = repair.build(desk)
            with _tab("verify", tabs):
                verify.build(desk, to_verify)
        desk.wire()
        page.desk = desk
        desk.address.change(None, desk.address, None, js=ADDRESS_JS, api_visibility="private", show_progress="hidden")
    return page


def _tab(step: str, labels: dict[str, str]) -> gr.Tab:
    tab = gr.Tab(labels[step], id=step, elem_id=f"step-{step}")
    tab.select(None, None, None, js=STEP_JS % step, api_visibility="private", show_progress="hidden")
    return tab


def serve(
    roots: Roots, *, host: str, port: int | None, auth: list[tuple[str, str]] | None, wait: bool = True
) -> tuple[gr.Blocks, str]:
    """Launch the page; return it with its address, at once unless `wait`. Raises: TriageError for an open address."""
    options = launch_options(roots, host=host, port=port, auth=auth)
    forget_replaced()
    page = build(roots)
    page.queue(max_size=QUEUE_SIZE, api_open=False)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head = (
        meta
        + f"<script>{script('page', renew_ms=1000 * lease.RENEW_SECONDS, stale_ms=1000 * lease.STALE_SECONDS)}</script>"
        + '<link rel="icon" href="data:,">'
        + page_head()
        + f'<script src="{PLOTLY_URL}"></script>'
    )
    _, url, _ = page.launch(theme=theme(), head=head, prevent_thread_lock=True, **options)
    return page, url
