"""The events of a case: every kind comes back, reading goes on where it ended, and a changed file is read anew."""

from dataclasses import replace
from pathlib import Path

import pytest

from core import event_log, jobs
from core.casefile import Case
from core.errors import CaseFileError
from core.event_log import NAME, EventLog, current_events, read_events
from core.events import (
    CheckpointScored,
    Progress,
    RepairFinished,
    RepairStarted,
    StageFailed,
    StageFinished,
    StepDone,
)
from core.intervals import wilson
from core.repair_trace import trace

EVENTS = [
    Progress(stage="locate", message="x", done=1, total=2),
    StageFailed(stage="locate", message="no"),
    StageFinished(stage="triage", headline="done", files=("triage.json",), verdict="BACKDOOR"),
    RepairStarted(
        n_steps=5,
        n_epochs=1,
        n_trainable=7,
        device="cpu",
        n_harmful=3,
        n_safe=3,
        memory_estimate_mb=1.0,
        settings={"a": 1},
    ),
    StepDone(
        step=1,
        epoch=0,
        loss=float("nan"),
        refusal_loss=1.0,
        kl_harmful_loss=0.0,
        kl_safe_loss=float("inf"),
        kl_nats_per_token=0.1,
        learning_rate=1e-3,
        tokens_per_second=9.0,
        memory_mb=1.0,
        seconds_left=3.0,
        memory_saved=("no_graphs", "recompute"),
    ),
    CheckpointScored(
        step=1,
        asr_triggered=wilson(1, 2),
        refusal_untriggered=wilson(2, 2),
        agreement_safe=wilson(0, 0),
        kl_nats_per_token=0.0,
        best=True,
    ),
    RepairFinished(
        reason="finished", step=5, best_step=None, adapter=None, adapter_hash=None, seconds=1.5, message="done"
    ),
]
STARTED, STEP = EVENTS[3], EVENTS[4]


def test_every_event_comes_back_and_half_a_line_is_ignored(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for event in EVENTS:
        log.append("req", event)
    with open(tmp_path / NAME, "a", encoding="utf-8") as file:
        file.write('{"seq": 7, "time"')
    lines = read_events(tmp_path)
    assert [line.seq for line in lines] == list(range(len(EVENTS)))
    assert repr([line.event for line in lines]) == repr(EVENTS)  # repr, since NaN differs from itself
    assert [line.seq for line in read_events(tmp_path)[4:]] == [4, 5, 6]
    EventLog(tmp_path).append("req", EVENTS[0])  # a new worker cuts the torn line and counts on
    assert [line.seq for line in read_events(tmp_path)] == list(range(len(EVENTS) + 1))


def headlines(folder: Path) -> list[str]:
    return [line.event.headline for line in current_events(folder) if isinstance(line.event, StageFinished)]


def finished(headline: str) -> StageFinished:
    return StageFinished(stage="triage", headline=headline)


def test_what_was_read_once_is_not_read_again(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert current_events(tmp_path) == ()
    log.append("req", finished("one"))
    first = current_events(tmp_path)
    log.append("req", finished("two"))
    both = current_events(tmp_path)
    assert headlines(tmp_path) == ["one", "two"]
    assert both[0] is first[0]


def test_what_is_over_is_left_out_and_the_last_repair_is_whole(tmp_path: Path) -> None:
    """Two repairs, the second stopped and resumed, then two that left nothing after it left an adapter: trace and ends say the same of
    what is kept as of everything."""
    log, case = EventLog(tmp_path), Case.__new__(Case)
    case.path = tmp_path

    def told() -> tuple:
        current, everything = current_events(tmp_path), read_events(tmp_path)
        assert repr(trace(current)) == repr(trace(everything))
        return current

    def repair(request: str, steps: range, resumed_at: int | None = None) -> None:
        log.append(request, replace(STARTED, resumed_at=resumed_at))
        for at in steps:
            log.append(request, Progress(stage="repair", message="", done=at, total=9))
            log.append(request, replace(STEP, step=at))
            told()
        log.append(request, StageFinished(stage="repair", headline="stopped"))

    repair("first", range(1, 8))
    assert sum(isinstance(line.event, Progress) for line in told()) == 0
    repair("second", range(1, 5))
    repair("third", range(3, 7), resumed_at=2)
    kept = told()
    assert [line.event.step for line in kept if isinstance(line.event, StepDone)] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert set(jobs.ends(case)) == {"first", "second", "third"}
    assert kept[-1].seq + 1 == len(read_events(tmp_path)) == 3 + 2 * (7 + 4 + 4) + 3
    nothing = next(one for one in EVENTS if isinstance(one, RepairFinished))
    log.append("third", replace(nothing, adapter="repair/best"))
    for request in ("fourth", "fifth"):
        repair(request, range(1, 3))
        assert trace(told()).request == request
        log.append(request, nothing)
        assert trace(told()).request == "third"


@pytest.mark.parametrize("others", [["another, longer than the first"], ["x"], ["x", "y"], []])
def test_a_file_that_was_put_in_its_place_is_read_anew(tmp_path: Path, others: list[str]) -> None:
    case, other = tmp_path / "case", tmp_path / "other"
    for folder, said in ((case, ["one", "two"]), (other, others)):
        folder.mkdir()
        log = EventLog(folder)
        for headline in said:
            log.append("req", finished(headline))
    assert headlines(case) == ["one", "two"]
    (case / NAME).write_bytes((other / NAME).read_bytes())
    assert headlines(case) == others


def test_a_damaged_line_is_named_and_read_on_from_once_it_is_mended(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append("req", finished("one"))
    whole = (tmp_path / NAME).read_bytes()
    assert headlines(tmp_path) == ["one"]
    (tmp_path / NAME).write_bytes(whole + b"{broken\n")
    for _ in range(2):
        with pytest.raises(CaseFileError, match="Line 2 of"):
            current_events(tmp_path)
    (tmp_path / NAME).write_bytes(whole)
    EventLog(tmp_path).append("req", finished("two"))
    assert headlines(tmp_path) == ["one", "two"]


def test_events_of_many_cases_do_not_pile_up(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
        EventLog(tmp_path / name).append("req", finished(name))
    assert [headlines(tmp_path / name) for name in "abcdefgha"] == [[name] for name in "abcdefgha"]
    assert len(event_log._kept) <= event_log.KEPT_CASES
