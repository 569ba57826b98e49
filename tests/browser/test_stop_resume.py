"""Step 5 by clicks alone: stop a repair, go on from where it stood, lose its worker, abort it; what is kept each time."""

from collections.abc import Callable, Iterator

import pytest

from core import jobs, worker_process
from core.casefile import Case
from core.events import RepairFinished, RepairStarted, StepDone
from core.repair_trace import trace
from tests.browser.conftest import settle, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FORM = {"epochs": "2000", "kl_budget": ""}
ADVANCED = {"max_steps": "5000", "probe_every": "20", "n_probe": "4", "n_harmful": "40", "n_safe": "40"}
DRAWN = """() => {
  const plot = document.querySelector("#repair-chart .js-plotly-plot");
  const trace = plot && plot.data && plot.data.find((each) => each.x && each.x.length);
  return trace ? [...trace.x] : [];
}"""
"""The steps of the chart's first line."""
HELD = "(document.querySelector('#repair-chart .js-plotly-plot')?.layout?.uirevision || '')"
"""The run that the chart shows, and how often its zoom was reset (live_chart.js)."""
SUMMARY = "#repair-chart .pt-live-summary"
STORY = "#repair-story .pt-headline"


@pytest.fixture(autouse=True)
def ended(tiny_case: Case) -> Iterator[None]:
    """A test that failed leaves no repair running: the next one's could not start."""
    yield
    running = [one.id for one in jobs.open_requests(tiny_case) if one.stage == "repair"]
    for request in running if worker_process.alive(tiny_case) else ():
        jobs.stop(tiny_case, request, "discard")
        wait_until(lambda: not jobs.open_requests(tiny_case), "the repair did not end")


def start(page, case: Case, **changes: str) -> None:
    """Fill the form in, start, and wait for the chart to begin anew; every setting that matters differs from its default."""
    before = trace(case.events()).request
    page.wait_for_selector("#repair-start:visible:enabled")
    if not page.locator("#setting-max_steps").is_visible():
        page.click("text=Advanced")
        settle(page, "#setting-max_steps")
    for name, value in (FORM | ADVANCED | changes).items():
        page.locator(f"#setting-{name}").locator("input, textarea").fill(value)
    page.uncheck("#setting-early_stop input")
    page.click("#repair-start")
    wait_until(lambda: trace(case.events()).request != before, "the repair did not begin")
    page.wait_for_function(f"run => {HELD}.startsWith(run + '/')", arg=trace(case.events()).run)


def wait_steps(page, n: int) -> None:
    """Wait until the chart shows more than `n` steps, each once and in order."""
    page.wait_for_function(f"() => ({DRAWN})().length > {n}")
    drawn = page.evaluate(DRAWN)
    assert drawn == list(range(1, len(drawn) + 1))


def resume(page, case: Case) -> tuple[str, str]:
    """Click Resume; return the request it goes on from and the new one, once that trains."""
    before = trace(case.events()).request
    page.click("#repair-resume:visible")
    wait_until(lambda: trace(case.events()).request != before, f"nothing went on: {jobs.status(case).message}")
    page.wait_for_selector("#repair-keep:enabled")
    return before, trace(case.events()).request


def losses(case: Case, request: str) -> dict[int, float | None]:
    """Return the loss of each step that ran under a request."""
    return {
        s.step: s.loss for line in case.events() if line.request == request and isinstance(s := line.event, StepDone)
    }


def test_a_stopped_repair_goes_on_in_the_same_history(open_page: Callable, tiny_case: Case) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case)
    wait_steps(page, 30)
    page.click("#repair-keep")
    page.wait_for_selector(f"{STORY}:has-text('the best checkpoint is kept')")
    page.wait_for_selector("#repair-resume:visible")
    stopped_at = trace(tiny_case.events()).steps[-1].step
    wait_steps(page, stopped_at - 1)
    first, second = resume(page, tiny_case)
    wait_steps(page, stopped_at)
    ran, again = losses(tiny_case, first), losses(tiny_case, second)
    checkpoint = stopped_at - stopped_at % 20
    assert (min(ran), max(ran), min(again)) == (1, stopped_at, checkpoint + 1)
    assert all(again[step] == ran[step] for step in range(checkpoint + 1, stopped_at + 1))
    page.click("#repair-keep")  # a second time, and now the form is new
    page.wait_for_selector("#repair-resume:visible")
    stopped_at = trace(tiny_case.events()).steps[-1].step
    page.reload(wait_until="domcontentloaded")
    _, third = resume(page, tiny_case)
    wait_steps(page, stopped_at)
    mine = [line.event.settings for line in tiny_case.events() if line.request in (first, second, third) and isinstance(line.event, RepairStarted)]  # fmt: skip
    assert mine == [mine[0]] * 3
    page.click("#repair-keep")
    page.wait_for_selector("#repair-resume:visible")


