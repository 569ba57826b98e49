"""A machine that fails: each fault ends in a plain sentence, the best checkpoint is kept, and the case opens again."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import confirmation, jobs, lease, worker_process
from core.casefile import Case
from core.errors import CaseFileError
from core.events import CheckpointScored, RepairFinished, StageFailed, StageFinished, StepDone
from core.files import hash_file
from core.repair_trace import trace
from tests import faults, killing
from tests.killing import HONEST_SECONDS, REPAIR, Prepared, end_of, readable, wait_for

pytestmark = pytest.mark.slow
BEST = "repair/best/adapter_model.safetensors"


@pytest.fixture(scope="module")
def prepared(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A case on a tiny model as it is before each stage."""
    return killing.prepare(tiny_folder("llama"), tmp_path_factory.mktemp("faults"), only=("open", "repair", "report"))


@pytest.fixture
def case(prepared: Prepared, tmp_path: Path) -> Iterator[Case]:
    """The case before its repair."""
    made = prepared.copy("repair", tmp_path / "case")
    yield made
    worker_process.kill(made)


def broken(case: Case, fault: Callable[[], object]) -> tuple[StageFinished | StageFailed, int]:
    """Ask a worker with a fault for a repair; return how it ended, and the worker's process id."""
    worker = killing.start_worker(case, fault)
    request = jobs.ask(case, "repair", REPAIR, start=False)
    wait_for(lambda: end_of(case, request) is not None, worker_process.log_tail(case))
    end = end_of(case, request)
    assert end is not None
    assert not readable(case)
    return end, worker


def is_plain(message: str) -> bool:
    """Whether a message is a sentence for an analyst: one line, no traceback, no class of ours."""
    return message.endswith(".") and "\n" not in message and "Error" not in message and "Internal fault" not in message


def kept(case: Case) -> tuple[bool, bool]:
    """Whether there is a best adapter, and a checkpoint that a repair can go on from."""
    return (case.path / BEST).is_file(), bool(list(case.path.glob("repair/checkpoint-*/state.json")))


def resumed(case: Case) -> None:
    """The repair goes on with a sound machine, to its end, in one history."""
    killing.start_worker(case)
    assert isinstance(killing.finish(case, "repair", REPAIR | {"resume": True}), StageFinished)
    steps = [step.step for step in trace(case.events()).steps]
    assert steps == list(range(1, len(steps) + 1))


def test_out_of_memory_halves_the_micro_batch_and_goes_on(case: Case) -> None:
    end, _ = broken(case, faults.memory_for_one)
    assert isinstance(end, StageFinished)
    sizes = [line.event.micro_batch for line in case.events() if isinstance(line.event, StepDone)]
    assert (sizes[0], sizes[-1]) == (4, 1)


def test_out_of_memory_for_good_and_a_loss_that_is_no_number_keep_the_best(case: Case) -> None:
    for fault, reason in ((faults.no_memory, "out_of_memory"), (faults.nan_loss, "diverged")):
        end, worker = broken(case, fault)
        assert isinstance(end, StageFinished)
        assert is_plain(end.headline)
        assert "Try" in end.headline
        finished = case.read("repair/finished.json", RepairFinished)
        assert finished is not None
        assert finished.reason == reason
        assert hash_file(case.path / BEST) == finished.adapter_hash
        assert jobs.status(case).state == "idle"
        killing.kill(worker)


def test_a_lost_gpu_is_said_ends_the_worker_and_the_repair_resumes(case: Case) -> None:
    end, _ = broken(case, faults.gpu_gone)
    assert isinstance(end, StageFailed)
    assert not end.ours
    assert is_plain(end.message)
    assert "GPU" in end.message
    assert (case.path / BEST).is_file()
    wait_for(lambda: not worker_process.alive(case), "a worker without a GPU went on", HONEST_SECONDS)
    assert jobs.status(case).state == "failed"
    resumed(case)


def test_a_disk_that_is_full_when_a_step_is_told_keeps_the_best_and_the_repair_resumes(case: Case) -> None:
    end, worker = broken(case, faults.no_room_for_events)
    assert isinstance(end, StageFailed)
    assert is_plain(end.message)
    assert kept(case) == (True, True)
    killing.kill(worker)
    resumed(case)


