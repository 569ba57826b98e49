"""One analyst writes a case; the others see who, and are refused in the engine and in every handler."""

import errno
import json
import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core import case_commands, lease
from core.__main__ import main
from core.casefile import Case
from core.errors import BusyError, CaseFileError
from tests.unit.test_casefile import make_case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def age(case: Case, seconds: float) -> None:
    """Let the lease have been seen so long ago."""
    found = case.read(lease.FILE, lease.Lease)
    assert found is not None
    case.write(lease.FILE, replace(found, seen=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()))


def test_the_first_writes_and_the_second_is_told_who(case: Case) -> None:
    lease.take(case, "Ada", "browser-a")
    lease.take(case, "Ada", "browser-a")
    with pytest.raises(BusyError, match=r"^Ada has been writing this case since \d\d:\d\d UTC.*--take-over"):
        lease.take(case, "Grace", "browser-b")
    assert not lease.may_write(case, "Grace", "browser-b")
    found = lease.current(case)
    assert found is not None
    assert (found.analyst, found.holder) == ("Ada", "browser-a")


def test_taking_over_stands_in_the_log_and_turns_the_tables(case: Case) -> None:
    lease.take(case, "Ada", "browser-a")
    lease.take(case, "Grace", "browser-b", over=True)
    with pytest.raises(BusyError, match="Grace has been writing"):
        lease.take(case, "Ada", "browser-a")
    line = case.audit_lines()[-1]
    assert (line.action, line.actor, line.facts) == ("writing taken over", "Grace", {"taken_from": "Ada"})


def test_a_stale_lease_and_one_from_the_future_end(case: Case) -> None:
    for seconds in (lease.STALE_SECONDS + 1, -lease.STALE_SECONDS - 1):
        lease.take(case, "Ada", "browser-a", over=True)
        age(case, seconds)
        assert lease.current(case) is None
        lease.take(case, "Grace", "browser-b")
        lease.release(case, "browser-b")


def test_an_open_page_keeps_its_lease_and_a_closed_one_gives_it_back(case: Case) -> None:
    lease.take(case, "Ada", "browser-a")
    age(case, lease.STALE_SECONDS - 5)
    lease.keep(case, "browser-b")  # a reader renews nothing
    before = lease.current(case)
    lease.keep(case, "browser-a")
    after = lease.current(case)
    assert before is not None
    assert after is not None
    assert after.seen > before.seen
    lease.release(case, "browser-b")
    assert lease.current(case) == after
    lease.release(case, "browser-a")
    assert lease.current(case) is None


def test_a_stale_lease_that_nobody_took_holds_again(case: Case) -> None:
    """A machine that slept has renewed nothing; who took the case meanwhile keeps it."""
    lease.take(case, "Ada", "browser-a")
    age(case, 10 * lease.STALE_SECONDS)
    lease.keep(case, "browser-b")
    assert lease.current(case) is None
    lease.keep(case, "browser-a")
    found = lease.current(case)
    assert found is not None
    assert found.holder == "browser-a"
    age(case, 10 * lease.STALE_SECONDS)
    lease.take(case, "Grace", "browser-b")
    lease.keep(case, "browser-a")
    found = lease.current(case)
    assert found is not None
    assert found.holder == "browser-b"


def test_the_same_name_elsewhere_takes_the_lease_along(case: Case) -> None:
    lease.take(case, "Ada", "browser-a")
    assert lease.take(case, " ada ", "browser-b").holder == "browser-b"
    assert [line.action for line in case.audit_lines()] == ["created"]
    with pytest.raises(BusyError):
        lease.take(case, "", "browser-c")  # no name is nobody's


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"analyst": 1}', '{"analyst":"a","holder":"b","since":"c","seen":"d"}']
)
def test_a_damaged_lease_locks_nobody_out(case: Case, text: str) -> None:
    (case.path / lease.FILE).write_text(text, encoding="utf-8")
    lease.take(case, "Ada", "browser-a")


def test_the_command_line_is_a_writer_like_any_other(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    lease.take(case, "Ada", "browser-a")
    reject = ["confirm", "--case", str(case.path), "--reject", "--analyst", "Grace", "--reason", "r"]
    assert main(reject) == 2
    assert "Ada has been writing this case" in capsys.readouterr().err
    assert main(["status", "--case", str(case.path)]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "idle"
    assert main([*reject, "--take-over"]) == 2
    assert "has not been opened" in capsys.readouterr().err  # it got past the lease
    assert lease.current(case) is None


@pytest.mark.parametrize("command", [["demo"], ["triage", "--repaired", "--case", "demo-case"]])
def test_a_command_that_knows_its_case_by_itself_is_refused_too(
    case: Case, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`demo` without a folder works on the one it made here before."""
    lease.take(case, "Ada", "browser-a")
    case.path.rename(case.path.parent / "demo-case")
    monkeypatch.chdir(case.path.parent)
    assert main(command) == 2
    assert "Ada has been writing this case" in capsys.readouterr().err


def test_a_command_that_says_nothing_for_long_keeps_its_lease(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """But never renews someone else's."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with lease.held(case, "Ada", "terminal 1"):
        age(case, lease.STALE_SECONDS / 2)
        aged = lease.current(case)
        assert aged is not None
        deadline = time.monotonic() + 20
        while (found := lease.current(case)) is not None and found.seen == aged.seen:
            assert time.monotonic() < deadline, "nobody renewed it"
        assert found is not None
        lease.take(case, "Grace", "browser-b", over=True)
    found = lease.current(case)
    assert found is not None
    assert found.analyst == "Grace"


def test_a_command_holds_the_lease_while_it_runs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def rules(options: object, terminal: object) -> str:
        """Look while it runs."""
        assert lease.current(case) is not None
        threads.extend(one.name for one in threading.enumerate())
        return "done"

    monkeypatch.setattr(case_commands, "rules", rules)
    assert main(["rules", "--case", str(case.path)]) == 0
    assert "lease" in threads
    assert lease.current(case) is None
    assert "lease" not in [one.name for one in threading.enumerate()]


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the lock of the lease be refused, as on a disk that was mounted read-only meanwhile."""

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(lease, "FileLock", refuse)


def test_a_case_that_turns_read_only_is_a_sentence(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    lease.take(case, "Ada", "browser-a")
    age(case, lease.STALE_SECONDS - 5)
    read_only(monkeypatch)
    for act in (lambda: lease.keep(case, "browser-a"), lambda: lease.release(case, "browser-a")):
        with pytest.raises(CaseFileError, match=r"^Cannot write lease\.json: Read-only file system"):
            act()


def test_a_command_whose_case_turns_read_only_still_gives_its_result(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rules(options: object, terminal: object) -> str:
        """Lose the disk."""
        read_only(monkeypatch)
        return "done"

    monkeypatch.setattr(case_commands, "rules", rules)
    assert main(["rules", "--case", str(case.path)]) == 0
    assert json.loads(capsys.readouterr().out) == "done"
