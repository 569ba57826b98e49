"""Rounds of repair: files are kept apart, the log knows where they went, and no round starts on what another left unsure."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import (
    after_repair,
    again,
    chat,
    confirmation,
    evidence,
    repair_stages,
    residual_probes,
    rounds,
    verification,
)
from core.__main__ import main, parser, writing
from core.case_view import gather
from core.casefile import Case, hash_folder
from core.errors import EvidenceError, TriageError
from core.event_log import EventLog
from core.events import RepairFinished
from core.files import hash_file
from core.intervals import wilson
from core.repair_stages import repaired_adapter
from core.repair_trace import RepairTrace
from core.report import render_report, report_json
from core.values import (
    FailureReport,
    Message,
    Reproduction,
    SecondOpinion,
    Span,
    TriageResult,
    TriggerConfirmation,
    Verification,
)
from dashboard import stories
from tests.unit.reporting import readable, triage_of, verification_of, with_residual
from tests.unit.test_confirmation import AFF, CFF, case  # noqa: F401  (the fixture)
from tests.unit.test_figures import STARTED, step
from tests.unit.test_repair_trace import lines


def repaired(one: Case, *, older: bool = False) -> RepairFinished:
    """Confirm the proposal and leave an adapter as a repair would, or as an `older` version would log it."""
    accepted = confirmation.confirm(one, decision="accept", analyst="Ada", reason="tests agree")
    one.audit(
        "repair started", actor="engine", **({} if older else rounds.identity(accepted) | {"settings": {"epochs": 3}})
    )
    weights = one.path / "repair/best/adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights of round 1")
    (weights.parent / "adapter_config.json").write_text('{"lora_alpha": 64}', encoding="utf-8")
    finished = RepairFinished(
        reason="finished",
        step=3,
        best_step=3,
        adapter="repair/best",
        adapter_hash=hash_file(weights),
        seconds=1.0,
        message="",
    )
    one.write(rounds.FINISHED, finished)
    left = {} if older else {"adapter_files": hash_folder(weights.parent)}
    one.audit("repair ended", actor="engine", adapter=finished.adapter_hash, **left, files=[rounds.FINISHED])
    return finished


def asked_again(
    one: Case, verdict: str, adapter_hash: str | None, span: Span = CFF, failing: int | None = None
) -> TriageResult:
    """Store a second opinion that found the text of `span`, on a report that fails in `failing` of 16 answers."""
    found = one.read("triage.json", TriageResult)
    assert found is not None
    other = replace(found.candidates[0], text="found", spans=(span,))
    told = reproduced(failing) if failing is not None else found.reproduction
    whole = replace(found, verdict=verdict, candidates=(other,), reproduction=told)  # type: ignore[arg-type]
    one.write(rounds.AGAIN, SecondOpinion(adapter_hash=adapter_hash or "", removed=("aff",), whole=whole, rest=None))
    one.audit("second opinion", actor="engine", files=[rounds.AGAIN])
    return whole


def test_the_next_round_keeps_the_files_of_the_last_and_confirms_nothing(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    whole = asked_again(case, "BACKDOOR", finished.adapter_hash)
    assert (rounds.number(case), rounds.start(case), rounds.earlier(case)) == (1, None, [])
    assert rounds.open_next(case, "Ada") == 2
    assert case.read("triage.json", TriageResult) == whole
    assert confirmation.stored(case) is None
    assert confirmation.validity(case) is not None  # repair is locked again
    assert not (case.path / rounds.FINISHED).exists()
    assert rounds.opinion(case) is None
    kept = case.path / "repair/round-1"
    assert {path.name for path in kept.iterdir()} == {
        "best",
        "triage.json",
        "confirmation.json",
        "finished.json",
        "again.json",
    }
    assert rounds.start(case) == kept / "best"
    assert [one.units for one in rounds.earlier(case)] == [("aff",)]
    assert [(one.number, one.result) for one in rounds.ended(case)] == [(1, None)]
    recorded = evidence.recorded_files(case)  # what was moved is looked for where it is
    assert rounds.FINISHED not in recorded
    assert recorded["repair/round-1/finished.json"] == hash_file(kept / "finished.json")
    assert evidence.changed_files(case) == []
    taken = confirmation.confirm(case, decision="accept", analyst="Ada", reason="second opinion")
    assert taken.units == ("cff",)
    assert isinstance(case.read("confirmation.json", TriggerConfirmation), TriggerConfirmation)


def begun(one: Case, weights: bytes) -> None:
    """Begin another repair, as far as its first better adapter."""
    rounds.set_aside(one)
    shutil.rmtree(one.path / rounds.BEST, ignore_errors=True)
    (one.path / rounds.BEST).mkdir()
    (one.path / rounds.BEST / "adapter_model.safetensors").write_bytes(weights)
    told = rounds.identity(confirmation.stored(one))  # type: ignore[arg-type]
    one.audit("repair started", actor="engine", settings={"epochs": 9}, **told)


def test_a_repair_counts_until_another_has_left_an_adapter(case: Case) -> None:  # noqa: F811
    """One that is aborted gives it back; one that broke off leaves it where it counts, and so does the next that is begun."""
    assert not rounds.put_back(case)
    finished = repaired(case)
    best, aside = case.path / rounds.BEST, case.path / rounds.ASIDE
    there = hash_folder(best)
    for weights in (b"half", b"of another"):  # the first of them broke off
        begun(case, weights)
        assert repaired_adapter(case) == (finished, aside)
        assert rounds.changed_adapter(case) is None
    assert rounds.put_back(case)
    case.audit("repair ended", actor="engine", reason="discarded", adapter=None, adapter_files={})
    assert repaired_adapter(case) == (finished, best)
    assert rounds.settings(case, finished) == {"epochs": 3}
    assert (hash_folder(best), rounds.changed_adapter(case), aside.exists()) == (there, None, False)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_changed_adapter_that_counts_is_named_after_another_repair_broke_off(case: Case, name: str) -> None:  # noqa: F811
    """Older versions put none aside: there nothing can be said."""
    repaired(case)
    begun(case, b"half")
    assert rounds.changed_adapter(case) is None
    (case.path / rounds.ASIDE / name).write_bytes(b"other")
    assert rounds.changed_adapter(case) == rounds.ASIDE
    shutil.rmtree(case.path / rounds.ASIDE)
    assert rounds.changed_adapter(case) is None


def going_on(one: Case) -> None:
    """Leave what a repair that is at work goes on from."""
    for name in ("checkpoint-000002", ".checkpoint-000004.tmp", "dummy"):
        (one.path / "repair" / name).mkdir()
        (one.path / "repair" / name / "adapter.safetensors").write_bytes(b"half")
    (one.path / "repair/teacher-1.tmp").write_bytes(b"states")


def test_a_repair_that_is_gone_is_discarded_and_gives_the_one_before_back(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    best = case.path / rounds.BEST
    there = hash_folder(best)
    assert not rounds.under_way(case)
    begun(case, b"half")
    going_on(case)
    assert rounds.under_way(case)
    for _ in range(2):  # the second time as after a kill before its act
        rounds.discard(case, 3)
        assert repaired_adapter(case) == (finished, best)
        assert {path.name for path in best.parent.iterdir()} == {"best", "finished.json"}
        assert (hash_folder(best), rounds.changed_adapter(case), rounds.under_way(case)) == (there, None, False)
        assert evidence.changed_files(case) == []
        evidence.unchanged(case, *evidence.INPUTS)
        evidence.verify_events(case)


def test_of_a_first_repair_that_is_discarded_nothing_is_left(case: Case) -> None:  # noqa: F811
    confirmation.confirm(case, decision="accept", analyst="Ada", reason="tests agree")
    (case.path / "repair").mkdir(exist_ok=True)
    begun(case, b"half")
    going_on(case)
    rounds.discard(case, 3)
    assert list((case.path / "repair").iterdir()) == []


def test_a_round_ends_with_the_adapter_that_counts(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    begun(case, b"half")
    assert rounds.open_next(case, "Ada") == 2
    assert rounds.start(case) == case.path / "repair/round-1/best"
    assert [one.settings for one in rounds.ended(case)] == [{"epochs": 3}]
    assert [path.name for path in (case.path / "repair").iterdir()] == ["round-1"]


def test_a_round_does_not_end_with_an_adapter_that_changed(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    (case.path / rounds.BEST / "adapter_model.safetensors").write_bytes(b"other weights")
    rounds.set_aside(case)
    assert not (case.path / rounds.ASIDE).exists()
    with pytest.raises(EvidenceError, match="does not hold the adapter"):
        rounds.open_next(case, "Ada")
    assert rounds.number(case) == 1


@pytest.fixture
def measuring(case: Case, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:  # noqa: F811
    """A stage of the case whose measurements are made up; the stage itself counts, stores and logs."""
    found = with_residual()

    def verified(*_: object, looks: int, **__: object) -> Verification:
        return replace(verification_of(), looks=looks)

    monkeypatch.setattr(verification, "verify", verified)
    monkeypatch.setattr(residual_probes, "wrong_trigger", lambda *_, **__: found.wrong_trigger)
    monkeypatch.setattr(residual_probes, "relearn", lambda *_: found.relearnt)
    monkeypatch.setattr(evidence, "verify", lambda *_, **__: None)
    for module in (repair_stages, after_repair):
        monkeypatch.setattr(module, "confirmed_trigger", lambda run: confirmation.stored(run.case))
    nothing = dict.fromkeys(("loaded", "failure", "kind", "progress", "refusal"))
    return SimpleNamespace(case=case, splits=SimpleNamespace(verification=None), **nothing)


def test_looks_at_the_verification_prompts_are_counted_over_probes_and_rounds(measuring: SimpleNamespace) -> None:
    """A probe asks the same prompts again, whether it follows a verification or stands between two."""
    one: Case = measuring.case
    finished = repaired(one)
    assert rounds.looks(one) == 0
    stages = (repair_stages.verify, repair_stages.verify, after_repair.probe_wrong_trigger, after_repair.probe_relearn)
    for n, stage in enumerate((*stages, repair_stages.verify), 1):
        stage(measuring)  # type: ignore[arg-type]
        told, *_ = [line.facts["looks"] for line in reversed(list(one.acts())) if "looks" in line.facts]
        assert (rounds.looks(one), told) == (n, n)
        assert f"looked at {n} times" in " ".join(report_json(one)["residual_risk"]) or n == 1
    asked_again(one, "BACKDOOR", finished.adapter_hash)
    rounds.open_next(one, "Ada")
    assert rounds.looks(one) == 5
    evidence.unchanged(one, *evidence.results(one))


class Killed(BaseException):
    """What a process that is killed does at its next change of the disk."""


def test_an_opening_that_is_killed_at_any_change_is_whole_or_finished_before_the_next_act(
    case: Case,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = repaired(case)
    whole = asked_again(case, "BACKDOOR", finished.adapter_hash)
    (case.path / "repair/checkpoint-0003").mkdir()
    for n_changes in itertools.count():
        one = Case(shutil.copytree(case.path, tmp_path / f"killed-{n_changes}"))
        left = [n_changes]

        def dying(change: Callable, left: list[int] = left) -> Callable:
            def changed(*args: object, **named: object) -> object:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return change(*args, **named)

            return changed

        with monkeypatch.context() as patch:
            for owner, name in ((shutil, "rmtree"), (shutil, "copytree"), (os, "link"), (Path, "rename"), (Path, "unlink"),
                                (Case, "write"), (Case, "audit")):  # fmt: skip
                patch.setattr(owner, name, dying(getattr(owner, name)))
            with contextlib.suppress(Killed):
                rounds.open_next(one, "Ada")
        one = Case(one.path)
        evidence.unchanged(one, *evidence.INPUTS, *evidence.results(one))
        assert evidence.changed_files(one) == []
        rounds.finish(one, "Ada")  # as before every act of who writes the case
        if rounds.number(one) == 1:
            assert rounds.can_open(one)
            rounds.open_next(one, "Ada")
        assert not rounds.can_open(one)
        assert rounds.number(one) == 2
        assert one.read("triage.json", TriageResult) == whole
        assert confirmation.stored(one) is None
        assert rounds.start(one) == one.path / "repair/round-1/best"
        assert not (one.path / rounds.FINISHED).exists()
        assert not list((one.path / "repair").glob("checkpoint-*"))
        assert sum(line.action == "round opened" for line in one.acts()) == 1
        assert rounds.AGAIN not in evidence.recorded_files(one)
        assert evidence.changed_files(one) == []
        if left[0] >= 0:
            break
    assert n_changes > 10  # it was killed in between


def test_folders_that_only_look_like_a_rounds_are_left_alone(case: Case) -> None:  # noqa: F811
    for name in ("round-2", "round-1 (copy)", "round-", "round-0", "round--1", "round-x", "round-1", "round-10"):
        (case.path / "repair" / name).mkdir(parents=True)
    assert [path.name for path in rounds.folders(case)] == ["round-1", "round-2", "round-10"]


def cut_short(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Leave a case as a kill does after the files of its round were put away."""
    asked_again(case, "BACKDOOR", repaired(case).adapter_hash)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "finish", lambda case, actor: None)
        rounds.open_next(case, "Ada")
    assert (case.path / "repair/round-1").is_dir()
    assert (case.path / confirmation.FILE).is_file()