@pytest.mark.parametrize("number", range(4))
def test_a_full_disk_is_said_and_what_was_kept_stays(prepared: Prepared, tmp_path: Path, number: int) -> None:
    room = random.Random(number).randrange(4, 90) * 1024
    source = prepared.snapshots / "repair"
    disk = tmp_path / "disk"
    if not faults.may_mount():
        case = prepared.copy("repair", disk / "case")
        _full_disk(case, faults.FileLimit(room), lambda: None)
        return
    with faults.small_disk(disk, 64 * faults.MB) as remount:
        shutil.copytree(source, disk / "case")
        used = faults.used_bytes(disk)
        remount(f"size={used + room}")
        _full_disk(Case(disk / "case"), None, lambda: remount(f"size={64 * faults.MB}"))


def _full_disk(case: Case, fault: Callable[[], object] | None, make_room: Callable[[], None]) -> None:
    worker = killing.start_worker(case, fault)
    message = _sentence(case)
    assert is_plain(message), message
    assert "ree space" in message
    assert not readable(case)
    killing.kill(worker)
    before = case.events()
    scored = [line.event for line in before if isinstance(line.event, CheckpointScored)]
    best, checkpoint = kept(case)
    assert checkpoint >= bool(scored), "what had been scored can be gone on from"
    assert best >= any(one.best for one in scored), "the best that had been scored is there"
    make_room()
    killing.start_worker(case)
    again = dict(REPAIR) | ({"resume": True} if checkpoint else {})
    killing.finish(case, "repair", again)
    assert case.events()[: len(before)] == before
    assert [line.seq for line in case.events()] == list(range(len(case.events())))
    assert (case.path / BEST).is_file()
    worker_process.kill(case)


def _sentence(case: Case) -> str:
    """Ask for a repair that the disk has no room for; return what is said."""
    try:
        request = jobs.ask(case, "repair", REPAIR, start=False)
    except CaseFileError as error:  # not even room for the question
        return str(error)
    wait_for(lambda: jobs.status(case).state in ("failed", "idle"), worker_process.log_tail(case))
    end = end_of(case, request)
    assert not isinstance(end, StageFinished), "there was room enough; this shows nothing"
    return end.message if end is not None else jobs.status(case).message


def test_a_read_only_case_is_read_and_says_why_it_cannot_be_worked_on(prepared: Prepared, tmp_path: Path) -> None:
    if not faults.may_mount():
        if os.geteuid() == 0:
            pytest.skip("root writes read-only files; this needs a read-only disk, and nothing may be mounted here")
        case = prepared.copy("report", tmp_path / "case")
        everything = [case.path, *case.path.rglob("*")]
        for path in everything:
            path.chmod(0o555)
        try:
            _read_only(case)
        finally:
            for path in everything:
                path.chmod(0o755)
        return
    disk = tmp_path / "disk"
    with faults.small_disk(disk, 64 * faults.MB) as remount:
        shutil.copytree(prepared.snapshots / "report", disk / "case")
        remount("ro")
        _read_only(Case(disk / "case"))


def _read_only(case: Case) -> None:
    assert not readable(case)
    assert jobs.status(case).state in ("idle", "failed")
    acts = (
        lambda: jobs.ask(case, "report"),
        lambda: worker_process.ensure(case),
        lambda: jobs.stop(case, "0123456789abcdef-0", "keep"),
        lambda: jobs.take_lock(case),
        lambda: killing.confirm(case),
        lambda: lease.take(case, "A. Nalyst", "browser"),
        lambda: case.audit("looked", actor="analyst"),
    )
    for act in acts:
        with pytest.raises(CaseFileError) as caught:
            act()
        assert is_plain(str(caught.value)), caught.value
    assert confirmation.validity(case) is None


def test_a_case_that_becomes_read_only_while_a_question_is_open_says_so(case: Case, tmp_path: Path) -> None:
    if not faults.may_mount():
        pytest.skip("needs a disk that can be made read-only, and nothing may be mounted here")
    disk = tmp_path / "disk"
    with faults.small_disk(disk, 64 * faults.MB) as remount:
        shutil.copytree(case.path, disk / "case")
        asked = Case(disk / "case")
        jobs.ask(asked, "repair", REPAIR, start=False)
        remount("ro")
        status = jobs.status(asked)
        assert status.state == "failed"
        assert is_plain(status.message)
        assert "read-only" in status.message
