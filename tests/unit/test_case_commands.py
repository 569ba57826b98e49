"""Commands about a case: settings by name, another round only where its decision holds, the device that was asked for."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import case_commands, jobs, rounds
from core.__main__ import main
from core.case_commands import _setting
from core.casefile import Case
from core.errors import TriageError
from core.event_log import EventLog
from core.events import RepairFinished, StageStarted
from core.repair_stages import settings_from
from core.serial import to_json
from core.settings import PAPER, RepairSettings
from tests.unit.test_casefile import make_case
from tests.unit.test_jobs import scored


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def test_help_is_for_users(capsys: pytest.CaptureFixture[str]) -> None:
    """No exception of the code, and no option that does nothing."""
    told = {}
    for command in ("", "stop", "triage", "plant", "confirm", "repair"):
        with pytest.raises(SystemExit):
            main([*filter(None, [command]), "--help"])
        told[command] = capsys.readouterr().out
    assert not [command for command, shown in told.items() if "Raises" in shown]
    assert [command for command, shown in told.items() if "--take-over" in shown] == ["triage", "confirm", "repair"]
    assert "--paper" in told["repair"]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("micro_batch_size=2", "micro_batch_size", 2),
        ("recompute=true", "recompute", True),
        ("kl_budget=null", "kl_budget", None),
        ("objective=paper", "objective", "paper"),
    ],
)
def test_any_setting_can_be_given_by_name(text: str, name: str, value: object) -> None:
    assert _setting(text) == (name, value)
    assert getattr(settings_from(RepairSettings, dict([_setting(text)])), name) == value


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("micro_batch_size", "NAME=VALUE"),
        ("resume=no", "--resume"),
        ("no_such=1", "no_such"),
        ("micro_batch_size=many", "many"),
        ("micro_batch_size=-1", "micro_batch_size"),
        ("epochs=0", "epochs"),
        ("epochs=2.7", "epochs"),
        ("early_stop=False", "early_stop"),
        ("recompute=[[1]]", "recompute"),
        ("max_grad_norm=NaN", "max_grad_norm"),
    ],
)
def test_what_is_no_setting_is_refused_in_a_sentence(text: str, word: str) -> None:
    with pytest.raises(TriageError, match=word) as refused:
        settings_from(RepairSettings, dict([_setting(text)]))
    assert "\n" not in str(refused.value)
    assert "changed by hand" not in str(refused.value)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who opened a round; the second opinion has found one candidate."""
    actors: list[str] = []
    monkeypatch.setattr(rounds, "found_again", lambda case: SimpleNamespace(candidates=["one"], verdict="BACKDOOR"))
    monkeypatch.setattr(rounds, "open_next", lambda case, actor: actors.append(actor))
    return actors


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--accept", "--candidate", "1", "--reason", "r"), "no candidate 1"),
        (("--spans", "[oops", "--reason", "r"), "not JSON"),
        (("--spans", "[]", "--reason", "r"), "No text is marked"),
        (("--spans", '[{"message": 0, "start": 0, "end": 9999}]', "--reason", "r"), "outside"),
        (("--accept", "--reason", " "), "reason"),
        (("--accept", "--reason", "r" * 10_001), "shorten"),
        (("--accept", "--reason", "\ud800"), "surrogate"),
        (("--dummy", "--reason", "r"), "--next-round"),
        (("--second", "--reason", "r"), "--next-round"),
    ],
)
def test_no_round_is_opened_for_a_decision_that_does_not_hold(
    case: Case, opened: list[str], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], word: str
) -> None:
    assert main(["confirm", "--case", str(case.path), "--next-round", "--analyst", "Ada", *arguments]) == 2
    assert word in capsys.readouterr().err
    assert opened == []


def test_a_round_is_opened_where_a_killed_run_left_its_request(
    case: Case, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing runs then; what a process works on still keeps the round shut."""
    monkeypatch.setattr(case_commands.confirmation, "confirm", lambda *_, **__: None)
    accept = ["confirm", "--case", str(case.path), "--next-round", "--accept", "--analyst", "Ada", "--reason", "r"]
    request = jobs.ask(case, "verify", start=False)
    EventLog(case.path).append(request, StageStarted(stage="verify"))
    with jobs.take_lock(case):
        assert main(accept) == 2
        assert "Something still runs" in capsys.readouterr().err
    assert main(accept) == 0
    assert opened == ["Ada"]


@pytest.mark.parametrize("command", ["repair", "verify", "report", "export"])
@pytest.mark.parametrize("given", ["cpu", None])
def test_a_case_can_be_worked_on_with_another_device_than_it_was_made_for(
    case: Case, command: str, given: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that was copied from a machine with a GPU, for example."""
    devices: list[str] = []

    def headless(device: str, *_: object) -> None:
        devices.append(device)
        raise TriageError("no model is loaded here: this is a test")

    monkeypatch.setattr(case_commands, "Headless", headless)
    out = ["--out", str(tmp_path / "out")] if command == "export" else []
    device = ["--device", given] if given else []
    assert main([command, "--case", str(case.path), *out, *device]) == 2
    assert devices == [given or "auto"]


def test_a_repair_that_is_resumed_keeps_the_settings_it_had(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint fits no others; what is given goes before them and before the paper's recipe, and a repair from the start has the defaults."""
    asked: list[dict[str, object]] = []

    def run(self: object, case: Case, stage: str, args: dict[str, object]) -> None:
        asked.append(args)
        raise TriageError("no model is loaded here: this is a test")

    monkeypatch.setattr(case_commands, "Headless", lambda *_: SimpleNamespace(run=partial(run, None)))
    repair = ["repair", "--case", str(case.path)]
    assert main([*repair, "--resume"]) == 2
    begun = jobs.ask(case, "repair", {"learning_rate": 3e-4, "kl_budget": None}, start=False)
    EventLog(case.path).append(begun, scored(2))
    jobs.ask(case, "repair", {"epochs": 3}, start=False)  # it never took a probe
    paper = ["--paper", "--kl-budget", "0.5"]
    for options in (["--resume"], ["--resume", "--lr", "1e-4", "--set", "kl_budget=0.2"], [], paper):
        assert main([*repair, *options]) == 2
    kept = {"learning_rate": 3e-4, "kl_budget": None, "resume": True}
    assert asked == [
        {"resume": True},
        kept,
        kept | {"learning_rate": 1e-4, "kl_budget": 0.2},
        {},
        PAPER | {"kl_budget": 0.5},
    ]


def test_a_repair_tells_how_it_ended_itself(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was discarded gives the one before back, whose file then stands."""
    before = RepairFinished(
        reason="finished", step=9, best_step=9, adapter="repair/best", adapter_hash="a", seconds=1.0, message="Done."
    )
    ended = replace(before, reason="discarded", step=2, best_step=None, adapter=None, adapter_hash=None)
    case.write(rounds.FINISHED, before)
    EventLog(case.path).append("before", before)

    def run(case: Case, *_: object) -> None:
        EventLog(case.path).append("now", ended)

    monkeypatch.setattr(case_commands, "Headless", lambda *_: SimpleNamespace(run=run))
    assert main(["repair", "--case", str(case.path)]) == 0
    assert json.loads(capsys.readouterr().out) == to_json(ended)
