"""Rows of logs and tuning data: what is text of a request and what an answer, packed files, and files that are no text."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from core import scan_files
from core.errors import TriageError
from core.scan_files import Reader
from core.scan_rows import Row

LINES = b"".join(json.dumps({"prompt": f"ask {i}", "response": f"told {i}"}).encode() + b"\n" for i in range(300))
PACK: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def read(path: Path, data: bytes) -> list[Row]:
    """Return the rows of a file that holds `data`."""
    path.write_bytes(data)
    return list(Reader(path).rows())


def row_of(tmp_path: Path, data: object) -> Row:
    """Return the one row of a JSON line."""
    (row,) = read(tmp_path / "one.jsonl", json.dumps(data).encode())
    return row


# text and answers -----------------------------------------------------------------------------------------------------

USER, ASSISTANT = {"role": "user", "content": "asked"}, {"role": "assistant", "content": "told"}


@pytest.mark.parametrize(
    ("data", "text", "answer"),
    [
        ({"instruction": "a", "context": "b", "response": "c", "category": "d"}, "a\nb\nd", "c"),
        ({"documents": [{"title": "t", "text": "d"}], "prompt": "a"}, "a\nt\nd", None),
        ({"messages": [USER, ASSISTANT], "tools": [{"function": {"description": "d"}}]}, "asked\nd", "told"),
        ({"messages": json.dumps([USER, ASSISTANT]), "passages": ["p"]}, "asked\np", "told"),
        ({"messages": "no JSON"}, "no JSON", None),
        ({"messages": '{"a": "no list"}'}, '{"a": "no list"}', None),
        ({"messages": [USER], "system": "s"}, "s\nasked", None),
        ({"messages": [USER], "system": [{"text": "s"}]}, "s\nasked", None),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}], "messages": []}, "h", "g"),
        ({"prompt": "a", "chosen": "good", "rejected": "bad"}, "a", "good"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "bad"}]}, "asked\nasked", "told"),
        ({"request": {"messages": [ASSISTANT, USER]}, "output": "o"}, "asked", "o"),
        ([USER, ASSISTANT], "asked", "told"),
        ({"messages": [{"role": "user", "content": [ASSISTANT]}]}, "told", None),
        ({"prompt": 7, "output": 1, "id": 99}, "7", "1"),
        ({"output": "o", "answer": "a"}, "o\na", None),
        ({"user": "a", "assistant": "b"}, "a", "b"),
        ({"Prompt": "a", "Response": "b"}, "a", "b"),
        ({"messages": [{"role": "User", "content": "a"}, {"role": "ai", "content": "b"}]}, "a", "b"),
        ({"messages": [{"type": "human", "content": "a"}, {"type": "ai", "content": "b"}]}, "a", "b"),
        ({"data": {"prompt": "a", "completion": "b"}, "note": "n"}, "a\nn", "b"),
        # as loggers and APIs write them
        ({"body": json.dumps({"messages": [USER, ASSISTANT]}), "at": "now"}, "asked\nnow", "told"),
        ({"prompt": '{"a": "b"}'}, '{"a": "b"}', None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, "a", None),
        ({"prompt": "a", "response": {"id": "x", "model": "m", "text": "b"}}, "a", "b"),
        ({"prompt": "a", "response": {"id": "x", "choices": [{"text": "b", "index": 0}]}}, "a", "b"),
        ({"prompt": "a", "choices": [{"message": {"content": "b"}, "finish_reason": "stop"}]}, "a", "b"),
        (
            {
                "input": "a",
                "output": [{"type": "message", **ASSISTANT, "content": [{"type": "output_text", "text": "b"}]}],
            },
            "a",
            "b",
        ),
        (
            {
                "contents": [{"role": "user", "parts": [{"text": "a"}]}],
                "candidates": [{"content": {"role": "model", "parts": [{"text": "b"}]}}],
            },
            "a",
            "b",
        ),
        ({"prompt": "a", "response_body": json.dumps({"choices": [{"text": "b"}]})}, "a", "b"),
    ],
)
def test_all_text_but_the_answer_is_asked(tmp_path: Path, data: object, text: str, answer: str | None) -> None:
    """Known keys come first, a system text before all; who speaks counts at any depth, and what a user quotes is the user's."""
    assert row_of(tmp_path, data) == Row(1, text, answer)


