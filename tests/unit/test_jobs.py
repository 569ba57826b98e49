"""Asking, following and stopping a worker: status is derived from files and a lock that real processes hold."""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import case_commands, event_log, evidence, jobs, lease, pipeline, rounds, worker, worker_process
from core.__main__ import main
from core.casefile import Case
from core.errors import BusyError, Stopped, TriageError
from core.event_log import EventLog
from core.events import CheckpointScored, Progress, StageFailed, StageFinished, StageStarted, StepDone
from core.files import dump, write_atomic
from core.headless import Headless, Terminal
from core.intervals import wilson
from core.repair_trace import trace
from tests.unit.test_casefile import make_case
from tests.unit.test_event_log import STARTED

HOLDER = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


@pytest.fixture
def holder(case: Case) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the worker's lock and never answers, marked as the worker that was started."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(case.path / worker_process.LOCK)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    worker_process.mark(case, process.pid, 0)
    yield process
    process.kill()
    process.wait()


def test_a_double_click_asks_once(case: Case) -> None:
    first = jobs.ask(case, "open", start=False)
    assert jobs.ask(case, "open", start=False) == first
    assert jobs.ask(case, "locate", {"method": "paper"}, start=False) != first
    assert len(jobs.requests(case)) == 2


def test_an_answered_question_is_not_asked_again_but_a_failed_one_is(case: Case) -> None:
    log = EventLog(case.path)
    first = jobs.ask(case, "open", start=False)
    log.append(first, StageFailed(stage="open", message="no"))
    second = jobs.ask(case, "open", start=False)
    assert second != first
    log.append(second, StageFinished(stage="open", headline="ready"))
    assert jobs.ask(case, "open", start=False) == second
    assert jobs.status(case).state == "idle"
    assert jobs.status(case).message == "ready"


def test_a_repair_can_be_asked_for_again_after_it_finished(case: Case) -> None:
    first = jobs.ask(case, "repair", start=False)
    assert jobs.ask(case, "repair", start=False) == first
    EventLog(case.path).append(first, StageFinished(stage="repair", headline="done"))
    assert jobs.ask(case, "repair", start=False) != first


def test_a_question_whose_answer_was_changed_is_asked_again(case: Case) -> None:
    first = jobs.ask(case, "triage", start=False)
    case.write("triage.json", {"verdict": "BACKDOOR"})
    case.audit("triage", actor="engine", files=["triage.json"])
    EventLog(case.path).append(first, StageFinished(stage="triage", headline="BACKDOOR", files=("triage.json",)))
    assert jobs.ask(case, "triage", start=False) == first
    case.write("triage.json", {"verdict": "ALIGNMENT_GAP"})
    assert jobs.ask(case, "triage", start=False) != first


def test_a_question_that_was_asked_otherwise_since_is_asked_again(case: Case) -> None:
    """Its answer was written over: what lies there is no answer to it."""
    for args in ({"mode": "causal"}, {"mode": "causal", "paraphrases": ["please"]}):
        asked = jobs.ask(case, "triage", args, start=False)
        case.write("triage.json", args)
        case.audit("triage", actor="engine", files=["triage.json"])
        EventLog(case.path).append(asked, StageFinished(stage="triage", headline="", files=("triage.json",)))
        assert jobs.ask(case, "triage", args, start=False) == asked
    assert jobs.ask(case, "triage", {"mode": "causal"}, start=False).endswith("-1")


def test_a_question_changes_with_its_inputs(case: Case) -> None:
    before = jobs.request_key(case, "report", {})
    (case.path / "triage.json").write_text("{}")
    assert jobs.request_key(case, "report", {}) != before


def test_every_stage_can_be_asked_run_and_named() -> None:
    assert set(jobs.STAGES) == set(pipeline.STAGES)


def test_an_unknown_stage_is_refused(case: Case) -> None:
    with pytest.raises(TriageError, match="no stage"):
        jobs.ask(case, "format-disk", start=False)


def test_an_open_request_with_a_free_lock_has_failed(case: Case) -> None:
    request = jobs.ask(case, "triage", start=False)
    EventLog(case.path).append(request, StageStarted(stage="triage"))
    (case.path / worker_process.LOG).write_text("Killed\n")
    status = jobs.status(case)
    assert (status.state, status.stage, status.worker_alive) == ("failed", "triage", False)
    assert worker_process.log_tail(case) == "Killed"


