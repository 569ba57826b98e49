"""The corpus on the command line: names, reasons and paths end in a right answer or one line, and drive no terminal."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core import intake
from core.__main__ import main
from core.casefile import Case
from core.confirmation import MAX_NAME, MAX_REASON
from core.errors import ModelLoadError
from core.intake import MAX_CHARACTERS, read_report
from tests.hostile.corpus import FILES, GOOD, LARGEST, make_file, report_of, texts
from tests.unit.reporting import full_case
from tests.unit.test_casefile import make_model, make_prompts

ROOT = Path(__file__).resolve().parents[2]
ITEMS = texts()
Given = Callable[[Path, int], tuple[str, ...]]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of one command, which must neither fail by our fault nor drive a terminal.

    Its output is ASCII, which every code page has.
    """
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code in (0, 2), (arguments[0], err[-500:])
    assert all(c.isprintable() or c == "\n" for c in out + err), arguments[0]
    assert out.isascii(), arguments[0]
    if code == 2:
        assert out == ""
        assert len(err.strip().splitlines()) == 1, err
    return code, out, err


def test_names_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = full_case(tmp_path)
    n_taken = 0
    for item in ITEMS:
        arguments = ("confirm", "--case", str(case.path), "--reject", f"--analyst={item.text}", f"--reason={item.text}")
        code, out, _ = run(capsys, *arguments)
        half = any(0xD800 <= ord(c) <= 0xDFFF for c in item.text)
        refused = half or not item.text.strip() or len(item.text) > min(MAX_NAME, MAX_REASON)
        assert (code == 2) == refused, item.id
        if code == 0:
            n_taken += 1
            stored = json.loads((case.path / "confirmation.json").read_text(encoding="utf-8"))
            assert stored["analyst"] == stored["reason"] == json.loads(out)["reason"] == item.text.strip()
            last = Case(case.path).audit_lines()[-1]
            assert (last.actor, last.facts["reason"]) == (item.text.strip(), item.text.strip())
    assert n_taken > 0.8 * len(ITEMS)


def test_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for item in ITEMS:
        path = item.text
        for arguments in (
            ("status", f"--case={path}"),
            ("scan", f"--case={path}", f"--logs={path}"),
            ("triage", f"--model={path}", f"--report={path}", f"--case={path}"),
        ):
            assert run(capsys, *arguments)[0] == 2, (item.id, arguments[0])
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", inside]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """The arguments of a triage that ends where its case is made: what comes before that is the report."""

    def unloadable(*_: object) -> None:
        raise ModelLoadError("no model is loaded here: this is a test")

    monkeypatch.setattr("core.headless.Headless.run", unloadable)
    model, prompts = make_model(tmp_path / "model"), make_prompts(tmp_path / "prompts")
    named = ("triage", "--model", str(model), "--prompts", str(prompts))
    return lambda report, number: (*named, "--report", str(report), "--case", str(tmp_path / f"case-{number}"))


def test_hostile_files_end_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: Given) -> None:
    """Each is refused before a case is made, or its case holds the bytes and the report in them."""
    n_refused = 0
    for number, name in enumerate(FILES):
        report = make_file(tmp_path, name)
        code, _, err = run(capsys, *given(report, number))
        assert code == 2, (name, err)
        assert "Traceback" not in err
        if not (tmp_path / f"case-{number}").exists():
            n_refused += 1
            continue
        case = Case(tmp_path / f"case-{number}")
        assert case.intake.report_file is not None
        kept = (case.path / case.intake.report_file.kept).read_bytes()
        assert kept == report.read_bytes()
        assert read_report(kept, name) == case.report
    assert n_refused > 0.7 * len(FILES)


def test_long_texts_end_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], given: Given) -> None:
    items = [item for item in ITEMS if len(item.text) > LARGEST]
    for number, item in enumerate(items):
        (tmp_path / "report.json").write_text(json.dumps(report_of(item.text)))
        assert run(capsys, *given(tmp_path / "report.json", number))[0] == 2
        case = tmp_path / f"case-{number}"
        assert case.exists() == (len(item.text) < MAX_CHARACTERS)
        if case.exists():
            assert Case(case).report.expected == item.text
    assert len(items) >= 8


def test_the_report_file_is_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    """A file that changes while it is read cannot be kept as one report and tried as another."""
    report, read = make_file(tmp_path, "prototype.json"), intake.file_bytes

    def swapped(path: Path, limit: int = intake.MAX_REPORT_BYTES) -> bytes:
        data = read(path, limit)
        path.write_bytes(GOOD.replace(b'"b"', b'"c"'))
        return data

    report.write_bytes(GOOD)
    monkeypatch.setattr(intake, "file_bytes", swapped)
    run(capsys, *given(report, 0))
    case = Case(tmp_path / "case-0")
    assert (case.path / "evidence/report.json").read_bytes() == GOOD
    assert case.report.response == "b"


def test_a_real_terminal_sees_no_control_character(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    driving = "".join(item.text for item in ITEMS if item.id.startswith("terminal"))[:MAX_NAME]
    for name in (driving, os.fsdecode(b"\xff\xfe")):
        command = [sys.executable, "-m", "core", "confirm", "--case", str(case.path), "--reject", "--analyst", name]
        done = subprocess.run([*command, "--reason", name], cwd=ROOT, capture_output=True, timeout=120)
        assert done.returncode in (0, 2)
        is_inert(done)


@pytest.mark.parametrize("arguments", [("status", "--case", "x", "%s"), ("confirm", "--re=%s"), ("%s",)])
def test_arguments_that_do_not_fit_are_told_in_one_inert_line(arguments: tuple[str, ...]) -> None:
    """`scan --logs *` takes whatever files are called."""
    driving = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m"
    command = [sys.executable, "-m", "core", *(one.replace("%s", driving) for one in arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    is_inert(done)


def is_inert(done: subprocess.CompletedProcess) -> None:
    """Assert that a command said something, and nothing that drives a terminal."""
    shown = (done.stdout + done.stderr).decode()
    assert shown
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "Traceback" not in shown
