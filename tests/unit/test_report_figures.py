"""What the report draws: odd characters, scores as colours, the chart of a repair, shares that round no failure away."""

import re
from pathlib import Path

from core import report_figures as figures
from core.report import render_report
from tests.unit.reporting import full_case


def test_visible_knows_odd_characters() -> None:
    """Known answers, one character at a time."""
    assert str(figures.visible("a b")) == "a b"
    assert str(figures.visible("<&>")) == "&lt;&amp;&gt;"
    assert str(figures.visible("\u00a0")) == "<i class=chip>U+00A0</i>"
    assert "U+FE0F" in figures.visible("❤\ufe0f")
    assert str(figures.visible("привет")) == "привет"  # a whole word of another script is no homoglyph
    assert "U+0440" in figures.visible("\u0440ay")


def test_pieces_cover_the_text_once() -> None:
    """Overlapping byte tokens of one character become one piece; gaps stay unscored."""
    pieces = figures.scored_pieces("a你b", [(1, 2, 0.5), (1, 2, -2.0), (2, 3, 1.0)])
    assert [(p.text, p.score) for p in pieces] == [("a", None), ("你", -2.0), ("b", 1.0)]


def test_colours_carry_sign_and_rank() -> None:
    """The largest score has rank 1 and full strength, a negative one the other colour and a minus."""
    pieces = figures.scored_pieces("xyz", [(0, 1, 4.0), (1, 2, -2.0), (2, 3, 0.0)])
    out = str(figures.coloured(pieces, 4.0))
    assert '<span class="t pos" style="--s:1.00">x<sup>1</sup></span>' in out
    assert '<span class="t neg" style="--s:0.50">y<sup>2−</sup></span>' in out
    assert 'style="--s:0.00">z</span>' in out


def test_chart_breaks_at_values_that_are_not_finite(tmp_path: Path) -> None:
    """A NaN is drawn as a cross and never written into a path."""
    page = render_report(full_case(tmp_path))
    assert ">×</text>" in page
    assert "nan" not in re.search(r'<svg class="chart".*?</svg>', page, re.DOTALL).group().lower()  # type: ignore[union-attr]


def test_the_names_of_lines_stand_apart_and_inside_the_panel() -> None:
    assert figures.spread([10.0, 12.0, 99.0], 100.0) == [10.0, 23.0, 99.0]
    assert figures.spread([96.0, 98.0, 99.0], 100.0) == [74.0, 87.0, 100.0]
