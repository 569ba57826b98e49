"""The corpus through intake: each text comes back as it was or is refused in one line; each file gives a report or a line."""

import json
from pathlib import Path

import pytest

from core.casefile import Case
from core.errors import ReportError, TriageError
from core.files import dump
from core.intake import MAX_CHARACTERS, read_report, read_reports
from core.serial import to_json
from core.values import FailureReport
from dashboard.session import CASE_ID, Roots, create_case, find_case, list_cases, named_folder
from tests.hostile.corpus import FILES, Item, make_file, report_of, texts
from tests.unit.test_casefile import make_model, make_prompts

ITEMS = texts()


def one_line(error: TriageError) -> str:
    text = str(error)
    assert text.strip()
    assert len(text.splitlines()) == 1, text
    return text


def read(item: Item) -> FailureReport | None:
    """The report that intake makes of the text, None where it refuses it."""
    wanted = report_of(item.text)
    try:
        found = read_report(json.dumps(wanted))
    except ReportError as error:
        one_line(error)
        return None
    again = {name: value for name, value in to_json(found).items() if name in wanted}
    assert again == wanted
    return found


def test_the_corpus_is_large_and_each_text_is_its_own() -> None:
    assert len({item.text for item in ITEMS}) == len(ITEMS)
    assert len(ITEMS) + len(FILES) >= 250


def must_be_refused(text: str) -> bool:
    """Whether no tokenizer can read the text, or it is longer than intake reads."""
    return "\x00" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text) or len(text) >= MAX_CHARACTERS


def test_texts_come_back_or_are_refused_in_one_line() -> None:
    refused = {item.id for item in ITEMS if read(item) is None}
    assert refused == {item.id for item in ITEMS if must_be_refused(item.text)}
    assert 5 <= len(refused) < len(ITEMS) / 10


def test_texts_come_back_from_the_case_folder(tmp_path: Path) -> None:
    """All texts as the messages of few cases, and a case named after each of those that look like paths."""
    model, prompts = make_model(tmp_path / "model"), make_prompts(tmp_path / "prompts")
    roots = Roots(cases=tmp_path / "cases", models=tmp_path, demo=tmp_path, prompts=prompts)
    taken = [item for item in ITEMS if not must_be_refused(item.text)]
    halves = [
        {"messages": [{"role": "user", "content": "x" + one.text} for one in taken[half::2]], "response": "y"}
        for half in (0, 1)
    ]
    reports = [*halves, *(report_of(item.text) for item in taken if item.id.startswith("path"))]
    for data in reports:
        report = read_report(json.dumps(data))
        case = create_case(roots, report.id or "case", report, model, None)
        assert CASE_ID.fullmatch(case.manifest.id), report.id
        assert Case(case.path).report == report
        assert find_case(roots, case.manifest.id).path.parent == roots.cases
    assert len(list_cases(roots)) == len(reports)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "prompts", "cases"}


@pytest.mark.parametrize("name", FILES)
def test_files_give_a_report_or_a_line(tmp_path: Path, name: str) -> None:
    path = make_file(tmp_path, name)
    for reader in (read_report, read_reports):
        try:
            found = reader(path)
        except ReportError as error:
            one_line(error)
        else:
            assert found
            assert json.loads(dump(to_json(found))) == to_json(found)


def test_names_never_lead_out_of_their_root(tmp_path: Path) -> None:
    roots = Roots(cases=tmp_path / "cases", models=tmp_path / "models", demo=tmp_path, prompts=tmp_path)
    roots.cases.mkdir()
    roots.models.mkdir()
    (tmp_path / "secret").mkdir()
    for item in ITEMS:
        for look in (lambda text: find_case(roots, text), lambda text: named_folder(roots, text, "model")):
            try:
                found = look(item.text)
            except TriageError as error:
                one_line(error)
            else:
                assert isinstance(found, Path), item.id
                assert found == roots.models.resolve(), (item.id, found)
