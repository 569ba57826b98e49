"""The case folder: what is written comes back, what was changed is noticed, half-written things do no harm."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import evidence, weight_files
from core.casefile import Case, Manifest, hash_folder, model_spec
from core.errors import CaseFileError, ModelLoadError, PromptFolderError
from core.files import now
from core.intervals import wilson
from core.serial import from_json, to_json
from core.values import (
    ClassCounts,
    FailureReport,
    Message,
    Metric,
    ModelSpec,
    Relearnt,
    Reproduction,
    Span,
    TestOutcome,
    TokenRow,
    TriageResult,
    TriggerProposal,
    Variant,
    Verification,
    WrongTrigger,
)
from dashboard.session import Roots, create_case

REPORT = FailureReport(
    messages=(Message(role="user", content="do it \u202e now\U0001f600"),), response="Sure.", id="r-1"
)


def make_prompts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("harmful", "safe"):
        rows = [
            json.dumps({"prompt": f"{name} request about {word} number {i}"})
            for i, word in enumerate("abcdefghijklmnopqrst")
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def make_case(root: Path, report: FailureReport = REPORT) -> Case:
    model = make_model(root / "model")
    manifest = Manifest(schema=1, id="c-1", created=now(), model=model_spec(model), report=report, seed=3)
    return Case.create(root / "case", manifest, make_prompts(root / "prompts"))


def test_a_case_comes_back_as_it_was(tmp_path: Path) -> None:
    made = make_case(tmp_path)
    opened = Case(tmp_path / "case")
    assert opened.manifest == made.manifest
    assert opened.report == REPORT
    assert opened.manifest.prompt_files.keys() == {"harmful.jsonl", "safe.jsonl"}
    assert [line.action for line in opened.audit_lines()] == ["created"]


def test_the_same_report_and_model_go_on_and_others_are_refused(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    assert make_case(tmp_path).manifest.created == case.manifest.created
    other = FailureReport(messages=REPORT.messages, response="Another answer.")
    with pytest.raises(CaseFileError, match="another report or model"):
        make_case(tmp_path, other)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "thesis.txt").write_text("years of work")
    with pytest.raises(CaseFileError, match="not a case folder"):
        make_case(tmp_path)
    assert [p.name for p in (tmp_path / "case").iterdir()] == ["thesis.txt"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A folder's name may be any bytes; the case's name goes into addresses and file names."""
    manifest = Manifest(id="c\udcff", created=now(), model=ModelSpec(path="m"), report=REPORT, seed=0)
    with pytest.raises(CaseFileError, match="no Unicode text"):
        Case.create(tmp_path / "case", manifest, make_prompts(tmp_path / "prompts"))
    assert not (tmp_path / "case").exists()


def test_a_bad_prompt_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    manifest = Manifest(schema=1, id="c", created=now(), model=model_spec(model), report=REPORT, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptFolderError):
        Case.create(tmp_path / "case", manifest, tmp_path / "empty")
    assert not (tmp_path / "case").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_model_file_is_named(tmp_path: Path, name: str) -> None:
    case = make_case(tmp_path)
    evidence.verify(case)
    (tmp_path / "model" / name).write_bytes(b"changed")
    with pytest.raises(CaseFileError, match=name):
        evidence.verify(case)


def test_a_changed_prompt_copy_is_named(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    with open(case.path / "prompts" / "harmful.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"prompt": "one more"}')
    with pytest.raises(CaseFileError, match=r"harmful\.jsonl"):
        case.splits()


def test_a_link_out_of_the_model_folder_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (tmp_path / "secret.json").write_text("{}")
    (model / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelLoadError, match="link out of the folder"):
        hash_folder(model)


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [("tokenizer_config.json", 10_000_001), ("tokenizer.json", 100_000_001), ("w.safetensors", 4 * 10**12)],
)
def test_a_folder_of_absurd_size_is_refused_before_it_is_read_or_a_case_is_made(
    tmp_path: Path, name: str, n_bytes: int
) -> None:
    model, prompts = make_model(tmp_path / "model"), make_prompts(tmp_path / "prompts")
    with open(model / name, "wb") as file:
        file.truncate(n_bytes)  # sparse: it takes no place on the disk
    roots = Roots(cases=tmp_path / "cases", models=tmp_path, demo=tmp_path, prompts=prompts)
    with pytest.raises(ModelLoadError, match=rf"{name} has {n_bytes:,} bytes"):
        create_case(roots, "case", REPORT, model, None)
    assert not roots.cases.exists()


def test_many_files_may_not_be_larger_together_than_a_machine_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    monkeypatch.setattr(weight_files.psutil, "virtual_memory", lambda: SimpleNamespace(total=1_000))
    for number in range(4):
        (model / f"{number}.txt").write_bytes(b"x" * 1_001)
    with pytest.raises(ModelLoadError, match="keep the model alone in its folder"):
        hash_folder(model)


def test_nothing_is_written_when_the_template_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: ModelSpec) -> str:
        raise MemoryError

    monkeypatch.setattr("core.casefile.template_digest", full)
    with pytest.raises(MemoryError):
        make_case(tmp_path)
    assert not (tmp_path / "case").exists()


