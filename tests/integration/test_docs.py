"""The documents say what the code is: sources of settings, the file map, the README's figures."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FIGURE = re.compile(r"([^\s|(]+(?: %)?)\s*<!--\s*(\S+\.json)#(\S+?)(?:\s+(percent|round\d))?\s*-->")
"""A number of the README, and behind it in a comment the file and the place it comes from: `97 % <!-- file.json#a.b percent -->`."""


def settings_fields() -> list[tuple[str, str, str | None]]:
    """Return (class, field, docstring) of every field in core/settings.py; None where no docstring follows."""
    fields: list[tuple[str, str, str | None]] = []
    for node in ast.parse((ROOT / "core/settings.py").read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign):
                continue
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = after.value.value if is_text else None  # type: ignore[union-attr]
            fields.append((node.name, ast.unparse(statement.target), str(text) if text else None))
    return fields


def test_every_setting_names_its_source() -> None:
    """Each field of each settings class says what it means and where its default comes from."""
    fields = settings_fields()
    assert len(fields) > 30
    missing = [f"{owner}.{name}" for owner, name, text in fields if not text or not re.search(r"Source:\s+\S", text)]
    assert missing == []


def test_settings_sources_exist() -> None:
    """A source that is a file of ours is there."""
    for _, name, text in settings_fields():
        for path in re.findall(r"tests/bench/results/[\w.-]+\.json|assets/[\w./-]+", text or ""):
            assert (ROOT / path).exists(), f"{name}: {path}"


def test_every_module_opens_with_what_it_does() -> None:
    """Each module of the engine and the page has a docstring."""
    files = [*(ROOT / "core").rglob("*.py"), *(ROOT / "dashboard").rglob("*.py")]
    assert [str(f) for f in files if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))] == []


def test_the_file_map_names_every_module() -> None:
    """The README's map has every module of the engine and the page, and nothing that is gone."""
    readme = README.read_text(encoding="utf-8")
    block = readme.split("## File map", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"\b((?:core|dashboard)/[\w/.]+\.py)\b", block))
    present = {f.relative_to(ROOT).as_posix() for top in ("core", "dashboard") for f in (ROOT / top).rglob("*.py")}
    present -= {
        "core/__init__.py",
        "dashboard/__init__.py",
        "dashboard/steps/__init__.py",
        "dashboard/components/__init__.py",
    }
    named -= {
        "core/__init__.py",
        "dashboard/__init__.py",
        "dashboard/steps/__init__.py",
        "dashboard/components/__init__.py",
    }
    assert present - named == set(), "not in the map"
    assert named - present == set(), "in the map, not there"


def figures() -> list[tuple[str, str, str, str]]:
    """Return (shown, file, path, way) of every figure the README quotes."""
    return FIGURE.findall(README.read_text(encoding="utf-8")) if README.exists() else []


def look_up(data: object, path: str) -> object:
    """Return the value at `a.b.0.c`; `name=x` picks the item of a list whose `name` is x."""
    for part in path.split("."):
        if isinstance(data, list):
            data = next(i for i in data if i["name"] == part[5:]) if part.startswith("name=") else data[int(part)]
        else:
            assert isinstance(data, dict)
            data = data[part]
    return data


@pytest.mark.parametrize(("shown", "file", "path", "way"), figures())
def test_figures_of_the_readme_are_those_measured(shown: str, file: str, path: str, way: str) -> None:
    """Each quoted number is the stored one, rounded as said."""
    value = look_up(json.loads((ROOT / file).read_text(encoding="utf-8")), path)
    if way == "percent":
        assert isinstance(value, (int, float))
        assert shown == f"{100 * value:.0f} %"
    elif way.startswith("round"):
        assert isinstance(value, (int, float))
        assert shown == f"{value:.{way[5:]}f}"
    else:
        assert shown == str(value)


def test_the_readme_quotes_figures() -> None:
    """The check above has something to check, and every table row with a rate is marked up."""
    assert len(figures()) >= 10
    results = README.read_text(encoding="utf-8").split("## Measured", 1)[1].split("\n## ", 1)[0]
    rows = [
        line
        for line in results.splitlines()
        if line.startswith("|") and re.search(r"\d %|\.\d", re.sub(r"`[^`]*`", "", line))
    ]
    assert [row for row in rows if "<!--" not in row] == []


def test_links_and_pictures_of_the_readme_exist() -> None:
    """Every relative link leads to a file."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
