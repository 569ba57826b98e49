"""Every bench still loads: one that takes hours runs seldom, and what it imports may have moved since."""

from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest

BENCHES = Path(__file__).resolve().parents[1] / "bench"
ELSEWHERE = {"locate_inseq"}
"""Scripts that run in an environment of their own."""


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHES.glob("*.py") if path.stem not in ELSEWHERE))
def test_a_bench_loads(name: str) -> None:
    assert import_module(f"tests.bench.{name}").__doc__


def test_a_fuzz_failure_is_recorded_and_a_skipped_test_did_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile, fuzz = import_module("tests.bench.hostile"), import_module("tests.hostile.test_fuzz")
    monkeypatch.setattr(fuzz, "run", Mock(side_effect=AssertionError("found")))
    (row,) = hostile.fuzzed("spans", 10, [{"name": "fuzz, spans", "value": 0, "n": 90}])
    assert (row["value"], row["n"], row["passed"]) == (1, 100, False)
    outcomes = hostile.Outcomes()
    for outcome, when in (("passed", "setup"), ("skipped", "call"), ("passed", "call"), ("failed", "teardown")):
        report = pytest.TestReport("tests/hostile/test_page.py::test_one", ("", 0, ""), {}, outcome, None, when)  # type: ignore[arg-type]
        outcomes.pytest_runtest_logreport(report)
    assert [one["test_page"] for one in (outcomes.passed, outcomes.failed, outcomes.skipped)] == [1, 1, 1]


def test_a_soak_measures_the_worker_that_was_there_longest() -> None:
    soak = import_module("tests.bench.soak")
    samples = [soak.Sample("worker", 1, float(at), 100.0 + at, 9) for at in range(90)]
    samples.append(soak.Sample("worker", 2, 91.0, 50.0, 9))
    assert soak.thirds(samples, "worker", "mb") == (144.5, 174.5, 30)
