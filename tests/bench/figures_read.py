"""Stored results as rows, and rows as Markdown: what the sections of the README's figures share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "tests/bench/results"
NOT_MEASURED = "–"


def whole(file: str) -> dict[str, Any]:
    """Return a result; one without rows when there is no such file."""
    path = ROOT / file
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}
    return found


def missed(row: dict[str, Any]) -> str:
    """Return the word behind a value that misses its bar."""
    return " (missed)" if row["passed"] is False else ""


def read(file: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a result by name (`model: name` where rows have both); none when there is no such file."""
    data = whole(file)
    return {f"{r['model']}: {r['name']}" if "model" in r else r["name"]: r for r in data["rows"]}


def rate(row: dict[str, Any] | None) -> str:
    """Return a rate with its interval and n."""
    if row is None:
        return NOT_MEASURED
    interval = "" if row.get("low") is None else f" ({100 * row['low']:.0f}–{100 * row['high']:.0f})"
    return f"{100 * row['value']:.0f} %{interval}, n {row['n']}"


def number(row: dict[str, Any] | None) -> str:
    """Return a mean with its interval, if it has one."""
    if row is None:
        return NOT_MEASURED
    interval = "" if row["low"] is None else f" ({row['low']:.2f}–{row['high']:.2f})"
    return f"{row['value']:.2f}{interval}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table without the rows that hold no figure."""
    kept = [row for row in rows if any(cell not in ("", NOT_MEASURED) for cell in row[1:])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in kept), ""]
