"""The corpus on the page and in the report, in Chromium, without the content security policy that would help out.

Every text is a message, a token of the model, an answer; a choice of them are folder names, the analyst's name and reason.
Nothing may run, and what is shown must be what is stored, character for character.
"""

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from core.casefile import Case
from core.confirmation import stored
from core.intake import MAX_CHARACTERS
from core.report import render_report
from core.values import AnswerPair, OpenResult, Verification
from dashboard import wording_locate
from tests.browser.conftest import WAIT_MS, PageProcess, wait_until
from tests.hostile.canary import Canary
from tests.hostile.conftest import MODEL, model_names
from tests.hostile.corpus import LARGEST, Item, accepted, texts
from tests.unit.reporting import USER, full_case, verification_of

pytestmark = [pytest.mark.browser, pytest.mark.long]  # minutes: every text is drawn and read back

ARMED = tuple("=+-@\t\r\n＝＋－＠")
"""Characters at the start of a cell that a spreadsheet takes for a formula. Source: OWASP, CSV Injection."""
RAW_TOKENS = """(view) => {
  const plain = { "line end": "", "carriage return": "\\r", "tab": "\\t", "looks like a Latin letter": "" };
  const raw = (node) => [...node.childNodes].map((one) => {
    if (one.nodeType === Node.TEXT_NODE) return one.textContent;
    if (one.classList.contains("pt-eol")) return "";
    if (!one.classList.contains("pt-chip")) return "";
    if (one.title in plain) return plain[one.title];
    const code = /^U\\+([0-9A-F]+)$/.exec(one.textContent);
    return code ? String.fromCodePoint(parseInt(code[1], 16)) : "";
  }).join("");
  return [...document.querySelectorAll(view + " .pt-tok")].map(raw);
}"""
"""The text behind the chips of a token view."""
RAW_REPORT = """() => {
  const raw = (node) => [...node.childNodes].map((one) => {
    if (one.nodeType === Node.TEXT_NODE) return one.textContent;
    if (one.tagName === "SUP") return "";
    if (!one.classList.contains("chip")) return raw(one);
    const code = /^U\\+([0-9A-F]+)$/.exec(one.textContent);
    return !code || node.classList.contains("odd") ? "" : String.fromCodePoint(parseInt(code[1], 16));
  }).join("");
  return [...document.querySelectorAll(".talk .say")].map(raw);
}"""
"""The texts behind the chips of a report."""


