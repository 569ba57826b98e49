"""What the worker refuses before it computes anything."""

from pathlib import Path
from typing import Any

import pytest

from core import jobs, worker
from core.casefile import Case
from core.event_log import EventLog
from core.events import StageFailed, StageFinished
from tests.unit.test_casefile import make_case


class Free:
    """A device that nobody else uses."""

    def acquire(self, progress: object) -> None:
        """Nothing to wait for."""


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def answered(case: Case, stage: str, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> object:
    """Return how a request ends that runs as soon as it may."""
    monkeypatch.setattr(worker, "run_stage", lambda stage, *_, **__: StageFinished(stage=stage, headline="ran"))
    request = jobs.ask(case, stage, args, start=False)
    (asked,) = [one for one in jobs.requests(case) if one.id == request]
    assert worker.answer(case, asked, EventLog(case.path), None, Free())  # type: ignore[arg-type]
    return jobs.ends(case)[request]


@pytest.mark.parametrize("out", ["{root}/elsewhere", "..", "../elsewhere", "export/../../elsewhere", "."])
def test_an_export_out_of_the_case_is_refused(case: Case, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page asks for none; a case that was copied may hold one, which would be answered when it is opened."""
    end = answered(case, "export", {"out": out.format(root=case.path.parent)}, monkeypatch)
    assert isinstance(end, StageFailed)
    assert "writes in the case only" in end.message
    assert not end.ours


def test_an_export_into_the_case_runs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for args in ({}, {"merged": True}, {"out": str(case.path.resolve() / "export" / "merged")}):
        assert isinstance(answered(case, "export", args, monkeypatch), StageFinished)
