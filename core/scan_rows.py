"""One row of a request log or of tuning data: what is asked in it, and its answer if there is one.

All text counts as asked but what is an answer, by its key or by who says it, at any depth. JSON in a string, as loggers write
whole requests, is read as what it holds; where a line is no JSON, what it says without the escapes of JSON is kept beside it.
What this does not do: read files (scan_files.py), or undo other encodings, such as Base64.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 16
"""Levels of a JSON row in which text is looked for. Source: unverified choice."""
MAX_ESCAPED = 3
"""How often the escapes of JSON are undone in a line that is none: JSON in a string is escaped twice. Source: unverified choice."""
_TURNS = ("messages", "conversations")
_FIRST = ("system", *_TURNS, "prompt", "instruction", "input", "question", "query", "user", "human", "text", "content")
"""Keys whose text comes first, in this order; the text of all others follows as it stands in the row."""
_ANSWERS = (
    "response", "output", "completion", "answer", "answers", "assistant", "chosen", "rejected", "choices", "candidates",
    "responsebody", "generatedtext", "outputtext", "modeloutput",
)  # fmt: skip
"""Keys that hold answers, written without marks; the first of them is judged."""
_SAID = (
    "choices",
    "candidates",
    "message",
    "content",
    "parts",
    "text",
    "value",
    "output",
    "outputtext",
    "generatedtext",
)
"""Where an API's object keeps what was said, the outermost first."""
_AROUND = ("id", "object", "model", "type", "index", "created", "finishreason", "stopreason", "usage", "role", "from")
"""What stands around it."""
_ROLES = dict.fromkeys(("assistant", "gpt", "model", "bot", "ai"), True) | dict.fromkeys(
    ("system", "developer", "user", "human", "tool", "function", "observation"), False
)
"""Who says something, and whether that is an answer."""
_ESCAPES = re.compile(r'(?:\\u[0-9a-fA-F]{4})+|\\["\\/bfnrt]')
_MEANT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", '"': '"', "\\": "\\"}


@dataclass(frozen=True)
class Row:
    """One row of a file: where, the text of the request, the answer if there is one, and the text in another reading of a line
    that may hold escapes.
    """

    line: int
    text: str
    answer: str | None = None
    otherwise: str = ""


def columns(cells: list[str]) -> list[str | int]:
    """Return the names of a table's columns, a number for each that is named as one before; none where no name is known."""
    names = [_plain(cell) for cell in cells]
    if not set(names) & set(_FIRST):
        return []
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    return [name if first[name] == i else i for i, name in enumerate(names)]