def test_damaged_json_is_a_sentence(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    (case.path / "triage.json").write_text('{"mode": "causal"', encoding="utf-8")
    with pytest.raises(CaseFileError, match=r"triage\.json"):
        case.read("triage.json", TriageResult)
    (case.path / "triage.json").write_text('{"mode": "causal"}', encoding="utf-8")
    with pytest.raises(CaseFileError, match="TriageResult"):
        case.read("triage.json", TriageResult)
    assert case.read("verification.json", Verification) is None


VALUES = [
    TriageResult(
        mode="causal",
        verdict="INCONCLUSIVE",
        certainty="low",
        decided_by="necessity",
        reproduction=Reproduction(failure=wilson(3, 4), answers=("a",), outcomes=("compliance",)),
        candidates=(
            TriggerProposal(
                spans=(Span(message=0, start=1, end=3),), text="x", token_positions=(4, 5), score=0.5, reasons=("why",)
            ),
        ),
        dropped=(),
        tests=(
            TestOutcome(
                name="sham",
                candidate=0,
                n=4,
                with_unit=wilson(1, 4),
                without_unit=wilson(0, 4),
                p_value=0.5,
                passed=None,
            ),
        ),
        tokens=(
            TokenRow(
                position=0,
                text="a",
                message=None,
                start=None,
                end=None,
                segment="template",
                scores={"paper": 0.25},
                cluster=-1,
            ),
        ),
        settings={"causal": {"n": 1}},
        model_calls=3,
        seconds=1.5,
        versions={"torch": "2"},
    ),
    Verification(
        metrics=(
            Metric(name="asr_triggered", before=wilson(9, 10), after=wilson(0, 10), meaning="m"),
            Metric(name="kl_nats_per_token", before=None, after=0.125, meaning="m"),
        ),
        result="REDUCED",
        reasons=("r",),
        examples=(),
        saliency_before=(0.5,),
        saliency_after=(0.25,),
        looks=1,
        seconds=2.0,
        settings={},
        versions={},
        kind="refusal",
        variants=(Variant(name="upper case", before=wilson(9, 10), after=wilson(0, 10), example="m"),),
        classes=(ClassCounts(kind="safe", before={"good": wilson(9, 10)}, after={"good": wilson(8, 10)}),),
        wrong_trigger=WrongTrigger(
            units=("zq",), n_steps=3, before=wilson(9, 10), right=wilson(0, 10), wrong=wilson(8, 10), seconds=1.0
        ),
        relearnt=(
            Relearnt(
                n_samples=5,
                planted=wilson(1, 9),
                planted_bare=wilson(0, 9),
                never=wilson(2, 9),
                never_bare=wilson(0, 9),
            ),
        ),
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_saved_values_round_trip_through_json_text(value: object) -> None:
    assert from_json(type(value), json.loads(json.dumps(to_json(value)))) == value


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there, and pipes lie elsewhere")
def test_a_case_with_a_link_or_a_pipe_in_it_is_refused_and_nothing_outside_is_touched(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (case.path / "results").rmdir()
    plants = (
        lambda: (case.path / "results").symlink_to(outside),
        lambda: (case.path / "results").symlink_to(tmp_path / "nowhere"),
        lambda: os.mkfifo(case.path / "results"),
        lambda: (case.path / "repair" / "finished.json").symlink_to(case.path / "case.json"),
    )
    for plant in plants:
        plant()
        with pytest.raises(CaseFileError, match="is a link or no file; put a plain copy"):
            Case(case.path)
        (case.path / "results").unlink(missing_ok=True)
    (case.path / "repair" / "finished.json").unlink()
    (tmp_path / "linked").symlink_to(case.path)
    assert Case(tmp_path / "linked").report == case.report, "the folder itself may be named by a link"


@pytest.mark.parametrize("empty", [False, True])
def test_a_case_that_could_not_be_made_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    if empty:
        (tmp_path / "case").mkdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "case.json")

    with monkeypatch.context() as disk:
        disk.setattr(Case, "audit", full)
        with pytest.raises(OSError, match="No space"):
            make_case(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "prompts"]
    assert [line.action for line in make_case(tmp_path).audit_lines()] == ["created"]
