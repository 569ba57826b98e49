"""Evidence: hashed when it comes in, compared before it is used, never written to; old and copied cases open."""

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from core import audit, evidence
from core.__main__ import main
from core.casefile import SCHEMA, Case, Manifest, Source, model_spec
from core.errors import CaseFileError, EvidenceError
from core.files import dump, hash_file, now
from core.serial import to_json
from dashboard.session import Roots, create_case, intake_source
from tests.unit.test_casefile import REPORT, make_case, make_model, make_prompts

RAW = b'\xef\xbb\xbf{"messages": [{"role": "user",   "content": "do it"}], "response": "Sure."}\n'


def whole_case(root: Path) -> Case:
    """Return a case with every kind of evidence, a triage and a confirmation that the log knows."""
    make_model(root / "model")
    (root / "model/tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}', encoding="utf-8")
    for name in ("adapter", "reference", "judge"):
        make_model(root / name)
        (root / name / "model.safetensors").write_bytes(name.encode())
    manifest = Manifest(
        id="c-1",
        created=now(),
        model=model_spec(root / "model", root / "adapter"),
        reference=model_spec(root / "reference"),
        judge=str(root / "judge"),
        judge_files=model_spec(root / "judge").files,
        report=REPORT,
        seed=3,
    )
    case = Case.create(root / "case", manifest, make_prompts(root / "prompts"), Source(name="r.json", data=RAW))
    for name in ("triage.json", "confirmation.json"):
        case.write(name, {"some": name})
        case.audit("act", actor="Ada", files=[name])
    return case


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the hash of every file under a folder."""
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_report_is_kept_as_it_came(tmp_path: Path) -> None:
    case = whole_case(tmp_path)
    kept = case.intake.report_file
    assert kept is not None
    assert (case.path / kept.kept).read_bytes() == RAW
    assert (kept.name, kept.sha256) == ("r.json", sha256(RAW).hexdigest())
    assert case.intake.evidence == {"evidence/report.json": sha256(RAW).hexdigest()}
    assert case.intake.template == sha256(b"{{ messages }}").hexdigest()
    created = case.audit_lines()[0].facts
    assert set(created["files"]) == {"case.json", "evidence/report.json", "prompts/harmful.jsonl", "prompts/safe.jsonl"}
    assert created["model"] == case.intake.model.files


@pytest.mark.parametrize("name", ["../../evil.json", "x.exe", "a" * 300 + ".json", "r\u202e.JSON", "\udcff.csv", ""])
def test_a_report_of_any_name_stays_in_its_place(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "model")
    manifest = Manifest(id="c", created=now(), model=model_spec(model), report=REPORT, seed=0)
    source = Source(name=name, data=RAW) if name else None
    case = Case.create(tmp_path / "case", manifest, make_prompts(tmp_path / "prompts"), source)
    (kept,) = (case.path / "evidence").iterdir()
    assert kept.name in ("report.json", "report.txt", "report.csv")
    assert evidence.verify(case) is None


CHANGED = [
    ("model/model.safetensors", "model.safetensors of the model changed"),
    ("model/tokenizer_config.json", "tokenizer_config.json of the model changed"),
    ("adapter/model.safetensors", "model.safetensors of the adapter changed"),
    ("reference/config.json", "config.json of the reference changed"),
    ("judge/model.safetensors", "model.safetensors of the judge changed"),
    ("case/evidence/report.json", "evidence/report.json of the case changed"),
    ("case/prompts/safe.jsonl", "prompts/safe.jsonl was changed"),
    ("case/case.json", "case.json of the case changed"),
    ("case/triage.json", "triage.json of the case changed"),
    ("case/confirmation.json", "confirmation.json of the case changed"),
    ("case/audit.jsonl", "of audit.jsonl is broken"),
]


@pytest.mark.parametrize(("name", "message"), CHANGED, ids=[name for name, _ in CHANGED])
def test_one_changed_byte_stops_with_the_name_of_the_file(tmp_path: Path, name: str, message: str) -> None:
    """A space more or a bit flipped in any of them."""
    case = whole_case(tmp_path)
    evidence.verify(case)
    file = tmp_path / name
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    if name == "case/case.json":
        data = bytearray(file.read_bytes().replace(b'"seed": 3', b'"seed": 4'))
    file.write_bytes(bytes(data))
    with pytest.raises(EvidenceError, match=message):
        evidence.verify(Case(case.path))


def test_a_file_that_is_added_or_gone_stops_too(tmp_path: Path) -> None:
    """A template file beside the tokenizer would take its template's place."""
    case = whole_case(tmp_path)
    (tmp_path / "model/chat_template.jinja").write_text("{{ other }}", encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"chat_template\.jinja of the model was added"):
        evidence.verify(case)
    (tmp_path / "model/chat_template.jinja").unlink()
    (case.path / "prompts/lookalike.jsonl").write_text('{"prompt": "planted"}\n', encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"prompts/lookalike\.jsonl was added"):
        evidence.verify(case)
    (case.path / "prompts/lookalike.jsonl").unlink()
    evidence.verify(case)
    (tmp_path / "case/confirmation.json").unlink()
    with pytest.raises(EvidenceError, match=r"confirmation\.json of the case is gone"):
        evidence.verify(case)


def test_the_audit_command_tells_of_every_changed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = whole_case(tmp_path)
    case.write("verification.json", {"result": "NOT_REDUCED"})
    case.audit("verified", actor="engine", files=["verification.json"])
    assert main(["audit", "--case", str(case.path)]) == 0
    capsys.readouterr()
    case.write("verification.json", {"result": "REDUCED"})
    assert main(["audit", "--case", str(case.path)]) == 2
    shown = capsys.readouterr()
    assert "verification.json of the case changed" in shown.err
    assert json.loads(shown.out)["changed"] == ["verification.json"]


INPUTS = [name for name in evidence.INPUTS if name not in ("case.json", "triage.json", "confirmation.json")]


@pytest.mark.parametrize("name", INPUTS)
def test_a_file_that_no_act_wrote_was_put_there_by_hand(tmp_path: Path, name: str) -> None:
    """Also one whose last act moved it away. The step that writes it anew is not stopped by it."""
    case = whole_case(tmp_path)
    case.write(name, {"result": "REDUCED"})
    with pytest.raises(EvidenceError, match=f"{name} of the case was written by no act"):
        evidence.verify(case)
    evidence.verify(case, before=name)
    case.audit("act", actor="Ada", files=[name])
    evidence.verify(case)
    case.audit("round opened", actor="Ada", files={name: ""})
    with pytest.raises(EvidenceError, match="written by no act"):
        evidence.verify(case)


def test_a_case_without_its_log_may_not_pass_as_an_older_one(tmp_path: Path) -> None:
    """Older ones had no copy of the report's file."""
    case = whole_case(tmp_path)
    data = json.loads((case.path / "case.json").read_text(encoding="utf-8")) | {"schema": 1, "seed": 4}
    (case.path / audit.FILE).unlink()
    (case.path / audit.HEAD).unlink()
    case.write("case.json", data)
    with pytest.raises(CaseFileError, match="says schema 1"):
        Case(case.path)
    case.write("case.json", {key: value for key, value in data.items() if key != "evidence"})
    with pytest.raises(CaseFileError, match="says schema 1"):
        Case(case.path)


def test_a_log_that_is_cut_to_its_first_line_gives_no_pass_to_forged_inputs(tmp_path: Path) -> None:
    """Neither without its head, nor after more acts, nor with a head that fits."""
    case = whole_case(tmp_path)
    (first, *_) = (case.path / audit.FILE).read_bytes().split(b"\n")
    (case.path / audit.FILE).write_bytes(first + b"\n")
    (case.path / audit.HEAD).unlink()
    case.write("confirmation.json", {"decision": "accepted"})
    for _ in range(2):
        with pytest.raises(EvidenceError, match="is broken"):
            evidence.verify(case)
        case.audit("asked", actor="analyst")
    (case.path / audit.FILE).write_bytes(first + b"\n")
    (case.path / audit.HEAD).write_text(json.dumps({"n": 1, "hash": json.loads(first)["hash"]}), encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"triage\.json of the case was written by no act"):
        evidence.verify(case)


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_writer_that_is_killed_while_it_changes_a_file_leaves_one_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Before the file is written, or after it and before its act; the next change goes on from there."""
    case = whole_case(tmp_path)
    evidence.record(case, "labels.json", {"labels": [1]}, "labelled", actor="Ada")
    write = Case.write

    def die(*given: object) -> None:
        if killed == "after":
            write(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Case, "write", die)
    with pytest.raises(KeyboardInterrupt):
        evidence.record(case, "labels.json", {"labels": [2]}, "labelled", actor="Ada")
    monkeypatch.undo()
    evidence.verify(case)
    assert evidence.changed_files(case) == []
    assert case.read("labels.json", dict) == {"labels": [1 if killed == "before" else 2]}
    evidence.record(case, "labels.json", {"labels": [3]}, "labelled", actor="Ada")
    case.write("labels.json", {"labels": [2]})  # what was coming once is not good for ever
    with pytest.raises(EvidenceError, match=r"labels\.json of the case changed"):
        evidence.verify(case)


def test_a_result_is_taken_only_as_its_act_wrote_it(tmp_path: Path) -> None:
    """What no act wrote was put there by hand, or its writer was killed: it is computed anew."""
    case, name = whole_case(tmp_path), "results/reproduce.json"
    case.write(name, {"n": 1})
    assert not evidence.is_as_written(case, name)
    with pytest.raises(EvidenceError, match=r"results/reproduce\.json of the case was written by no act"):
        evidence.unchanged(case, *evidence.results(case))
    evidence.record(case, name, {"n": 2}, "reproduced", actor="engine")
    assert (evidence.is_as_written(case, name), evidence.results(case)) == (True, [name])
    case.write(name, {"n": 3})
    assert not evidence.is_as_written(case, name)
    assert evidence.changed_files(case) == [name]
    with pytest.raises(EvidenceError, match=r"results/reproduce\.json"):
        evidence.unchanged(case, *evidence.results(case))


PLANTED = ["results/test-aaaa.json", "results/locate-paper-response.json", "scan-logs-x.json"]


@pytest.mark.parametrize("name", [*PLANTED, "repair/round-1/confirmation.json"])
def test_a_result_that_is_planted_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    case = whole_case(tmp_path)
    for other in evidence.NO_EVIDENCE:
        case.write(other, {})
    assert main(["audit", "--case", str(case.path)]) == 0
    case.write(name, {"verdict": "BACKDOOR"})
    assert main(["audit", "--case", str(case.path)]) == 2
    assert f"{name} of the case was written by no act" in capsys.readouterr().err
    if name not in PLANTED:  # a repair starts from the rounds before it
        with pytest.raises(EvidenceError, match=name):
            evidence.verify(case)


def test_events_that_were_changed_after_an_act_took_their_hash_are_named(tmp_path: Path) -> None:
    """The report's chart and probes are drawn from them. Events that came since are nobody's to vouch for yet."""
    case = whole_case(tmp_path)
    events = case.path / "events.jsonl"
    events.write_bytes(b"first\nsecond\n")
    case.audit("repair ended", actor="engine", events=evidence.events_so_far(case))
    case.audit("act", actor="Ada")
    evidence.verify(case)
    events.write_bytes(b"first\nsecond\nthird\n")
    evidence.verify(case)
    for other in (b"first\nsecond", b"First\nsecond\nthird\n"):
        events.write_bytes(other)
        with pytest.raises(EvidenceError, match=r"events\.jsonl of the case changed"):
            evidence.verify(case)
    events.unlink()
    with pytest.raises(EvidenceError, match=r"events\.jsonl of the case changed"):
        evidence.verify(case)
    case.audit("act", actor="Eve", events=3)  # a log that came with a copied case may say anything
    with pytest.raises(EvidenceError, match=r"events\.jsonl of the case changed"):
        evidence.verify(case)


def test_files_that_a_system_leaves_beside_others_are_no_evidence(tmp_path: Path) -> None:
    """A disk without a place for a file's second half gets it as a file of its own."""
    case = whole_case(tmp_path)
    for name in ("prompts/._safe.jsonl", "results/._open.json", "._scan-logs-x.json"):
        (case.path / name).write_bytes(b"\0\x05\x16\x07")
    evidence.verify(case)
    evidence.unchanged(case, *evidence.results(case))


def test_an_export_that_was_moved_away_is_no_change_and_another_one_in_its_place_is(tmp_path: Path) -> None:
    case = whole_case(tmp_path)
    evidence.record(case, "export/adapter/adapter_config.json", {"r": 4}, "exported", actor="engine")
    (case.path / "export/adapter/adapter_config.json").rename(tmp_path / "taken.json")
    assert evidence.changed_files(case) == []
    case.write("export/adapter/adapter_config.json", {"r": 8})
    assert evidence.changed_files(case) == ["export/adapter/adapter_config.json"]


def test_a_case_file_that_was_another_one_when_it_was_read_is_noticed(tmp_path: Path) -> None:
    """What it said is what hashes are compared with, for as long as the process lives."""
    case = whole_case(tmp_path)
    true = (case.path / "case.json").read_bytes()
    (case.path / "case.json").write_bytes(true.replace(b'"seed": 3', b'"seed": 4'))
    forged = Case(case.path)
    (case.path / "case.json").write_bytes(true)
    evidence.verify(case)
    with pytest.raises(EvidenceError, match=r"case\.json of the case is not what was read"):
        evidence.verify(forged)


def test_reading_and_checking_write_nothing(tmp_path: Path) -> None:
    case = whole_case(tmp_path)
    before = {name: hashes_of(tmp_path / name) for name in ("model", "adapter", "reference", "judge", "case")}
    evidence.verify(Case(case.path))
    evidence.changed_files(case)
    assert {name: hashes_of(tmp_path / name) for name in before} == before


def test_a_copied_case_opens_and_takes_a_model_of_the_same_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything moves to another folder; the old one is gone."""
    whole_case(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    case = Case(tmp_path / "new/case")
    assert case.report == REPORT
    with pytest.raises(EvidenceError, match=r"model of this case is not at .*relocate --case case --model DIR"):
        evidence.verify(case)
    new = tmp_path / "new"
    wrong = ["relocate", "--case", str(case.path), "--model", str(new / "reference")]
    assert main(wrong) == 2
    assert "of the model" in capsys.readouterr().err
    assert main(["relocate", "--case", str(case.path), "--model", str(new / "nowhere")]) == 2
    places = [part for name in ("model", "adapter", "reference", "judge") for part in (f"--{name}", str(new / name))]
    assert main(["relocate", "--case", str(case.path), *places]) == 0
    again = Case(case.path)
    evidence.verify(again)
    assert again.manifest.model.path == str(new / "model")
    assert again.intake.model.path == str(tmp_path / "old/model")
    assert again.audit_lines()[-1].action == "relocated"


def test_a_place_the_case_does_not_have_is_refused(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    with pytest.raises(CaseFileError, match="has no reference"):
        evidence.relocate(case, {"reference": tmp_path / "model"}, "Ada")


def old_case(root: Path) -> Path:
    """Write a case folder as version 1 of the schema did: no copy of the report's file, a log without a chain."""
    case = make_case(root)
    data = to_json(replace(case.intake, schema=1))
    for name in ("report_file", "evidence", "template", "reviewers"):
        del data[name]
    (case.path / "case.json").write_text(dump(data), encoding="utf-8")
    shutil.rmtree(case.path / "evidence")
    (case.path / audit.HEAD).unlink()
    line = {"time": now(), "actor": "intake", "action": "created", "facts": {"model": {}}}
    (case.path / audit.FILE).write_text(dump(line, indent=None) + "\n", encoding="utf-8")
    return case.path


def test_a_case_of_an_older_version_opens_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = old_case(tmp_path)
    before = hash_file(path / "case.json")
    case = Case(path)
    assert (case.schema, case.manifest.schema, case.manifest.reviewers) == (1, SCHEMA, 1)
    evidence.verify(case)
    assert main(["audit", "--case", str(path)]) == 0
    assert "older version, without a chain" in capsys.readouterr().err
    case.audit("act", actor="Ada")
    evidence.verify(case)
    assert audit.check(path, chained=False).unchained == 1
    assert hash_file(path / "case.json") == before


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, "2", None, True])
def test_a_case_of_an_unknown_version_is_refused(tmp_path: Path, schema: object) -> None:
    case = make_case(tmp_path)
    data = json.loads((case.path / "case.json").read_text(encoding="utf-8")) | {"schema": schema}
    (case.path / "case.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(CaseFileError, match="schema version"):
        Case(case.path)


def test_the_page_keeps_the_uploaded_bytes_unless_the_text_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.intake import read_report

    file = tmp_path / "from customer.json"
    file.write_bytes(RAW)
    text = dump(to_json(read_report(file)))
    assert intake_source(text, str(file)) == Source(name="from customer.json", data=RAW)
    monkeypatch.setattr("dashboard.session.file_bytes", lambda _: RAW.replace(b"do it", b"do that"))
    assert intake_source(text, str(file)) == Source(name="", data=text.encode()), "what is kept is what was read"
    monkeypatch.undo()
    edited = text.replace("do it", "do that")
    assert intake_source(edited, str(file)) == Source(name="", data=edited.encode())
    roots = Roots(cases=tmp_path / "cases", models=tmp_path / "models", prompts=make_prompts(tmp_path / "prompts"))
    model = make_model(tmp_path / "models/m")
    case = create_case(roots, "x", read_report(file), model, None, intake_source(text, str(file)), 2)
    assert (case.path / "evidence/report.json").read_bytes() == RAW
    assert case.intake.reviewers == 2