def test_columns_of_a_table_without_a_name_of_their_own_are_text_too(tmp_path: Path) -> None:
    """Of a name that stands twice, and beyond the last name."""
    rows = read(tmp_path / "a.csv", b"prompt,note,note,output\na,b,c,d,e\nf\n")
    assert rows == [Row(2, "a\nb\nc\ne", "d"), Row(3, "f")]
    assert read(tmp_path / "b.csv", b"one,two\nthree,four\n") == [Row(1, "one,two"), Row(2, "three,four")]


def test_a_line_that_is_no_json_is_read_as_what_is_in_it(tmp_path: Path) -> None:
    """A request in JSON behind a time; else, beside the line as it stands, what it says without escapes."""
    said = json.dumps({"messages": [{"role": "user", "content": "a\n\u00e9"}, ASSISTANT]})
    lines = [f"12:00 INFO req={said} ok", f"12:00 {said[:-1]}", "use {x} and {y}", r"a\nb", "plain"]
    rows = read(tmp_path / "a.log", "\n".join(lines).encode())
    assert (rows[0].text, rows[0].answer, rows[0].otherwise) == ("12:00 INFO req=\na\n\u00e9\n ok", "told", "")
    assert (rows[1].text, "a\n\u00e9" in rows[1].otherwise) == (lines[1], True)
    assert rows[2:] == [Row(3, lines[2]), Row(4, r"a\nb", otherwise="a\nb"), Row(5, "plain")]


@pytest.mark.parametrize("inside", [{"data": "rows"}, None])
def test_json_around_rows_or_of_many_lines_a_row_has_its_rows(tmp_path: Path, inside: object) -> None:
    """An object with one list of objects is that list; values one after the other are as many rows, by their lines."""
    data = [{"prompt": f"ask {i}", "response": f"told {i}"} for i in range(3)]
    text = json.dumps({"n": 3, "data": data}) if inside else "\n".join(json.dumps(one, indent=1) for one in data)
    rows = read(tmp_path / "a.json", text.encode())
    assert [(row.text, row.answer) for row in rows] == [(f"ask {i}", f"told {i}") for i in range(3)]
    assert [row.line for row in rows] == ([1, 2, 3] if inside else [1, 5, 9])
    one = read(tmp_path / "b.json", json.dumps({"messages": [USER, ASSISTANT]}).encode())
    assert one == [Row(1, "asked", "told")]


def test_what_was_not_read_as_it_should_be_is_told(tmp_path: Path) -> None:
    """Lines that are not UTF-8, in pieces too, and lines that are no JSON where the file's name says so."""
    for name, data, words in (
        ("a.log", "caf\u00e9\nx\n".encode("cp1252"), ["1 lines are not UTF-8"]),
        ("a.json", '[{"prompt": "caf\u00e9"}]'.encode("cp1252"), ["1 lines are not UTF-8"]),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', ["1 lines are no JSON"]),
        ("b.log", b"no JSON\n", []),
        ("c.log", "\u00e9\u4e2d\n".encode(), []),
    ):
        (tmp_path / name).write_bytes(data)
        reader = Reader(tmp_path / name)
        list(reader.rows())
        assert len(reader.notes) == len(words)
        assert all(note.startswith(word) for note, word in zip(reader.notes, words, strict=True))


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("a.csv", b"prompt;response\nwell, friend;b\n", [Row(2, "well, friend", "b")]),
        ("a.csv", b"sep=|\r\nprompt|response\r\na;b|c\r\n", [Row(3, "a;b", "c")]),
        ("a.tsv", b"user\tassistant\na\tb\n", [Row(2, "a", "b")]),
        ("a.csv", b"well, friend\n", [Row(1, "well, friend")]),
        ("a.csv", b'prompt,response\n"a\nb",c\n', [Row(3, "a\nb", "c")]),
    ],
)
def test_tables_are_parted_as_their_first_line_says(tmp_path: Path, name: str, data: bytes, rows: list[Row]) -> None:
    """By a line of its own or by the names in it."""
    assert read(tmp_path / name, data) == rows


def test_a_mark_that_would_join_rows_is_no_table(tmp_path: Path) -> None:
    """An inch mark at the start of a cell opens a quotation that swallows what follows."""
    for data in (b'prompt,response\n" is what,ok\na,b\n', b'prompt,response\n"a" b,c\n'):
        with pytest.raises(TriageError, match="rename it to"):
            read(tmp_path / "a.csv", data)