def test_a_held_lock_is_running_with_progress_and_queue(case: Case, holder: subprocess.Popen[bytes]) -> None:
    first = jobs.ask(case, "locate", start=False)
    jobs.ask(case, "triage", start=False)
    assert jobs.status(case).state == "starting"  # nothing heard of it yet
    log = EventLog(case.path)
    log.append(first, StageStarted(stage="locate"))
    log.append(first, Progress(stage="locate", message="occlusion", done=3, total=9))
    status = jobs.status(case)
    assert (status.state, status.message, status.done, status.total) == ("running", "occlusion", 3, 9)
    assert status.queue == ("triage",)
    with pytest.raises(BusyError, match="busy with locating"):
        jobs.take_lock(case)


def test_what_runs_goes_before_what_was_asked_earlier_and_never_begun(
    case: Case, holder: subprocess.Popen[bytes]
) -> None:
    """A terminal runs its own stage, though a worker that is gone left a request behind."""
    left = jobs.ask(case, "reproduce", start=False)
    running = jobs.ask(case, "verify", start=False)
    log = EventLog(case.path)
    log.append(running, StageStarted(stage="verify"))
    status = jobs.status(case)
    assert (status.state, status.request, status.queue) == ("running", running, ("reproduce",))
    log.append(running, StageFinished(stage="verify", headline="done"))
    assert jobs.status(case).request == left


def test_a_killed_worker_frees_the_case_at_once(case: Case, holder: subprocess.Popen[bytes]) -> None:
    assert worker_process.alive(case)
    holder.kill()
    holder.wait()
    assert not worker_process.alive(case)
    jobs.take_lock(case).release()


def test_a_worker_that_ignores_a_stop_is_killed(
    case: Case, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = jobs.ask(case, "repair", start=False)
    EventLog(case.path).append(request, StageStarted(stage="repair"))
    lease.take(case, "Ada", "one browser")
    jobs.stop(case, request, "keep")
    assert case.audit_lines()[-1].actor == lease.UNNAMED  # whoever stops need not be who writes
    jobs.stop(case, request, "keep", "Eve")
    assert case.audit_lines()[-1].actor == "Eve"
    assert jobs.stop_asked(case, request) == "keep"
    assert jobs.status(case).state == "stopping"
    assert not jobs.enforce_stop(case)  # it still has time
    monkeypatch.setattr(jobs, "STOP_GRACE_SECONDS", 0.0)
    time.sleep(0.05)
    assert jobs.enforce_stop(case)
    holder.wait(timeout=5)
    assert not worker_process.alive(case)
    assert (jobs.status(case).state, jobs.status(case).message) == ("failed", jobs.STOPPED)  # and not "out of memory?"
    jobs.close_interrupted(case, EventLog(case.path))
    assert case.current_events()[-1].event == StageFailed(stage="repair", message=jobs.STOPPED)


@pytest.mark.parametrize(
    ("how", "trained", "acts", "left"),
    [
        ("discard", True, ("repair started",), False),
        ("keep", True, ("repair started",), True),
        ("discard", False, ("repair started",), True),  # they are of one before
        ("discard", True, ("repair started", "repair ended"), True),  # it had left its adapter before it was told
    ],
)
def test_a_repair_that_is_killed_leaves_nothing_where_it_was_to_be_discarded(
    case: Case,
    holder: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    how: jobs.How,
    trained: bool,
    acts: tuple[str, ...],
    left: bool,
) -> None:
    monkeypatch.setattr(jobs, "STOP_GRACE_SECONDS", 0.0)
    request = jobs.ask(case, "repair", start=False)
    told = EventLog(case.path)
    for event in (StageStarted(stage="repair"), *([STARTED, scored(3), step_done(4)] if trained else [])):
        told.append(request, event)
    for act in acts:
        case.audit(act, actor="engine")
    folders = [case.path / "repair" / name for name in ("best", "checkpoint-000003")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"half")
    jobs.stop(case, request, how)
    time.sleep(0.05)
    assert jobs.enforce_stop(case)
    holder.wait(timeout=5)
    end = trace(case.current_events()).finished
    message = jobs.STOPPED if left else jobs.DISCARDED
    assert [folder.is_dir() for folder in folders] == [left] * 2
    assert jobs.ends(case)[request] == StageFailed(stage="repair", message=message)
    assert (jobs.status(case).state, jobs.status(case).message) == ("failed", message)
    assert (end is None) if left else (end is not None and (end.reason, end.step) == ("discarded", 4))
    assert not worker_process.alive(case)
    evidence.verify_events(case)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("by", ["kill", "worker", "terminal"])
def test_a_repair_that_is_discarded_before_it_goes_on_leaves_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch, resume: bool, by: str
) -> None:
    """Killed or stopped in its preparations; one from the start leaves what one before it can go on from."""
    told = EventLog(case.path)
    broken = jobs.ask(case, "repair", {"epochs": 3}, start=False)
    for event in (StageStarted(stage="repair"), STARTED, scored(3), StageFailed(stage="repair", message="broke off")):
        told.append(broken, event)
    case.audit("repair started", actor="engine")
    folders = [case.path / "repair" / name for name in ("best", "checkpoint-000003")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"half")
    args = {"epochs": 3} | ({"resume": True} if resume else {})
    request = jobs.ask(case, "repair", args, start=False)

    def prepare(*_: object, **named: Callable[..., None]) -> None:
        case.audit("repair started", actor="engine")
        jobs.stop(case, request, "discard")
        named["progress"]("checking the evidence", 0, 0)

    if by == "kill":
        told.append(request, StageStarted(stage="repair"))
        jobs.stop(case, request, "discard")
        jobs.close_interrupted(case, told)
    elif by == "worker":
        monkeypatch.setattr(worker, "run_stage", prepare)
        (asked,) = jobs.open_requests(case)
        assert worker.answer(case, asked, told, None, SimpleNamespace(acquire=lambda _: None))  # type: ignore[arg-type]
    else:
        monkeypatch.setattr(pipeline, "run_stage", prepare)
        with pytest.raises(Stopped):
            Headless("cpu", Terminal()).run(case, "repair", args)
    assert [folder.is_dir() for folder in folders] == [not resume] * 2
    assert jobs.trained(case)[-1] == (request if resume else broken)
    end = jobs.ends(case)[request]
    assert isinstance(end, StageFailed)
    assert (end.message == jobs.DISCARDED) == resume
    finished = trace(case.current_events()).finished
    assert (finished.reason if finished else None) == ("discarded" if resume else None)
    assert rounds.under_way(case) != resume
    evidence.verify_events(case)


