"""The first click may come before the page has heard back about itself: what it led to stays."""

import json

import pytest

from core import lease
from dashboard.server import BROWSER
from tests.browser.conftest import PageProcess, wait_on

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def late(open_page):
    """A page whose own first question is held back, and a function that lets it through and waits for the answer."""
    page, held = open_page(), []
    page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector("#status .pt-status-word", state="attached")
    wait_on(page, lambda: held, "the page asked nothing of its own accord")

    def let_through() -> None:
        with page.expect_response("**/queue/join*"):
            held[0].continue_()
        page.wait_for_timeout(2000)

    return page, let_through


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

    (folder,) = server.cases.iterdir()
    assert folder.name in page.url
    (holder,) = (one["value"] for one in page.context.cookies() if one["name"] == BROWSER)
    assert json.loads((folder / lease.FILE).read_text())["holder"] == holder
    assert not page.locator("#writer").is_visible()
    page.click("#step-case-button")
    page.wait_for_selector("#case-summary .pt-headline")
    assert folder.name in page.inner_text("#status")