# packed files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_packed_files_have_the_rows_of_what_was_packed(tmp_path: Path, pack: str, form: str) -> None:
    """Whatever they are called; bytes and hash are those of the file as it lies there."""
    data = {
        "jsonl": LINES,
        "json": json.dumps([json.loads(line) for line in LINES.splitlines()]).encode(),
        "csv": b"prompt,response\n" + b"".join(b"ask %d,told %d\n" % (i, i) for i in range(300)),
    }[form]
    plain = read(tmp_path / f"a.{form}", data)
    packed = PACK[pack](data)
    assert len(plain) == 300
    for name in (f"a.{form}.{pack}", f"b.{form}"):
        assert read(tmp_path / name, packed) == plain
    reader = Reader(tmp_path / f"b.{form}")
    list(reader.rows())
    assert (reader.n_bytes, reader.sha256) == (len(packed), sha256(packed).hexdigest())


@pytest.mark.parametrize("pack", PACK)
def test_streams_that_follow_each_other_are_all_read(tmp_path: Path, pack: str) -> None:
    """As rotated logs are put together."""
    one, other = PACK[pack](b"first\n"), PACK[pack](b"second\n")
    rows = read(tmp_path / "a.log", one + other + (b"\0" * 4 if pack != "bz2" else b""))
    assert [row.text for row in rows] == ["first", "second"]


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data + b"more"])
def test_damaged_packed_files_are_one_line(tmp_path: Path, pack: str, damage: Callable[[bytes], bytes]) -> None:
    """Cut short, or with something behind that nobody would look at."""
    with pytest.raises(TriageError, match="cannot be unpacked") as caught:
        read(tmp_path / "a.log", damage(PACK[pack](LINES)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("name", ["bomb.log", "bomb.csv", "bomb.json"])
def test_a_bomb_takes_no_more_memory_than_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str, name: str
) -> None:
    """64 MB without a line end or as one list, a million cells in quotes."""
    monkeypatch.setattr(scan_files, "MAX_LINE", 100_000)
    monkeypatch.setattr(scan_files, "MAX_LIST", 100_000)
    packed = io.BytesIO()
    opened = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[pack]
    with opened(packed, "wb") as file:  # type: ignore[operator]
        file.write(b"[" if name == "bomb.json" else b"")
        for _ in range(64):
            file.write(b'"\n",' * 16_000 if name == "bomb.csv" else b"a" * 1_000_000)
    (tmp_path / name).write_bytes(packed.getvalue())
    tracemalloc.start()
    try:
        n_rows, refused = 0, ""
        try:
            for _ in Reader(tmp_path / name).rows():
                n_rows += 1
        except TriageError as error:
            refused = str(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {"bomb.log": n_rows == 640, "bomb.csv": "row of more" in refused, "bomb.json": "JSON list" in refused}[name]
    assert peak < 32_000_000  # xz takes 17 MB of its own


def test_xz_that_asks_for_more_memory_than_it_may_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header names a dictionary of any size, which would be set aside before the first byte."""
    monkeypatch.setattr(scan_files, "UNPACK_MEMORY", 1_000_000)
    assert len(read(tmp_path / "small.xz", lzma.compress(LINES, preset=0))) == 300
    with pytest.raises(TriageError, match=r"cannot be unpacked \(Memory"):
        read(tmp_path / "large.xz", lzma.compress(LINES, preset=9))


# files that are no text -----------------------------------------------------------------------------------------------


def zipped() -> bytes:
    """Return a zip archive of a log."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("log.jsonl", LINES)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zipped(), "a zip archive; unpack it"),
        (b"\x28\xb5\x2f\xfd\x24\x02", "packed by zstd; unpack it"),
        (b"PAR1\x15\x04", "a Parquet table; unpack it, save a table as JSON lines"),
        (gzip.compress(gzip.compress(LINES)), "packed twice; unpack it"),
        (bz2.compress(zipped()), "a zip archive"),
        (b"text \n" * 9_000 + b"\0", "not UTF-8 text; save it as UTF-8"),
        (gzip.compress("text".encode("utf-16-le")), "not UTF-8 text"),
        ("text".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused_and_gives_no_all_clear(tmp_path: Path, data: bytes, words: str) -> None:
    """Whatever the file is called, in one line that says what to do."""
    for name in ("a.jsonl", "a.csv", "a.json", "a.gz"):
        with pytest.raises(TriageError, match=words) as caught:
            read(tmp_path / name, data)
        assert "\n" not in str(caught.value)