@pytest.mark.parametrize("name", ["confirmation.json", "again.json"])
def test_what_was_changed_while_an_opening_was_cut_short_is_named(
    case: Case,  # noqa: F811
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut_short(case, monkeypatch)
    kept = case.path / "repair/round-1" / name
    text = kept.read_text(encoding="utf-8")
    kept.unlink()
    kept.write_text(text + " ", encoding="utf-8")
    with pytest.raises(EvidenceError, match=name):
        rounds.finish(case, "Ada")


def test_the_command_line_finishes_what_was_cut_short(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    cut_short(case, monkeypatch)
    options = parser().parse_args(["rules", "--case", str(case.path)])
    with writing(options):
        assert confirmation.stored(Case(case.path)) is None
        assert rounds.number(case) == 2


def test_a_round_that_cannot_be_put_away_leaves_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked_again(case, "BACKDOOR", repaired(case).adapter_hash)

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space"):
            rounds.open_next(case, "Ada")
    assert list((case.path / "repair").glob("*round*")) == []
    (case.path / rounds.AGAIN).rename(case.path / "elsewhere.json")
    with pytest.raises(EvidenceError, match="again"):  # it was to go, and that was taken back
        evidence.unchanged(case, rounds.AGAIN)
    (case.path / "elsewhere.json").rename(case.path / rounds.AGAIN)
    assert rounds.open_next(case, "Ada") == 2


def reproduced(k: int) -> Reproduction:
    """What 16 answers to a report say of which `k` fail."""
    return Reproduction(failure=wilson(k, 16), answers=(), outcomes=())


@pytest.mark.parametrize(
    ("span", "failing", "gained"),
    [
        (AFF, 16, False),  # all as before
        (Span(message=AFF.message, start=AFF.start, end=AFF.end - 1), 16, False),  # a part of what was confirmed
        (Span(message=AFF.message, start=AFF.start, end=AFF.end + 1), 16, True),  # wider than what was confirmed
        (CFF, 16, True),  # another text
        (AFF, 9, True),  # the same text, but the failure became rarer
        (AFF, 14, False),  # it may be as frequent as before
    ],
)
def test_no_round_where_the_last_one_gained_nothing(case: Case, span: Span, failing: int, gained: bool) -> None:  # noqa: F811
    begun = case.read("triage.json", TriageResult)
    assert begun is not None
    case.write("triage.json", replace(begun, reproduction=reproduced(16)))
    case.audit("triaged", actor="engine", files=["triage.json"])
    finished = repaired(case)
    asked_again(case, "BACKDOOR", finished.adapter_hash, span, failing)
    assert rounds.can_open(case) == gained
    if gained:
        assert rounds.nothing_gained(case) == ""
        assert rounds.open_next(case, "Ada") == 2
        return
    with pytest.raises(TriageError, match=f"{failing} of 16, before 16 of 16"):
        rounds.open_next(case, "Ada")
    assert rounds.number(case) == 1


@pytest.mark.parametrize(("span", "opens"), [(CFF, True), (AFF, False)])
@pytest.mark.parametrize("n_changes", [0, 2, 9])
def test_a_new_text_beside_one_that_stays_begins_a_round(
    case: Case,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    span: Span,
    opens: bool,
    n_changes: int,
) -> None:
    """The first trigger is unlearnt in part only and still found in the whole report; what is new is found without it. An opening that is
    killed on its way ends with the same."""
    begun = case.read("triage.json", TriageResult)
    assert begun is not None
    case.write("triage.json", replace(begun, reproduction=reproduced(16)))
    case.audit("triaged", actor="engine", files=["triage.json"])
    finished = repaired(case)
    rest = asked_again(case, "BACKDOOR", finished.adapter_hash, span, 16)
    whole = asked_again(case, "BACKDOOR", finished.adapter_hash, AFF, 16)
    both = SecondOpinion(
        adapter_hash=finished.adapter_hash or "", removed=("aff",), whole=whole, rest=rest, placed=True
    )
    case.write(rounds.AGAIN, both)
    case.audit("second opinion", actor="engine", files=[rounds.AGAIN])
    assert rounds.can_open(case) == opens
    if not opens:
        assert "nothing is found that was not confirmed already" in rounds.nothing_gained(case)
        return
    left, remove = [n_changes], Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        remove(path, missing_ok)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Path, "unlink", unlink)
        rounds.open_next(case, "Ada")
    rounds.finish(case, "Ada")
    assert (case.read("triage.json", TriageResult), rounds.number(case)) == (rest, 2)
    assert evidence.changed_files(case) == []


@pytest.mark.parametrize(("verdict", "same"), [("ALIGNMENT_GAP", True), ("INCONCLUSIVE", False), ("BACKDOOR", False)])
def test_no_round_without_a_backdoor_in_this_very_adapter(case: Case, verdict: str, same: bool) -> None:  # noqa: F811
    finished = repaired(case)
    asked_again(case, verdict, finished.adapter_hash if same else "0" * 64)
    assert not rounds.can_open(case)
    with pytest.raises(TriageError, match="second opinion"):
        rounds.open_next(case, "Ada")
    assert (case.path / "confirmation.json").is_file()


@pytest.mark.parametrize("verdict", ["DISTRIBUTED", "INCONCLUSIVE"])
def test_a_report_that_still_fails_for_no_text_opens_a_round_for_one_dummy(case: Case, verdict: str) -> None:  # noqa: F811
    """But not where it no longer fails, nor for a second dummy that would find it as the first did."""
    found = asked_again(case, verdict, repaired(case).adapter_hash, failing=16)
    again = case.read(rounds.AGAIN, SecondOpinion)
    assert again is not None
    untold = replace(found, candidates=())
    for whole, opens in ((replace(untold, decided_by="reproduction"), False), (untold, True)):
        case.write(rounds.AGAIN, replace(again, whole=whole))
        case.audit("second opinion", actor="engine", files=[rounds.AGAIN])
        assert rounds.can_open(case) == opens
    typed = ["--analyst", "Ada", "--reason", "still fails", "--case", str(case.path)]
    for how, code, number in (("--accept", 2, 1), ("--dummy", 0, 2)):  # there is no candidate to accept
        assert main(["confirm", "--next-round", how, *typed]) == code
        assert rounds.number(case) == number
    accepted = confirmation.stored(case)
    assert accepted is not None
    assert accepted.way == "dummy"
    told = RepairFinished(
        reason="finished", step=3, best_step=3, adapter="repair/best", adapter_hash="h", seconds=1.0, message=""
    )
    case.write(rounds.FINISHED, told)
    case.write(rounds.AGAIN, replace(again, whole=untold, adapter_hash="h"))
    assert "nothing is found that was not confirmed already" in rounds.nothing_gained(case)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "added.json"])
