"""Checkpoints of a repair: a run goes on bit for bit as if it had not ended, or is refused; nothing in them is a pickle."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core import checkpoint_files, models, recall
from core.errors import CaseFileError
from core.events import StepDone
from core.files import hash_file
from core.loaded import REPAIR, LoadedModel, current_adapters
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


def theta0_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model as reported put one other token before each answer, as a near tie may on another machine."""
    own = LoadedModel._generate_batch

    def other(self: LoadedModel, prompts: list, n_new: int, *more) -> list[list[int]]:
        answers = own(self, prompts, n_new, *more)
        return answers if REPAIR in current_adapters(self) else [[5, *answer][:n_new] for answer in answers]

    monkeypatch.setattr(LoadedModel, "_generate_batch", other)


def broken_off(loaded, out: Path) -> Path:
    """Break a repair off after step 7, its checkpoint at step 6; return the file with what the model said."""
    count = iter(range(100))
    list(run(loaded, out, stop=lambda: "keep" if next(count) == 14 else None))
    (checkpoint,) = out.glob("checkpoint-*")
    return checkpoint / "said.json"


def edited(file: Path, change, *, state: bool = False) -> None:
    """Change what a JSON file of a checkpoint holds; with `state` the checkpoint's state knows the new hash."""
    file.write_text(json.dumps(change(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    if state:
        known_as_it_is(file)


def known_as_it_is(file: Path) -> None:
    """Let a checkpoint's state know the hash of what its answers are now."""
    edited(file.with_name("state.json"), lambda state: state | {"said_hash": hash_file(file)})


def test_a_model_that_says_something_else_goes_on_with_what_it_said(loaded, tmp_path: Path, monkeypatch) -> None:
    whole = list(run(loaded, tmp_path / "whole"))
    broken_off(loaded, tmp_path / "parts")
    theta0_says_more(monkeypatch)
    rest = list(run(loaded, tmp_path / "parts", resume=True))
    losses = [event.loss for event in whole if isinstance(event, StepDone)]
    assert [event.loss for event in rest if isinstance(event, StepDone)] == losses[6:]
    assert rest[-1].adapter_hash == whole[-1].adapter_hash
    one, two = (list((tmp_path / name).rglob("said.json")) for name in ("whole", "parts"))
    assert len(one) == len(two) == 1  # it goes with its checkpoint, into the next
    assert one[0].read_bytes() == two[0].read_bytes()


def test_a_resumed_repair_asks_the_reported_model_nothing_and_a_discard_leaves_nothing_it_said(
    loaded, tmp_path: Path, monkeypatch
) -> None:
    broken_off(loaded, tmp_path / "repair")
    own = LoadedModel._generate_batch

    def asked(self: LoadedModel, *more) -> list[list[int]]:
        assert REPAIR in current_adapters(self)
        return own(self, *more)

    monkeypatch.setattr(LoadedModel, "_generate_batch", asked)
    count = iter(range(100))
    stop = lambda: "discard" if next(count) == 2 else None  # noqa: E731
    assert list(run(loaded, tmp_path / "repair", resume=True, stop=stop))[-1].step == 7
    assert not list((tmp_path / "repair").iterdir())
    assert loaded.recall is None


def test_a_checkpoint_of_a_version_that_kept_no_answers_goes_on_while_the_model_says_the_same(
    loaded, tmp_path: Path, monkeypatch
) -> None:
    said = broken_off(loaded, tmp_path / "repair")
    said.unlink()
    edited(said.with_name("state.json"), lambda state: {key: state[key] for key in state if key != "said_hash"})
    shutil.copytree(tmp_path / "repair", tmp_path / "other")
    whole = list(run(loaded, tmp_path / "whole"))
    assert list(run(loaded, tmp_path / "repair", resume=True))[-1].adapter_hash == whole[-1].adapter_hash
    assert len(list((tmp_path / "repair").rglob("said.json"))) == 1  # from here on it is kept
    theta0_says_more(monkeypatch)
    with pytest.raises(CaseFileError, match="other settings"):
        list(run(loaded, tmp_path / "other", resume=True))


def another_token(rows: list) -> list:
    return [[limit, prompt, [*answer[:-1], answer[-1] ^ 1] if answer else answer] for limit, prompt, answer in rows]


@pytest.mark.parametrize(
    ("change", "state", "match"),
    [
        (another_token, False, "damaged"),
        (another_token, True, "other settings"),
        (lambda rows: [[limit, prompt, [-1]] for limit, prompt, _ in rows], True, "damaged"),
        (lambda rows: [[limit, prompt, [2**40]] for limit, prompt, _ in rows], True, "damaged"),
        (lambda rows: [[limit, prompt, [True]] for limit, prompt, _ in rows], True, "damaged"),
        (lambda rows: [[limit, prompt, [1] * (limit + 1)] for limit, prompt, _ in rows], True, "damaged"),
        (lambda rows: [[str(limit), prompt, []] for limit, prompt, _ in rows], True, "damaged"),
        (lambda rows: [[limit, [prompt], []] for limit, prompt, _ in rows], True, "damaged"),
        (lambda rows: {"said": 1}, True, "damaged"),
        (lambda rows: 7, True, "damaged"),
    ],
)
def test_answers_that_were_changed_are_refused(loaded, tmp_path: Path, change, state: bool, match: str) -> None:
    before = weights_of(loaded)
    edited(broken_off(loaded, tmp_path / "repair"), change, state=state)
    with pytest.raises(CaseFileError, match=match):
        list(run(loaded, tmp_path / "repair", resume=True))
    assert_is_theta0(loaded, before)


def test_answers_that_are_nested_without_end_too_many_or_gone_are_refused(loaded, tmp_path: Path, monkeypatch) -> None:
    said = broken_off(loaded, tmp_path / "repair")
    kept = said.read_bytes()
    said.write_text("[" * 200_000, encoding="utf-8")
    known_as_it_is(said)
    with pytest.raises(CaseFileError, match="damaged"):
        list(run(loaded, tmp_path / "repair", resume=True))
    said.write_bytes(kept)
    known_as_it_is(said)
    monkeypatch.setattr(recall, "MAX_BYTES", len(kept) - 1)
    with pytest.raises(CaseFileError, match="damaged"):
        list(run(loaded, tmp_path / "repair", resume=True))
    said.unlink()
    with pytest.raises(CaseFileError, match="damaged"):
        list(run(loaded, tmp_path / "repair", resume=True))


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
