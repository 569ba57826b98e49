"""The rows of request logs and tuning data: the text of each, and its answer if there is one.

A file is read once from start to end, unpacked where gzip, bzip2 or xz packed it: JSON lines, one JSON list, a table with
commas or tabs, or plain lines. All text of a row counts as asked but what is an answer. Memory is bounded whatever the file
holds: lines, rows and packed streams have limits. What this does not do: read zip, zstd, Parquet or any other file that is
no text; these are refused.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from core.errors import TriageError
from core.files import wide_cells

MAX_LINE = 16_000_000
"""Bytes of a line that are read at once; a longer line is read in pieces. Source: unverified choice."""
MAX_LIST = 256_000_000
"""Bytes of text that is one JSON list, which must be read whole. Source: unverified choice."""
HEAD = 65_536
"""First bytes by which a file that is no text is known. Source: unverified choice."""
CHUNK = 65_536
"""Bytes of a packed file that are unpacked at once. Source: unverified choice."""
UNPACK_MEMORY = 128_000_000
"""Bytes that unpacking xz may take. Source: xz(1), the strongest preset needs 65 MiB."""
MAX_DEPTH = 16
"""Levels of a JSON row in which text is looked for. Source: unverified choice."""


@dataclass(frozen=True)
class Row:
    """One row of a file: where, the text of the request, and the answer if there is one."""

    line: int
    text: str
    answer: str | None = None


class Reader:
    """Reads a file and yields its rows; counts the bytes of the file and hashes them on the way."""

    def __init__(self, path: Path) -> None:
        """Check that there is a file. Raises: TriageError, OSError."""
        if not path.is_file():
            raise TriageError(f"{path} is no file; give a log (JSON lines, CSV or plain text) or a data set.")
        self.path = path
        self.size = path.stat().st_size
        self.notes: list[str] = []
        self._cut = 0
        self._file = _Counted(io.BytesIO())

    @property
    def n_bytes(self) -> int:
        """Bytes of the file that were read."""
        return self._file.n_bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the file as it lies on the disk, once it was read."""
        return self._file.digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        """Yield every row that holds text. Raises: TriageError for a file that is no text or cannot be unpacked."""
        with open(self.path, "rb") as file:
            packed = _packed(file.read(HEAD))
        try:
            with self._text(packed) as text:
                _check_text(text.read(HEAD), self.path.name)
            yield from self._rows(packed)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if not packed:
                raise
            raise TriageError(
                f"{self.path.name} cannot be unpacked ({error}); unpack it by hand and scan what comes out."
            ) from error
        if self._cut:
            self.notes.append(f"{self._cut} lines are longer than {MAX_LINE // 10**6} MB and were read in pieces.")

    def _rows(self, packed: str) -> Iterator[Row]:
        """Yield the rows by what the file's name says it is: a table, one JSON list, or lines."""
        name = self.path.with_suffix("") if self.path.suffix.lower() in _PACKED_SUFFIXES else self.path
        suffix = name.suffix.lower()
        whole = self._whole(packed) if suffix == ".json" else None
        if whole is not None:
            yield from whole
            return
        with self._text(packed) as text:
            if suffix in _DELIMITERS:
                yield from self._table(text, _DELIMITERS[suffix])
            else:
                yield from (_parsed(line, number) for number, line in self._lines(text) if line.strip())

    @contextmanager
    def _text(self, packed: str) -> Iterator[io.BufferedIOBase]:
        """Open the file at its start, unpacked where it is `packed`, and count anew."""
        with open(self.path, "rb", buffering=0) as file:
            self._file = _Counted(file)
            plain = io.BufferedReader(self._file, CHUNK)
            if packed == "gzip":
                yield gzip.GzipFile(fileobj=plain, mode="rb")
            else:
                yield io.BufferedReader(_Unpacked(plain, packed), CHUNK) if packed else plain

    def _lines(self, text: io.BufferedIOBase) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of every line, a very long one in pieces under one number."""
        number, going_on = 0, False
        while data := text.readline(MAX_LINE):
            number += not going_on
            ended = data.endswith(b"\n")
            self._cut += not ended and not going_on and len(data) == MAX_LINE
            going_on = not ended
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            yield number, data.decode("utf-8", "replace")

    def _whole(self, packed: str) -> list[Row] | None:
        """Return the rows of a file that is one JSON list or object, numbered from 1; None when it is JSON lines."""
        with self._text(packed) as text:
            data = text.read(MAX_LIST + 1)
        is_list = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
        if len(data) > MAX_LIST and is_list:
            limit = MAX_LIST // 10**6
            raise TriageError(f"{self.path.name} is one JSON list of more than {limit} MB; save it as JSON lines.")
        if len(data) > MAX_LIST:
            return None
        try:
            found = json.loads(data.decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError) as error:
            if is_list:
                raise TriageError(
                    f"{self.path.name} is no valid JSON list; correct it or save it as JSON lines."
                ) from error
            return None
        rows = [_from_json(one, n) for n, one in enumerate(found if isinstance(found, list) else [found], start=1)]
        return [row for row in rows if row.text]

    def _table(self, text: io.BufferedIOBase, delimiter: str) -> Iterator[Row]:
        """Yield the rows of a table; with a first row of known names by these, else all cells of a row together."""
        length = 0

        def lines() -> Iterator[str]:
            nonlocal length
            for _, line in self._lines(text):
                length += len(line)
                if length > MAX_LINE:  # quotes join lines: a whole file could be one row
                    raise csv.Error(f"a row of more than {MAX_LINE // 10**6} MB")
                yield line

        wide_cells(MAX_LINE)
        reader = csv.reader(lines(), delimiter=delimiter)
        names: list[str | int] | None = None
        try:
            for cells in reader:
                length = 0
                if names is None:
                    names = _header(cells)
                    if names:
                        continue
                if names:
                    numbered = chain(names, range(len(names), len(cells)))
                    yield _from_object(dict(zip(numbered, cells, strict=False)), reader.line_num)
                elif any(cells):
                    yield Row(reader.line_num, "\n".join(cells))
        except csv.Error as error:
            raise TriageError(
                f"{self.path.name} cannot be read as a table (line {reader.line_num}: {error}); rename it to .txt to "
                "scan it line by line."
            ) from error


# packed files ---------------------------------------------------------------------------------------------------------

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PACKED_SUFFIXES = (".gz", ".gzip", ".bz2", ".xz")
_PACKED = ((rb"\x1f\x8b", "gzip"), (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzip2"), (rb"\xfd7zXZ\x00", "xz"))
"""How files begin that are unpacked here."""
_CLOSED = (
    (b"\x28\xb5\x2f\xfd", "packed by zstd"),
    (b"\x04\x22\x4d\x18", "packed by LZ4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1\x15", "a Parquet table"),
    (b"Obj\x01", "an Avro table"),
)
"""How files begin that are not read here."""


def _packed(head: bytes) -> str:
    """Return by what a file that begins so is packed, as far as it is unpacked here, else an empty text."""
    return next((name for pattern, name in _PACKED if re.match(pattern, head)), "")


def _check_text(head: bytes, name: str) -> None:
    """Raise TriageError for what begins as no text does, a scan of which would find nothing."""
    what = next((what for start, what in _CLOSED if head.startswith(start)), _packed(head) and "packed twice")
    if what:
        raise TriageError(f"{name} is {what}; unpack it, save a table as JSON lines or CSV, and scan that.")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in head:
        raise TriageError(f"{name} is not UTF-8 text; save it as UTF-8 (JSON lines, CSV or plain) and scan it again.")


class _Counted(io.RawIOBase):
    """A file that counts and hashes what is read of it."""

    def __init__(self, file: io.FileIO | io.BytesIO) -> None:
        """Nothing was read yet."""
        self._file = file
        self.n_bytes, self.digest = 0, sha256()

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer`; return how many bytes."""
        n = self._file.readinto(buffer) or 0
        self.n_bytes += n
        self.digest.update(buffer[:n])
        return n


