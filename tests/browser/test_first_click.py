"""The first click may come before the page has heard back about itself: what it led to stays."""

import json

import pytest

from core import lease
from dashboard.desk import QUIET_SECONDS
from dashboard.server import BROWSER
from tests.browser.conftest import PageProcess, wait_on

pytestmark = [pytest.mark.browser, pytest.mark.slow]


PAGE = 0
"""What sets off the page's own question, as Gradio counts: the page itself, before all that stands on it."""


@pytest.fixture
def late(open_page, server: PageProcess):
    """A page whose own first question is held back, and a function that lets it through and waits for the answer."""
    page, held = open_page(), []
    page.goto("about:blank")  # else it may be the question of the page that is left that is held back

    def hold(route) -> None:
        own = route.request.post_data_json["trigger_id"] == PAGE
        held.append(route) if own and not held else route.continue_()

    page.route("**/queue/join*", hold)
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_selector("#status .pt-status-word", state="attached")
    wait_on(page, lambda: held, "the page asked nothing of its own accord")

    def let_through() -> None:
        with page.expect_response("**/queue/join*"):
            held[0].continue_()
        page.wait_for_timeout(2000)

    return page, let_through


def test_the_page_follows_once_it_has_heard_back_and_not_before(late) -> None:
    page, let_through = late
    asked: list[object] = []
    page.on("request", lambda request: asked.append(request.post_data) if "/queue/join" in request.url else None)
    page.wait_for_timeout(1000 * QUIET_SECONDS + 1000)
    assert asked == []
    let_through()
    wait_on(page, lambda: asked, "the page does not follow")


def test_the_message_of_the_first_click_stays(late) -> None:
    page, let_through = late
    page.click("#case-open")
    page.wait_for_selector("#message .pt-headline")
    let_through()
    assert "empty" in page.inner_text("#message .pt-headline")


def test_the_case_of_the_first_click_stays_and_is_written_by_this_browser(late, server: PageProcess) -> None:
    page, let_through = late
    page.click("#demo-composite")
    page.wait_for_function("() => new URL(location).searchParams.get('step') === 'reproduce'")
    let_through()

    (folder,) = (path for path in server.cases.iterdir() if path.is_dir())  # the worker's locks lie beside it
    assert folder.name in page.url
    (holder,) = (one["value"] for one in page.context.cookies() if one["name"] == BROWSER)
    assert json.loads((folder / lease.FILE).read_text())["holder"] == holder
    assert not page.locator("#writer").is_visible()
    page.click("#step-case-button")
    page.wait_for_selector("#case-summary .pt-headline")
    assert folder.name in page.inner_text("#status")
