"""A refresh, a second tab, quick hands: what one browser writes stays its own, and the last of what was done counts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from core import lease
from core.casefile import Case
from tests.browser.conftest import settle, wait_on, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]
RENEWED_SECONDS = 3 * lease.RENEW_SECONDS


def writer(case: Case) -> str:
    """Return the name of who writes, "" for nobody."""
    found = lease.current(case)
    return found.analyst if found else ""


@pytest.fixture
def written(open_page, tiny_case: Case):
    """A page of step 4 whose analyst, Ada, writes the case."""
    page = open_page(f"/?case={tiny_case.path.name}&step=confirm")
    settle(page, "#confirm-analyst input")
    page.fill("#confirm-analyst input", "Ada")
    page.fill("#confirm-reason textarea", "as tested")
    page.wait_for_selector("#confirm-reject:enabled")
    page.click("#confirm-reject")
    wait_until(lambda: writer(tiny_case) == "Ada", "no lease was taken")
    return page


def test_a_refresh_keeps_name_and_case(written, tiny_case: Case) -> None:
    written.reload(wait_until="domcontentloaded")
    written.wait_for_function("() => document.querySelector('#confirm-analyst input')?.value === 'Ada'")
    wait_until(lambda: writer(tiny_case) == "Ada", "the lease was lost", seconds=20)
    assert not written.is_visible("#writer-take")


def test_a_refresh_keeps_the_marks_and_the_reason(written) -> None:
    tokens = written.locator("#confirm-editor .pt-seg-user .pt-tok")
    tokens.nth(2).click()
    tokens.nth(3).click()
    words = tokens.nth(2).inner_text() + tokens.nth(3).inner_text()
    marked = "words => document.querySelector('#confirm-marks')?.innerText.includes(words)"
    written.wait_for_function(marked, arg=words)
    line = written.inner_text("#confirm-marks")
    written.fill("#confirm-reason textarea", "seen twice & again")
    written.reload(wait_until="domcontentloaded")
    written.wait_for_function(marked, arg=words)
    assert written.inner_text("#confirm-marks") == line
    assert written.input_value("#confirm-reason textarea") == "seen twice & again"


def test_closing_one_of_two_tabs_leaves_the_case_to_the_other(written, tiny_case: Case) -> None:
    second = written.context.new_page()
    second.goto(written.url, wait_until="domcontentloaded")
    second.wait_for_selector("#confirm-editor .pt-tok")
    written.goto("about:blank")
    written.wait_for_timeout(1000)
    assert writer(tiny_case) == "Ada"
    second.goto("about:blank")
    wait_until(lambda: writer(tiny_case) == "", "the last tab did not give the case back", seconds=10)


def test_a_page_whose_timer_rests_keeps_its_case(written, tiny_case: Case) -> None:
    """As in the background, where Gradio's own does not tick."""
    written.route("**/queue/join*", lambda route: None)
    found = lease.current(tiny_case)
    assert found is not None
    seen = datetime.now(UTC) - timedelta(seconds=lease.STALE_SECONDS - RENEWED_SECONDS)
    tiny_case.write(lease.FILE, replace(found, seen=seen.isoformat()))
    wait_until(lambda: lease.current(tiny_case).seen > found.seen, "nobody renewed it", seconds=RENEWED_SECONDS)  # type: ignore[union-attr]


def test_the_last_of_two_quick_marks_counts(written) -> None:
    """The first one's question is on its way while the second mark is made."""
    held = []
    tokens = written.locator("#confirm-editor .pt-seg-user .pt-tok")

    def hold(route) -> None:
        if held or '"selected"' not in (route.request.post_data or ""):
            route.continue_()
        else:
            held.append(route)

    written.route("**/queue/join*", hold)
    tokens.nth(2).click()
    tokens.nth(3).click()
    wait_on(written, lambda: held, "no mark was told")
    held[0].continue_()
    wanted = tokens.nth(2).inner_text() + tokens.nth(3).inner_text()
    written.wait_for_function("text => document.querySelector('#confirm-marks').innerText.includes(text)", arg=wanted)


def test_a_page_process_that_was_started_anew_is_loaded_again_once(written) -> None:
    """However long the page takes to come: a further reload would break off the one that is on its way."""
    loads: list = []
    asked: list = []

    def answer(route) -> None:
        asked.append(len(loads))
        route.fulfill(body="anew")

    written.route(lambda url: "/?case=" in url, lambda route: loads.append(route))
    written.route("**/alive", answer)
    wait_on(written, lambda: loads, "it was not loaded again")
    written.wait_for_timeout(6000)
    assert asked == [0]  # who no longer asks does not load again; Gradio may, of its own accord
    for load in loads:
        load.continue_()
    written.wait_for_selector("#confirm-editor .pt-tok")
