"""The demo command: what it asks for, again in the same folder too."""

import argparse
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
    """As on the page: a folder that was named would have to be empty."""
    asked: dict[str, dict[str, Any]] = {}

    class Engine:
        """Remembers what it is asked."""

        def __init__(self, *_: object) -> None:
            """Load nothing."""

        def run(self, case: object, stage: str, args: dict[str, Any] | None = None) -> SimpleNamespace:
            """Take no time."""
            asked[stage] = args or {}
            return SimpleNamespace(seconds=0.0)

    names = ("verdict", "certainty", "decided_by", "result")
    found = SimpleNamespace(
        **dict.fromkeys(names, ""),
        candidates=[SimpleNamespace(text="t")],
        tests=(),
        reasons=(),
        metrics=(),
        seconds=0.0,
    )
    found.versions = {}
    case = SimpleNamespace(read=lambda *_: found, path=tmp_path)
    (tmp_path / "repair").mkdir()
    (tmp_path / "repair" / "finished.json").write_text("{}", encoding="utf-8")
    (tmp_path / "report.html").write_text("", encoding="utf-8")
    monkeypatch.setattr(demo_command, "Headless", Engine)
    monkeypatch.setattr(demo_command, "made_case", lambda *_, **__: nullcontext(case))
    monkeypatch.setattr(demo_command.confirmation, "confirm", lambda *_, **__: None)
    done = demo_command.demo(argparse.Namespace(case=tmp_path, seed=None, device="cpu", take_over=False), Terminal())
    assert list(asked) == ["triage", "repair", "verify", "export", "report"]
    assert asked["export"] == {"merged": True}
    assert json.dumps(done)