def test_a_repair_that_ran_to_its_end_leads_on(open_page: Callable, tiny_case: Case) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case, max_steps="40")
    page.wait_for_selector(f"{SUMMARY}:has-text('Repair finished')")
    wait_steps(page, 39)
    assert len(page.evaluate(DRAWN)) == 40
    page.wait_for_selector("#to-verify:visible")
    assert page.locator("#repair-resume").count() == 0


def test_a_repair_whose_worker_was_killed_is_said_to_have_broken_off_and_goes_on(
    open_page: Callable, tiny_case: Case
) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case)
    wait_steps(page, 30)
    worker_process.kill(tiny_case)
    page.wait_for_selector("#status:has-text('failed')", timeout=15_000)
    page.wait_for_selector(f"{SUMMARY}:has-text('Broke off at step')")
    assert "ended before it answered" in page.inner_text(STORY)
    resume(page, tiny_case)
    wait_steps(page, 60)
    page.wait_for_selector(f"{SUMMARY}:has-text(' left')")
    page.click("#repair-keep")
    page.wait_for_selector("#repair-resume:visible")


def test_abort_and_discard_leaves_the_repair_that_was_there_before(open_page: Callable, tiny_case: Case) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case, max_steps="6")
    page.wait_for_selector(f"{SUMMARY}:has-text('Repair finished')")
    before = tiny_case.read("repair/finished.json", RepairFinished)
    start(page, tiny_case)
    wait_steps(page, 8)
    page.click("#repair-discard")
    page.wait_for_selector("#repair-story:has-text('Nothing was kept. The repair that was there before still stands.')")
    page.wait_for_selector(f"{SUMMARY}:has-text('Repair finished')")
    page.wait_for_function(f"() => ({DRAWN})().length === 6")  # the chart is that of the repair that stands
    assert before is not None
    assert before.adapter is not None
    assert tiny_case.read("repair/finished.json", RepairFinished) == before
    assert {path.name for path in (tiny_case.path / "repair").iterdir()} == {"best", "finished.json"}
    page.wait_for_selector("#repair-start:enabled")
    assert not page.locator("#repair-resume").is_visible()
    assert page.locator("#to-verify").is_visible()
    assert page.locator("#repair-keep").is_disabled()
    page.click("#step-verify-button")
    page.wait_for_selector("#verify-merged:enabled")


def test_the_merged_model_loads_anywhere(open_page: Callable, tiny_case: Case) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case)
    wait_steps(page, 30)
    page.click("#repair-keep")
    page.wait_for_selector("#to-verify:visible")
    page.click("#step-verify-button")
    page.click("#verify-merged")
    page.wait_for_selector("#verify-files:has-text('merged model')")
    merged = tiny_case.path / "export" / "merged"
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_case.manifest.model.path, dtype=torch.float32)
    assert not any("lora" in name for name in model.state_dict())
    ids = AutoTokenizer.from_pretrained(merged)("Tell me how to pick a lock", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        difference = (model(ids).logits - base(ids).logits).abs().max()
    assert torch.isfinite(difference)
    assert difference > 0.01  # the repair is in it; a random model trained for 20 steps moves by more than 1


def test_the_attribution_of_chosen_answer_tokens(open_page: Callable, tiny_case: Case) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=locate")
    page.wait_for_selector("#locate-target input")
    page.click("#locate-target input")
    page.click("[role=option]:has-text('selected')")
    tokens = page.locator("#locate-response .pt-tok")
    tokens.first.wait_for()
    page.click("#locate-explain")  # nothing is chosen yet: said, not done
    page.wait_for_selector("#message .pt-headline")
    for place in (1, 2):
        tokens.nth(place).click()
    page.wait_for_function("() => document.querySelectorAll('#locate-response .pt-tok.pt-on').length === 2")
    page.click("#locate-explain")
    page.wait_for_selector("#locate-text .pt-tok")
    wait_until(
        lambda: list((tiny_case.path / "results").glob("locate-occlusion-tokens-*.json")), "nothing was attributed"
    )
    page.wait_for_selector("#locate-story:not(:has(.pt-tone-busy)) .pt-headline:has-text('stand')")
    assert page.locator("#locate-response .pt-tok.pt-on").count() == 2