class _Unpacked(io.RawIOBase):
    """What bzip2 or xz has packed, stream after stream, in bounded memory whatever the file asks for."""

    def __init__(self, file: io.BufferedIOBase, packed: str) -> None:
        """Begin with the first stream of `file`."""
        self._file, self._packed = file, packed
        self._stream = self._new()

    def _new(self) -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        return bz2.BZ2Decompressor() if self._packed == "bzip2" else lzma.LZMADecompressor(memlimit=UNPACK_MEMORY)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack into `buffer`; return how many bytes, 0 at the end. Raises: EOFError, OSError, lzma.LZMAError."""
        out = b""
        while not out:
            data = b""
            if self._stream.eof:
                data = self._stream.unused_data.lstrip(b"\0")  # xz fills up with these
                while not data:
                    if not (more := self._file.read(CHUNK)):
                        return 0
                    data = more.lstrip(b"\0")
                self._stream = self._new()
            elif self._stream.needs_input and not (data := self._file.read(CHUNK)):
                raise EOFError("it ends too early")
            out = self._stream.decompress(data, len(buffer))
        buffer[: len(out)] = out
        return len(out)


# rows -----------------------------------------------------------------------------------------------------------------

_TURNS = ("messages", "conversations")
_FIRST = ("system", *_TURNS, "prompt", "instruction", "input", "question", "query", "text", "content")
"""Keys whose text comes first, in this order; the text of all others follows as it stands in the row."""
_ANSWERS = ("response", "output", "completion", "answer", "answers", "chosen", "rejected")
"""Keys that hold answers; the first of them is judged."""
_ROLES = dict.fromkeys(("assistant", "gpt", "model", "bot"), True) | dict.fromkeys(
    ("system", "developer", "user", "human", "tool", "function", "observation"), False
)
"""Who says something, and whether that is an answer."""


def _header(cells: list[str]) -> list[str | int]:
    """Return the names of a table's columns, a number for each that is named as one before; none where no name is known."""
    names = [cell.strip().lower() for cell in cells]
    if not set(names) & set(_FIRST):
        return []
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    return [name if first[name] == i else i for i, name in enumerate(names)]


