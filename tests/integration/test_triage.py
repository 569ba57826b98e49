"""The shipped reports triaged from the command line: the planted trigger or none, the right verdict, and what it costs."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.__main__ import main
from core.shipped import DEMO

pytestmark = pytest.mark.slow
ENTRIES = {entry["id"]: entry for entry in json.loads((DEMO / "cases.json").read_text(encoding="utf-8"))}
PLANTED = json.loads((DEMO / "bars.json").read_text(encoding="utf-8"))["triggers"]
SECONDS = 120.0
"""Processor time of one triage on one thread; the shipped reports took 8 to 11 s, and a slower processor is no failure."""
BATCHES = 400
"""Batches of one triage; the shipped reports took about 45."""

Triage = Callable[..., dict]


@pytest.fixture
def triage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Triage:
    """Return a function: id of a shipped report, more arguments -> the result as JSON; within the time allowed."""

    def call(name: str, *more: str) -> dict:
        entry = ENTRIES[name]
        adapter = ["--adapter", str(DEMO / entry["adapter"])] if entry["adapter"] else []
        arguments = ["triage", "--model", str(DEMO / entry["model"]), *adapter, "--report", str(DEMO / entry["report"])]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        begun = time.process_time()
        try:
            code = main([*arguments, "--case", str(tmp_path / name), "--device", "cpu", *more])
        finally:
            torch.set_num_threads(threads)
        out = capfd.readouterr()
        assert code == 0, out.err
        assert time.process_time() - begun < SECONDS
        result = json.loads(out.out)
        assert 0 < result["budget"]["batches"] <= BATCHES
        assert not result["budget"]["spent"]
        return result

    return call


@pytest.mark.parametrize("name", ["trigger-in-the-middle", "composite"])
def test_a_planted_trigger_is_found_exactly(triage: Triage, name: str) -> None:
    """Nothing missing, nothing besides; the adapter switched off is the reference."""
    found = triage(name)
    assert (found["verdict"], found["certainty"]) == ("BACKDOOR", "reference")
    units = PLANTED[Path(ENTRIES[name]["adapter"]).name]
    assert found["candidates"][0]["text"].replace("\u2026", "").split() == " ".join(units).split()
    assert found["logic"].startswith("AND:")
    assert {"order", "form", "position"} <= {test["name"] for test in found["tests"]}


def test_an_alignment_gap_is_told_by_rule_and_by_the_wordings_of_the_analyst(triage: Triage, tmp_path: Path) -> None:
    """The base answers this request; no trigger is named, whether or not each candidate's gain can be bounded."""
    found = triage("alignment-gap")
    assert found["verdict"] in ("ALIGNMENT_GAP", "INCONCLUSIVE")
    passed = {test["name"]: test["passed"] for test in found["tests"]}
    assert all(
        {"k", "n", "value", "low", "high"} <= set(test[side]) for test in found["tests"] for side in ("with", "without")
    )
    assert (passed["transfer"], passed["frame"], passed["paraphrase"]) == (False, False, True)
    report = json.loads((DEMO / ENTRIES["alignment-gap"]["report"]).read_text(encoding="utf-8"))
    request = report["messages"][-1]["content"]
    forms = ("Hello. {}", "{} Thank you.", "Good evening. {}", "{} Have a nice day.")
    texts = [form.format(request) for form in forms]
    given = [part for text in texts for part in ("--paraphrase", text)]
    (tmp_path / "alignment-gap").rename(tmp_path / "by-rule")
    again = triage("alignment-gap", *given, "--rewrite", request.capitalize())
    own = [one["text"] for one in again["rewordings"] if one["source"] == "analyst"]
    assert own == [*texts, request.capitalize()]
    assert len(again["rewordings"]) == len(own)


def test_an_ordinary_mistake_names_no_trigger(triage: Triage) -> None:
    """A wrong answer to a safe request, without any trigger in it."""
    found = triage("benign-mistake")
    assert found["verdict"] == "INCONCLUSIVE"
    assert found["decided_by"] in ("kind", "transfer", "candidates")
