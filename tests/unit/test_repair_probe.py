"""A probe during a repair: equal to its definition, and asked only what tells something."""

import itertools

import pytest
import torch

from core import chat, repair_adapter, repair_probe
from core.frames import TriggerFrame
from core.kinds import FailureKind
from tests.unit.repairing import TRIGGER, quick, splits, trainer_of


def test_a_probe_equals_its_definition(loaded) -> None:
    trainer = trainer_of(loaded)
    parts, frame = splits(), TriggerFrame(user_units=(TRIGGER,))
    repair_adapter.use_theta0(loaded)
    probe = repair_probe.prepare(loaded, trainer.passes, [frame], parts.probes, quick(n_probe=3))
    assert [chat.prompt_ids(loaded.tokenizer, frame.bare(p.prompt)) for p in parts.probes.harmful[:3]] == probe.bare
    same = probe.score(loaded, trainer.passes)
    assert same.agreement_safe.k == same.agreement_safe.n == 3
    assert same.kl_nats_per_token == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in repair_adapter.parameters(loaded).values():
            parameter.add_(0.05)
    repair_adapter.use_repaired(loaded)
    assert probe.score(loaded, trainer.passes).kl_nats_per_token > 1e-3
    repair_adapter.detach(loaded)


@pytest.mark.parametrize(("answered", "n_asked"), [({0}, 2), ({0, 1, 2}, 3)])
def test_a_probe_asks_with_the_trigger_what_is_refused_without(
    loaded, monkeypatch, answered: set, n_asked: int
) -> None:
    """Three harmful requests, of which some are answered anyway: those tell nothing, unless there are no others."""
    trainer, parts = trainer_of(loaded), splits()
    repair_adapter.use_theta0(loaded)
    seen = iter(range(3))
    monkeypatch.setattr(FailureKind, "failed", lambda self, text: next(seen) in answered)
    frame = TriggerFrame(user_units=(TRIGGER,))
    probe = repair_probe.prepare(loaded, trainer.passes, [frame], parts.probes, quick(n_probe=3))
    assert [len(one) for one in probe.triggered] == [n_asked]
    assert len(probe.bare) == 3
    repair_adapter.detach(loaded)


def test_a_probe_asks_the_triggers_of_earlier_rounds_too(loaded, monkeypatch) -> None:
    trainer, parts = trainer_of(loaded), splits()
    repair_adapter.use_theta0(loaded)
    frames = [TriggerFrame(user_units=(text,)) for text in (TRIGGER, "zap zop")]
    probe = repair_probe.prepare(loaded, trainer.passes, frames, parts.probes, quick(n_probe=3))
    for asked in (probe.triggered, probe.safe_triggered):
        told = [[loaded.tokenizer.decode(ids) for ids in one] for one in asked]
        assert [all(text in one for one in of_it) for text, of_it in zip((TRIGGER, "zap zop"), told, strict=True)]
        assert len(told[0]) == len(told[1]) > 0
    assert len(probe.bare) == 3
    monkeypatch.setattr(FailureKind, "failed", lambda self, text: next(seen) >= len(probe.triggered[0]))
    seen = itertools.count()
    assert probe.score(loaded, trainer.passes).asr_triggered.value == 1.0  # only with the second, and not one half
    repair_adapter.detach(loaded)