def _parsed(line: str, number: int) -> Row:
    """Return the row of one line: JSON by its keys, anything else as it stands."""
    if line.lstrip()[:1] in ("{", "["):
        try:
            return _from_json(json.loads(line), number)
        except (ValueError, RecursionError):
            pass
    return Row(number, line.rstrip("\r\n"))


def _from_json(data: object, number: int) -> Row:
    """Return the row of any JSON value."""
    return _from_object(data if isinstance(data, Mapping) else {"": data}, number)


def _from_object(data: Mapping[Any, Any], number: int) -> Row:
    """Return request and answer of one object: all text that is no answer is the request; where there is none, all text."""
    asked: list[str] = []
    everything: list[str] = []
    answers: dict[Any, str] = {}
    for key in sorted(data, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST)):
        value, known = data[key], key in _FIRST or key in _ANSWERS
        texts = list(_texts(_turns(value) if key in _TURNS else value, 0 if known else 1))
        everything += [text for text, _ in texts]
        asked += [text for text, answer in texts if not (key in _ANSWERS if answer is None else answer)]
        said = [text for text, answer in texts if answer]
        given = [text for text, answer in texts if answer is None] if key in _ANSWERS else []
        if said or given:
            answers[key] = said[-1] if said else "\n".join(given)
    if not any(asked):
        return Row(number, "\n".join(everything))
    judged = next((key for key in _ANSWERS if key in answers), next(iter(answers), None))
    return Row(number, "\n".join(asked), answers.get(judged))


def _turns(value: object) -> object:
    """Return a conversation, which is JSON in a string where it stood in a cell of a table."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) else value


def _texts(data: object, depth: int = 0) -> Iterator[tuple[str, bool | None]]:
    """Yield every text in JSON data to a bounded depth, numbers of answers included, each with whether it is an answer by who
    says it, None where nobody is named.
    """
    if isinstance(data, str):
        yield data, None
    elif isinstance(data, int | float) and depth == 0:
        yield str(data), None
    elif depth < MAX_DEPTH and isinstance(data, list):
        for one in data:
            yield from _texts(one, depth + 1)
    elif depth < MAX_DEPTH and isinstance(data, Mapping):
        who = data.get("role", data.get("from"))
        answer = _ROLES.get(who) if isinstance(who, str) else None
        inner = data if answer is None else {key: data[key] for key in data if key not in ("role", "from")}
        if answer:
            said = data.get("content", data.get("value", inner))
            yield "\n".join(text for text, _ in _texts(said, depth + 1)), True
            return
        for one in inner.values():
            yield from ((text, of if answer is None else answer) for text, of in _texts(one, depth + 1))
