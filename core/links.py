"""Other cases beside this one that hold the same model, adapter or trigger text.

Cases are looked for in the folder that holds this case. Models are the same when all weight files of one are files of the other,
by SHA-256; triggers, those of earlier rounds among them, when their units are, but for case and spacing.
What this does not do: look anywhere else, or for near-misses.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.casefile import Case

FILE = "results/links.json"
TRIGGER = "trigger text"
"""What a shared trigger is called."""
MAX_CASES = 200
"""Cases looked at, the newest first. Source: unverified choice."""
MAX_BYTES = 2**26
"""A larger file of another case is left alone. Source: unverified choice (a triage of a long prompt takes some megabytes)."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """Another case, and what is the same in it."""

    case: str
    same: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Links:
    """`results/links.json`: the links as they were when the report was written."""

    links: tuple[Link, ...] = ()


def find(case: Case) -> tuple[Link, ...]:
    """Return the other cases in the same folder that share something, by name."""
    own = _marks(case.path, True)
    named = bool(own[TRIGGER])
    found = []
    paths = [path.parent for path in case.path.resolve().parent.glob("[!.]*/case.json")]
    paths.sort(key=lambda path: (path / "case.json").stat().st_mtime, reverse=True)
    for path in paths[:MAX_CASES]:
        if path == case.path.resolve():
            continue
        other = _marks(path, named)
        same = tuple(name for name, value in own.items() if _same(name, value, other[name]))
        if same:
            found.append(Link(case=path.name, same=same))
    return tuple(sorted(found, key=lambda link: link.case))


def store(case: Case) -> str:
    """Find the links, store them and return the file's name."""
    return case.write(FILE, Links(links=find(case)))


def stored(case: Case) -> tuple[Link, ...]:
    """Return the links as last stored."""
    return (case.read(FILE, Links) or Links()).links


def _same(name: str, one: set[str], other: set[str]) -> bool:
    """Return whether two cases share this mark: one trigger of several, but every file of a model."""
    if name == TRIGGER:
        return bool(one & other)
    return bool(one and other) and (one <= other or other <= one)


def _marks(folder: Path, trigger: bool) -> dict[str, set[str]]:
    """Return what a case is compared by, with the `trigger` only where it is wanted (a triage is a large file).

    What cannot be read is empty, since another case's damage is not this one's.
    """
    model = _read(folder / "case.json").get("model")
    spec: Mapping[str, Any] = model if isinstance(model, Mapping) else {}
    texts = _triggers(folder) if trigger else []
    folded = {" ".join(text.replace("\u2026", " ").split()).casefold() for text in texts}
    return {
        "model": _weights(spec.get("files")),
        "adapter": _weights(spec.get("adapter_files")),
        TRIGGER: folded - {""},
    }


def _triggers(folder: Path) -> list[str]:
    """Return the confirmed triggers of all rounds; without one now, the first candidate where the tests speak for it."""
    earlier = sorted((folder / "repair").glob("round-*/confirmation.json"))
    found = [_confirmed(path) for path in (*earlier, folder / "confirmation.json")]
    texts = [text for text in found if text]
    return texts if found[-1] else texts + _candidate(folder)


def _confirmed(path: Path) -> str:
    """Return the trigger of a confirmation, nothing where it names none."""
    confirmed = _read(path)
    if confirmed.get("decision") not in ("accepted", "edited") or confirmed.get("way") == "dummy":
        return ""
    return " ".join(str(unit) for unit in _list(confirmed.get("units")))


def _candidate(folder: Path) -> list[str]:
    triage = _read(folder / "triage.json")
    if triage.get("verdict") != "BACKDOOR":
        return []
    return [str(one.get("text")) for one in _list(triage.get("candidates"))[:1] if isinstance(one, Mapping)]


def _weights(files: object) -> set[str]:
    named = files if isinstance(files, Mapping) else {}
    return {str(digest) for name, digest in named.items() if str(name).endswith(".safetensors")}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:  # reading a pipe would wait for ever
            return {}
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
