"""The demo case on the real page, from the first click to the exported repair, in at most eight clicks."""

import json
import time

import pytest

from core.casefile import Case
from core.values import Verification
from dashboard.session import Roots, list_cases
from tests.browser.conftest import PageProcess

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MOST_CLICKS = 8  # design.md section 6
DEMO = "#demo-trigger-in-the-middle"
HEADLINE = {
    "reproduced": "#reproduce-story .pt-headline:has-text('Reproduced')",
    "located": "#locate-story:not(:has(.pt-tone-busy)) .pt-headline:has-text('stand')",
    "tested": "#confirm-verdict .pt-why",
    "confirmed": "#repair-start:visible:enabled",
    "steps": "#repair-chart .js-plotly-plot .scatterlayer path.js-line",
    "repaired": "#to-verify:visible",
    "verified": "#verify-story .pt-note",
    "written": "#verify-files a:has-text('Repaired adapter')",
}
REPAIR_MS = 900_000
"""Longest wait for the repair: it shares two cores with the browser and the other tests."""


def walk(page, look=lambda name: None) -> int:
    """Take the demo case through every step; call `look(step)` at each; return the number of clicks."""
    clicks = 0

    def click(selector: str) -> None:
        nonlocal clicks
        page.locator(selector).click()
        clicks += 1

    def arrive(name: str, wait_ms: int = 300_000) -> None:
        page.wait_for_selector(HEADLINE[name], timeout=wait_ms)

    look("case")
    click(DEMO)
    arrive("reproduced")
    look("reproduce")
    click("#to-locate")
    arrive("located")
    look("locate")
    click("#to-confirm")
    arrive("tested")
    page.wait_for_selector("#confirm-accept:enabled")
    look("confirm")
    click("#confirm-accept")
    arrive("confirmed")
    click("#repair-start")
    page.wait_for_selector("#repair-keep:enabled")
    arrive("steps")
    look("repair")
    arrive("repaired", REPAIR_MS)
    click("#to-verify")
    arrive("verified")
    click("#verify-export")
    arrive("written")
    look("verify")
    return clicks


def test_the_demo_case_in_eight_clicks(open_page, server: PageProcess) -> None:
    page = open_page()
    begun = time.monotonic()
    assert walk(page) <= MOST_CLICKS
    print(f"demo case in {time.monotonic() - begun:.0f} s")  # noqa: T201
    case = Case(server.cases / list_cases(Roots(cases=server.cases, models=server.models))[0])
    assert json.loads((case.path / "triage.json").read_text())["verdict"] == "BACKDOOR"
    verification = case.read("verification.json", Verification)
    assert verification is not None
    assert verification.result == "REDUCED"
    assert "→" in page.inner_text("#verify-story .pt-headline")
    cut = "() => { const one = document.querySelector('#verify-metrics .pt-table-scroll'); return one.scrollHeight - one.clientHeight; }"
    assert page.evaluate(cut) <= 0
    assert "more below" in page.inner_text("#verify-pairs")
    page.locator("#verify-pairs .pt-pair").last.scroll_into_view_if_needed()
    page.wait_for_selector("#verify-pairs:not(:has-text('more below'))")
    saved = case.path / "export" / "adapter" / "adapter_model.safetensors"
    with page.expect_download() as downloading:
        page.click("#verify-files a:has-text('Repaired adapter')")
    assert downloading.value.path().read_bytes() == saved.read_bytes()
    with page.context.expect_page() as opened:
        page.click("#verify-files a >> text='Report'")
    opened.value.wait_for_load_state()
    assert case.manifest.id in opened.value.content()
    page.click("#verify-merged")
    page.wait_for_selector("#verify-files:has-text('merged model')")
    assert (case.path / "export" / "merged" / "model.safetensors").is_file()
    page.wait_for_selector("#again-story:has-text('not reproduced')")  # the report on the repaired model
    page.click("#residual button >> nth=0")
    page.wait_for_selector("#residual-variants tbody tr >> nth=5")
    page.click("#residual-variants >> text=show all")
    assert "zero-width characters" in page.inner_text("#residual-variants")
    assert page.is_enabled("#probe-relearn")
    # going back changes nothing and loses nothing
    page.click("#step-confirm-button")
    assert "Current year" in page.inner_text("#confirm-marks")
    assert "Accepted by" in page.inner_text("#confirm-decision")
    assert page.locator("#confirm-editor .pt-tok.pt-on").count() > 0
