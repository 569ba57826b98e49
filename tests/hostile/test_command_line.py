"""The corpus on the command line: names, reasons and paths end in a right answer or one line, and drive no terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.__main__ import main
from core.casefile import Case
from core.confirmation import MAX_NAME, MAX_REASON
from tests.hostile.corpus import texts
from tests.unit.reporting import full_case

ROOT = Path(__file__).resolve().parents[2]
ITEMS = texts()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of one command, which must neither fail by our fault nor drive a terminal."""
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code in (0, 2), (arguments[0], err[-500:])
    assert all(c.isprintable() or c == "\n" for c in out + err), arguments[0]
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


def test_a_real_terminal_sees_no_control_character(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    driving = "".join(item.text for item in ITEMS if item.id.startswith("terminal"))[:MAX_NAME]
    for name in (driving, os.fsdecode(b"\xff\xfe")):
        command = [sys.executable, "-m", "core", "confirm", "--case", str(case.path), "--reject", "--analyst", name]
        done = subprocess.run([*command, "--reason", name], cwd=ROOT, capture_output=True, timeout=120)
        assert done.returncode in (0, 2)
        shown = done.stdout + done.stderr
        assert shown
        assert not any((byte < 32 and byte != 10) or byte in (0x7F, 0x9B) for byte in shown if byte < 128)
        assert b"Traceback" not in shown
