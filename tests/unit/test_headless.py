"""Stages in the terminal's own process: it can be found and stopped, and does not obey what was said to one that is gone."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import jobs, pipeline, worker_process
from core.casefile import Case
from core.errors import Stopped
from core.event_log import EventLog
from core.events import RepairStarted, StageFailed, StageFinished, StageStarted
from core.files import dump, write_atomic
from core.headless import Headless, Terminal
from tests.unit.test_casefile import make_case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def run(case: Case, monkeypatch: pytest.MonkeyPatch, during: Callable[[Callable[..., Any]], object]) -> object:
    """Run a repair that calls `during` with what asks whether to stop; return what that said."""
    said: list[object] = []

    def stage(name: str, *_: object, asked: Callable[..., Any], **__: object) -> StageFinished:
        said.append(during(asked))
        return StageFinished(stage=name, headline="ran")

    monkeypatch.setattr(pipeline, "run_stage", stage)
    Headless("cpu", Terminal()).run(case, "repair")
    return said[0]


def test_experts_that_a_repair_leaves_as_they_are_are_said_at_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    started = RepairStarted(
        n_steps=1, n_epochs=1, n_trainable=1, device="cpu", n_harmful=1, n_safe=1, memory_estimate_mb=1.0
    )  # fmt: skip
    Terminal().show(started)
    assert "experts" not in capsys.readouterr().err
    Terminal().show(replace(started, unreached=0.595))
    assert "  60 % of the parameters lie in experts that the adapter does not reach\n" in capsys.readouterr().err


def test_the_process_is_marked_while_it_works(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that is not heard can then end it; afterwards a worker may start at once."""

    def look(_: object) -> tuple[int | None, bool]:
        found = worker_process.marked(case)
        request = jobs.status(case).request
        assert request is not None
        return found.pid if found else None, jobs._worked_on(case, request)

    assert run(case, monkeypatch, look) == (os.getpid(), True)
    assert not worker_process.starting(case)
    assert worker_process.marked(case) is None


def test_the_mark_goes_when_the_stage_fails_and_another_process_keeps_its_own(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise Stopped("no")

    with pytest.raises(Stopped):
        run(case, monkeypatch, fail)
    assert not (case.path / worker_process.STARTING).exists()
    other = os.getppid()
    run(case, monkeypatch, lambda _: worker_process.mark(case, other, 0))
    found = worker_process.marked(case)
    assert found is not None
    assert found.pid == other


def test_a_repair_after_a_kill_does_not_obey_the_stop_of_the_one_before(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process says nothing: what it began is closed by the next one, which makes an attempt of its own."""
    killed = jobs.ask(case, "repair", start=False)
    write_atomic(case.path / worker_process.STARTING, dump({"pid": 2**22 + 1, "created": 1.0, "events": 0}))
    EventLog(case.path).append(killed, StageStarted(stage="repair"))
    jobs.stop(case, killed, "discard")
    assert run(case, monkeypatch, lambda asked: (asked(), jobs.status(case).state)) == (None, "running")
    assert isinstance(jobs.ends(case)[killed], StageFailed)
    assert jobs.open_requests(case) == []
    (again,) = [request for request in jobs.requests(case) if request.id != killed]
    assert isinstance(jobs.ends(case)[again.id], StageFinished)
