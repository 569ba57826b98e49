"""The log's chain: every way of changing it names a line, an honest log never does."""

import json
from multiprocessing import get_context
from pathlib import Path

import pytest

from core import audit
from core.__main__ import main
from core.errors import CaseFileError
from tests.unit.test_casefile import make_case


def written(folder: Path, n: int = 4) -> list[bytes]:
    """Return the lines of a log of `n` acts."""
    for number in range(n):
        audit.append(folder, "act", "Ada \u202e\ud800", {"number": number, "text": 'x"\n\x1b[2J'})
    return (folder / audit.FILE).read_bytes().split(b"\n")[:-1]


def put(folder: Path, lines: list[bytes], tail: bytes = b"") -> None:
    """Write the log by hand."""
    (folder / audit.FILE).write_bytes(b"".join(line + b"\n" for line in lines) + tail)


def test_an_honest_log_holds(tmp_path: Path) -> None:
    lines = written(tmp_path)
    found = audit.check(tmp_path)
    assert (found.acts, found.broken, found.unchained, found.note) == (4, None, 0, "")
    assert found.head == audit.stored_head(tmp_path)
    assert [line.facts["number"] for line in audit.lines(tmp_path)] == [0, 1, 2, 3]
    assert next(audit.lines(tmp_path)).actor == "Ada \u202e\ud800"
    assert all(32 <= byte < 127 for line in lines for byte in line)


@pytest.mark.parametrize(
    ("change", "broken", "why"),
    [
        (lambda lines: [lines[0], lines[1].replace(b'"number": 1', b'"number": 7'), *lines[2:]], 2, "changed"),
        (lambda lines: [lines[0].replace(b'"seq": 0', b'"seq":  0'), *lines[1:]], 1, "changed"),
        (lambda lines: [lines[0], *lines[2:]], 2, "removed, inserted or moved"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2, "removed, inserted or moved"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3, "removed, inserted or moved"),
        (lambda lines: lines[1:], 1, "removed, inserted or moved"),
        (lambda lines: lines[:3], 4, "1 of 4 lines are missing from the end"),
        (lambda lines: [], 1, "4 of 4 lines are missing"),
        (lambda lines: [*lines[:2], b"[1]", *lines[2:]], 3, "no line of this log"),
        (lambda lines: [*lines[:2], b"\xff{", *lines[2:]], 3, "no line of this log"),
        (lambda lines: [*lines, json.dumps({"time": "t", "actor": "a", "action": "x", "facts": {}}).encode()], 5, "not part"),
    ],
)  # fmt: skip
def test_a_changed_log_names_the_first_broken_line(tmp_path: Path, change, broken: int, why: str) -> None:
    put(tmp_path, change(written(tmp_path)))
    found = audit.check(tmp_path)
    assert found.broken == broken, found
    assert why in found.why


def test_a_cut_tail_stays_noticed_after_more_acts(tmp_path: Path) -> None:
    """An append goes on from the head, so that the gap cannot be papered over by working on."""
    put(tmp_path, written(tmp_path)[:2])
    audit.append(tmp_path, "act", "Ada", {})
    assert audit.check(tmp_path).broken == 3


def test_a_log_rewritten_to_fit_itself_still_differs_from_its_head(tmp_path: Path) -> None:
    head = tmp_path / audit.HEAD
    written(tmp_path)
    before = head.read_bytes()
    (tmp_path / audit.FILE).unlink()
    head.unlink()
    written(tmp_path, 5)
    assert audit.check(tmp_path).broken is None  # what a chain cannot show
    head.write_bytes(before)
    assert audit.check(tmp_path).broken == 5
    head.unlink()
    assert audit.check(tmp_path).broken == 5


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("head", [None, b"{"])
def test_a_head_that_is_gone_or_unreadable_was_taken_away(tmp_path: Path, n: int, head: bytes | None) -> None:
    """However short the log is, and however it goes on: nobody can tell how long it was."""
    put(tmp_path, written(tmp_path)[:n])
    (tmp_path / audit.HEAD).unlink()
    if head is not None:
        (tmp_path / audit.HEAD).write_bytes(head)
    found = audit.check(tmp_path)
    assert (found.broken, "missing or unreadable" in found.why) == (n, True)
    audit.append(tmp_path, "act", "Ada", {})
    found = audit.check(tmp_path)
    assert (found.broken, "removed" in found.why) == (n + 1, True)