@pytest.fixture
def tab(chromium, server: PageProcess) -> Iterator[Callable]:
    """A function: path -> (page, canary) in a fresh context that ignores the page's content security policy."""
    contexts = []

    def make(path: str):
        context = chromium.new_context(bypass_csp=True, accept_downloads=True, viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        canary = Canary(page, server.url)
        page.on("pageerror", lambda error: canary.sung.append(f"script fault: {error}"))
        page.goto(server.url + path, wait_until="domcontentloaded")
        return page, canary

    yield make
    for context in contexts:
        context.close()


def from_chips(text: str) -> str:
    """The text behind the bracketed code points that answers show."""
    text = text.replace("‹␍›", "\r")
    return re.sub(r"‹U\+([0-9A-F]{4,6})›", lambda found: chr(int(found[1], 16)), text)


def test_the_canary_sings(chromium, server: PageProcess) -> None:
    """Put raw into a page, the corpus does run: the bird that says nothing below is alive."""
    page = chromium.new_page()
    canary = Canary(page, server.url)
    page.goto(server.url + "/alive")
    ran = page.evaluate(
        """async (all) => {
          const ran = [];
          for (const text of all) {
            window.canary = undefined;
            const box = document.createElement("div");
            document.body.append(box);
            box.append(document.createRange().createContextualFragment(text));
            await new Promise((done) => setTimeout(done, 15));
            if (window.canary !== undefined) ran.push(text);
            box.remove();
          }
          return ran;
        }""",
        [item.text for item in texts() if item.id.startswith("script") and "refresh" not in item.text],
    )
    kinds = {one.split(":")[0] for one in canary.sung}
    page.close()
    assert len(ran) >= 15
    assert {"dialog", "console", "request"} <= kinds
    assert sum(one.startswith("request") for one in canary.sung) >= 5


def test_hostile_texts_from_the_report_to_the_confirmation(
    tab: Callable, server: PageProcess, shown: list[Item]
) -> None:
    page, canary = tab("/")
    page.wait_for_selector("#status .pt-status-word", state="attached")
    contents = ["\n".join(one.text for one in shown[i : i + 2]) for i in range(0, len(shown), 2)]
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)]
    messages[0]["role"] = "system"
    messages += [{"role": "user", "content": "Tell me how to pick a lock."}]
    pasted = {"messages": messages, "response": contents[0], "expected": contents[1], "id": shown[0].text,
              "note": contents[2], "source": contents[3]}  # fmt: skip

    page.click("#model-folder input")
    offered = page.get_by_role("option")
    offered.first.wait_for()
    assert set(model_names()) | {MODEL} == set(
        offered.evaluate_all("(all) => all.map((one) => one.dataset.value ?? one.ariaLabel)")
    )
    page.fill("#model-folder input", MODEL)
    page.get_by_role("option", name=MODEL, exact=True).click()
    page.set_input_files(
        "#report-file input[type=file], input[type=file]",
        {"name": "<img src=x onerror=alert('canary')>.json", "mimeType": "application/json",
         "buffer": json.dumps(pasted).encode()},
    )  # fmt: skip
    page.wait_for_function("() => document.querySelector('#report-text textarea').value.includes('canary')")
    page.click("#case-open")
    page.wait_for_selector("#reproduce-story .pt-headline:has-text('eproduced')")
    case = Case(next(path.parent for path in server.cases.glob("*/case.json")))
    assert [one.content for one in case.report.messages] == [one["content"] for one in messages]
    quotes = page.eval_on_selector_all("#reproduce-story blockquote", "(all) => all.map((one) => one.textContent)")
    assert quotes[:2] == [case.report.response, case.report.expected]

    page.click("#to-locate")
    page.wait_for_selector("#locate-story .pt-headline:has-text('stand')")
    page.wait_for_selector("#locate-text .pt-tok", state="attached")
    opened = case.read("results/open.json", OpenResult)
    assert opened is not None
    tokens = [case.report.messages[one.message].content[one.start : one.end] if one.message is not None else one.text
              for one in opened.prompt.tokens]  # fmt: skip
    assert page.evaluate(RAW_TOKENS, "#locate-text") == tokens
    assert {one.text for one in shown} - set(tokens) == set(), "each text is one token"
    page.get_by_role("button", name=wording_locate.TABLE_TWIN).click()
    with page.expect_download() as waiting:
        page.locator("#locate-tokens button", has_text="CSV").click()
    with open(waiting.value.path(), encoding="utf-8-sig", newline="") as file:
        cells = {int(row[0]): row[1] for row in list(csv.reader(file))[1:]}  # position and text come first
    for position, text in enumerate(tokens):
        assert cells[position] == ("'" if text[:1] in ARMED else "") + text

    name, reason = shown[1].text, "\n".join(one.text for one in shown if len(one.text) < 200)[:9_000]
    page.click("#step-confirm-button")
    whole = {one.text for one in shown if one.text == one.text.strip()}
    marked = next(i for i, one in enumerate(opened.prompt.tokens) if one.segment == "user" and tokens[i] in whole)
    page.locator("#confirm-editor .pt-tok").nth(marked).click()
    page.fill("#confirm-analyst input, #confirm-analyst textarea", name)
    page.fill("#confirm-reason textarea", reason)
    page.click("#confirm-accept")
    wait_until(lambda: stored(case), "the decision was not stored")
    decision = stored(case)
    assert decision is not None
    assert (decision.analyst, decision.units) == (name, (tokens[marked],))
    assert decision.reason == reason.replace("\r\n", "\n").replace("\r", "\n").strip()  # as a text box gives them
    page.wait_for_selector("#step-repair-button[aria-selected=true]")  # what was accepted leads on by itself
    page.click("#step-confirm-button")
    page.locator("#confirm-decision", has_text=name).wait_for()
    for step in ("repair", "verify", "case"):
        page.click(f"#step-{step}-button")
        page.wait_for_selector(f"#step-{step}-button[aria-selected=true]")
    assert canary.heard() == []

    (case.path / "report.html").write_text(render_report(case), encoding="utf-8")
    page, canary = tab(f"/case/{case.manifest.id}/report.html")
    said = page.evaluate(RAW_REPORT)
    assert said == [*(one["content"] for one in messages), case.report.response, case.report.expected]
    assert canary.heard() == []


