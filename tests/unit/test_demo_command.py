"""The demo command: what it asks for, again in the same folder too."""

import argparse
import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import demo_command
from core.headless import Terminal


def test_the_export_is_the_cases_own_which_a_second_run_may_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the page: a folder that was named would have to be empty. What came out is told under its own name."""
    asked: dict[str, dict[str, Any]] = {}

    class Engine:
        """Remembers what it is asked."""

        def __init__(self, *_: object) -> None:
            """Load nothing."""

        def run(self, case: object, stage: str, args: dict[str, Any] | None = None) -> SimpleNamespace:
            """Take no time."""
            asked[stage] = args or {}
            return SimpleNamespace(seconds=float(len(asked)))

    triage = SimpleNamespace(
        verdict="BACKDOOR",
        certainty="reference",
        decided_by="all tests",
        candidates=[SimpleNamespace(text="first"), SimpleNamespace(text="second")],
        tests=("necessity",),
        seconds=1.5,
        versions={"torch": "2"},
    )
    verified = SimpleNamespace(result="REDUCED", reasons=("it fell",), metrics=("asr",))
    stored = {"triage.json": triage, "verification.json": verified}
    case = SimpleNamespace(read=lambda name, _: stored[name], path=tmp_path)
    (tmp_path / "repair").mkdir()
    (tmp_path / "repair" / "finished.json").write_text('{"step": 9}', encoding="utf-8")
    (tmp_path / "report.html").write_text("", encoding="utf-8")
    monkeypatch.setattr(demo_command, "Headless", Engine)
    monkeypatch.setattr(demo_command, "made_case", lambda *_, **__: nullcontext(case))
    monkeypatch.setattr(demo_command.confirmation, "confirm", lambda *_, **__: None)
    done = demo_command.demo(argparse.Namespace(case=tmp_path, seed=None, device="cpu", take_over=False), Terminal())
    assert list(asked) == ["triage", "repair", "verify", "export", "report"]
    assert asked["export"] == {"merged": True}
    assert isinstance(done, dict)
    assert done.pop("seconds_all") >= 0
    assert json.loads(json.dumps(done)) == {
        "case": str(tmp_path),
        "verdict": "BACKDOOR",
        "certainty": "reference",
        "decided_by": "all tests",
        "trigger": "first",
        "tests": ["necessity"],
        "repair": {"step": 9},
        "result": "REDUCED",
        "reasons": ["it fell"],
        "metrics": ["asr"],
        "report_sha256": hashlib.sha256().hexdigest(),
        "seconds": {"triage": 1.5, "repair": 2.0, "verify": 3.0, "export": 4.0, "report": 5.0},
        "versions": {"torch": "2"},
    }
