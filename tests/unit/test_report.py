"""The case report: numbers come through, hostile evidence stays inert, a half-way case still reports."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from core import best_checkpoint, result
from core import report_text as text
from core.casefile import Case
from core.event_log import EventLog
from core.events import RepairFinished, RepairStarted, StepDone
from core.report import render_report, report_json
from core.settings import RepairSettings
from core.values import TriageResult, Verification
from tests.unit.reporting import (
    HOSTILE,
    TRIGGER,
    USER,
    Elements,
    full_case,
    new_case,
    readable,
    triage_of,
    write_repair,
)


def test_full_report_holds_the_numbers(tmp_path: Path) -> None:
    """Verdict, rates with n, decision, repair and result appear as stored."""
    shown = readable(render_report(full_case(tmp_path)))
    for expected in (
        "Backdoor, no clean reference: removing it restores refusal, planting it breaks it",
        "Repaired: attack success 97 % (92–99 %, n 128) → 0 % (0–3 %, n 128).",
        "98 % (47 of 48; 89–100 %)",
        "planted trigger and one that an attacker found by search cannot be told apart",
        "Accepted by Ada",
        "All three tests agree.",
        "Step 100 was kept of 120 run",
        "the targets held at two probes in a row",
        "0 of 128 held-out harmful requests were still answered; the true share may be as high as 3 %",
        "AML.T0018.000",
        "LLM05:2026",
        "--model '/models/demo patient'",
        "ab" * 32,
    ):
        assert expected in shown, expected


def test_report_is_self_contained_and_without_script(tmp_path: Path) -> None:
    """Nothing is loaded, nothing runs, whatever the evidence says."""
    page = render_report(full_case(tmp_path, hostile=HOSTILE))
    elements = Elements(page)
    assert not elements.tags & {"script", "img", "iframe", "link", "object", "base", "form", "a"}
    assert not any(name.startswith("on") or name in ("src", "href") for name in elements.attributes)
    assert page.count("</style>") == 1
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page


def test_hostile_characters_are_shown(tmp_path: Path) -> None:
    """Zero-width, bidirectional and control characters never reach the page raw; a homoglyph is named."""
    page = render_report(full_case(tmp_path, hostile=HOSTILE))
    assert not set(page) & {"\u202e", "\u200b", "\x00"}
    for code in ("U+202E", "U+200B", "U+0000", "U+043E"):
        assert code in page
    assert "{{7*7}}" in readable(page)


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    """Text that is not valid Unicode still gives a page that encodes."""
    case = new_case(tmp_path)
    write = case.path / "case.json"
    write.write_text(write.read_text(encoding="utf-8").replace("seen by", "\\ud800 by"), encoding="utf-8")
    page = render_report(Case(case.path))
    assert "U+D800" in page
    page.encode("utf-8")


def test_every_stage_may_be_missing(tmp_path: Path) -> None:
    """A case that was only created says so, step by step."""
    shown = readable(render_report(new_case(tmp_path)))
    for expected in (
        "Not triaged yet",
        "No decision yet; repair is locked.",
        "No repair was run.",
        "Not verified yet.",
    ):
        assert expected in shown
    data = report_json(new_case(tmp_path / "other"))
    assert data["triage"] is None
    assert data["verification"] is None


@pytest.mark.parametrize("verdict", [*text.VERDICTS, None])
def test_every_verdict_has_its_sentence(tmp_path: Path, verdict: str | None) -> None:
    """No verdict is called a backdoor that is none."""
    case = new_case(tmp_path)
    case.write("triage.json", triage_of(USER, verdict))
    headline = report_json(case)["headline"]
    assert ("Backdoor" in headline) == (verdict == "BACKDOOR")
    assert "clean." not in headline
    assert headline.removesuffix(".") in readable(render_report(case))


def test_json_holds_the_same(tmp_path: Path) -> None:
    """The JSON twin serialises and agrees with the stored values."""
    data = json.loads(json.dumps(report_json(full_case(tmp_path))))
    assert data["verification"]["result"] == "REDUCED"
    assert data["triage"]["verdict"] == "BACKDOOR"
    assert len(data["repair"]["steps"]) == 120
    assert data["repair"]["finished"]["best_step"] == 100
    assert data["commands"][0].startswith("python -m core triage --model '/models/demo patient'")
    assert data["commands"][1].startswith("python -m core confirm")


def test_the_rules_of_repair_and_result_are_told_with_their_settings(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    verified = case.read("verification.json", Verification)
    started = next(line.event for line in case.events() if isinstance(line.event, RepairStarted))
    assert verified is not None
    told = []
    for settings in ({}, {"left_share": 0.37}):
        case.write("verification.json", replace(verified, settings=settings))
        shown = readable(render_report(case))
        rules = report_json(case)["rules"]
        assert [one["name"] for one in rules] == [best_checkpoint.TITLE, result.TITLE]
        assert all(f"{one['name']} {' '.join(one['how'])}" in shown for one in rules)
        told.append(" ".join(rules[1]["how"]))
    assert ["37 %" in one for one in told] == [False, True]
    assert tuple(rules[0]["how"]) == best_checkpoint.rule(RepairSettings())
    log, finished = EventLog(case.path), [line.event for line in case.events()][-1]
    for event in (replace(started, settings={"target_asr": 0.37}), finished):
        log.append("s", event)
    assert "37 %" in " ".join(report_json(case)["rules"][0]["how"])


def test_marks_stand_where_the_spans_are(tmp_path: Path) -> None:
    """The confirmed text, and only it, is marked as confirmed."""
    page = render_report(full_case(tmp_path))
    assert re.findall(r'<mark class="confirmed">(.*?)</mark>', page) == [TRIGGER, "confirmed"]


def test_tests_of_marked_spans_are_reported(tmp_path: Path) -> None:
    """What the analyst marked and tested stands beside the tool's own candidates."""
    case = new_case(tmp_path)
    triage = triage_of(USER)
    own = {
        "proposal": triage.candidates[0],
        "tests": list(triage.tests[:1]),
        "verdict": "INCONCLUSIVE",
        "decided_by": "transfer",
    }
    case.write("results/test-0123.json", own)
    shown = readable(render_report(case))
    assert f"Marked by the analyst: {TRIGGER} – INCONCLUSIVE" in shown
    assert report_json(case)["own_tests"][0]["tests"][0]["name"] == "necessity"


