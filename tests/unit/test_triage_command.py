"""Making and reopening a case on the command line: what a case settles for good is not changed in silence."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

from core.__main__ import parser
from core.casefile import Case
from core.errors import CaseFileError
from core.triage_commands import make_case
from tests.unit.test_casefile import REPORT, make_model, make_prompts


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
