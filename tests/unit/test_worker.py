"""What the worker refuses before it computes anything, and how it tells of a machine that fails."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from core import jobs, pipeline, worker
from core.__main__ import main
from core.casefile import Case
from core.errors import TriageError
from core.event_log import EventLog
from core.events import StageFailed, StageFinished
from core.headless import Headless, Terminal
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


FAULTS = [
    (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device", True),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore"), "Out of memory", True),
    (RuntimeError("CUDA error: unspecified launch failure\nmore"), "GPU", False),
]
"""What a stage raises on a machine that fails, a word of what is told, and whether the process can go on."""


@pytest.mark.parametrize(("error", "word", "goes_on"), FAULTS)
def test_a_machine_that_fails_is_told_in_one_sentence(
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    word: str,
    goes_on: bool,
) -> None:
    """By the worker, and by the command line, which ends with 2."""

    def fail(*given: object, **named: object) -> StageFinished:
        """Fail, as a stage and as a command."""
        raise error

    monkeypatch.setattr(worker, "run_stage", fail)
    monkeypatch.setattr(pipeline, "run_stage", fail)
    request = jobs.ask(case, "export", start=False)
    (asked,) = jobs.requests(case)
    assert worker.answer(case, asked, EventLog(case.path), None, Free()) is goes_on  # type: ignore[arg-type]
    ends = [jobs.ends(case)[request]]
    with pytest.raises(TriageError):
        Headless("cpu", Terminal()).run(case, "verify")
    ends.append(list(jobs.ends(case).values())[-1])
    for end in ends:
        assert isinstance(end, StageFailed)
        assert not end.ours
        assert word in end.message
        assert end.message.endswith(".")
        assert "\n" not in end.message
    monkeypatch.setattr("core.case_commands.rules", fail)
    capsys.readouterr()
    assert main(["rules", "--case", str(case.path)]) == 2, "no stage, in the command's own process"
    said = capsys.readouterr().err
    assert word in said
    assert "Traceback" not in said
    assert main(["export", "--case", str(case.path), "--out", str(case.path.parent / "out")]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert "Traceback" not in said


def test_what_was_said_is_not_said_again(case: Case) -> None:
    """Waiting for a device that another case uses says the same ten times a second."""
    request = jobs.ask(case, "verify", start=False)
    (asked,) = jobs.requests(case)
    progress = worker.ProgressWriter(case, asked, EventLog(case.path))
    for message, done, total in [("waiting", 0, 0)] * 9 + [("scoring", 1, 2), ("scoring", 2, 2)]:
        progress(message, done, total)
    told = [line.event.message for line in case.events() if line.request == request]
    assert told == ["waiting", "scoring", "scoring"]


def test_an_interrupted_command_says_so_in_the_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: object, **named: object) -> StageFinished:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_stage", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Headless("cpu", Terminal()).run(case, "verify")
    (end,) = jobs.ends(case).values()
    assert isinstance(end, StageFailed)
    assert end.message == "Interrupted; the case keeps what was finished."
