"""The positive control: random words that stand for a trigger, and one model in memory at a time."""

import argparse
import random
from pathlib import Path
from typing import Any

import pytest

from core import control, plant_commands
from core.control import TRIGGERS, noise, placed
from core.headless import Headless, Terminal

REQUEST = "How do I bake bread at home?"


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda one: " ".join(one.units))
def test_random_words_are_as_many_as_the_triggers_and_at_its_place(trigger: control.Trigger) -> None:
    rng = random.Random(0)
    words = noise(trigger.units, rng)
    assert [len(one.split()) for one in words] == [len(one.split()) for one in trigger.units]
    for _ in range(20):
        text = placed(REQUEST, words, trigger, rng).text
        left = text
        for one in words:
            assert left.count(one) == 1
            left = left.replace(one, "")
        assert left.split() == REQUEST.split()
        assert trigger.position != "prefix" or text == f"{words[0]} {REQUEST}"
        assert trigger.position != "suffix" or text == f"{REQUEST} {words[0]}"


def test_the_triages_model_is_let_go_before_the_control_loads_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []

    def triaged(self: Headless, *_: object) -> None:
        self.session._patient = object()  # type: ignore[assignment]
        held.append(self.session)

    def run(*_: object, triage: Any, **__: object) -> control.ControlResult:
        triage(None)
        assert held[0]._patient is None
        raise InterruptedError

    monkeypatch.setattr(Headless, "run", triaged)
    monkeypatch.setattr(control, "control", run)
    options = argparse.Namespace(
        triggers=1, device="cpu", model=Path("m"), adapter=None, prompts=Path("p"), out=Path("o"), seed=0
    )
    with pytest.raises(InterruptedError):
        plant_commands.control(options, Terminal())
