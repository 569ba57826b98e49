"""A fault of the machine is a sentence with what to do, whatever library met it; a fault of ours is none."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from core import machine, repair_stages
from core.errors import CaseFileError
from tests.unit.test_casefile import make_case

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"
FAULTS = [
    (OSError(errno.ENOSPC, "No space left on device", "/case/x.json"), "x.json: No space left on device. Free space"),
    (SafetensorError(FULL), "No space left on device. Free space"),
    (Exception("Disk quota exceeded (os error 122)"), "Disk quota exceeded. Free space"),  # in words of tokenizers
    (MemoryError(), "Out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n 2 GiB"), "Out of memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "Out of memory"),
    (RuntimeError("CUDA error: an illegal memory access\nwas encountered"), "The GPU stopped answering"),
]


@pytest.mark.parametrize(("error", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_a_fault_of_the_machine_is_one_sentence(error: Exception, words: str) -> None:
    told = machine.told(error)
    assert words in str(told)
    assert len(str(told).splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shapes differ"), KeyboardInterrupt()])
def test_a_fault_of_ours_is_none(error: BaseException) -> None:
    assert machine.told(error) is None


@pytest.mark.parametrize("merged", [True, False])
def test_an_export_that_fails_leaves_no_changed_model_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    """The next stage would take the repaired model for the one that was reported."""
    dropped: list[bool] = []
    run = SimpleNamespace(
        case=make_case(tmp_path),
        args={"merged": merged},
        loaded=None,
        failure=None,
        progress=lambda *_: None,
        session=SimpleNamespace(drop=lambda: dropped.append(True)),
    )

    def fail(*_: object) -> None:
        raise SafetensorError(FULL)

    monkeypatch.setattr(repair_stages, "repaired_adapter", lambda _: (None, tmp_path))
    monkeypatch.setattr(repair_stages.evidence, "verify", lambda _: None)
    monkeypatch.setattr(repair_stages.report, "report_json", lambda _: {})
    monkeypatch.setattr(repair_stages.export, "export", fail)
    with pytest.raises(SafetensorError):
        repair_stages.export_model(run)  # type: ignore[arg-type]
    assert dropped == [True]
    assert isinstance(machine.told(SafetensorError(FULL)), CaseFileError)