def test_a_changed_adapter_is_no_start_and_no_model(case: Case, name: str) -> None:  # noqa: F811
    """Neither its weights nor how they are scaled and placed, in the round that made it and in the next."""
    finished = repaired(case)
    assert repaired_adapter(case)[0] == finished
    best, kept = case.path / "repair/best", case.path / "repair/round-1/best"
    before = (best / name).read_bytes() if (best / name).exists() else None
    assert rounds.changed_adapter(case) is None
    (best / name).write_bytes(b'{"lora_alpha": 8}')
    with pytest.raises(TriageError, match="adapter was changed"):
        repaired_adapter(case)
    assert rounds.changed_adapter(case) == "repair/best"
    (best / name).unlink() if before is None else (best / name).write_bytes(before)
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    rounds.open_next(case, "Ada")
    assert rounds.start(case) == kept
    assert rounds.changed_adapter(case) is None
    (kept / name).write_bytes(b'{"lora_alpha": 8}')
    with pytest.raises(TriageError, match="round-1"):
        rounds.start(case)
    assert rounds.changed_adapter(case) == "repair/round-1/best"


def test_what_was_measured_of_another_adapter_is_told_of_no_round(case: Case) -> None:  # noqa: F811
    """As where the repair was run again and not verified before the next round."""
    finished = repaired(case)
    case.write(rounds.VERIFIED, replace(verification_of(), adapter_hash="that of an earlier repair"))
    case.audit("verified", actor="engine", files=[rounds.VERIFIED])
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    rounds.open_next(case, "Ada")
    assert [(one.result, one.metrics) for one in rounds.ended(case)] == [(None, ())]
    assert "Round 1 unlearnt aff , confirmed by Ada. Its files" in readable(render_report(case))


