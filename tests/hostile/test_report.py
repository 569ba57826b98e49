"""The corpus in the report: every text in every field, as text alone, without a browser."""

from dataclasses import replace
from pathlib import Path

from core.intake import MAX_CHARACTERS
from core.report import render_report, report_json
from core.values import AnswerPair, Verification
from tests.hostile.corpus import LARGEST, accepted, texts
from tests.unit.reporting import Elements, full_case, new_case, verification_of, write_repair

FORBIDDEN = {
    "script",
    "img",
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "link",
    "video",
    "audio",
    "template",
    "noscript",
}


def test_every_text_is_only_text(tmp_path: Path) -> None:
    plain = Elements(render_report(full_case(tmp_path / "plain")))
    items = accepted(texts())
    case = full_case(tmp_path / "hostile", hostile="\n".join(one.text for one in items))
    verified = case.read("verification.json", Verification)
    assert verified is not None
    pair = vars(verified.examples[0])
    pairs = [AnswerPair(**{**pair, "prompt": one.text, "before": one.text, "after": one.text}) for one in items]
    case.write("verification.json", replace(verified, examples=tuple(pairs)))
    page = Elements(render_report(case))
    assert not page.tags & FORBIDDEN
    assert not [name for name in page.attributes if name.startswith("on") or name in ("href", "src", "srcdoc", "ping")]
    assert page.tags <= plain.tags | {"sup", "mark", "i"}
    data = report_json(case)
    assert [one["content"] for one in data["case"]["report"]["messages"]][1].endswith(items[-1].text)
    assert [one["before"] for one in data["verification"]["examples"]] == [one.text for one in items]


def test_long_texts_are_only_text(tmp_path: Path) -> None:
    """Each once as an answer, the shorter of them also as the request: a report shows a request many times."""
    items = [one for one in accepted(texts(), MAX_CHARACTERS) if len(one.text) > LARGEST]
    assert len(items) >= 7
    case = new_case(tmp_path, user="".join(one.text for one in items if len(one.text) < 50_000))
    write_repair(case)  # what was verified belongs to a repair
    verified = verification_of()
    pairs = [replace(verified.examples[0], before=one.text) for one in items]
    case.write("verification.json", replace(verified, examples=tuple(pairs)))
    page = Elements(render_report(case))
    assert not page.tags & FORBIDDEN
    assert all(one.text in "".join(page.words) for one in items if one.text.isascii())
    assert [one["before"] for one in report_json(case)["verification"]["examples"]] == [one.text for one in items]
