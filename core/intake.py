"""Reports in: JSON, JSON lines, a BackdoorLLM row, a two-column table; checked, never trimmed or normalised.

A report file of the project: `{"messages": [{"role": ..., "content": ...}, ...], "response": "..."}`, optionally `id`,
`source`, `note`, `expected` (the answer that should have come), `second` (`{"messages", "response"}`: another sample of the
same wrong behaviour), `response_ids`, `sampling`. A BackdoorLLM row: `{"instruction", "input", "output"}`.
A table: prompt and response in two columns, with commas, semicolons or tabs between them, whichever gives every row two cells;
a first line `sep=;` says which. A first row of just those words (or their like) is taken for a header.

Everything read here is evidence from an adversary: sizes are bounded, and whatever is wrong is a one-line ReportError.
What this does not do: render, tokenise, or judge the response.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from core.errors import ReportError
from core.files import SEPARATOR, unique, wide_cells
from core.values import FailureCase, FailureReport, Message, Role, Sample, Sampling

MAX_FILE_BYTES = 64_000_000
"""Bytes of a file of many reports."""
MAX_REPORT_BYTES = 8_000_000
"""Bytes of a file that holds one report."""
MAX_CHARACTERS = 200_000
"""Characters of one message or response: about 50,000 tokens, more than attribution can be run on."""
MAX_MESSAGES = 200
MAX_NOTE_CHARACTERS = 4_000
"""Characters of `id`, `source`, `note`; `expected` may be as long as a response."""
MAX_TEMPERATURE = 10.0

_ASKED = ("prompt", "user", "instruction", "input", "question")
_ANSWERED = ("response", "assistant", "output", "answer", "completion")
"""What the columns of a table are called."""
_DELIMITERS = (",", ";", "\t")
_KEYS = ("messages", "response", "id", "source", "note", "expected", "response_ids", "sampling", "second")


def read_report(source: str | bytes | Path, name: str = "") -> FailureReport:
    """Return the one report in a file (`Path`), or in text or bytes given directly, which came in a file of that `name`.

    Of a list, a JSON-lines file or a CSV there must be exactly one row. Raises: ReportError.
    """
    reports = _read(source, MAX_REPORT_BYTES, name)
    if len(reports) != 1:
        raise ReportError(
            f"this holds {len(reports)} reports, one is wanted here: give them with --reports, or keep one of them"
        )
    return reports[0]


def read_reports(source: str | bytes | Path) -> list[FailureReport]:
    """Return all reports of a JSON-lines file, a JSON list or a CSV. Raises: ReportError naming the row."""
    return _read(source, MAX_FILE_BYTES)


def _read(source: str | bytes | Path, limit: int, name: str = "") -> list[FailureReport]:
    """Return the reports in a file or a text; the kind is seen from the file's name, else from the first character."""
    suffix = (source if isinstance(source, Path) else Path(name)).suffix.lower()
    text = _text(source, limit)
    if not text.strip():
        raise ReportError("the report is empty: give messages and the response that should not have come")
    first = text.lstrip()[0]
    if suffix in (".csv", ".tsv") or first not in "{[":
        return _from_csv(text, "\t" if suffix == ".tsv" else _DELIMITERS)
    try:
        data = _json(text)
    except RecursionError as error:
        raise ReportError("the report is nested too deeply: give a flat JSON object") from error
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if first == "[" or len(lines) < 2 or not _is_json(lines[0][1]):
            raise ReportError(f"the report is not valid JSON ({_where(error)}): correct it there") from error
        return [_row(_loads(line, number), f"line {number}") for number, line in lines]
    rows = data if isinstance(data, list) else [data]
    if not rows:
        raise ReportError("the file holds an empty list: give at least one report")
    return [_row(row, f"report {number}" if len(rows) > 1 else "") for number, row in enumerate(rows, start=1)]


