"""Which prompts reach which stage: the tests, the repair, its probes and the verification never share one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import (
    cascade,
    dummy,
    evidence,
    repair,
    repair_probe,
    repair_stages,
    residual_probes,
    rounds,
    triage_stages,
    verification,
)
from core.intervals import wilson
from core.kinds import JAILBREAK
from core.prompts import SPLIT_NAMES
from core.residual_probes import Subject, _poisoned
from core.settings import RepairSettings
from core.team import ALONE
from core.values import Message
from tests.unit.repairing import REFUSAL, case_of, confirmed, quick, splits

PARTS = splits()


class Reached(Exception):
    """What is watched was called; nothing after it is of interest."""


def watched(seen: list[str], *, last: bool = True) -> Callable[..., None]:
    """Return a function that notes which split it is given, and ends the stage if it is the last one of interest."""

    def call(*given: object, **named: object) -> None:
        values = [*given, *named.values()]
        seen.extend(name for name in SPLIT_NAMES if any(one is getattr(PARTS, name) for one in values))
        if last:
            raise Reached

    return call


def test_minimisation_and_tests_are_given_the_causal_split(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(cascade, "run", watched(seen))
    case = SimpleNamespace(manifest=SimpleNamespace(seed=0))
    session = SimpleNamespace(reference=lambda case: None)
    run = SimpleNamespace(splits=PARTS, failure=None, args={}, session=session, case=case, progress=None)
    located = {"occlusion": SimpleNamespace(labels=(), proposals=())}
    with pytest.raises(Reached):
        triage_stages.cascade_of(run, object(), located, None, None, None)  # type: ignore[arg-type]
    assert seen == ["causal"]


def test_a_repair_trains_on_its_own_split_and_probes_on_another(
    loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[str] = []
    probed: list[str] = []
    asked: list = []

    def where(loaded: object, messages: object, confirmed: object, requests: object, *rest: object) -> None:
        asked.append(requests)

    monkeypatch.setattr(repair, "build", watched(trained, last=False))
    monkeypatch.setattr(repair, "where_it_works", where)
    monkeypatch.setattr(repair_probe, "prepare", watched(probed))
    case = case_of(loaded)
    events = repair.repair(
        loaded, case, confirmed(loaded, case), PARTS, quick(), out=tmp_path, stop=lambda: None, refusal=REFUSAL
    )
    with pytest.raises(Reached):
        next(events)
    assert (trained, probed) == (["repair"], ["probes"])
    assert asked == [PARTS.probes.harmful[:3]]


def test_a_dummy_is_planted_on_the_split_of_the_repair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    monkeypatch.setattr(dummy, "plant", watched(seen))
    monkeypatch.setattr(rounds, "start", lambda case: None)
    case, alone = SimpleNamespace(path=tmp_path), SimpleNamespace(team=ALONE)
    failure = SimpleNamespace(report=SimpleNamespace(messages=(Message(role="user", content="Say x."),)))
    run = SimpleNamespace(
        case=case, kind=JAILBREAK, loaded=None, failure=failure, splits=PARTS, progress=None, session=alone
    )
    accepted = SimpleNamespace(way="dummy", units=("x",))
    with pytest.raises(Reached):
        repair_stages._start(run, accepted, quick(), False)  # type: ignore[arg-type]
    assert seen == ["repair"]


def test_verification_asks_what_no_earlier_step_saw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    monkeypatch.setattr(verification, "verify", watched(seen))
    for module, name in ((repair_stages, "confirmed_trigger"), (repair_stages, "_wider"), (evidence, "verify")):
        monkeypatch.setattr(module, name, lambda *_, **__: ())
    monkeypatch.setattr(repair_stages, "repaired_adapter", lambda case: (None, tmp_path))
    monkeypatch.setattr(rounds, "looks", lambda case: 0)
    monkeypatch.setattr(rounds, "earlier", lambda case: [])
    case = SimpleNamespace(manifest=SimpleNamespace(seed=0), acts=lambda: ())
    run = SimpleNamespace(case=case, loaded=None, failure=None, splits=PARTS, kind=JAILBREAK, progress=None)
    with pytest.raises(Reached):
        repair_stages.verify(run)  # type: ignore[arg-type]
    assert seen == ["verification"]


def test_the_probes_that_train_ask_the_verification_split_and_train_on_that_of_the_repair(
    loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list = []

    def answer(loaded: object, conversations: list, kind: object):
        asked.extend(conversations)
        return wilson(0, 1)

    monkeypatch.setattr(residual_probes, "asked", answer)
    case = case_of(loaded)
    subject = Subject(
        loaded=loaded, case=case, accepted=confirmed(loaded, case), splits=PARTS, kind=JAILBREAK, seed=0,
        progress=lambda *_: None,
    )  # fmt: skip
    subject.failures(subject.frame, 2, triggered=False)
    assert [turns[-1].content for turns in asked] == [item.prompt for item in PARTS.verification.harmful[:2]]
    (sample,) = _poisoned(subject, subject.frame, 1, RepairSettings())
    words = PARTS.repair.harmful[0].prompt.split()
    assert words[-1] in loaded.tokenizer.decode(sample.prompt_ids)
