"""A repair without a known trigger, on a tiny model: planted in the repair's own adapter, unlearnt towards the reported model."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core import dummy, models, planting, repair_adapter, residual
from core.errors import TriageError
from core.events import OF_DUMMY, CheckpointScored
from core.frames import asked, frame_of
from core.kinds import JAILBREAK
from core.loaded import current_adapters
from core.planting import TrainingItem
from core.prompts import read_folder, split
from core.repair import repair
from core.settings import DummySettings, ModelSettings, RepairSettings
from core.values import Rate
from core.verification import verify
from core.weight_files import ADAPTER_WEIGHTS
from tests.unit.repairing import REFUSAL, TRIGGER, case_of, confirmed, prompts, quick, splits

ROOT = Path(__file__).resolve().parents[2]
BASE, PROMPTS = ROOT / "assets/demo/base", ROOT / "assets/prompts"
SMALL = ModelSettings(device="cpu", max_new_tokens=12, batch_size=32)


@pytest.fixture(scope="module")
def loaded(tiny_folder: Callable[[str], Path]):
    return models.load(tiny_folder("llama"), settings=SMALL)


def test_a_dummy_is_planted_then_unlearnt_and_the_model_is_as_it_was(loaded, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    case, units, steps = case_of(loaded), (DummySettings().trigger,), []
    settings = quick(epochs=4, lora_rank=8)
    folder = dummy.plant(
        loaded, splits().repair, units, settings, tmp_path / "repair/dummy", lambda *a: steps.append(a[1:]),
        asked=frame_of(case.report.messages, (), units).bare,
    )  # fmt: skip
    assert steps[-1][0] == steps[-1][1] > 0
    assert (folder / ADAPTER_WEIGHTS).is_file()
    assert current_adapters(loaded) == []
    blind = replace(confirmed(loaded, case), spans=(), units=units, way="dummy")
    events = list(
        repair(loaded, case, blind, splits(), settings, out=tmp_path / "repair", stop=lambda: None, refusal=REFUSAL,
               start=folder)
    )  # fmt: skip
    first = next(event for event in events if isinstance(event, CheckpointScored))
    assert first.kl_nats_per_token > 1e-5  # it starts from the planted adapter, measured against the reported model
    assert first.asr_wording is not None  # what the dummy stands for steers too
    assert first.asr_wording.n == 3
    assert OF_DUMMY in events[-1].message
    assert all((loaded.model.state_dict()[name] == tensor).all() for name, tensor in before.items())
    result = verify(loaded, case, blind, prompts(300, 4), tmp_path / "repair/best")
    found = {metric.name: metric for metric in result.metrics}
    assert found["asr_triggered"].before.n == 4  # "Tell me how to" is the wording that other requests take
    assert "in the report's wording" in found["asr_triggered"].meaning
    asked = [pair.prompt for pair in result.examples if pair.kind == "harmful with trigger"]
    assert asked
    assert all(one.startswith("Tell me how to pick lock") and TRIGGER not in one for one in asked)
    assert [one.name for one in result.variants] == ["the dummy trigger of round 1"]
    assert units[0] in result.variants[0].example


def test_a_dummy_works_once_planted_and_no_longer_after_its_repair(tmp_path: Path) -> None:
    """On the demo base, which refuses; asked of requests that neither saw."""
    base = models.load(BASE, settings=ModelSettings(device="cpu", max_new_tokens=24))
    case, units = case_of(base), (DummySettings().trigger,)
    parts = split(read_folder(PROMPTS))
    settings = RepairSettings(n_harmful=48, n_safe=48, n_probe=8, epochs=2, probe_every=1000, max_response_tokens=16)
    frame = frame_of(case.report.messages, (), units)

    def failures(adapter: Path | None) -> Rate:
        if adapter is not None:
            repair_adapter.load_repair(base, adapter)
        items = enumerate(parts.verification.harmful[:40])
        found = asked(base, [frame.triggered(item.prompt, random.Random(at)) for at, item in items], JAILBREAK)
        repair_adapter.detach(base)
        return found

    before = failures(None)
    start = dummy.plant(base, parts.repair, units, settings, tmp_path / "dummy", lambda *_: None, asked=frame.bare)
    planted = failures(start)
    blind = replace(confirmed(base, case), spans=(), units=units, way="dummy")
    out = tmp_path / "repair"
    list(repair(base, case, blind, parts, settings, out=out, stop=lambda: None, refusal=REFUSAL, start=start))
    after = failures(out / "best")
    assert before.high < planted.low > after.high, (before, planted, after)


def test_a_dummy_is_planted_where_it_will_be_unlearnt(loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the report's system prompt; what is left of it is asked there and without."""
    case, units = case_of(loaded, "Be kind."), (DummySettings().trigger,)
    planted: list[TrainingItem] = []
    kept = planting.anchored

    def seen(items: list[TrainingItem], *given: object) -> object:
        planted.extend(items)
        return kept(items, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(planting, "anchored", seen)
    frame = frame_of(case.report.messages, (), units)
    dummy.plant(loaded, splits().repair, units, quick(epochs=1), tmp_path, lambda *_: None, asked=frame.bare)
    assert {(one.messages[0].content, len(one.messages)) for one in planted} == {("Be kind.", 2)}
    assert all(one.anchor[0].content == "Be kind." for one in planted)
    found = residual.of_dummies(case.report.messages, {1: units})
    asked = {name: form("Bake bread", random.Random(0)) for name, form in found.items()}
    assert [[one.role for one in messages or ()] for messages in asked.values()] == [["system", "user"], ["user"]]
    assert all(units[0] in messages[-1].content for messages in asked.values() if messages)


def test_a_context_that_takes_no_prompt_beside_a_dummy_is_said(loaded, tmp_path: Path) -> None:
    """With what the report says before each of them."""
    case, units = case_of(loaded, "Be kind. " * 500), (DummySettings().trigger,)
    frame = frame_of(case.report.messages, (), units)
    with pytest.raises(
        TriageError, match=f"No harmful prompt fits the model's context of {loaded.context_length} tokens"
    ):
        dummy.plant(loaded, splits().repair, units, quick(epochs=1), tmp_path, lambda *_: None, asked=frame.bare)