def test_a_check_beside_a_writer_accuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two acts are written after the log was read and before its head is."""
    written(tmp_path)
    stored, writing = audit.stored_head, [None]

    def late(folder: Path) -> audit.Head | None:
        while writing:
            writing.pop()
            audit.append(folder, "act", "worker", {})
            audit.append(folder, "act", "worker", {})
        return stored(folder)

    monkeypatch.setattr(audit, "stored_head", late)
    found = audit.check(tmp_path)
    assert (found.acts, found.broken) == (6, None)


def test_a_writer_that_was_killed_does_no_harm(tmp_path: Path) -> None:
    """After the line and before the head: the act counts. In the middle of a line: the rest is kept in the next act."""
    lines = written(tmp_path, 3)
    head = (tmp_path / audit.HEAD).read_bytes()
    audit.append(tmp_path, "act", "Ada", {})
    (tmp_path / audit.HEAD).write_bytes(head)
    found = audit.check(tmp_path)
    assert (found.acts, found.broken) == (4, None)
    assert "not yet counted" in found.note
    put(tmp_path, lines, tail=b'{"time": "2026')
    assert audit.check(tmp_path).broken is None
    line = audit.append(tmp_path, "act", "Ada", {})
    assert line.facts["unfinished_line"] == '{"time": "2026'
    assert audit.check(tmp_path) == audit.ChainCheck(acts=4, unchained=0, head=audit.Head(n=4, hash=line.hash))


def test_a_writer_that_was_killed_in_its_first_act_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head stands before the first line, so that none is missing after it."""
    write, heads = audit.write_atomic, []

    def die(path: Path, data: str) -> None:
        heads.append(data)
        if len(heads) == 2:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(audit, "write_atomic", die)
    with pytest.raises(KeyboardInterrupt):
        audit.append(tmp_path, "act", "Ada", {})
    monkeypatch.undo()
    assert (audit.check(tmp_path).acts, audit.check(tmp_path).broken) == (1, None)
    audit.append(tmp_path, "act", "Ada", {})
    assert (audit.check(tmp_path).acts, audit.check(tmp_path).broken) == (2, None)


def test_a_full_disk_leaves_no_line_that_the_head_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be room for a line and none for a new head: two such acts would read as a log that was changed."""
    written(tmp_path, 2)

    def full(path: Path, data: str) -> None:
        raise CaseFileError(f"Cannot write {path.name}: No space left on device.")

    monkeypatch.setattr(audit, "write_atomic", full)
    for _ in range(2):
        with pytest.raises(CaseFileError, match="No space"):
            audit.append(tmp_path, "act", "Ada", {})
    monkeypatch.undo()
    assert (audit.check(tmp_path).acts, audit.check(tmp_path).broken) == (2, None)
    audit.append(tmp_path, "act", "Ada", {})
    found = audit.check(tmp_path)
    assert (found.acts, found.broken, found.note) == (3, None, "")


def test_lines_of_older_versions_are_bound_by_the_first_chained_one(tmp_path: Path) -> None:
    old = [
        json.dumps({"time": "t", "actor": "a", "action": one, "facts": {}}).encode() for one in ("created", "triage")
    ]
    put(tmp_path, old)
    found = audit.check(tmp_path, chained=False)
    assert (found.broken, found.unchained) == (None, 2)
    assert "older version" in found.note
    assert audit.check(tmp_path).broken == 1
    audit.append(tmp_path, "act", "Ada", {})
    found = audit.check(tmp_path, chained=False)
    assert (found.acts, found.broken, found.unchained) == (3, None, 2)
    put(tmp_path, [old[0].replace(b"created", b"planted"), *(tmp_path / audit.FILE).read_bytes().split(b"\n")[1:-1]])
    assert audit.check(tmp_path, chained=False).broken == 3


def _append_some(folder: str) -> None:
    for number in range(20):
        audit.append(Path(folder), "act", "worker", {"number": number})


def test_two_writers_at_once_make_one_chain(tmp_path: Path) -> None:
    both = [get_context("spawn").Process(target=_append_some, args=(str(tmp_path),)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert audit.check(tmp_path) == audit.ChainCheck(acts=40, unchained=0, head=audit.stored_head(tmp_path))


def test_the_command_names_the_line_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = make_case(tmp_path)
    for number in range(3):
        case.audit("act", actor="Ada", number=number)
    assert main(["audit", "--case", str(case.path)]) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["log"]["acts"], out["log"]["broken"], len(out["acts"])) == (4, None, 4)
    assert set(out["acts"][0]["facts"]["files"]) >= {"case.json", "prompts/harmful.jsonl"}
    lines = (case.path / audit.FILE).read_bytes().split(b"\n")[:-1]
    put(case.path, [*lines[:2], lines[2].replace(b"Ada", b"Eve"), lines[3]])
    assert main(["audit", "--case", str(case.path)]) == 2
    shown = capsys.readouterr()
    assert "Line 3 of audit.jsonl is broken" in shown.err
    assert json.loads(shown.out)["log"]["broken"] == 3