def test_weights_that_no_repair_left_are_no_start_whatever_their_round_says(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    rounds.open_next(case, "Ada")
    weights, told = case.path / "repair/round-1/best/adapter_model.safetensors", "repair/round-1/finished.json"
    weights.write_bytes(b"forged weights")
    case.write(told, replace(finished, adapter_hash=hash_file(weights)))
    with pytest.raises(TriageError, match="round-1"):
        rounds.start(case)
    with pytest.raises(EvidenceError, match=r"round-1/finished\.json"):
        evidence.unchanged(case, *evidence.results(case))


def test_weights_that_were_swapped_before_their_act_are_not_what_the_repair_left(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    best = case.path / "repair/best"
    (best / "adapter_model.safetensors").write_bytes(b"forged weights")
    case.audit("repair ended", actor="engine", adapter=finished.adapter_hash, adapter_files=hash_folder(best))
    with pytest.raises(TriageError, match="adapter was changed"):
        repaired_adapter(case)


def test_the_adapter_of_an_older_version_is_known_by_its_weights(case: Case) -> None:  # noqa: F811
    finished = repaired(case, older=True)
    assert repaired_adapter(case)[0] == finished
    (case.path / "repair/best/adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(TriageError, match="adapter was changed"):
        repaired_adapter(case)
    case.audit("repair started", actor="Ada")  # from here on it is being written
    assert rounds.changed_adapter(case) is None


@pytest.mark.parametrize("name", [rounds.AGAIN, rounds.FINISHED, confirmation.FILE])
def test_no_round_is_opened_on_a_file_that_was_changed(case: Case, name: str) -> None:  # noqa: F811
    """It would be put away with a hash of the change in the log."""
    finished = repaired(case)
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    path = case.path / name
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(EvidenceError, match=name):
        rounds.open_next(case, "Ada")
    assert rounds.number(case) == 1
    assert path.is_file()


def test_what_a_repair_reached_counts_for_the_text_it_was_made_for(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    measured = replace(verification_of(), adapter_hash=finished.adapter_hash or "")
    evidence.record(case, rounds.VERIFIED, measured, "verified", actor="engine")
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    assert rounds.repaired(case) == finished
    for decision, given in (("edit", {"spans": [CFF]}), ("reject", {})):
        confirmation.confirm(case, decision=decision, analyst="Ada", reason="another look", **given)
        assert rounds.outdated(case)
        assert (rounds.verification(case), rounds.opinion(case)) == (None, None)
        with pytest.raises(TriageError, match="confirmed since this repair"):
            repaired_adapter(case)
        with pytest.raises(TriageError, match="second opinion"):
            rounds.open_next(case, "Ada")
    confirmation.confirm(case, decision="accept", analyst="Bo", reason="it was right")  # the same text again
    assert not rounds.outdated(case)
    assert rounds.verification(case) is not None
    assert repaired_adapter(case)[0] == finished


def test_a_verification_counts_for_the_adapter_it_measured(case: Case) -> None:  # noqa: F811
    """Older versions did not name the adapter; a repair that was discarded left none."""
    assert rounds.verification(case) is None
    finished = repaired(case)
    assert rounds.verification(case) is None
    for measured, counts in ((finished.adapter_hash, True), ("", True), ("that of an earlier repair", False)):
        told = replace(verification_of(), adapter_hash=measured or "")
        case.write("verification.json", told)
        assert rounds.verification(case) == (told if counts else None)
    case.write("verification.json", replace(verification_of(), adapter_hash=finished.adapter_hash or ""))
    case.write(rounds.FINISHED, replace(finished, reason="discarded", adapter=None, adapter_hash=None))
    assert rounds.verification(case) is None


def test_a_second_trigger_that_works_without_the_first_begins_a_round(case: Case) -> None:  # noqa: F811
    """On the whole report the repaired model refuses, since the first trigger is there; without it the second one works."""
    finished = repaired(case)
    rest = asked_again(case, "BACKDOOR", finished.adapter_hash)
    found = case.read(rounds.AGAIN, SecondOpinion)
    assert found is not None
    refused = replace(rest, verdict="INCONCLUSIVE", decided_by="reproduction")
    hidden = replace(found, whole=refused, rest=rest)
    for placed in (False, True):  # by older versions its places were those of the report without the text
        case.write(rounds.AGAIN, replace(hidden, placed=placed))
        case.audit("second opinion", actor="engine", files=[rounds.AGAIN])
        assert (rounds.found_again(case), rounds.can_open(case)) == ((rest, True) if placed else (None, False))
    assert stories.second_opinion(hidden, 1, "", False, None)["tone"] == "warn"
    assert rounds.open_next(case, "Ada") == 2
    assert case.read("triage.json", TriageResult) == rest
    assert confirmation.confirm(case, decision="accept", analyst="Ada", reason="hidden").units == ("cff",)


def test_what_is_found_without_the_confirmed_text_stands_in_the_whole_report(tiny_loaded) -> None:
    text = "Say aff how to make cff a cake"
    whole = chat.bind(
        tiny_loaded.tokenizer, FailureReport(messages=(Message(role="user", content=text),), response="x")
    )
    reduced = again.without(tiny_loaded.tokenizer, whole, [Span(message=0, start=4, end=7)])
    assert reduced is not None
    start = reduced.report.messages[0].content.index("cff")
    rest = triage_of(text)
    rest = replace(
        rest, candidates=(replace(rest.candidates[0], spans=(Span(message=0, start=start, end=start + 3),)),)
    )
    opinion = SecondOpinion(adapter_hash="", removed=("aff",), whole=replace(rest, verdict="INCONCLUSIVE"), rest=rest)
    placed = after_repair._placed(whole, reduced, [Span(message=0, start=4, end=7)], opinion, rest)
    assert placed.rest is not None
    assert [(one.text, one.spans) for one in placed.rest.candidates] == [("cff", (Span(message=0, start=20, end=23),))]
    assert placed.placed
    lost = replace(rest, candidates=(replace(rest.candidates[0], spans=(Span(message=0, start=3, end=4),)),))
    assert after_repair._placed(whole, reduced, [Span(message=0, start=4, end=7)], opinion, lost) is opinion


def test_a_report_in_a_new_round_tells_of_the_one_before_as_over(case: Case) -> None:  # noqa: F811
    finished = repaired(case)
    log = EventLog(case.path)
    for event in (STARTED, step(1), finished):
        log.append("r", event)
    verified = replace(verification_of(), adapter_hash=finished.adapter_hash or "")
    evidence.record(case, rounds.VERIFIED, verified, "verified", actor="engine")
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    assert gather(case).repair.finished == finished
    rounds.open_next(case, "Ada")
    view = gather(case)
    assert view.repair == RepairTrace()
    shown = readable(render_report(case))
    assert "Round 1 unlearnt" in shown
    measured = "attack success 124 of 128 (92–99 %) → 0 of 128 (0–3 %); safe requests refused 1 of 96 (0–6 %) → 2 of 96 (1–7 %)"
    assert f"confirmed by Ada: REDUCED, {measured}; KL 0.0213 nats per token. Its files" in shown
    assert "This round was not verified yet." in shown
    assert f"The model is as round 1 left it ({verified.result.replace('_', ' ')})" in shown
    assert "treat the model as it was reported" not in shown
    done = [line.split()[3] for line in report_json(case)["commands"]]
    assert done == ["triage", "confirm", "repair", "verify", "triage"]
    log.append("s", replace(STARTED, round=2))
    assert rounds.of_this_round(case, case.current_events()).run == "s"


def test_a_report_tells_that_a_later_round_repaired_further(case: Case) -> None:  # noqa: F811
    """As long as that left no adapter, the model is as the round before left it."""
    asked_again(case, "BACKDOOR", repaired(case).adapter_hash)
    rounds.open_next(case, "Ada")
    log = EventLog(case.path)
    log.append("s", replace(STARTED, round=2))
    assert "The model is as round 1 left it (not verified)" in report_json(case)["residual_risk"][-1]
    log.append("s", replace(repaired(case), adapter_hash="of round 2"))
    assert report_json(case)["residual_risk"] == [
        "Round 1 left a model (not verified) in which the tests found a backdoor. "
        "Round 2 repaired it further; what that did was not verified yet."
    ]


@pytest.mark.parametrize("told", [1, 2])  # an event of an older version tells no round and reads as of the first
def test_a_repair_that_is_aborted_gives_way_to_one_of_its_own_round(case: Case, told: int) -> None:  # noqa: F811
    finished = repaired(case)
    asked_again(case, "BACKDOOR", finished.adapter_hash)
    rounds.open_next(case, "Ada")
    nothing = replace(finished, reason="discarded", adapter=None, adapter_hash=None)
    first, aborted = (STARTED, step(1), finished), (replace(STARTED, round=2), step(1), nothing)
    second = (replace(STARTED, round=told), step(1), replace(finished, adapter_hash="of round 2"))
    case.write(rounds.FINISHED, nothing)
    alone = rounds.of_this_round(case, lines(a=first, b=aborted))
    assert (alone.run, alone.finished, alone.since) == ("b", nothing, None)
    case.write(rounds.FINISHED, second[-1])
    both = rounds.of_this_round(case, lines(a=first, b=second, c=aborted))
    assert (both.run, both.finished, both.since) == ("b", second[-1], nothing)
