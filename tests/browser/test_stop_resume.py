"""Step 5 by clicks alone: stop a repair, go on from where it stood, lose its worker, abort it; what is kept each time."""

from collections.abc import Callable

import pytest

from core import jobs, worker_process
from core.casefile import Case
from core.events import RepairFinished, StepDone
from core.repair_trace import trace
from tests.browser.conftest import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FORM = {"epochs": "40", "kl_budget": ""}
ADVANCED = {"max_steps": "240", "probe_every": "20", "n_probe": "4", "n_harmful": "40", "n_safe": "40"}
DRAWN = """() => {
  const plot = document.querySelector("#repair-chart .js-plotly-plot");
  const trace = plot && plot.data && plot.data.find((each) => each.x && each.x.length);
  return trace ? [...trace.x] : [];
}"""
"""The steps of the chart's first line."""
SUMMARY = "#repair-chart .pt-live-summary"
STORY = "#repair-story .pt-headline"


def start(page, case: Case) -> None:
    """Fill the form in, start, and wait for the chart to begin anew; every setting that matters differs from its default."""
    before = trace(case.events()).request
    page.wait_for_selector("#repair-start:visible:enabled")
    if not page.locator("#setting-max_steps").is_visible():
        page.click("text=Advanced")
    for name, value in (FORM | ADVANCED).items():
        page.locator(f"#setting-{name}").locator("input, textarea").fill(value)
    page.uncheck("#setting-early_stop input")
    page.click("#repair-start")
    wait_until(lambda: trace(case.events()).request != before, "the repair did not begin")
    page.wait_for_function(f"() => /^(Starting|Step)/.test(document.querySelector('{SUMMARY}').textContent)")


def wait_steps(page, n: int) -> None:
    """Wait until the chart shows more than `n` steps, each once and in order."""
    page.wait_for_function(f"() => ({DRAWN})().length > {n}")
    drawn = page.evaluate(DRAWN)
    assert drawn == list(range(1, len(drawn) + 1))


def steps_of(case: Case, request: str) -> list[int]:
    return [line.event.step for line in case.events() if line.request == request and isinstance(line.event, StepDone)]


def resume(page, case: Case) -> tuple[str, str]:
    """Click Resume; return the request it goes on from and the new one, once that trains."""
    before = trace(case.events()).request
    page.click("#repair-resume:visible")
    wait_until(lambda: trace(case.events()).request != before, f"nothing went on: {jobs.status(case).message}")
    page.wait_for_selector("#repair-keep:enabled")
    return before, trace(case.events()).request


def test_a_stopped_repair_goes_on_in_the_same_history_to_its_end(open_page: Callable, tiny_case: Case) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case)
    wait_steps(page, 30)
    page.click("#repair-keep")
    page.wait_for_selector(f"{STORY}:has-text('the best checkpoint is kept')")
    page.wait_for_selector("#repair-resume:visible")
    stopped_at = trace(tiny_case.events()).steps[-1].step
    wait_steps(page, stopped_at - 1)
    first, second = resume(page, tiny_case)
    checkpoint = steps_of(tiny_case, second)[0] - 1 if steps_of(tiny_case, second) else None
    wait_steps(page, stopped_at)
    assert steps_of(tiny_case, first)[0] == 1
    assert checkpoint in (None, stopped_at - stopped_at % 20)
    page.click("#repair-keep")  # a second time, and now the form is new
    page.wait_for_selector("#repair-resume:visible")
    page.reload(wait_until="domcontentloaded")
    resume(page, tiny_case)
    page.wait_for_selector(f"{SUMMARY}:has-text('Repair finished')")
    wait_steps(page, 239)
    assert len(page.evaluate(DRAWN)) == 240
    page.wait_for_selector("#to-verify:visible")
    assert page.locator("#repair-resume").count() == 0
    settings = [line.event.settings for line in tiny_case.events() if hasattr(line.event, "settings")]
    assert len(settings) == 3
    assert settings[0] == settings[1] == settings[2]
    losses = {s.step: s.loss for line in tiny_case.events() if line.request == first and isinstance(s := line.event, StepDone)}  # fmt: skip
    again = {s.step: s.loss for line in tiny_case.events() if line.request == second and isinstance(s := line.event, StepDone)}  # fmt: skip
    assert all(again[step] == losses[step] for step in losses.keys() & again.keys())


def test_a_repair_whose_worker_was_killed_is_said_to_have_broken_off_and_goes_on(
    open_page: Callable, tiny_case: Case
) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case)
    # the chart of the repair before may still stand, so the events say when this one is on its way
    wait_until(lambda: len(trace(tiny_case.events()).steps) > 30, "the repair did not get on")
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


def test_abort_and_discard_leaves_nothing(open_page: Callable, tiny_case: Case) -> None:
    page = open_page(f"/?case={tiny_case.manifest.id}&step=repair")
    start(page, tiny_case)
    wait_steps(page, 5)
    page.click("#repair-discard")
    page.wait_for_selector(f"{STORY}:has-text('nothing is kept')")
    finished = tiny_case.read("repair/finished.json", RepairFinished)
    assert finished is not None
    assert (finished.reason, finished.adapter, finished.best_step) == ("discarded", None, None)
    assert [path.name for path in (tiny_case.path / "repair").iterdir()] == ["finished.json"]
    page.wait_for_selector("#repair-start:enabled")
    for hidden in ("#repair-resume", "#to-verify"):
        assert not page.locator(hidden).is_visible()
    assert page.locator("#repair-keep").is_disabled()
    page.click("#step-verify-button")
    assert page.locator("#verify-merged").is_disabled()


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
