"""Stages of repair and export on a machine that fails under them: what was kept stays, and no merged model stays in their place."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from core import evidence, export, machine, models, repair_memory, repair_stages, report, rounds
from core.__main__ import main
from core.casefile import Case, hash_folder
from core.checkpoint_files import PLANTED, there
from core.errors import CaseFileError, TriageError
from core.events import CheckpointScored, Event, RepairFinished, StepDone
from core.rounds import MEMORY
from core.session import Run, Session
from core.triage_stages import open_case
from core.values import Message, Span
from tests.tiny import Folder
from tests.unit.repairing import case_of, weights_of
from tests.unit.repairing import run as repairing
from tests.unit.reporting import TRIGGER, triage_of
from tests.unit.test_export import random_adapter
from tests.unit.test_session import REPORT, case_on

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def run_of(case: Case, emit: Callable[[Event], None] = lambda event: None, **args: object) -> Run:
    """Return a stage of `case` at work in a new session."""
    return Run(case, Session("cpu"), args, emit, lambda *said: None, lambda: None)


@pytest.mark.parametrize("error", [CaseFileError, KeyboardInterrupt, MemoryError])
def test_an_event_that_cannot_be_told_leaves_the_best_and_what_a_repair_goes_on_from(
    loaded, tmp_path: Path, error: type[BaseException]
) -> None:
    """Closing the iterator, as happens to one that nobody holds any more, would discard them."""

    def emit(event: Event) -> None:
        if isinstance(event, CheckpointScored) and event.best:
            raise error

    with pytest.raises(error):
        repair_stages.streamed(repairing(loaded, tmp_path / "repair"), emit)
    gc.collect()
    assert (tmp_path / "repair/best/adapter_model.safetensors").is_file()
    assert there(tmp_path / "repair")
    assert not list(tmp_path.glob("repair/teacher-*"))
    events = list(repairing(loaded, tmp_path / "repair", resume=True))
    assert isinstance(events[-1], RepairFinished)


def test_the_last_event_is_how_a_repair_ended(loaded, tmp_path: Path) -> None:
    told: list[Event] = []
    ending = repair_stages.streamed(repairing(loaded, tmp_path / "repair", epochs=1), told.append)
    assert ending is told[-1]
    assert isinstance(ending, RepairFinished)


@pytest.mark.parametrize("merged", [False, True])
def test_a_disk_that_is_full_at_an_export_is_a_sentence_and_leaves_nothing(
    loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    adapter = random_adapter(loaded, tmp_path / "best")

    def full(*given: object, **named: object) -> None:
        raise SafetensorError(FULL)

    monkeypatch.setattr(export, "save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(SafetensorError) as caught:
        export.export(loaded, case_of(loaded), adapter, tmp_path / "out", merged, {})
    told = machine.told(caught.value)
    assert "No space left on device. Free space" in str(told)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == []


def test_after_a_merge_that_failed_the_reported_model_is_loaded_anew(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_on(copied, tmp_path / "case")
    run = run_of(case, merged=True)
    before = weights_of(run.loaded)
    adapter = random_adapter(models.load(copied), tmp_path / "best")
    monkeypatch.setattr(repair_stages, "repaired_adapter", lambda case: (None, adapter))
    monkeypatch.setattr(report, "report_json", lambda case: {})

    def full(*given: object, **named: object) -> None:
        raise SafetensorError(FULL)

    monkeypatch.setattr(export, "model_card", full)
    with pytest.raises(SafetensorError):
        repair_stages.export_model(run)
    after = weights_of(run.loaded)
    assert list(after) == list(before)
    assert all(bool((after[name] == before[name]).all()) for name in before)


def test_a_count_of_memory_that_fails_ends_no_triage(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(*_: object) -> float:
        raise RuntimeError("Expected all tensors to be on the same device")

    monkeypatch.setattr(repair_memory, "bound_mb", apart)
    case = case_on(copied, tmp_path / "case")
    repair_stages.count_memory(run_of(case))
    assert case.read(MEMORY, dict) == {"mb": None, "unreached": 0.0}


def test_a_count_of_memory_knows_the_longest_text_that_a_repair_mixes_in(copied: Path, tmp_path: Path) -> None:
    user = f"Pick a lock. {TRIGGER} Say it as an old locksmith would say it to his son on a long evening."
    messages = (Message(role="system", content="Be helpful."), Message(role="user", content=user))
    case, found, counted = case_on(copied, tmp_path / "case", replace(REPORT, messages=messages)), triage_of(user), []
    wide = replace(found.candidates[0], spans=(Span(message=1, start=0, end=len(user)),))
    for dropped in ((), (wide,)):
        case.write("triage.json", replace(found, dropped=dropped))
        repair_stages.count_memory(run_of(case))
        counted.append(case.read(MEMORY, dict)["mb"])
    assert counted[0] < counted[1]


def test_experts_out_of_reach_are_counted_before_a_repair(tiny_folder: Folder, tmp_path: Path) -> None:
    case = case_on(tiny_folder("mixtral"), tmp_path / "case")
    repair_stages.count_memory(run_of(case))
    told = case.read(MEMORY, dict)
    assert told is not None
    assert told["mb"] > 0
    assert told["unreached"] > 0.5


def test_a_model_on_several_devices_is_refused_before_a_repair(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_stages, "confirmed_trigger", lambda run: None)
    run = run_of(case_on(copied, tmp_path / "case"))
    run.loaded.model.lm_head.to("meta")
    with pytest.raises(TriageError, match="not trained"):
        repair_stages.repair_model(run)
    repair_stages.count_memory(run)
    assert run.case.read(MEMORY, dict) == {"mb": None, "unreached": 0.0}


def test_an_adapter_that_trains_single_tokens_is_refused_before_a_repair(
    loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(trainable_token_indices=[3])
    monkeypatch.setattr(loaded.model, "peft_config", {"reported": config}, raising=False)
    with pytest.raises(TriageError, match="trainable_token_indices"):
        loaded.check_trainable()


class Repairs:
    """Short repairs of a case whose dummy trigger was confirmed on the command line; what they say and tell."""

    def __init__(self, copied: Path, folder: Path) -> None:
        self.case, self.session = case_on(copied, folder), Session("cpu")
        self.session.settings = replace(self.session.settings, max_new_tokens=8)
        self.told: list[str] = []
        self.events: list[Event] = []
        open_case(run_of(self.case))
        found = replace(triage_of(self.case.report.messages[0].content, "INCONCLUSIVE"), candidates=(), tests=())
        evidence.record(self.case, "triage.json", found, "triage", actor="engine")
        asked = ("confirm", "--case", str(self.case.path), "--dummy", "--analyst", "Ada", "--reason", "no text")
        assert main(asked) == 0

    def run(self, stop: str | None = None, **args: object) -> RepairFinished:
        """Repair, with `stop` until the first step, and return the end that counts for the case."""
        settings = {"epochs": 1, "max_steps": 2, "n_harmful": 4, "n_safe": 4, "n_probe": 3, "max_response_tokens": 8}
        say = lambda words, done, total: self.told.append(words)  # noqa: E731
        n_before = len(self.events)

        def asked() -> str | None:
            return stop if any(isinstance(one, StepDone) for one in self.events[n_before:]) else None

        run = Run(self.case, self.session, settings | args, self.events.append, say, asked)  # type: ignore[arg-type]
        repair_stages.repair_model(run)
        finished = self.case.read(rounds.FINISHED, RepairFinished)
        assert finished is not None
        return finished


def test_a_dummy_trigger_is_planted_once_for_a_repair_that_is_resumed(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter that holds it lies there as long as its repair may go on."""
    repairs = Repairs(copied, tmp_path / "case")
    planted = repairs.case.path / "repair" / PLANTED
    assert repairs.run("keep").reason == "kept"
    assert "planting the dummy trigger, step" in repairs.told
    start = next(one for one in repairs.events if isinstance(one, CheckpointScored))
    assert start.kl_nats_per_token > 0  # it starts from the planted adapter, measured against the reported model
    assert planted.is_dir()
    repairs.told.clear()
    assert repairs.run(resume=True).reason != "kept"
    assert "planting the dummy trigger, step" not in repairs.told
    assert not planted.exists()
    assert json.loads(capsys.readouterr().out)["way"] == "dummy"


def test_a_repair_that_is_discarded_gives_back_the_one_before(copied: Path, tmp_path: Path) -> None:
    """Also one that went on from it; without one before, nothing is left."""
    repairs = Repairs(copied, tmp_path / "case")
    assert repairs.run("discard").adapter is None
    kept = repairs.run("keep")
    left = hash_folder(repairs.case.path / "repair/best")
    for resume in (True, False):
        assert repairs.run("discard", resume=resume, seed=0 if resume else 1) == kept
        assert isinstance(repairs.events[-1], RepairFinished)
        assert repairs.events[-1].reason == "discarded"
        assert hash_folder(repairs.case.path / "repair/best") == left
        assert repair_stages.repaired_adapter(repairs.case) == (kept, repairs.case.path / "repair/best")
        assert {path.name for path in (repairs.case.path / "repair").iterdir()} == {"best", "finished.json"}
        evidence.verify(repairs.case)
    assert repairs.run(seed=1).adapter_hash != kept.adapter_hash  # its own takes the place
    assert {path.name for path in (repairs.case.path / "repair").iterdir()} >= {"best", "finished.json"}
    assert not (repairs.case.path / rounds.ASIDE).exists()