def json_of(text: str) -> Any:
    """Return the object or list that a text is as JSON, None for any other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def from_text(line: str, number: int) -> Row:
    """Return the row of a line that is no JSON: what it says around a request in JSON and in it, else the line as it stands."""
    line = line.rstrip("\r\n")
    pieces: list[Any] = []
    decoder, at = json.JSONDecoder(), 0
    while (start := line.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(line, start)
        except (ValueError, RecursionError):
            break
        if not is_known(value):
            break
        pieces += [line[at:start], value]
        at = end
    if not pieces:
        return Row(number, line, otherwise=_unescaped(line))
    return _row([("", one) for one in [*pieces, line[at:]] if one], number)


def from_json(data: object, number: int) -> Row:
    """Return the row of any JSON value."""
    return from_object(data if isinstance(data, Mapping) else {"": data}, number)


def from_object(data: Mapping[Any, Any], number: int) -> Row:
    """Return the row of one object; of one around a single request and its answer, that of both together."""
    inside = [key for key, value in data.items() if isinstance(value, Mapping) and is_known(value)]
    if len(inside) == 1 and not is_known(data):
        (key,) = inside
        return _row([*data[key].items(), *((one, value) for one, value in data.items() if one != key)], number)
    return _row(data.items(), number)


def is_known(data: object) -> bool:
    """Return whether an object holds a request or an answer by one of its keys, or a list begins with what somebody says."""
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], Mapping) and _speaker(data[0]) is not None
    return isinstance(data, Mapping) and any(_plain(key) in _FIRST or _plain(key) in _ANSWERS for key in data)


def _row(items: Iterable[tuple[Any, Any]], number: int) -> Row:
    """Return request and answer of keys and values: all text that is no answer is the request; where there is none, all text."""
    asked: list[str] = []
    everything: list[str] = []
    answers: dict[Any, str] = {}
    named = [(_plain(key), value) for key, value in items]
    for key, value in sorted(named, key=lambda one: _FIRST.index(one[0]) if one[0] in _FIRST else len(_FIRST)):
        known = key in _FIRST or key in _ANSWERS
        texts = list(_texts(value, 0 if known else 1))
        everything += [text for text, _ in texts]
        asked += [text for text, answer in texts if not (key in _ANSWERS if answer is None else answer)]
        said = [text for text, answer in texts if answer]
        given = key in _ANSWERS and any(answer is None for _, answer in texts)
        if said or given:
            answers.setdefault(key, said[-1] if said else _said(value))
    if not any(asked):
        return Row(number, "\n".join(everything))
    judged = next((key for key in _ANSWERS if key in answers), next(iter(answers), None))
    return Row(number, "\n".join(asked), answers.get(judged))


def _plain(key: object) -> Any:
    """Return a name without marks, in lower case; a number as it is."""
    return re.sub(r"[\s_-]", "", key).lower() if isinstance(key, str) else key


def _speaker(data: Mapping[Any, Any]) -> bool | None:
    """Return whether who says this gives an answer, None where nobody known is named."""
    for key in ("role", "from", "type"):
        who = data.get(key)
        if isinstance(who, str) and who.lower() in _ROLES:
            return _ROLES[who.lower()]
    return None


def _texts(data: object, depth: int = 0) -> Iterator[tuple[str, bool | None]]:
    """Yield every text in JSON data to a bounded depth, numbers of answers included, each with whether it is an answer by who
    says it, None where nobody is named.
    """
    if isinstance(data, str):
        inside = json_of(data)
        known = is_known(inside)
        if not known:
            yield data, None
        if known or (inside is not None and "\\" in data):
            yield from _texts(inside, depth + 1)
    elif isinstance(data, int | float) and depth == 0:
        yield str(data), None
    elif depth < MAX_DEPTH and isinstance(data, list):
        for one in data:
            yield from _texts(one, depth + 1)
    elif depth < MAX_DEPTH and isinstance(data, Mapping):
        answer = _speaker(data)
        if answer:
            yield _said(data, depth + 1), True
            return
        left_out = ("role", "from", "type") if answer is False else ("type",) if len(data) > 1 else ()
        for key, one in data.items():
            if _plain(key) not in left_out or not isinstance(one, str):
                yield from ((text, of if answer is None else answer) for text, of in _texts(one, depth + 1))


def _said(data: object, depth: int = 0) -> str:
    """Return the text of an answer; of an API's object what was said, without what stands around it."""
    if isinstance(data, str):
        inside = json_of(data)
        return _said(inside, depth + 1) if is_known(inside) and depth < MAX_DEPTH else data
    if depth >= MAX_DEPTH or data is None:
        return ""
    if isinstance(data, Mapping):
        named = {_plain(key): value for key, value in data.items()}
        inner = next(([named[key]] for key in _SAID if named.get(key)), None)
        data = [value for key, value in named.items() if key not in _AROUND] if inner is None else inner
    if isinstance(data, list):
        return "\n".join(filter(None, (_said(one, depth + 1) for one in data)))
    return str(data)


def _unescaped(line: str) -> str:
    """Return what a line says without the escapes of JSON, empty where it has none."""
    text = line
    for _ in range(MAX_ESCAPED):
        if "\\" not in text:
            break
        text = _ESCAPES.sub(lambda found: _MEANT.get(found[0][1:]) or json.loads(f'"{found[0]}"'), text)
    return "" if text == line else text