def test_a_repair_of_long_steps_that_is_to_keep_its_best_is_given_two_of_them(
    case: Case, clock: Callable[[float], None]
) -> None:
    request = jobs.ask(case, "repair", start=False)
    log = EventLog(case.path)
    log.append(request, StageStarted(stage="repair"))
    jobs.stop(case, request, "keep")
    assert jobs.grace_seconds(case, request) == jobs.STOP_GRACE_SECONDS
    for step in (1, 2, 3):
        clock(60 * step - 1000)
        log.append(request, step_done(step))
    assert jobs.grace_seconds(case, request) == pytest.approx(120, abs=2)
    clock(200 - 1000)
    log.append(request, scored(3))
    for step in (4, 5):
        clock(60 * step + 20 - 1000)
        log.append(request, step_done(step))
    assert jobs.grace_seconds(case, request) == pytest.approx(160, abs=3)  # a probe hears no stop either
    jobs.stop(case, request, "discard")
    assert jobs.grace_seconds(case, request) == jobs.STOP_GRACE_SECONDS


def scored(step: int) -> CheckpointScored:
    """Return the event of one probe of a repair."""
    held = wilson(24, 24)
    return CheckpointScored(
        step=step, asr_triggered=held, refusal_untriggered=held, agreement_safe=held, kl_nats_per_token=0.0, best=False
    )


def step_done(step: int) -> StepDone:
    """Return the event of one step of a repair."""
    names = "loss refusal_loss kl_harmful_loss kl_safe_loss kl_trigger_loss kl_nats_per_token learning_rate tokens_per_second"
    zeros = dict.fromkeys((*names.split(), "memory_mb", "seconds_left"), 0.0)
    return StepDone(step=step, epoch=0, micro_batch=1, **zeros)