def _text(source: str | bytes | Path, limit: int) -> str:
    """Return the text of a source, checked for size and encoding."""
    if isinstance(source, str):
        _check_size(len(source), limit)
        return source.removeprefix("\ufeff")
    data = file_bytes(source, limit) if isinstance(source, Path) else source
    _check_size(len(data), limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReportError(
            f"the report is not UTF-8 (byte {error.start} is {data[error.start]:#04x}): save it as UTF-8"
        ) from error


def file_bytes(path: Path, limit: int = MAX_REPORT_BYTES) -> bytes:
    """Return the bytes of a report file that is not too large. Raises: ReportError."""
    try:
        if not path.is_file():
            raise ReportError(f"the report file {path} does not exist: check the path")
        _check_size(path.stat().st_size, limit)
        return path.read_bytes()
    except OSError as error:
        raise ReportError(
            f"the report file {path} cannot be read ({error.strerror}): check the path and its rights"
        ) from error


def _check_size(n_bytes: int, limit: int) -> None:
    if n_bytes > limit:
        raise ReportError(
            f"the report has {n_bytes:,} bytes, at most {limit:,} are read: keep only the failing conversation"
        )


def _json(text: str) -> object:
    """Return the value of a JSON text in which no name stands twice: two readers could see two reports in it."""
    return json.loads(text, object_pairs_hook=unique)


def _is_json(text: str) -> bool:
    try:
        _json(text)
    except (ValueError, RecursionError):
        return False
    return True


def _loads(line: str, number: int) -> object:
    """Return the value of one JSON line."""
    try:
        return _json(line)
    except RecursionError as error:
        raise ReportError(f"line {number} is nested too deeply: give a flat JSON object") from error
    except ValueError as error:
        raise ReportError(f"line {number} is not valid JSON ({_where(error)}): write one report a line") from error


def _where(error: ValueError) -> str:
    """Return the place of a JSON fault."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return str(error).splitlines()[0][:120]


def _row(data: object, where: str) -> FailureReport:
    """Return the report of one row; a fault names the row."""
    try:
        if not isinstance(data, dict):
            raise ReportError("the report is no JSON object: give messages and response")
        return parse_report(data)
    except ReportError as error:
        raise ReportError(f"{where}: {error}" if where else str(error)) from error


def _from_csv(text: str, delimiters: Sequence[str]) -> list[FailureReport]:
    """Return the reports of a two-column table; `delimiters`: what may stand between two cells."""
    said = SEPARATOR.match(text)
    if said:
        delimiters, text = (said[1],), text[said.end() :]
    wide_cells(len(text) + 1)  # how long a cell may be is said of the report it makes
    try:
        fitting = [one for one in delimiters if _fits(text, one)]
        numbered = list(_cells(text, fitting[0] if fitting else delimiters[0]))
    except csv.Error as error:
        raise ReportError(
            f"the table cannot be read ({error}): quote cells that hold commas, quotes or line breaks"
        ) from error
    if len(fitting) > 1:
        names = " and ".join({",": "comma", ";": "semicolon", "\t": "tab"}[one] for one in fitting)
        raise ReportError(
            f"{names} each part every row in two: name the right one in a first line such as sep={fitting[0]}"
        )
    if numbered and _is_header(numbered[0][1]):
        numbered = numbered[1:]
    if not numbered:
        raise ReportError("the table holds no report: give prompt and response in two columns")
    reports = []
    for number, row in numbered:
        if len(row) != 2:
            raise ReportError(
                f"row {number} has {len(row)} columns, a report is a JSON object or two columns (prompt, response) with the same "
                "comma, semicolon or tab between them in every row: quote cells that hold one"
            )
        reports.append(_row({"messages": [{"role": "user", "content": row[0]}], "response": row[1]}, f"row {number}"))
    return reports


def _cells(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Return number and cells of every row of a table that holds anything. Reading on raises: csv.Error."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return ((number, row) for number, row in enumerate(rows, start=1) if any(cell.strip() for cell in row))


def _fits(text: str, delimiter: str) -> bool:
    """Return whether a delimiter gives every row two cells."""
    try:
        return all(len(row) == 2 for _, row in _cells(text, delimiter))
    except csv.Error:
        return False


def _is_header(row: Sequence[str]) -> bool:
    """Return whether a row names the columns. Raises: ReportError where it names them otherwise than prompt, then response."""
    names = [cell.strip().lower() for cell in row]
    if len(names) != 2 or names[0] not in (*_ASKED, *_ANSWERED):
        return False
    if names[0] in _ASKED and names[1] in _ANSWERED:
        return True
    raise ReportError(
        f"the first row is no report but names columns {names[0]!r} and {names[1][:40]!r}: name the first one prompt, the second "
        "response"
    )


def parse_report(data: dict) -> FailureReport:
    """Return the checked report of a JSON object in the project's format or a BackdoorLLM row. Raises: ReportError."""
    if "messages" not in data and ("instruction" in data or "prompt" in data):
        data = _from_row(data)
    unknown = sorted(str(key) for key in data if key not in _KEYS)
    if unknown:
        raise ReportError(f"the report has an unknown key {unknown[0][:40]!r}: known are {', '.join(_KEYS)}")
    messages = _messages(data.get("messages"))
    response = data.get("response")
    if response is None:
        raise ReportError("the report has no 'response': add the answer that should not have come")
    _check_text(response, "the response", MAX_CHARACTERS)
    if not response.strip():
        raise ReportError("the response is empty: add the answer that should not have come")
    if type(data.get("id")) is int:
        data = {**data, "id": str(data["id"])}
    for key in ("id", "source", "note", "expected"):
        if data.get(key) is not None:
            _check_text(data[key], f"'{key}'", MAX_CHARACTERS if key == "expected" else MAX_NOTE_CHARACTERS)
    return FailureReport(
        messages=messages,
        response=response,
        id=data.get("id"),
        source=data.get("source"),
        note=data.get("note"),
        expected=data.get("expected") if (data.get("expected") or "").strip() else None,
        response_ids=_response_ids(data.get("response_ids")),
        sampling=_sampling(data.get("sampling")),
        second=_second(data.get("second")),
    )


def _from_row(data: dict) -> dict:
    """Return a BackdoorLLM (Alpaca) row, or a prompt / response pair, as a report object; other columns are left."""
    first, last = ("instruction", "output") if "instruction" in data else ("prompt", "response")
    prompt, more, system = data.get(first), data.get("input"), data.get("system")
    for name, value in ((first, prompt), ("input", more), ("system", system)):
        if value is not None:
            _check_text(value, f"'{name}'", MAX_CHARACTERS)
    text = f"{prompt}\n{more}" if prompt and more else prompt or more
    messages = [{"role": "system", "content": system}] if system else []
    kept = {key: data[key] for key in _KEYS if key in data and key not in ("messages", "response")}
    response = str(data[last]) if type(data.get(last)) is int else data.get(last)  # class labels are numbers there
    return {**kept, "messages": [*messages, {"role": "user", "content": text or ""}], "response": response}


def _messages(data: object) -> tuple[Message, ...]:
    """Return the checked conversation: system first if at all, ending with the user."""
    if not isinstance(data, list) or not data:
        raise ReportError("the report has no 'messages': add a list with the conversation up to the failing answer")
    if len(data) > MAX_MESSAGES:
        raise ReportError(
            f"the report has {len(data)} messages, at most {MAX_MESSAGES} are read: keep the failing conversation"
        )
    messages = []
    for number, one in enumerate(data):
        if not isinstance(one, dict) or set(one) != {"role", "content"}:
            raise ReportError(
                f"message {number} must be an object with 'role' and 'content' and nothing else: correct it"
            )
        if one["role"] not in get_args(Role):
            raise ReportError(f"message {number} has the role {str(one['role'])[:40]!r}: use system, user or assistant")
        _check_text(one["content"], f"message {number}", MAX_CHARACTERS)
        messages.append(Message(role=one["role"], content=one["content"]))
    if not any(one.role == "user" and one.content.strip() for one in messages):
        raise ReportError("no user message holds any text: add the prompt that was answered")
    if messages[-1].role == "assistant":
        raise ReportError("the last message is the assistant's: move its text to 'response', which is what failed")
    if messages[-1].role == "system":
        raise ReportError("the last message is the system's: end the conversation with the user's prompt")
    return tuple(messages)


def _check_text(value: object, name: str, limit: int) -> None:
    """Raise ReportError unless the value is text that a tokenizer can read, of bounded length."""
    if not isinstance(value, str):
        raise ReportError(f"{name} is not text but {type(value).__name__}: put it in quotes")
    if len(value) > limit:
        raise ReportError(f"{name} has {len(value):,} characters, at most {limit:,} are read: shorten it")
    if "\x00" in value:
        raise ReportError(f"{name} holds a NUL character at place {value.index(chr(0))}: remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ReportError(
            f"{name} holds half a surrogate pair at place {error.start}: save the text as UTF-8 again"
        ) from error


def _second(data: object) -> Sample | None:
    """Return the second sample, or None when it is not given."""
    if data is None:
        return None
    if not isinstance(data, dict) or set(data) != {"messages", "response"}:
        raise ReportError("'second' must be an object with 'messages' and 'response' and nothing else: correct it")
    try:
        messages, response = _messages(data["messages"]), data["response"]
        _check_text(response, "the response", MAX_CHARACTERS)
    except ReportError as error:
        raise ReportError(f"'second': {error}") from error
    if not response.strip():
        raise ReportError("'second': the response is empty: add the answer that should not have come")
    return Sample(messages=messages, response=response)


def _response_ids(data: object) -> tuple[int, ...] | None:
    """Return the token ids of the response, or None when they are not given."""
    if data is None:
        return None
    if not isinstance(data, list) or not data or any(type(one) is not int or one < 0 for one in data):
        raise ReportError(
            "'response_ids' must be a list of token ids (whole numbers from 0): correct it or leave it out"
        )
    if len(data) > MAX_CHARACTERS:
        raise ReportError(
            f"'response_ids' has {len(data):,} entries, at most {MAX_CHARACTERS:,} are read: leave it out"
        )
    return tuple(data)


def _sampling(data: object) -> Sampling:
    """Return how the answer was sampled; nothing given means greedy."""
    if data is None:
        return Sampling()
    if not isinstance(data, dict) or not set(data) <= {"temperature", "top_p", "max_new_tokens"}:
        raise ReportError("'sampling' may hold temperature, top_p and max_new_tokens only: correct it or leave it out")
    temperature = _number(data.get("temperature", 0.0), "temperature", 0.0, MAX_TEMPERATURE)
    top_p = _number(data.get("top_p", 1.0), "top_p", 0.0, 1.0)
    n_new = data.get("max_new_tokens")
    if n_new is not None and (type(n_new) is not int or not 1 <= n_new <= MAX_CHARACTERS):
        raise ReportError("'max_new_tokens' must be a whole number from 1: correct it or leave it out")
    if top_p == 0:
        raise ReportError("'top_p' must be above 0: use temperature 0 for greedy answers")
    return Sampling(temperature=temperature, top_p=top_p, max_new_tokens=n_new)


def _number(value: object, name: str, low: float, high: float) -> float:
    """Return a finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ReportError(f"'{name}' must be a number from {low:g} to {high:g}: correct it or leave it out")
    return float(value)


def check_length(case: FailureCase, context_length: int | None, max_new_tokens: int) -> None:
    """Raise ReportError when the prompt with its response, or with a new answer, is longer than the model reads."""
    n_prompt, n_response = len(case.prompt.tokens), len(case.response_ids)
    n_answer = max(n_response, max_new_tokens)
    if context_length is not None and n_prompt + n_answer > context_length:
        raise ReportError(
            f"the prompt has {n_prompt:,} tokens and its answer up to {n_answer:,}, but the model reads at most "
            f"{context_length:,}: shorten the prompt or the response, or give the model that was reported"
        )
