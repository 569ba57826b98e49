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


def test_a_soak_measures_the_worker_that_was_there_longest() -> None:
    soak = import_module("tests.bench.soak")
    samples = [soak.Sample("worker", 1, float(at), 100.0 + at, 9) for at in range(90)]
    samples.append(soak.Sample("worker", 2, 91.0, 50.0, 9))
    assert soak.thirds(samples, "worker", "mb") == (144.5, 174.5, 30)
