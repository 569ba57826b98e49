"""Do the README's figures say what was measured? Each stands in a mark that names its source, and is filled in from it.

    <!--f FILE; ROW; FORMAT-->shown<!--/f-->

FILE is relative to the project; ROW is a row's name (`model: name` where rows have both), or `.a.b.0` for a place in the
file; FORMAT is Python's, over the row's fields (`{value:.2f}`) or over `value`. `python tests/bench/figures.py` fills in
every mark of README.md; a test fails when that would change anything.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"<!--f ([^;]+); ([^;]+); (.+?)-->(.*?)<!--/f-->")


def look_up(data: Any, place: str) -> dict[str, Any]:
    """Return the fields of a row, or of a place in the file as `value`. Raises: KeyError when there is none."""
    if place.startswith("."):
        for part in place[1:].split("."):
            data = data[int(part)] if isinstance(data, list) else data[part]
        return {"value": data}
    for row in data["rows"]:
        if place in (row["name"], f"{row.get('model')}: {row['name']}"):
            return dict(row)
    raise KeyError(place)


def filled(text: str) -> str:
    """Return `text` with every mark showing the stored figure."""

    def show(mark: re.Match[str]) -> str:
        file, place, form = (part.strip() for part in mark.groups()[:3])
        fields = look_up(json.loads((ROOT / file).read_text(encoding="utf-8")), place)
        return f"<!--f {file}; {place}; {form}-->{form.format(**fields)}<!--/f-->"

    return MARK.sub(show, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = filled(old)
    readme.write_text(new, encoding="utf-8")
    sys.stdout.write(f"{len(MARK.findall(new))} figures, {'changed' if new != old else 'as they were'}\n")
