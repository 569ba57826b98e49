"""The documents say what the code is: sources of settings, the file map, the README's figures."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.bench.figures import DETAILS, MARK, SECTION, details, filled

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


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


def test_figures_of_the_readme_are_those_measured() -> None:
    """Writing the figures again from their files changes nothing."""
    readme = README.read_text(encoding="utf-8")
    assert len(re.findall(r"\d %", SECTION.search(readme)[0])) >= 10  # type: ignore[index]
    assert filled(readme) == readme


def test_the_results_in_full_are_those_measured() -> None:
    """The same of the file that holds the rest."""
    assert details() == DETAILS.read_text(encoding="utf-8")


def test_no_other_rate_stands_among_the_results() -> None:
    """What is measured is written by the script alone."""
    results = README.read_text(encoding="utf-8").split("## Measured", 1)[1].split("\n## ", 1)[0]
    assert not re.search(r"\d ?%", MARK.sub("", SECTION.sub("", results)))


def test_a_wrong_figure_is_noticed(tmp_path: Path) -> None:
    """The check itself works: a stale number is replaced, an unknown row is an error."""
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"rows": [{"model": "m", "name": "asr", "value": 0.974, "n": 40}]}), encoding="utf-8")
    assert filled(f"<!--f {file}; m: asr; {{value:.0%}} of {{n}}-->12%<!--/f-->").endswith("-->97% of 40<!--/f-->")
    with pytest.raises(KeyError):
        filled(f"<!--f {file}; asd; {{value}}-->1<!--/f-->")


def test_links_and_pictures_of_the_readme_exist() -> None:
    """Every relative link leads to a file."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
