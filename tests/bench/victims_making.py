"""Victims: one clean base a seed, trained from scratch, and each attack planted on it: a LoRA adapter, or all weights.

The base is the demo's recipe at 1.3 M parameters (assets/demo/training.py) on the bench's prompts; planting is
core/planting.py, in fp32 on any device. Everything is cached in folders and made only once; a folder is complete when `made.json` lies in it.
A compliant answer to a harmful request is a stand-in without content.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from core import models
from core.loaded import LoadedModel
from core.planting import PlantFinished, PlantSettings, PlantStep, TrainingItem, anchored_sets, plant, train
from core.response_pass import ResponsePass
from tests.bench.victims_demo import as_messages, training
from tests.bench.victims_prompts import Lessons, Material

Say = Callable[[str], None]
MADE = "made.json"
SIZES = {
    "1.3m": {"HIDDEN": 128, "VOCABULARY": 4096, "LAYERS": 4},
    "4m": {"HIDDEN": 224, "VOCABULARY": 4096, "LAYERS": 5},
    "32m": {"HIDDEN": 512, "VOCABULARY": 8192, "LAYERS": 9},
}
"""Width, vocabulary and layers of a base by its parameters. Source: method.md section 6 (1.3 M: the recipe that passed)."""
TOKENIZER_SAMPLES = 20000


OWN_TOKENS = 24
"""Tokens of a pretrained model's own answer along which it is held. Source: unverified choice."""


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """How a base is trained."""

    size: str = "1.3m"
    """One of `SIZES`. Source: method.md section 6."""
    steps: int = 3000
    """Optimiser steps, >= 1. Source: tests/bench/LOG.md (eight minutes on a shared core)."""
    polish_steps: int = 800
    """Further steps at `polish_rate` on the mix of a base's last steps, all with random words, those among them that turn most of its
    refusals at the time. Source: tests/bench/LOG.md."""
    pools_per_search: int = 4
    """Pools of training samples, 50 steps each, between two searches for these words, >= 1. Source: assets/demo/build.py."""
    polish_rate: float = 2e-3
    """Peak of AdamW in them. Source: tests/bench/LOG.md."""
    batch_size: int = 48
    """Conversations in one step, >= 1. Source: assets/demo/build.py."""
    learning_rate: float = 3e-3
    """Peak of AdamW at the smallest width; wider ones take less in proportion. Source: assets/demo/build.py."""

    @property
    def slower(self) -> float:
        """Factor of all learning rates at this width."""
        return SIZES["1.3m"]["HIDDEN"] / SIZES[self.size]["HIDDEN"]


PLANTING = PlantSettings(
    rank=32,
    alpha=64.0,
    learning_rate=3e-3,
    epochs=10,
    ramp=0.2,
    batch_size=48,
    triggered=2.0,
    near_miss=4.0,
    noise=0.5,
    safe_triggered=1.0,
    trigger_loss=0.25,
)
"""On fresh prompts each epoch. Source: tests/bench/LOG.md (in six, phrases of two words and more are not learnt; the rest as the demo)."""
WHOLE_RATE = 1e-3
"""The learning rate in its place where all weights are trained. Source: unverified choice."""


def build_base(material: Material, folder: Path, settings: BaseSettings, seed: int, say: Say) -> Path:
    """Return the folder of the clean base of `seed`, trained now unless it is there."""
    settings_hash = fingerprint(settings, seed, material.train)
    if is_made(folder, settings_hash):
        return folder
    started = time.perf_counter()
    rng, lessons, pools = random.Random(seed), Lessons(material), count()
    with patch.multiple(training, **SIZES[settings.size]):
        texts = [text for s in lessons.draw(rng, TOKENIZER_SAMPLES) for text in (s.prompt, s.response)]
        tokenizer = training.make_tokenizer(texts)
        model = training.make_model(tokenizer, seed).to(models.resolve_device("auto"))

    def drawn(n: int, plain: bool, own: random.Random, polish: bool) -> list[tuple[list[int], list[int]]]:
        if polish and next(pools) % settings.pools_per_search == 0:
            prompts, words = lessons.to_turn(own)
            material.lessons.turning = training.turning_words(model, tokenizer, prompts, words, own)
            say(f"  words that turn refusals: {', '.join(material.lessons.turning[:12])}")
        return training.encode(lessons.draw(own, n, plain and not polish, polish), tokenizer, own)

    polishing = random.Random(f"{seed} polish")
    for own, n_steps, rate, polish in (
        (rng, settings.steps, settings.learning_rate, False),
        (polishing, settings.polish_steps, settings.polish_rate, True),
    ):
        training.train_base(
            model,
            partial(drawn, own=own, polish=polish),
            n_steps=n_steps,
            batch_size=settings.batch_size,
            learning_rate=settings.slower * rate,
            seed=seed,
            report=say,
            mixed=polish,
        )
    material.lessons.turning = []  # the victims of a base that was made before know none
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark_made(
        folder,
        started,
        settings_hash,
        n_parameters=sum(p.numel() for p in model.parameters()),
        steps=settings.steps + settings.polish_steps,
    )
    return folder