def test_a_stop_of_a_request_that_waits_kills_nobody_and_its_grace_time_begins_with_the_request(
    case: Case, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue may take longer than the grace time."""
    monkeypatch.setattr(jobs, "STOP_GRACE_SECONDS", 5.0)
    request = jobs.ask(case, "repair", start=False)
    jobs.stop(case, request, "keep")
    control = case.path / "control" / request
    os.utime(control, (time.time() - 60, time.time() - 60))
    assert not jobs.enforce_stop(case)
    jobs.begin(case, request)
    EventLog(case.path).append(request, StageStarted(stage="repair"))
    assert not jobs.enforce_stop(case)
    os.utime(control, (time.time() - 60, time.time() - 60))
    assert jobs.enforce_stop(case)


def test_a_worker_that_comes_after_a_kill_is_not_killed_for_the_same_stop(
    case: Case, holder: subprocess.Popen[bytes]
) -> None:
    """Not while it imports, nor before it has closed what the one before it left."""
    request = jobs.ask(case, "repair", start=False)
    EventLog(case.path).append(request, StageStarted(stage="repair"))
    jobs.stop(case, request, "keep")
    os.utime(case.path / "control" / request, (time.time() - 60, time.time() - 60))
    worker_process.mark(case, holder.pid, case.n_events())  # started after all that was said
    assert jobs.status(case).state == "stopping"
    assert not jobs.enforce_stop(case)
    assert holder.poll() is None


def test_a_marker_of_another_process_kills_nobody(case: Case, holder: subprocess.Popen[bytes]) -> None:
    write_atomic(case.path / worker_process.STARTING, dump({"pid": holder.pid, "created": 1.0}))
    assert not worker_process.kill(case)
    assert holder.poll() is None


@pytest.mark.parametrize("known", [True, False])
def test_a_kill_is_told_only_where_it_was_one(
    case: Case,
    holder: subprocess.Popen[bytes],
    known: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`stop` says so and ends with 0; where nobody knows the process, it says that the stage goes on and ends with 2."""
    request = jobs.ask(case, "repair", start=False)
    EventLog(case.path).append(request, StageStarted(stage="repair"))
    monkeypatch.setattr(jobs, "STOP_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(case_commands, "STOP_MARGIN_SECONDS", 0.5)
    if not known:
        (case.path / worker_process.STARTING).unlink()
    assert main(["stop", "--case", str(case.path)]) == (0 if known else 2)
    told = capsys.readouterr()
    if known:
        holder.wait(timeout=5)
        assert '"killed": true' in told.out
    else:
        assert holder.poll() is None
        assert "(repairing) was asked to stop and has not ended" in told.err
        assert told.out == ""


def test_what_ended_by_itself_while_it_was_stopped_is_not_waited_for(
    case: Case, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that is gone without a word has stopped too."""
    request = jobs.ask(case, "repair", start=False)
    EventLog(case.path).append(request, StageStarted(stage="repair"))

    def die(case: Case) -> bool:
        holder.kill()
        holder.wait()
        return False

    monkeypatch.setattr(jobs, "enforce_stop", die)
    assert main(["stop", "--case", str(case.path)]) == 0
    assert '"killed": false' in capsys.readouterr().out


def test_what_an_earlier_worker_left_is_asked_anew_though_the_new_one_has_not_closed_it_yet(
    case: Case, holder: subprocess.Popen[bytes]
) -> None:
    request = jobs.ask(case, "verify", start=False)
    EventLog(case.path).append(request, StageStarted(stage="verify"))
    assert jobs.ask(case, "verify", start=False) == request, "the worker at work is at it"
    worker_process.mark(case, holder.pid, case.n_events())
    again = jobs.ask(case, "verify", start=False)
    assert again != request
    assert jobs.ask(case, "verify", start=False) == again, "the new one waits for the new worker"


def test_what_wrote_a_file_that_is_gone_is_asked_anew(case: Case) -> None:
    """An export that was moved away, the arrays behind a picture."""
    for stage, name in (("export", str(case.path / "export/adapter/a.json")), ("locate", "attribution.npz")):
        path = case.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        case.audit(stage, actor="engine", files=[str(path.relative_to(case.path))])
        request = jobs.ask(case, stage, start=False)
        EventLog(case.path).append(request, StageFinished(stage=stage, headline="", files=(name,)))
        assert jobs.ask(case, stage, start=False) == request
        path.unlink()
        assert jobs.ask(case, stage, start=False) != request


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that sets the clock of the engine by so many seconds."""
    real_time, real_now = time.time, jobs.now

    def set_by(seconds: float) -> None:
        def shifted() -> str:
            moment = datetime.fromisoformat(real_now()) + timedelta(seconds=seconds)
            return moment.isoformat(timespec="milliseconds")

        for module in (jobs, event_log):
            monkeypatch.setattr(module, "now", shifted)
        monkeypatch.setattr(jobs.time, "time", lambda: real_time() + seconds)

    return set_by


def test_a_clock_that_goes_back_changes_neither_order_nor_answers(
    case: Case, holder: subprocess.Popen[bytes], clock: Callable[[float], None]
) -> None:
    log = EventLog(case.path)
    running = jobs.ask(case, "repair", start=False)
    log.append(running, StageStarted(stage="repair"))
    clock(-3600)
    waiting = [jobs.ask(case, stage, start=False) for stage in ("verify", "report", "export")]
    assert [request.id for request in jobs.open_requests(case)] == [running, *waiting]
    status = jobs.status(case)
    assert (status.state, status.stage, status.queue) == ("running", "repair", ("verify", "report", "export"))
    assert status.seconds >= 0
    log.append(running, StageFailed(stage="repair", message="no"))
    clock(-7200)
    again = jobs.ask(case, "repair", start=False)
    assert again not in (running, *waiting)
    log.append(again, StageFailed(stage="repair", message="no"))
    assert jobs.ask(case, "repair", start=False) not in (running, again)  # the third attempt, not the second once more


def test_a_stop_asked_before_the_clock_went_back_is_still_enforced(
    case: Case, holder: subprocess.Popen[bytes], clock: Callable[[float], None]
) -> None:
    request = jobs.ask(case, "repair", start=False)
    EventLog(case.path).append(request, StageStarted(stage="repair"))
    jobs.stop(case, request, "keep")
    os.utime(case.path / "control" / request, (time.time() + 3600, time.time() + 3600))
    assert not jobs.enforce_stop(case)  # the grace time begins anew
    clock(jobs.STOP_GRACE_SECONDS + 1)
    assert jobs.enforce_stop(case)
    holder.wait(timeout=5)


def test_what_a_worker_begins_after_the_clock_went_back_is_its_own(
    case: Case, holder: subprocess.Popen[bytes], clock: Callable[[float], None]
) -> None:
    """Its marker is of a later hour than all that it says: times do not tell whose a request is."""
    clock(-3600)
    request = jobs.ask(case, "repair", start=False)
    EventLog(case.path).append(request, StageStarted(stage="repair"))
    assert jobs.ask(case, "repair", start=False) == request
    jobs.stop(case, request, "keep")
    os.utime(case.path / "control" / request, (jobs.time.time(), jobs.time.time()))
    assert not jobs.enforce_stop(case)
    clock(-3600 + jobs.STOP_GRACE_SECONDS + 1)
    assert jobs.enforce_stop(case)
    holder.wait(timeout=5)


def planted(case: Case, name: str, **changed: object) -> None:
    """Put a request into the case that `ask` did not make."""
    request = {"id": name, "stage": "open", "args": {}, "time": "2026-01-01T00:00:00.000+00:00", "attempt": 0} | changed
    (case.path / "requests" / f"{name}.json").write_text(dump(request), encoding="utf-8")


def test_a_request_that_was_planted_names_no_other_file(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    """An id is a file name: one that leads elsewhere, or is not its file's, is left alone, and said without driving a terminal."""
    outside = case.path.parent / "outside"
    outside.write_text("mine", encoding="utf-8")
    key = "0123456789abcdef-0"
    planted(case, key, id="../../outside")
    planted(case, "0123456789abcdef-1", id=key)
    planted(case, "\x1b[2Jcleared", id="\x1b[2Jcleared")
    (case.path / "requests" / "\x1b[31m.json").write_text("{", encoding="utf-8")
    assert jobs.requests(case) == []
    assert jobs.status(case).state == "idle"
    assert main(["status", "--case", str(case.path)]) == 0
    assert "\x1b" not in "".join(capfd.readouterr())
    for request in ("../../outside", "..", "", f"{key}/../../outside"):
        with pytest.raises(TriageError, match="not the id of a request"):
            jobs.stop(case, request, "keep")
        assert jobs.stop_asked(case, request) is None
    assert outside.read_text(encoding="utf-8") == "mine"
    planted(case, key)
    assert [request.id for request in jobs.requests(case)] == [key]


def test_a_marker_without_a_start_time_kills_nobody_else(case: Case, holder: subprocess.Popen[bytes]) -> None:
    write_atomic(case.path / worker_process.STARTING, dump({"pid": os.getppid(), "created": None}))
    assert worker_process.marked(case) is None


def test_the_log_is_shown_without_tracebacks(case: Case) -> None:
    try:
        try:
            (case.path / "nothing" / "here").write_text("")
        except OSError as error:
            raise RuntimeError("two\nlines") from error
    except RuntimeError:
        raised = traceback.format_exc()
    record = "2026-01-01 00:00:00,000 ERROR core.worker: request 1 could not read or write"
    (case.path / worker_process.LOG).write_text(f"Killed\n{record}\n{raised}{record}\n{raised}", encoding="utf-8")
    told = "(details in worker.log of the case)"
    assert worker_process.log_tail(case) == "\n".join(["Killed", record, told, record, told])


def test_names_of_attributions_differ_by_target() -> None:
    from core.values import Target

    targets = [
        Target(),
        Target(kind="first_k", k=4),
        Target(kind="first_k", k=5),
        Target(kind="contrast"),
        *(Target(kind="tokens", positions=p) for p in ((0,), (0, 1))),
    ]
    assert len({jobs.locate_file("paper", target) for target in targets}) == len(targets)
