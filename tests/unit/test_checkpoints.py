"""Checkpoints of a repair: a run goes on bit for bit as if it had not ended, or is refused; nothing in them is a pickle."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core import checkpoint_files, models
from core.errors import CaseFileError
from core.events import StepDone
from tests.unit.repairing import SMALL, assert_is_theta0, run, weights_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(loaded, tmp_path: Path, stop_at: int) -> None:
    whole = list(run(loaded, tmp_path / "whole", epochs=3))
    count = iter(range(100))  # asked before the first probe, then before and after each step
    asked = lambda: "keep" if next(count) == 2 * stop_at else None  # noqa: E731
    first = list(run(loaded, tmp_path / "parts", epochs=3, stop=asked))
    assert first[-1].step == stop_at
    rest = list(run(loaded, tmp_path / "parts", epochs=3, resume=True))
    checkpoint = 2 * (stop_at // 2)
    steps = [event for event in whole if isinstance(event, StepDone)][checkpoint:]
    again = [event for event in rest if isinstance(event, StepDone)]
    assert [(e.step, e.loss, e.learning_rate) for e in again] == [(e.step, e.loss, e.learning_rate) for e in steps]
    for name in ("best/adapter_model.safetensors", "checkpoint-000012/adapter.safetensors"):
        one, two = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert rest[-1].adapter_hash == whole[-1].adapter_hash
    assert rest[-1].best_step == whole[-1].best_step


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from core import checkpoints, models
from core.events import StepDone
from tests.unit.repairing import SMALL, run
for event in run(models.load(sys.argv[1], settings=SMALL), Path(sys.argv[2]), epochs=3):
    if isinstance(event, StepDone) and event.step == 7:
        os._exit(9)
"""


def test_a_process_that_dies_is_resumed_bit_for_bit(tiny_folder, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    whole = list(run(models.load(folder, settings=SMALL), tmp_path / "whole", epochs=3))
    command = [sys.executable, "-c", CRASH, str(folder), str(tmp_path / "crashed"), str(ROOT)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    left = {path.name for path in (tmp_path / "crashed").iterdir()}
    assert left <= {"best", "checkpoint-000006"}
    rest = list(run(models.load(folder, settings=SMALL), tmp_path / "crashed", epochs=3, resume=True))
    steps = [event.loss for event in whole if isinstance(event, StepDone)]
    assert [event.loss for event in rest if isinstance(event, StepDone)] == steps[6:]
    last = f"checkpoint-{len(steps):06d}/adapter.safetensors"
    one, two = (load_file(tmp_path / name / last) for name in ("whole", "crashed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert rest[-1].adapter_hash == whole[-1].adapter_hash


def test_a_best_adapter_newer_than_its_checkpoint_is_scored_again(loaded, tmp_path: Path) -> None:
    list(run(loaded, tmp_path / "repair", epochs=2))
    best = tmp_path / "repair/best/adapter_model.safetensors"
    best.write_bytes(best.read_bytes()[:-1] + b"\x00")
    count = iter(range(100))
    events = list(run(loaded, tmp_path / "repair", epochs=2, resume=True, stop=lambda: "keep" if next(count) else None))
    assert events[-1].best_step is None  # nothing was left to do, and what lay there is not what had been scored
    assert events[-1].adapter is None


def test_resume_refuses_nothing_other_settings_and_damage(loaded, tmp_path: Path) -> None:
    before = weights_of(loaded)
    with pytest.raises(CaseFileError, match="no checkpoint"):
        list(run(loaded, tmp_path / "repair", resume=True))
    list(run(loaded, tmp_path / "repair", epochs=1))
    with pytest.raises(CaseFileError, match=r"other settings.*without --resume removes it"):
        list(run(loaded, tmp_path / "repair", epochs=1, resume=True, learning_rate=1e-4))
    assert list(run(loaded, tmp_path / "repair", epochs=1, resume=True))[-1].reason == "finished"
    state = next((tmp_path / "repair").glob("checkpoint-*")) / "adapter.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CaseFileError, match="damaged"):
        list(run(loaded, tmp_path / "repair", epochs=1, resume=True))
    assert_is_theta0(loaded, before)


def test_checkpoints_hold_no_pickle(loaded, tmp_path: Path) -> None:
    list(run(loaded, tmp_path / "repair", epochs=1))
    names = {path.suffix for path in (tmp_path / "repair").rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}
    config = json.loads((tmp_path / "repair/best/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama"  # a name, no path of this machine


def test_a_process_that_is_killed_while_it_removes_a_checkpoint_leaves_no_half_of_one(
    loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(run(loaded, tmp_path / "repair", epochs=1))
    remove = shutil.rmtree

    def killed(folder: Path, **named: object) -> None:
        for path in folder.glob("state.json"):
            path.unlink()
            raise KeyboardInterrupt
        remove(folder, **named)

    monkeypatch.setattr(checkpoint_files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_files.clear(tmp_path / "repair", best=False)
    monkeypatch.undo()
    assert not checkpoint_files.there(tmp_path / "repair")
    checkpoint_files.clear(tmp_path / "repair", best=True)
    assert not list((tmp_path / "repair").iterdir())
