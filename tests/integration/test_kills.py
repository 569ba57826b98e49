"""Workers and pages killed at random points: nothing that was seen is lost, no file is broken, the same question is answered."""

import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from core import audit
from tests import killing
from tests.killing import HONEST_SECONDS, Prepared
from tests.unit.test_casefile import make_case

QUICK, LONG = 20, 200
"""Kills in `make test`, and in the long tier, which has those too."""


@pytest.fixture(scope="module")
def prepared(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A case on a tiny model as it is before each stage."""
    return killing.prepare(tiny_folder("llama"), tmp_path_factory.mktemp("kills"))


def check(prepared: Prepared, numbers: range, folder: Path) -> None:
    trials = [killing.run_trial(prepared, number, folder) for number in numbers]
    assert [trial for trial in trials if trial.problems] == []
    assert max(trial.status_seconds for trial in trials) < HONEST_SECONDS
    assert sum(not trial.ended_before for trial in trials) >= len(trials) // 4  # or they were killed too late to tell


def test_what_a_kill_must_not_do_would_be_noticed(tmp_path: Path) -> None:
    """An act that is lost or changed, a checkpoint that is half there, weights that cannot be read."""
    case = make_case(tmp_path)
    case.audit("looked", actor="analyst")
    acts, log = case.audit_lines(), (case.path / audit.FILE).read_bytes()
    assert killing.readable(case) + killing.lost_acts(acts, case) == []
    (case.path / audit.FILE).write_bytes(b"".join(log.splitlines(keepends=True)[:-1]))
    assert "missing from the end" in killing.readable(case)[0]
    assert killing.lost_acts(acts, case)
    (case.path / audit.FILE).write_bytes(log)
    folder = case.path / "repair" / "checkpoint-000003"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}", encoding="utf-8")
    (folder / "adapter.safetensors").write_bytes(b"half")
    found = killing.readable(case)
    assert [one for one in found if "optimizer.safetensors" in one]
    assert [one for one in found if "said.json" in one]
    assert [one for one in found if one.startswith("repair/checkpoint-000003/adapter.safetensors: SafetensorError")]
    assert len(found) == 3


@pytest.mark.slow
def test_twenty_kills(prepared: Prepared, tmp_path: Path) -> None:
    check(prepared, range(QUICK), tmp_path)


@pytest.mark.long
def test_two_hundred_kills(prepared: Prepared, tmp_path: Path) -> None:
    check(prepared, range(LONG), tmp_path)


@pytest.mark.slow
def test_a_case_whose_making_is_killed_is_not_there_or_whole(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Before every change of a file that making a case takes; what is left stands in no one's way."""
    model = tiny_folder("llama")
    killing.new_case(model, tmp_path / "first")
    for n in count(1):
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "first" / "prompts", folder / "prompts")
        killed = killing.killed_making(model, folder, n)
        assert (folder / "killed").exists() == (folder / "killed" / "case.json").exists()
        case = killing.new_case(model, folder)
        assert killing.readable(case) == []
        assert [line.action for line in case.audit_lines()] == ["created"]
        if not killed:
            break
    assert n > 10, "it was killed at its writes"
