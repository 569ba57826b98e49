"""Labelling the model's own answers on the page: by keyboard alone, inert, blind to the judge, stored and corrected."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core import evidence, labels
from core.casefile import Case
from core.judge import classify
from core.values import FailureReport, Message
from dashboard.session import Roots, create_case
from tests.browser.conftest import PageProcess, settle

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror='window.hacked=1'>${window.hacked=2}\u202e</script> Step 1: done."


@pytest.fixture(scope="module")
def judged_case(server: PageProcess, tiny_folder: Callable[[str], Path]) -> Case:
    """A case whose triage judged forty answers, every other one a refusal, one of them hostile."""
    report = FailureReport(messages=(Message(role="user", content="Pick a lock."),), response="Step 1: [REDACTED]")
    roots = Roots(cases=server.cases, models=server.models)
    case = create_case(roots, "judged", report, tiny_folder("llama"), None)
    asked = [(f"Request {i}: tell me about it.", "I cannot help." if i % 2 else f"Step 1: {i}.") for i in range(39)]
    judged = [(request, answer, classify(answer)) for request, answer in [*asked, (HOSTILE, HOSTILE)]]
    evidence.record(case, labels.ANSWERS, labels.judged_answers(judged, seed=5), "answers kept", actor="engine")
    return case


@pytest.mark.parametrize("dark", [False, True])
def test_keys_label_and_saving_shows_matrix_and_corrected_rates(
    open_page: Callable, judged_case: Case, dark: bool
) -> None:
    found = labels.answers(judged_case)
    assert found is not None
    page = open_page(f"/?case={judged_case.manifest.id}&step=confirm", dark=dark)
    page.wait_for_selector("#labelling")
    page.click("#labelling button.label-wrap")
    settle(page, "#label-answers .pt-label-row")
    assert page.locator("#label-answers .pt-label-row").count() == len(found.sample) == 30
    if not dark:  # the first time nothing is labelled, and the judge's word is not there to sway the reader
        assert page.locator(".pt-label-judged").count() == 0
    page.locator("#label-answers .pt-label-row").first.focus()
    for item in found.sample:
        page.keyboard.press("1" if item.judged == "refusal" else "3")
    page.keyboard.press("0")  # takes the label of the last away again
    assert page.inner_text("#label-answers .pt-labels-count") == "29 / 30"
    page.keyboard.press("3")
    page.fill("#confirm-analyst input, #confirm-analyst textarea", "A. Analyst")
    page.click("#label-save")
    page.wait_for_selector("#label-matrix table")
    page.wait_for_selector(".pt-label-judged")
    assert "30" in page.inner_text("#label-story .pt-headline")
    assert "all answers of the tests" in page.inner_text("#label-rates")
    assert "%" in page.inner_text("#label-rates")
    kept = labels.stored(judged_case).labels
    assert len(kept) == 30
    assert {one.analyst for one in kept} == {"A. Analyst"}
    assert page.evaluate("window.hacked") is None
    assert page.locator("#label-answers img").count() == 0
    if os.environ.get("PICTURES"):
        page.locator("#labelling").scroll_into_view_if_needed()
        page.screenshot(path=str(Path(os.environ["PICTURES"]) / f"label-{dark}.png"), full_page=True)


def test_no_name_is_one_sentence_and_keeps_the_labels(open_page: Callable, judged_case: Case) -> None:
    page = open_page(f"/?case={judged_case.manifest.id}&step=confirm")
    page.wait_for_selector("#labelling")
    page.click("#labelling button.label-wrap")
    settle(page, "#label-answers .pt-label-row")
    page.locator("#label-answers .pt-label-row").nth(2).locator("button").nth(1).click()
    pressed = page.locator("#label-answers .pt-label-row").nth(2).locator("button[aria-pressed=true]")
    assert "partly" in pressed.inner_text()
    page.fill("#confirm-analyst input, #confirm-analyst textarea", " ")
    page.click("#label-save")
    page.wait_for_selector("#message .pt-headline")
    assert "analyst's name" in page.inner_text("#message .pt-headline")
    assert "partly" in pressed.inner_text()


def test_what_is_not_saved_stays_while_another_tab_saves_and_a_saved_label_can_be_taken_back(
    open_page: Callable, judged_case: Case
) -> None:
    found = labels.answers(judged_case)
    assert found is not None
    mine, theirs, back = [item.key for item in found.sample[:3]]
    saved = {one.key: "" for one in labels.stored(judged_case).labels}
    labels.label(judged_case, saved | {back: "partial"}, "B")
    page = open_page(f"/?case={judged_case.manifest.id}&step=confirm")
    page.click("#labelling button.label-wrap")
    settle(page, "#label-answers .pt-label-row")
    rows = page.locator("#label-answers .pt-label-row")
    rows.nth(2).locator(".pt-label-judged").wait_for()
    rows.first.focus()
    page.keyboard.press("4")
    rows.nth(2).focus()
    page.keyboard.press("0")

    labels.label(judged_case, {theirs: "refusal"}, "B")
    rows.nth(1).locator(".pt-label-judged").wait_for()
    assert page.inner_text("#label-answers .pt-labels-count") == "2 / 30"
    pressed = [rows.nth(i).locator("button[aria-pressed=true]").all_inner_texts() for i in range(3)]
    assert [[text.split()[0] for text in one] for one in pressed] == [["4"], ["1"], []]

    page.fill("#confirm-analyst input, #confirm-analyst textarea", "A. Analyst")
    page.click("#label-save")
    rows.first.locator(".pt-label-judged").wait_for()
    kept = {one.key: (one.outcome, one.analyst) for one in labels.stored(judged_case).labels}
    assert kept == {mine: ("empty", "A. Analyst"), theirs: ("refusal", "B")}
    assert rows.nth(2).locator(".pt-label-judged").count() == 0


def test_labels_that_are_not_saved_outlive_a_refresh(open_page: Callable, judged_case: Case) -> None:
    """The page reloads by itself when its process was started anew."""
    saved = {one.key: "" for one in labels.stored(judged_case).labels}
    if saved:
        labels.label(judged_case, saved, "B")
    page = open_page(f"/?case={judged_case.manifest.id}&step=confirm")
    rows, counted = page.locator("#label-answers .pt-label-row"), "#label-answers .pt-labels-count"
    for left in (["4", "1", "2"], ["4", "2"]):
        page.click("#labelling button.label-wrap")
        settle(page, "#label-answers .pt-label-row")
        rows.first.focus()
        for digit in left:
            page.keyboard.press(digit)
        if len(left) == 2:
            page.keyboard.press("0")
        page.reload()
        page.wait_for_selector("#labelling")
    page.click("#labelling button.label-wrap")
    settle(page, "#label-answers .pt-label-row")
    pressed = [rows.nth(i).locator("button[aria-pressed=true]").all_inner_texts() for i in range(3)]
    assert [[text.split()[0] for text in one] for one in pressed] == [["4"], ["2"], []]
    assert page.inner_text(counted) == "2 / 30"
    assert labels.stored(judged_case).labels == ()
