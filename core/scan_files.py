"""The files of request logs and tuning data, row by row.

A file is read once from start to end, unpacked where gzip, bzip2 or xz packed it: JSON lines, one JSON list, JSON values one
after the other, a table, or plain lines. Memory is bounded whatever the file holds: lines, rows and packed streams have
limits. What this does not do: read zip, zstd, Parquet or any other file that is no text; these are refused. What is asked in a
row and what is its answer: scan_rows.py.
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
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from core.errors import TriageError
from core.files import SEPARATOR, wide_cells
from core.scan_rows import Row, columns, from_json, from_object, from_text, is_known, json_of

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
        self._garbled = 0
        self._no_json = 0
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
        if self._garbled:
            what = (
                "Other letters than those of ASCII were not searched there; save the file as UTF-8 and scan it again."
            )
            self.notes.append(f"{self._garbled} lines are not UTF-8. {what}")
        if self._no_json:
            self.notes.append(f"{self._no_json} lines are no JSON and were searched as they stand.")

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
                return
            for number, line in self._lines(text):
                if line.strip():
                    found = json_of(line)
                    self._no_json += found is None and suffix in _JSON_SUFFIXES
                    yield from_text(line, number) if found is None else from_json(found, number)

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
            full = not ended and len(data) == MAX_LINE
            self._cut += full and not going_on
            piece, going_on = full or going_on, not ended
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            yield number, self._decoded(data, piece)

    def _decoded(self, data: bytes, piece: bool = False) -> str:
        """Return text of bytes, and count the lines that are not UTF-8, but for pieces, which may cut a character."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("utf-8", "replace")
            self._garbled += 0 if piece else sum("\ufffd" in line for line in text.split("\n"))
            return text

    def _whole(self, packed: str) -> list[Row] | None:
        """Return the rows of a file that is JSON: of one list its items, numbered from 1, else its values by their lines; None where
        it is not, or too long to be read whole.
        """
        with self._text(packed) as text:
            data = text.read(MAX_LIST + 1)
        is_list = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
        if len(data) > MAX_LIST and is_list:
            limit = MAX_LIST // 10**6
            raise TriageError(f"{self.path.name} is one JSON list of more than {limit} MB; save it as JSON lines.")
        if len(data) > MAX_LIST:
            return None
        try:
            values = list(_values(self._decoded(data.removeprefix(b"\xef\xbb\xbf"))))
        except (ValueError, RecursionError) as error:
            if is_list:
                raise TriageError(
                    f"{self.path.name} is no valid JSON list; correct it or save it as JSON lines."
                ) from error
            self._garbled = 0
            return None
        listed = _listed(values[0][1]) if len(values) == 1 else None
        rows = [from_json(one, n) for n, one in (values if listed is None else enumerate(listed, start=1))]
        return [row for row in rows if row.text]

    def _table(self, text: io.BufferedIOBase, delimiter: str) -> Iterator[Row]:
        """Yield the rows of a table; with a first row of known names by these, else all cells of a row together."""
        number, length = 0, 0
        lines = self._lines(text)
        first = next(lines, (0, ""))[1]
        if said := SEPARATOR.fullmatch(first):
            delimiter = said[1]
        else:
            delimiter = max((delimiter, *_DELIMITERS.values(), ";"), key=lambda one: _n_known(first, one))
            lines = chain([(1, first)], lines)

        def counted() -> Iterator[str]:
            nonlocal number, length
            for at, line in lines:
                number, length = at, length + len(line)
                if length > MAX_LINE:  # quotes join lines: a whole file could be one row
                    raise csv.Error(f"a row of more than {MAX_LINE // 10**6} MB")
                yield line

        wide_cells(MAX_LINE)
        names: list[str | int] | None = None
        try:
            for cells in csv.reader(counted(), delimiter=delimiter, strict=True):
                length = 0
                if names is None:
                    names = columns(cells)
                    if names:
                        continue
                if names:
                    numbered = chain(names, range(len(names), len(cells)))
                    yield from_object(dict(zip(numbered, cells, strict=False)), number)
                elif any(cells):
                    yield Row(number, delimiter.join(cells))
        except csv.Error as error:
            raise TriageError(
                f"{self.path.name} cannot be read as a table (line {number}: {error}); rename it to .txt to scan it line by line."
            ) from error


def _values(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of the JSON values that stand one after the other. Raises: ValueError where anything else does."""
    decoder, at, line = json.JSONDecoder(), 0, 1
    while rest := _FILLED.search(text, at):
        line += text.count("\n", at, rest.start())
        value, end = decoder.raw_decode(text, rest.start())
        yield line, value
        line += text.count("\n", rest.start(), end)
        at = end


def _listed(value: Any) -> list[Any] | None:
    """Return the rows of a list, or of an object around a list of objects that is no conversation itself; None of anything else."""
    if isinstance(value, list):
        return value
    inside = [one for one in value.values() if isinstance(one, list)] if isinstance(value, Mapping) else []
    objects = [one for one in inside if one and all(isinstance(row, Mapping) for row in one)]
    return objects[0] if len(objects) == 1 and not is_known(value) else None


def _n_known(line: str, delimiter: str) -> int:
    """Return how many columns a delimiter gives the first line of a table, 0 where none has a known name."""
    try:
        return len(columns(next(csv.reader([line], delimiter=delimiter), [])))
    except csv.Error:
        return 0


# packed files ---------------------------------------------------------------------------------------------------------

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_FILLED = re.compile(r"\S")
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
