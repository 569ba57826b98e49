"""Files that are written whole, by many at once and while others read them."""

import os
import threading
import time
from pathlib import Path

import pytest

from core import files
from core.errors import CaseFileError
from core.files import write_atomic


def test_two_threads_write_one_file_without_harm(tmp_path: Path) -> None:
    faults: list[Exception] = []

    def write() -> None:
        try:
            for _ in range(50):
                write_atomic(tmp_path / "one.json", "x" * 2000)
        except CaseFileError as error:
            faults.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    ("system", "n_refused", "written"), [("win32", 3, True), ("win32", 99, False), ("linux", 1, False)]
)
def test_a_file_that_someone_reads_is_replaced_a_little_later_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, n_refused: int, written: bool
) -> None:
    """Windows refuses it while it is read; anywhere else a refusal is one."""
    refusals, replace = iter(range(n_refused)), os.replace

    def refuse(source: Path, target: Path) -> None:
        if next(refusals, None) is not None:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(files.sys, "platform", system)
    monkeypatch.setattr(files.os, "replace", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if written:
        write_atomic(tmp_path / "one.json", "new")
        assert (tmp_path / "one.json").read_text(encoding="utf-8") == "new"
        return
    with pytest.raises(CaseFileError, match=r"Cannot write one\.json: Permission denied"):
        write_atomic(tmp_path / "one.json", "new")
    assert list(tmp_path.iterdir()) == []
