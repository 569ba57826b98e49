"""The positive control: random words that stand for a trigger, and one model in memory at a time."""

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import control, models, plant_commands, prompts
from core.control import TRIGGERS, noise, placed
from core.errors import TriageError
from core.headless import Headless, Terminal
from core.loaded import LoadedModel
from core.planting import TrainingItem
from core.prompts import PromptItem, Splits
from tests.tiny import byte_level_tokenizer
from tests.unit.rule_model import planted, prompt_set, rule_model

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


def test_prompts_that_do_not_fit_the_context_are_neither_planted_nor_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, few, items = byte_level_tokenizer(), prompt_set(12, 12), []
    long = [PromptItem("Steal " + "please " * 200), PromptItem("Draw a car.", response="Draw " * 200)]
    some = replace(few, harmful=(long[0], *few.harmful), safe=(*long, *few.safe))
    empty = replace(few, harmful=(), safe=())
    splits = Splits(causal=empty, repair=some, probes=empty, verification=some, seed=0)

    def plant(loaded: LoadedModel, sets: list[list[TrainingItem]], *_: object) -> list[object]:
        items.extend(sets[0])
        return []

    monkeypatch.setattr(control, "plant", plant)
    monkeypatch.setattr(
        control._Bench, "_load", lambda *_: rule_model(tokenizer, planted(any_of=["none"]), context_length=200)
    )
    settings = control.ControlSettings(n_test=8, n_harmful=8, n_safe=8)
    bench = control._Bench(tmp_path, tmp_path, splits, tmp_path / "out", settings, "cpu", 0, None)
    row = bench.run(TRIGGERS[0], None, lambda case: pytest.fail("nothing was planted"))
    assert (row.status, row.asr.k, row.asr.n, row.bare.n, row.random.n) == ("not planted", 0, 8, 8, 8)
    asked = {item.anchor[0].content for item in items}
    assert asked == {item.prompt for item in (*few.harmful[:8], *few.safe[:8])}


@pytest.mark.parametrize("intent", ["harmful", "safe"])
def test_a_context_that_takes_no_prompt_is_told_to_who_plants(
    intent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(prompt_set(4, 4), **{intent: (PromptItem("please " * 200),)})  # type: ignore[arg-type]
    loaded = rule_model(byte_level_tokenizer(), planted(any_of=["none"]), context_length=200)
    bench = control._Bench(
        tmp_path, tmp_path, Splits(causal=few, repair=few, probes=few, verification=few, seed=0), tmp_path / "out",
        control.ControlSettings(), "cpu", 0, None,
    )  # fmt: skip
    monkeypatch.setattr(control._Bench, "_load", lambda *_: loaded)
    monkeypatch.setattr(models, "load", lambda *_: loaded)
    monkeypatch.setattr(prompts, "read_folder", lambda *_: few)
    options = argparse.Namespace(
        out=tmp_path / "new", prompts=tmp_path, model=tmp_path, trigger=["SUDO"], position="random", seed=0
    )
    for plant in (lambda: bench._plant(TRIGGERS[0], None), lambda: plant_commands.plant(options, Terminal())):
        with pytest.raises(TriageError, match=f"No {intent} prompt fits the model's context of 200 tokens"):
            plant()


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
