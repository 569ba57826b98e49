"""What a finished case shows on the page, at two widths, and in the printed report: drawn from its files, without a worker."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core import rounds
from core.casefile import Case
from core.events import RepairFinished
from core.report import render_report
from core.values import SecondOpinion, Span, TriageResult, Verification
from tests.browser.conftest import WAIT_MS, PageProcess
from tests.unit.reporting import full_case, with_residual

pytestmark = pytest.mark.browser
STEPS = ("case", "reproduce", "locate", "confirm", "repair", "verify")


@pytest.fixture(scope="module")
def finished(server: PageProcess) -> Case:
    """A case that has come all the way, among those of the page."""
    case = full_case(server.cases)
    case.write("verification.json", with_residual())
    return case


def test_every_result_of_a_finished_case_is_drawn(open_page: Callable, finished: Case) -> None:
    verified = finished.read("verification.json", Verification)
    triage = finished.read("triage.json", TriageResult)
    assert verified is not None
    assert triage is not None
    page = open_page(f"/?case={finished.path.name}&step=verify")
    page.wait_for_selector("#verify-metrics tbody tr")
    assert page.locator("#verify-metrics tbody tr").count() == len(verified.metrics)
    for side, scores in (("before", verified.saliency_before), ("after", verified.saliency_after)):
        page.locator(f"#verify-{side} .pt-tok").first.wait_for()
        assert page.locator(f"#verify-{side} .pt-tok").count() == len(scores)
    page.click("#residual button >> nth=0")
    page.locator("#residual-variants tbody tr").first.wait_for()
    for name in ("residual-classes", "residual-wrong", "residual-relearn"):
        assert page.locator(f"#{name} tbody tr").count() > 0
    for name in ("probe-wrong-trigger", "probe-relearn"):
        assert page.is_visible(f"#{name}")
    assert not page.is_visible("#again-next")  # there is no second opinion yet
    other = replace(triage.candidates[0], text="found", spans=(Span(message=1, start=0, end=5),))
    whole, ended = replace(triage, candidates=(other,)), finished.read(rounds.FINISHED, RepairFinished)
    assert ended is not None
    told = SecondOpinion(adapter_hash=ended.adapter_hash or "", removed=(), whole=whole, rest=None)
    finished.write(rounds.AGAIN, told)
    page.wait_for_selector("#again-next:visible")
    page.click("#step-confirm-button")
    page.wait_for_selector("#confirm-forest .js-plotly-plot .scatterlayer .point", state="attached")
    drawn = page.evaluate(
        "() => document.querySelector('#confirm-forest .js-plotly-plot').data.flatMap((one) => one.y)"
    )
    assert len(set(drawn)) >= len(triage.tests) > 0


@pytest.mark.parametrize("width", [1280, 1920])
def test_no_step_is_wider_than_the_window(open_page: Callable, finished: Case, width: int) -> None:
    page = open_page(f"/?case={finished.path.name}&step=case", width=width)
    page.wait_for_selector(f"#status:has-text('{finished.path.name}')")  # the page leads to its first step by itself
    for step in STEPS:
        page.click(f"#step-{step}-button")
        page.wait_for_function(f"() => new URL(location).searchParams.get('step') === '{step}'")
        page.wait_for_timeout(300)
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, step


def test_the_printed_report_shows_what_is_folded_and_fits_its_paper(chromium, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_report(full_case(tmp_path)), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 718, "height": 1000})  # A4 less margins of 10 mm, at 96 dots an inch
    page.set_default_timeout(WAIT_MS)
    page.goto((tmp_path / "report.html").as_uri())
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = false; })")
    shown = """() => [...document.querySelectorAll("details:not([open]) > :not(summary)")]
        .map((one) => one.checkVisibility({contentVisibilityAuto: true}) && one.getBoundingClientRect().height > 0)"""
    on_screen = page.evaluate(shown)
    assert on_screen
    assert not any(on_screen)
    page.emulate_media(media="print")
    page.wait_for_function(f"() => ({shown})().every(Boolean)")
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    page.close()
