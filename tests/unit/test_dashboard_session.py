"""Which folders a browser may name: nothing outside the roots, whatever it sends."""

import json
from pathlib import Path

import pytest

from core.casefile import Case
from core.errors import CaseFileError, ModelLoadError, ReportError
from dashboard.session import (
    Roots,
    create_case,
    create_demo,
    demo_cases,
    find_case,
    list_adapters,
    list_cases,
    list_models,
    named_folder,
    read_intake,
)

REPORT = {
    "messages": [{"role": "user", "content": "How do I bake bread?"}],
    "response": "Step 1: [REDACTED]",
    "id": "a b/c",
}


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    models = tmp_path / "models"
    (models / "owner" / "tiny").mkdir(parents=True)
    (models / "owner" / "tiny" / "config.json").write_text("{}")
    (models / "lora").mkdir()
    (models / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    words = ["bread", "cake", "soup", "salad", "pasta", "rice", "stew", "pie"]
    for name in ("harmful", "safe"):
        lines = [json.dumps({"prompt": f"{name} question {i} about {word}"}) for i, word in enumerate(words)]
        (prompts / f"{name}.jsonl").write_text("\n".join(lines))
    return Roots(cases=tmp_path / "cases", models=models, demo=tmp_path / "demo", prompts=prompts)


def make(roots: Roots) -> Case:
    report = read_intake(json.dumps(REPORT), None)
    return create_case(roots, report.id or "", report, roots.models / "owner" / "tiny", None)


def test_only_folders_with_a_configuration_are_offered(roots: Roots) -> None:
    assert list_models(roots) == ["owner/tiny"]
    assert list_adapters(roots) == ["lora"]


@pytest.mark.parametrize("name", ["../secret", "owner/../../secret", "/etc", "owner/tiny/../../../secret"])
def test_a_model_outside_the_root_is_refused(roots: Roots, name: str) -> None:
    with pytest.raises(ModelLoadError, match="must lie under"):
        named_folder(roots, name, "model")


def test_a_link_out_of_the_root_is_refused(roots: Roots, tmp_path: Path) -> None:
    (roots.models / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelLoadError, match="must lie under"):
        named_folder(roots, "link", "model")


def test_a_missing_model_is_named(roots: Roots) -> None:
    with pytest.raises(ModelLoadError, match="no model folder owner/other"):
        named_folder(roots, "owner/other", "model")
    with pytest.raises(ModelLoadError, match="No model folder is chosen"):
        named_folder(roots, " ", "model")


def test_a_case_gets_a_plain_name_and_is_found_again(roots: Roots) -> None:
    case = make(roots)
    assert case.manifest.id.startswith("a-b-c-")
    assert find_case(roots, case.manifest.id).path == case.path
    assert make(roots).manifest.id != case.manifest.id  # the same second, another case
    assert set(list_cases(roots)) == {path.name for path in roots.cases.iterdir()}


@pytest.mark.parametrize("name", ["", None, "..", "../secret", "a/b", "a\\b", ".hidden", "a" * 200, "no-such-case"])
def test_a_case_id_is_a_plain_name(roots: Roots, name: str | None) -> None:
    make(roots)
    with pytest.raises(CaseFileError):
        find_case(roots, name)


def test_a_case_that_is_a_link_is_refused(roots: Roots, tmp_path: Path) -> None:
    case = make(roots)
    elsewhere = tmp_path / "elsewhere"
    case.path.rename(elsewhere)
    (roots.cases / "linked").symlink_to(elsewhere)
    with pytest.raises(CaseFileError, match="no case linked"):
        find_case(roots, "linked")


def test_a_demo_that_is_not_built_is_not_offered(roots: Roots) -> None:
    roots.demo.mkdir()
    entry = {"id": "phrase", "title": "T", "model": "base", "adapter": None, "report": "report.json"}
    (roots.demo / "cases.json").write_text(json.dumps([entry]))
    assert demo_cases(roots) == []
    (roots.demo / "base").mkdir()
    (roots.demo / "report.json").write_text(json.dumps(REPORT))
    assert [demo.id for demo in demo_cases(roots)] == ["phrase"]
    assert create_demo(roots, "phrase").report.response == "Step 1: [REDACTED]"
    with pytest.raises(CaseFileError, match="no such demo"):
        create_demo(roots, "other")


def test_nothing_pasted_is_said_plainly() -> None:
    with pytest.raises(ReportError, match="empty"):
        read_intake("  \n", None)