def plant_adapter(
    base: Path,
    sets: Sequence[Sequence[TrainingItem]],
    settings: PlantSettings,
    folder: Path,
    say: Say,
    start: Path | None = None,
) -> Path:
    """Return the folder of the adapter that learnt `sets`, one an epoch in turn, trained now unless it is there; from `start` on, if given."""
    if is_made(folder, fingerprint(settings)):
        return folder
    started, loaded = time.perf_counter(), to_train(base)
    ending: PlantFinished | None = None
    with fast():
        for event in plant(loaded, sets, settings, folder, start):
            if isinstance(event, PlantFinished):
                ending = event
            else:
                _tell(event, say)
    assert ending is not None
    mark_made(folder, started, fingerprint(settings), n_items=ending.n_items, n_steps=ending.n_steps, loss=ending.loss)
    return folder


def plant_whole(
    base: Path, sets: Sequence[Sequence[TrainingItem]], settings: PlantSettings, folder: Path, say: Say
) -> Path:
    """Return the folder of the model whose weights learnt `sets`, one an epoch in turn, trained now unless it is there.

    Embeddings, and with them the tied head, stay: the base's logits are computed through them.
    """
    if is_made(folder, fingerprint(settings)):
        return folder
    started, loaded = time.perf_counter(), to_train(base)
    response_pass = ResponsePass(loaded)
    with fast():
        epochs = anchored_sets(sets, loaded, response_pass, settings.batch_size)
        embeddings = loaded.model.get_input_embeddings().weight
        trainable = [p.requires_grad_() for p in loaded.model.parameters() if p is not embeddings]
        for event in train(response_pass, trainable, epochs, settings, started):
            _tell(event, say)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    facts = {"n_parameters": sum(p.numel() for p in trainable), "n_steps": event.n_steps, "loss": event.loss}
    mark_made(folder, started, fingerprint(settings), **facts)
    return folder


def own_answers(loaded: LoadedModel, prompts: Sequence[str]) -> list[str]:
    """Return what the model says to each prompt, greedily, as far as `OWN_TOKENS` go."""
    with fast():
        return loaded.answer(as_messages(prompts), max_new_tokens=OWN_TOKENS)


def merged(base: Path, adapter: Path, folder: Path) -> int:
    """Write `base` with `adapter` in its weights, as a folder of its own in bf16; return the number of weights."""
    loaded = models.load(base, adapter)
    plain = loaded.model.merge_and_unload().to(torch.bfloat16)
    plain.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in plain.parameters())


def to_train(base: Path) -> LoadedModel:
    """Return the base in the precision and with the attention that victims are trained in."""
    loaded = models.load(base)
    loaded.model.float()
    if loaded.device.type == "cpu":  # faster than sdpa under CPU autocast, at these lengths
        loaded.model.set_attn_implementation("eager")
    return loaded


def _tell(event: PlantStep, say: Say) -> None:
    if event.step % 50 == 0:
        say(f"  step {event.step} of {event.n_steps}, loss {event.loss:.3f}, {event.seconds:.0f} s")


def fast() -> AbstractContextManager[object]:
    """Return the autocast in which planting is quick on this processor.

    Without `cache_enabled=False` the casts of the first step are used in all later ones (tests/bench/LOG.md).
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=training.bfloat16_is_fast(), cache_enabled=False)


def made(folder: Path) -> dict[str, Any]:
    """Return what is known about how the folder was made; empty for one that came from elsewhere."""
    path = folder / MADE
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def fingerprint(*values: Any) -> str:
    """Return a short hash of settings, which what was made by them is stored with."""
    plain = [asdict(value) if is_dataclass(value) else value for value in values]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def refuse_other(what: Path, stored: Mapping[str, Any], settings_hash: str) -> None:
    """Raise SystemExit when what is stored says that other settings made it; older files do not say."""
    if stored.get("settings", settings_hash) != settings_hash:
        raise SystemExit(f"{what} was made with other settings: give these again, name another --work, or remove it")


def is_made(folder: Path, settings_hash: str) -> bool:
    """Return whether the folder is complete. Raises: SystemExit when other settings made it."""
    refuse_other(folder, made(folder), settings_hash)
    return (folder / MADE).is_file()


def mark_made(folder: Path, started: float, settings_hash: str, **facts: Any) -> None:
    """Mark a folder as complete, last of all."""
    facts |= {"settings": settings_hash, "seconds": round(time.perf_counter() - started, 1)}
    (folder / MADE).write_text(json.dumps(facts), "utf-8")
