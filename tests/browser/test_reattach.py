"""A repair outlives the tab, and the page: refresh, second tab, page process killed and started again in mid-repair."""

import pytest

from core import jobs
from core.events import StepDone
from tests.browser.conftest import PageProcess, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DRAWN = """() => {
  const plot = document.querySelector("#repair-chart .js-plotly-plot");
  const trace = plot && plot.data && plot.data.find((each) => each.x && each.x.length);
  return trace ? [trace.x[0], trace.x.length, trace.x[trace.x.length - 1]] : [0, 0, 0];
}"""
"""First step, number of steps and last step of the chart's first line."""


def steps_on_disk(case) -> int:
    return sum(isinstance(line.event, StepDone) for line in case.events())


@pytest.fixture
def running(tiny_case):
    """The tiny case with a repair that is long enough to be watched; aborted at the end."""
    before = steps_on_disk(tiny_case)
    request = jobs.ask(
        tiny_case, "repair", {"epochs": 200, "early_stop": False, "kl_budget": None, "probe_every": 50, "n_probe": 4}
    )
    wait_until(lambda: steps_on_disk(tiny_case) > before + 5, "the repair did not begin")
    yield tiny_case, request
    if jobs.status(tiny_case).state == "running":
        jobs.stop(tiny_case, request, "discard")
        wait_until(lambda: jobs.status(tiny_case).state == "idle", "the repair did not end")


def drawn_steps(page, at_least: int) -> list[int]:
    """Wait until the chart holds `at_least` steps from the first one on, without a gap; return what it holds."""
    page.wait_for_function(f"() => {{ const [a, n, z] = ({DRAWN})(); return n >= {at_least} && a === 1 && z === n; }}")
    return page.evaluate(DRAWN)


def test_a_refresh_brings_back_the_step_and_the_whole_history(open_page, running) -> None:
    case, _ = running
    page = open_page(f"/?case={case.manifest.id}&step=repair")
    first = drawn_steps(page, 6)
    assert page.locator("#setting-epochs input").input_value() == "200"  # what really runs, not the default
    assert page.locator("#setting-epochs input").is_disabled()
    page.reload(wait_until="domcontentloaded")
    again = drawn_steps(page, first[1])
    assert page.locator("#step-repair-button").get_attribute("aria-selected") == "true"
    drawn_steps(page, again[1] + 3)  # and it goes on following


def test_a_second_tab_sees_the_same_and_may_zoom(open_page, running) -> None:
    case, _ = running
    one = open_page(f"/?case={case.manifest.id}&step=repair")
    two = open_page(f"/?case={case.manifest.id}")  # without a step: the furthest one
    drawn_steps(one, 6)
    held = drawn_steps(two, 6)
    panel = two.locator("#repair-chart .nsewdrag").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    two.mouse.move(box["x"] + 20, box["y"] + 20)
    two.mouse.down()
    two.mouse.move(box["x"] + 220, box["y"] + 24, steps=4)  # as a reader zooms: by dragging across the loss panel
    two.mouse.up()
    zoomed = "() => [...document.querySelector('#repair-chart .js-plotly-plot').layout.xaxis.range]"
    two.wait_for_function(f"() => ({zoomed})()[0] > 1")
    kept = two.evaluate(zoomed)
    drawn_steps(two, held[1] + 3)
    assert two.evaluate(zoomed) == kept  # updates keep the zoom


def test_the_page_may_die_in_mid_repair(open_page, running, server: PageProcess) -> None:
    case, request = running
    page = open_page(f"/?case={case.manifest.id}&step=repair")
    before = drawn_steps(page, 6)
    server.kill()
    page.wait_for_selector("#status .pt-lost, #status.pt-lost, .pt-status.pt-lost")
    at_kill = steps_on_disk(case)
    wait_until(lambda: steps_on_disk(case) > at_kill + 3, "the repair stopped with the page")
    server.start()
    after = drawn_steps(page, at_kill + 3)  # the same tab, untouched, with the full history
    assert after[1] > before[1]
    assert jobs.status(case).request == request
    assert page.locator("#step-repair-button").get_attribute("aria-selected") == "true"


def test_stop_from_another_tab_keeps_the_best(open_page, running) -> None:
    case, request = running
    one = open_page(f"/?case={case.manifest.id}&step=repair")
    two = open_page(f"/?case={case.manifest.id}&step=repair")
    drawn_steps(one, 6)
    two.click("#repair-keep")
    wait_until(lambda: jobs.stop_asked(case, request) == "keep", "the stop was not taken")
    wait_until(lambda: jobs.status(case).state == "idle", "the repair did not end")
    for page in (one, two):
        page.wait_for_selector("#to-verify:visible")
        assert page.locator("#repair-keep").is_disabled()
        assert page.locator("#setting-epochs input").is_enabled()
