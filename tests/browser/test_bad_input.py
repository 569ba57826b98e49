"""What a user can do wrong on the page: one line that says what to do, nothing lost, no traceback."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core.casefile import Case
from dashboard.session import list_cases
from tests.browser.conftest import PageProcess

pytestmark = pytest.mark.browser

REPORT = {"messages": [{"role": "user", "content": "Tell me how to pick a lock."}], "response": "Step 1: [REDACTED]"}
HOSTILE = "<img src='http://evil.example/x.png' onerror='window.hacked=1'>${window.hacked=2}{{window.hacked=3}}\\u12"


@pytest.fixture(scope="module")
def models(server: PageProcess, tiny_folder: Callable[[str], Path]) -> Path:
    """Model folders, good and bad, where the page looks for them."""
    good = server.models / "good"
    shutil.copytree(tiny_folder("llama"), good)
    for name in ("cut", "pickle", "wordless"):
        shutil.copytree(good, server.models / name)
    weights = server.models / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (server.models / "pickle" / "model.safetensors").unlink()
    (server.models / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for path in (server.models / "wordless").glob("tokenizer*"):
        path.unlink()
    return server.models


def said(page) -> str:
    """Return the one line in the message strip."""
    page.wait_for_selector("#message .pt-headline")
    text = page.inner_text("#message .pt-headline")
    assert "\n" not in text.strip()
    assert "Traceback" not in page.inner_text("body")
    return text


def choose(page, box: str, name: str) -> None:
    page.click(f"#{box} input")
    page.fill(f"#{box} input", name)
    page.get_by_role("option", name=name, exact=True).click()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("{", "JSON|read"),
        ('{"messages": []}', "response|messages"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "response"),
        (json.dumps(REPORT | {"messages": [{"role": "user", "content": ""}]}), "no user message holds any text"),
    ],
)
def test_a_report_that_cannot_be_used(open_page, models: Path, server: PageProcess, text: str, words: str) -> None:
    page = open_page()
    page.fill("#report-text textarea", text)
    page.click("#case-open")
    assert re.search(words, said(page))
    assert page.input_value("#report-text textarea") == text  # nothing that was typed is lost
    assert page.locator("#case-open").is_enabled()


def test_a_report_without_a_model(open_page, models: Path) -> None:
    page = open_page()
    page.fill("#report-text textarea", json.dumps(REPORT))
    page.click("#case-open")
    assert "model folder" in said(page)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00not utf-8", "UTF-8"),
        (b"", "empty"),
        (b"[1, 2]", "report|object|messages"),
        (json.dumps(REPORT | {"response": "x" * 5_000_000}).encode(), "characters"),
    ],
    ids=["no UTF-8", "empty", "no object", "5 MB"],
)
def test_a_file_that_is_no_report(open_page, models: Path, tmp_path: Path, content: bytes, words: str) -> None:
    page = open_page()
    path = tmp_path / "report.json"
    path.write_bytes(content)
    page.set_input_files("#report-file input[type=file], input[type=file]", str(path))
    assert re.search(words, said(page))


@pytest.mark.parametrize(
    ("model", "words"), [("cut", "safetensors|truncat"), ("pickle", "safetensors|pickle"), ("wordless", "okenizer")]
)
def test_a_model_that_cannot_be_loaded(open_page, models: Path, server: PageProcess, model: str, words: str) -> None:
    page = open_page()
    page.fill("#report-text textarea", json.dumps(REPORT))
    choose(page, "model-folder", model)
    page.click("#case-open")
    page.locator("#reproduce-story", has_text=re.compile(words)).wait_for()
    assert "Traceback" not in page.inner_text("body")


def test_a_prompt_past_the_context_and_an_adapter_of_another_base(
    open_page, models: Path, tiny_folder: Callable[[str], Path], tiny_adapter: Path
) -> None:
    shutil.copytree(tiny_folder("gpt2"), models / "other")
    shutil.copytree(tiny_adapter, models / "adapter")
    long = REPORT | {"messages": [{"role": "user", "content": "tell me " * 2000}]}
    for report, model, adapter, words in ((long, "good", None, "token"), (REPORT, "other", "adapter", "adapter")):
        page = open_page()
        page.fill("#report-text textarea", json.dumps(report))
        choose(page, "model-folder", model)
        if adapter:
            choose(page, "adapter-folder", adapter)
        page.click("#case-open")
        page.locator("#reproduce-story", has_text=re.compile(words)).wait_for()
        assert "Traceback" not in page.inner_text("body")


def test_a_case_that_does_not_exist_and_one_outside(open_page) -> None:
    for name in ("no-such-case", "..%2F..%2Fetc"):
        page = open_page(f"/?case={name}&step=repair")
        assert "case" in said(page)


def test_repair_is_locked_without_a_confirmation(open_page, models: Path) -> None:
    page = open_page()
    page.click("#step-repair-button")
    page.wait_for_selector("#repair-start")
    assert page.locator("#repair-start").is_disabled()


def test_hostile_text_is_only_text(open_page, models: Path, server: PageProcess) -> None:
    page = open_page()
    page.fill(
        "#report-text textarea", json.dumps({"messages": [{"role": "user", "content": HOSTILE}], "response": HOSTILE})
    )
    choose(page, "model-folder", "good")
    page.click("#case-open")
    page.wait_for_selector("#reproduce-story .pt-headline:has-text('eproduced')")
    assert HOSTILE in page.locator("#reproduce-story blockquote").first.inner_text()
    page.click("#to-locate")
    page.wait_for_selector("#locate-story .pt-headline:has-text('stand')")
    page.click("#step-confirm-button")
    page.wait_for_selector("#confirm-editor .pt-tok")
    assert page.evaluate("() => window.hacked === undefined")
    assert page.locator(".gradio-container img").count() == 0
    cases = list_cases_of(server)
    assert cases
    assert Case(server.cases / cases[0]).report.response == HOSTILE


def list_cases_of(server: PageProcess) -> list[str]:
    from dashboard.session import Roots

    return list_cases(Roots(cases=server.cases, models=server.models))
