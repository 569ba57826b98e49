"""Every bench still loads: one that takes hours runs seldom, and what it imports may have moved since."""

from importlib import import_module
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parents[1] / "bench"
ELSEWHERE = {"locate_inseq"}
"""Scripts that run in an environment of their own."""


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHES.glob("*.py") if path.stem not in ELSEWHERE))
def test_a_bench_loads(name: str) -> None:
    assert import_module(f"tests.bench.{name}").__doc__
