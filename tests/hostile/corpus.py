"""The corpus: hostile texts (corpus.json, by family) and hostile files (made here, since they cannot lie in a repository).

Every text that could run tries to leave a trace that `canary.py` sees: a dialog, a console line, `window.canary`, or a
request to canary.example. `times` repeats a text, so that a megabyte costs a line.
"""

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import ReportError
from core.intake import parse_report

LARGEST = 1_000
"""Characters a text may have to be shown on the page with all others, each as one token; longer ones have a case of their own."""


@dataclass(frozen=True)
class Item:
    """One hostile text; `id` is its family and number."""

    id: str
    text: str


def texts() -> list[Item]:
    """Return every hostile text."""
    families = json.loads((Path(__file__).parent / "corpus.json").read_text(encoding="utf-8"))
    return [
        Item(f"{family}-{number:02d}", entry if isinstance(entry, str) else entry["text"] * entry["times"])
        for family, entries in families.items()
        for number, entry in enumerate(entries, start=1)
    ]


def report_of(text: str) -> dict:
    """Return a report that holds the text in every field that takes any."""
    return {
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": "x" + text}],
        "response": "y" + text,
        "expected": text,
        "id": text[:3000],
        "source": text[:3000],
        "note": text[:3000],
    }


def accepted(items: list[Item], largest: int = LARGEST) -> list[Item]:
    """Return the items that intake takes and that have at most `largest` characters."""
    taken = []
    for item in items:
        try:
            parse_report(report_of(item.text))
        except ReportError:
            continue
        if len(item.text) <= largest:
            taken.append(item)
    return taken


def _zip_of_zeros() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../report.json", b"0" * 20_000_000)
    return buffer.getvalue()


def _sparse(path: Path) -> None:
    """A file that says it has a terabyte."""
    with open(path, "wb") as file:
        file.write(b"{")
        os.truncate(path, 10**12)


GOOD = b'{"messages": [{"role": "user", "content": "a"}], "response": "b"}'
FILES: dict[str, bytes | Callable[[Path], object]] = {
    "zip-bomb.json": _zip_of_zeros(),
    "gzip-bomb.json": gzip.compress(b"[" * 20_000_000),
    "deep-lists.json": b"[" * 1_000_000,
    "deep-objects.json": b'{"messages":' * 200_000,
    "deep-closed.json": b"[" * 100_000 + b"]" * 100_000,
    "deep-line.jsonl": GOOD + b"\n" + b"[" * 500_000,
    "wide-list.json": b"[" + b"0," * 1_000_000 + b"0]",
    "wide-object.json": b"{" + b",".join(b'"k%d":0' % i for i in range(200_000)) + b"}",
    "million-digits.json": b'{"messages": [{"role": "user", "content": "a"}], "response": ' + b"9" * 1_000_000 + b"}",
    "exponent.json": GOOD[:-1] + b', "sampling": {"temperature": 1e400}}',
    "not-a-number.json": GOOD[:-1] + b', "sampling": {"temperature": NaN}}',
    "infinite-tokens.json": GOOD[:-1] + b', "sampling": {"max_new_tokens": Infinity}}',
    "huge-ids.json": GOOD[:-1] + b', "response_ids": [' + b"9" * 40 + b"]}",
    "twice-the-same-key.json": b'{"response": "x", ' + GOOD[1:],
    "prototype.json": GOOD[:-1] + b', "__proto__": {"polluted": true}}',
    "nul.json": b"\0" * 1000,
    "nul-after.json": GOOD + b"\0",
    "utf-16.json": GOOD.decode().encode("utf-16"),
    "utf-32.json": GOOD.decode().encode("utf-32"),
    "utf-7.json": b"+AHsAIg-messages+ACI-:",
    "overlong.json": GOOD[:-2] + b"\xc0\xaf" + b'"}',
    "surrogate-bytes.json": GOOD[:-2] + b"\xed\xa0\x80" + b'"}',
    "surrogate-escape.json": GOOD[:-2] + rb"\ud800" + b'"}',
    "white-space.json": b" \n\t" * 500_000,
    "bom-alone.json": b"\xef\xbb\xbf",
    "one-quote.csv": b'"',
    "open-quote.csv": b'"' + b"a" * 1_000_000,
    "long-cell.csv": b"a" * 1_000_000 + b",b",
    "many-columns.csv": b"," * 1_000_000,
    "carriage.csv": b"a\rb,c\r",
    "formula.csv": b'=1+1,"=cmd|x"\r\n',
    "executable.csv": b"MZ\x90\0\x03\0\0\0",
    "elf.json": b"\x7fELF\x02\x01\x01\0",
    "pickle.json": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "html.json": b"<!doctype html><script>window.canary=1</script>",
    "xml-bomb.json": b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>',
    "yaml.json": b"!!python/object/apply:os.system ['touch canary']",
    "link.json": lambda path: path.symlink_to("/etc/passwd"),
    "loop.json": lambda path: path.symlink_to(path),
    "pipe.json": lambda path: os.mkfifo(path),
    "folder.json": lambda path: path.mkdir(),
    "terabyte.json": _sparse,
}
"""Name -> its bytes, or what makes it."""


def make_file(folder: Path, name: str) -> Path:
    """Write one hostile file and return its path."""
    path, content = folder / name, FILES[name]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path