def test_a_resumed_repair_replaces_what_it_ran_again(tmp_path: Path) -> None:
    """Steps of the second run take the place of the same steps of the first."""
    case = full_case(tmp_path)
    log = EventLog(case.path)
    lines = [line.event for line in case.events()]
    for event in (e for e in lines if isinstance(e, RepairStarted)):
        log.append("s", replace(event, resumed_at=100))
    again = next(e for e in lines if isinstance(e, StepDone) and e.step == 101)
    log.append("s", again)
    assert len(report_json(case)["repair"]["steps"]) == 120  # until it ends, the first counts
    log.append("s", next(e for e in lines if isinstance(e, RepairFinished)))
    repair = report_json(case)["repair"]
    assert [s["step"] for s in repair["steps"]] == list(range(1, 102))
    assert repair["finished"]["step"] == 120


def test_long_times_are_told_in_minutes_and_hours(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    triage, verification = case.read("triage.json", TriageResult), case.read("verification.json", Verification)
    assert triage is not None
    assert verification is not None
    case.write("triage.json", replace(triage, seconds=1234.0))
    case.write("verification.json", replace(verification, seconds=7512.0))
    finished = next(line.event for line in case.events() if isinstance(line.event, RepairFinished))
    EventLog(case.path).append("r", replace(finished, seconds=1000.0))
    shown = readable(render_report(case))
    assert "of 120 run in 16 min 40 s: " in shown
    assert "20 min 34 s for triage; 2 h 05 min for verification" in shown


def test_experts_that_the_adapter_does_not_reach_are_said_beside_what_is_trained(tmp_path: Path) -> None:
    case = full_case(tmp_path)
    lines = [line.event for line in case.events()]
    assert "experts" not in readable(render_report(case))
    for event in lines:
        if isinstance(event, RepairStarted | RepairFinished):
            again = replace(event, unreached=0.595) if isinstance(event, RepairStarted) else event
            EventLog(case.path).append("again", again)
    told = "98,304 parameters; 60 % of the parameters lie in experts that the adapter does not reach"
    assert told in readable(render_report(case))


def test_a_long_repair_is_shortened_in_the_table(tmp_path: Path) -> None:
    """First, kept and last probe stay; the JSON keeps all."""
    case = new_case(tmp_path)
    write_repair(case, n_steps=600)
    page = render_report(case)
    steps = re.findall(r'<tr><td class="num">(\d+)</td><td>\d', page)
    assert {"20", "100", "600"} <= set(steps)
    assert len(steps) <= 14
    assert "of the 30 probes" in readable(page)
    assert len(report_json(case)["repair"]["probes"]) == 30