def test_a_case_that_is_hostile_in_every_field(tab: Callable, server: PageProcess, shown: list[Item]) -> None:
    hostile = "\n".join(one.text for one in shown)
    made = full_case(server.cases.parent / "made", hostile=hostile)
    verified = made.read("verification.json", Verification)
    assert verified is not None
    pair = verified.examples[0]
    pairs = [AnswerPair(**{**vars(pair), "prompt": one.text, "before": one.text, "after": one.text}) for one in shown]
    made.write("verification.json", replace(verified, examples=tuple(pairs)))
    case = Case(shutil.move(made.path, server.cases / made.manifest.id))

    page, canary = tab(f"/?case={made.manifest.id}&step=verify")
    page.wait_for_selector("#verify-pairs .pt-pair", state="attached")
    page.evaluate("() => document.querySelectorAll('#verify-pairs .pt-small').forEach((one) => one.click())")
    for part in (".pt-pair-text", ".pt-answer-text"):
        drawn = page.eval_on_selector_all(f"#verify-pairs {part}", "(all) => all.map((one) => one.textContent)")
        times = 2 if part == ".pt-answer-text" else 1
        assert [from_chips(text) for text in drawn] == [one.text for one in shown for _ in range(times)]
    for step in ("reproduce", "locate", "confirm", "repair", "case"):
        page.click(f"#step-{step}-button")
        page.wait_for_selector(f"#step-{step}-button[aria-selected=true]")
    assert canary.heard() == []

    (case.path / "report.html").write_text(render_report(case), encoding="utf-8")
    page, canary = tab(f"/case/{made.manifest.id}/report.html")
    said = page.evaluate(RAW_REPORT)
    assert said[:3] == [*(one.content for one in case.report.messages), case.report.response]
    assert canary.heard() == []
    assert " ERROR " not in server.log.read_text(encoding="utf-8", errors="replace")


def test_long_texts(tab: Callable, server: PageProcess) -> None:
    """Too long to be one token with all others: each once as an answer, the shorter of them also as the request."""
    items = [one for one in accepted(texts(), MAX_CHARACTERS) if len(one.text) > LARGEST]
    user = USER + "".join(one.text for one in items if len(one.text) < 50_000)
    made = full_case(server.cases.parent / "long", user=user, case_id="long-texts")
    verified = verification_of()
    pairs = [replace(verified.examples[0], before=one.text) for one in items]
    made.write("verification.json", replace(verified, examples=tuple(pairs)))
    case = Case(shutil.move(made.path, server.cases / "long-texts"))

    page, canary = tab("/?case=long-texts&step=verify")
    page.wait_for_selector("#verify-pairs .pt-pair", state="attached")
    for step in ("reproduce", "case"):
        page.click(f"#step-{step}-button")
        page.wait_for_selector(f"#step-{step}-button[aria-selected=true]")
    assert canary.heard() == []

    (case.path / "report.html").write_text(render_report(case), encoding="utf-8")
    page, canary = tab("/case/long-texts/report.html")
    assert page.evaluate(RAW_REPORT)[:2] == [one.content for one in case.report.messages]
    assert canary.heard() == []
