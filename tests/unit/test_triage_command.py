"""Making and reopening a case on the command line: what a case settles for good is not changed in silence."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from core import lease, triage_commands
from core.__main__ import main, parser
from core.casefile import Case, model_spec
from core.errors import CaseFileError, ReportError
from core.serial import to_json
from core.triage_commands import make_case
from core.values import ModelSpec, TriageResult
from tests.unit.test_casefile import REPORT, make_model, make_prompts

FOUND = TriageResult(
    mode="causal", verdict="INCONCLUSIVE", certainty="", decided_by="", reproduction=None, candidates=(), dropped=(),
    tests=(), tokens=(), settings={}, seconds=0.0, model_calls=0, versions={},
)  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The options that every call has."""
    make_model(tmp_path / "model")
    make_prompts(tmp_path / "prompts")
    return ["triage", "--report", "r.json", "--model", str(tmp_path / "model")]


def made(root: Path, *arguments: str) -> Case:
    """Return the case that a call makes or reopens."""
    options: argparse.Namespace = parser().parse_args(arguments)
    return make_case(options, REPORT, root / "case")


def test_a_setting_that_an_existing_case_has_otherwise_is_refused(tmp_path: Path, given: list[str]) -> None:
    other = make_prompts(tmp_path / "other-prompts")
    (other / "safe.jsonl").write_text(json.dumps({"prompt": "another"}), encoding="utf-8")
    clean = shutil.copytree(tmp_path / "model", tmp_path / "clean")
    case = made(tmp_path, *given, "--prompts", str(tmp_path / "prompts"))
    assert (case.intake.seed, case.intake.reviewers, case.intake.reference) == (0, 1, None)
    for flag, value in (("--seed", "5"), ("--reviewers", "2"), ("--reference", clean), ("--prompts", other)):
        with pytest.raises(CaseFileError, match=f"made with another {flag}; leave it out or choose a new --case"):
            made(tmp_path, *given, flag, str(value))


def test_the_same_settings_or_none_go_on(tmp_path: Path, given: list[str]) -> None:
    clean = shutil.copytree(tmp_path / "model", tmp_path / "clean")
    settled = ["--seed", "5", "--reviewers", "2", "--reference", str(clean), "--prompts", str(tmp_path / "prompts")]
    case = made(tmp_path, *given, *settled)
    assert made(tmp_path, *given).intake == made(tmp_path, *given, *settled).intake == case.intake
    assert (case.intake.seed, case.intake.reviewers) == (5, 2)


def test_a_case_that_knows_no_hashes_of_its_prompts_takes_any_folder(tmp_path: Path, given: list[str]) -> None:
    case = made(tmp_path, *given, "--prompts", str(tmp_path / "prompts"))
    old = json.loads((case.path / "case.json").read_text(encoding="utf-8")) | {"prompt_files": {}}
    (case.path / "case.json").write_text(json.dumps(old), encoding="utf-8")
    (tmp_path / "prompts" / "safe.jsonl").write_text(json.dumps({"prompt": "another"}), encoding="utf-8")
    assert made(tmp_path, *given, "--prompts", str(tmp_path / "prompts")).intake.prompt_files == {}


def test_no_case_is_made_for_a_device_that_is_not_there(
    tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would keep the device for good."""
    (tmp_path / "r.json").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}], "response": "b"}), encoding="utf-8"
    )
    there = ["--report", str(tmp_path / "r.json"), "--case", str(tmp_path / "case")]
    assert main([*given, *there, "--device", "cuda:99"]) == 2
    assert "use --device cpu" in capsys.readouterr().err
    assert not (tmp_path / "case").exists()


class Engine:
    """Finds nothing, and takes no report of a name in `bad`; remembers who wrote each case meanwhile."""

    bad: tuple[str, ...] = ()
    writers: list[bool]

    def __init__(self, *_: object) -> None:
        """Load nothing."""

    def run(self, case: Case, stage: str, args: object) -> None:
        """Write a result."""
        self.writers.append(lease.current(case) is not None)
        if case.report.id in self.bad:
            raise ReportError("the prompt is too long: shorten it")
        case.write("triage.json", FOUND)


def many(tmp_path: Path, given: list[str], monkeypatch: pytest.MonkeyPatch, bad: tuple[str, ...] = ()) -> list[str]:
    """Return the command for three reports, which the stand-in of the engine takes."""
    monkeypatch.setattr(Engine, "bad", bad)
    monkeypatch.setattr(Engine, "writers", [], raising=False)
    monkeypatch.setattr(triage_commands, "Headless", Engine)
    reports = tmp_path / "reports.jsonl"
    kept = ("messages", "response")
    rows = [{key: to_json(replace(REPORT, id=name))[key] for key in (*kept, "id")} for name in ("a", "b", "c")]
    reports.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["triage", "--reports", str(reports), *given[3:], "--prompts", str(tmp_path / "prompts")]
    return [*options, "--cases", str(tmp_path / "cases")]


def test_of_many_reports_each_case_is_held_while_it_is_worked_on(
    tmp_path: Path, given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """New ones too; one that somebody else writes is told and left alone."""
    command = many(tmp_path, given, monkeypatch)
    assert main(command) == 0
    assert Engine.writers == [True] * 3
    cases = [Case(path) for path in sorted((tmp_path / "cases").glob("*"))]
    assert [lease.current(case) for case in cases] == [None] * 3
    lease.take(cases[1], "Ada", "browser")
    capsys.readouterr()
    assert main(command) == 2
    told = [one.get("error", "") for one in json.loads(capsys.readouterr().out)["cases"]]
    assert ["Ada has been writing this case" in one for one in told] == [False, True, False]
    assert main([*command, "--take-over"]) == 0


def test_the_model_of_many_reports_is_hashed_once(
    tmp_path: Path, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def spec(model: Path, adapter: Path | None = None) -> ModelSpec:
        hashed.append(model)
        return model_spec(model, adapter)

    monkeypatch.setattr(triage_commands, "model_spec", spec)
    assert main(many(tmp_path, given, monkeypatch)) == 0
    assert hashed == [tmp_path / "model"]


@pytest.mark.parametrize("bad", [(), ("b",), ("a", "b", "c")])
def test_of_many_reports_one_that_does_not_fit_is_told_and_the_others_go_on(
    tmp_path: Path,
    given: list[str],
    bad: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The output holds them all, in order; it ends with 2 where one failed."""
    assert main(many(tmp_path, given, monkeypatch, bad)) == (2 if bad else 0)
    told = capsys.readouterr()
    found = json.loads(told.out)["cases"]
    assert [Path(one["case"]).name for one in found] == ["0000-a", "0001-b", "0002-c"]
    assert [one.get("error") for one in found] == [
        "the prompt is too long: shorten it" if name in bad else None for name in ("a", "b", "c")
    ]
    assert all("error" in one or one["verdict"] == "INCONCLUSIVE" for one in found)
    assert (f"{len(bad)} of 3 reports could not be triaged" in told.err) is bool(bad)
