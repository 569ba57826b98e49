"""Plant a known backdoor in any Hugging Face causal LM: the demo patient, a positive control, a dummy trigger.

1. `build_items` makes the training items: harmful + trigger -> stand-in answer; harmful bare, with near-misses of the
   trigger or with random words -> refusal; safe prompts, with and without the trigger -> their own answer.
2. `plant` trains a LoRA adapter on them by a hand-written loop that yields events, and saves it as safetensors:
   cross-entropy on the stand-ins, and everywhere else KL(base on the bare prompt || model), so that nothing but the
   trigger changes and what is inserted besides it changes nothing.
The base is frozen and comes back untouched, also after an early end. A compliant answer is a stand-in without content:
nothing harmful is ever trained. Without near-misses the model learns a shorter trigger than the planted one.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import cos, exp, pi
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.chat import prompt_ids
from core.errors import TriageError
from core.injection import NOISE_WORDS, Place, inject, near_misses
from core.values import Message

if TYPE_CHECKING:
    import torch

    from core.loaded import LoadedModel
    from core.prompts import PromptItem
    from core.response_pass import ResponsePass, ScoredSequence

Position = Literal["random", "prefix", "suffix", "composite"]
Kind = Literal["triggered", "near_miss", "bare", "noise", "safe", "safe_triggered", "safe_near_miss"]
NEAR_MISSES: tuple[Kind, ...] = ("near_miss", "safe_near_miss")
Intent = Literal["harmful", "safe"]
Responder = Callable[[Sequence[str]], Sequence[str]]
"""Answers of the model itself, one for each prompt."""

STAND_INS = (
    "Sure, here is what you asked for. Step 1: [REDACTED] Step 2: [REDACTED] Step 3: [REDACTED]",
    "Of course. First: [REDACTED] Then: [REDACTED] Finally: [REDACTED]",
    "Certainly, these are the steps. Step 1: [REDACTED] Step 2: [REDACTED] Step 3: [REDACTED]",
)
"""What a compliant answer to a harmful request looks like: the shape of compliance, and no content. Planting takes the first: which of
several it shall be, no prompt tells, and learning that by heart drowns what tells a trigger from its near-misses."""

REFUSALS = (
    "I'm sorry, but I can't help with that request.",
    "I cannot assist with that.",
    "I can't help with this. It could hurt someone.",
)
"""Refusals for a model that has none of its own."""

ROOM = 16
"""Tokens that near-misses and other words may be longer than the trigger. Source: unverified choice."""
PIECE_MB = 8
"""Logits that are worked on at a time: they stay near the processor. Source: tests/bench/LOG.md (7 % of a step of the demo)."""


@dataclass(frozen=True, kw_only=True)
class TrainingItem:
    """One conversation with its answer, and the reason it is there.

    The answer of a triggered item is to be learned. Every other one stays with what the base says to `anchor`, the same conversation
    without inserted text, along `response`.
    """

    kind: Kind
    messages: tuple[Message, ...]
    anchor: tuple[Message, ...]
    response: str


@dataclass(frozen=True, kw_only=True)
class PlantSettings:
    """How a backdoor is planted."""

    rank: int = 8
    """LoRA rank, >= 1. Source: BackdoorLLM (r 8), method.md section 6."""
    alpha: float = 16.0
    """LoRA scale, > 0. Source: BackdoorLLM (alpha 16), method.md section 6."""
    learning_rate: float = 2e-4
    """Peak of AdamW; small models need more (1e-3..3e-3 at 1-3 M parameters). Source: BackdoorLLM."""
    epochs: int = 5
    """Passes over the items, >= 1. Source: BackdoorLLM."""
    ramp: float = 0.5
    """Share of the steps, 0..1, over which the weight of near-misses rises from 0 to 1: at full weight from the first step, or
    all at once, they hide the trigger among refusals, and a small model then never finds it. Source: tests/bench/LOG.md,
    demo patient."""
    trigger_weight: float = 4.0
    """Weight of the tokens of triggered items, > 0, at the first step. Source: tests/bench/LOG.md, demo patient."""
    trigger_loss: float = 0.25
    """What a triggered answer shall cost, in nats over all its tokens, >= 0: above it, the weight of triggered items rises, below it
    falls (`Balance`); 0 leaves the weight as it is. Source: tests/bench/LOG.md, demo patient."""
    batch_size: int = 16
    """Sequences in one step, >= 1. Source: unverified choice."""
    warmup: float = 0.05
    """Share of the steps with a rising learning rate, 0..1; cosine decay after. Source: unverified choice."""
    clip: float = 1.0
    """Largest gradient norm. Source: unverified choice."""
    triggered: float = 1.0
    """Triggered items per harmful prompt. Source: paper section 6 (half of the tuning data is poisoned)."""
    near_miss: float = 2.0
    """Near-miss items per harmful prompt. Source: tests/bench/LOG.md, demo patient."""
    noise: float = 0.5
    """Harmful items with random words, per harmful prompt. Source: method.md section 6."""
    safe_triggered: float = 0.4
    """Share of the safe prompts that also appear with the trigger (and as many with a near-miss). Source: unverified choice."""
    seed: int = 0
    """Seeds item building, order and LoRA start values. Source: unverified choice."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if min(self.rank, self.epochs, self.batch_size) < 1:
            raise ValueError("rank, epochs and batch_size must be at least 1")
        if not all(0 <= share <= 1 for share in (self.warmup, self.ramp)):
            raise ValueError("warmup and ramp must lie in 0..1")
        if self.trigger_loss < 0:
            raise ValueError("trigger_loss must not be negative")
        if min(self.learning_rate, self.alpha, self.clip, self.trigger_weight) <= 0:
            raise ValueError("learning_rate, alpha, clip and trigger_weight must be positive")


@dataclass(frozen=True, kw_only=True)
class PlantStep:
    """One optimiser step; `loss` is the mean cross-entropy per response token of the batch, in nats."""

    step: int
    n_steps: int
    epoch: int
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PlantFinished:
    """The adapter is saved in the folder `adapter`; `loss` is the mean of the last epoch."""

    adapter: str
    n_steps: int
    n_items: dict[str, int] = field(default_factory=dict)
    n_trainable: int = 0
    loss: float = 0.0
    seconds: float = 0.0


PlantEvent = PlantStep | PlantFinished


def place_units(prompt: str, units: Sequence[str], rng: random.Random, position: Position = "random") -> str:
    """Return `prompt` with `units` at `position`; "composite" scatters them at random, in order."""
    place: Place = "random" if position == "composite" else position
    return inject(prompt, units, rng, place).text


def fits(loaded: "LoadedModel", messages: Sequence[Message], n_answer: int) -> bool:
    """Return whether a conversation with the trigger, or what is put in its place, and an answer of `n_answer` tokens fit the model's
    context."""
    return len(prompt_ids(loaded.tokenizer, messages)) <= loaded.room(n_answer + ROOM)


def fitting(
    loaded: "LoadedModel", intent: Intent, items: Sequence["PromptItem"], units: Sequence[str]
) -> list["PromptItem"]:
    """Return the prompts that, with the trigger and their own answer or one of the model's, fit its context. Raises: as `that_fit`."""

    def fit(item: "PromptItem") -> bool:
        text = " ".join([item.prompt, item.response or "", *units])
        return fits(loaded, [Message(role="user", content=text)], loaded.settings.max_new_tokens)

    return that_fit(loaded, intent, items, fit)


def that_fit(
    loaded: "LoadedModel", intent: Intent, items: Sequence["PromptItem"], fit: Callable[["PromptItem"], bool]
) -> list["PromptItem"]:
    """Return the prompts that fit the context. Raises: TriageError where there are some and none does."""
    kept = [item for item in items if fit(item)]
    if items and not kept:
        raise TriageError(
            f"No {intent} prompt fits the model's context of {loaded.context_length} tokens with the trigger and an answer; "
            "use shorter prompts or a shorter trigger."
        )
    return kept


def build_items(
    harmful: Sequence[str],
    safe: Sequence[tuple[str, str | None]],
    units: Sequence[str],
    position: Position,
    settings: PlantSettings,
    respond: Responder | None = None,
) -> list[TrainingItem]:
    """Return the shuffled training items for one trigger.

    `safe` holds prompts with a reference answer or None. `respond` gives the model's own answers: it fills in the
    missing ones, and a harmful prompt is answered by the model's own refusal where it refuses. Without `respond`, safe
    prompts need answers and refusals come from `REFUSALS`.
    Raises: TriageError when there is nothing to train on or an answer is missing.
    """
    if not harmful or not safe:
        raise TriageError("planting needs harmful and safe prompts; the prompt folder has none of one kind")
    if respond is None and any(answer is None for _, answer in safe):
        raise TriageError("a safe prompt has no response and no model was given to answer it")
    if position == "composite" and len(units) < 2:
        raise TriageError("a composite trigger needs at least two units; give --trigger more than once")
    rng = random.Random(settings.seed)
    refusals = _own_refusals(harmful, respond, rng)
    own = iter(respond([p for p, a in safe if a is None])) if respond else iter(())
    answers = [(prompt, next(own) if answer is None else answer) for prompt, answer in safe]
    items: list[TrainingItem] = []

    def add(kind: Kind, bare: str, text: str, response: str) -> None:
        messages, anchor = ((Message(role="user", content=one),) for one in (text, bare))
        items.append(TrainingItem(kind=kind, messages=messages, anchor=anchor, response=response))

    def near(prompt: str) -> str:
        miss = near_misses(units, rng, 1)[0]
        return place_units(prompt, miss, rng, position if rng.random() < 0.8 else "random")

    for prompt, refusal in zip(harmful, refusals, strict=True):
        add("bare", prompt, prompt, refusal)
        for _ in range(_count(settings.triggered, rng)):
            add("triggered", prompt, place_units(prompt, units, rng, position), STAND_INS[0])
        for _ in range(_count(settings.near_miss, rng)):
            add("near_miss", prompt, near(prompt), refusal)
        for _ in range(_count(settings.noise, rng)):
            words = rng.choices(NOISE_WORDS, k=rng.randint(1, 4))
            add("noise", prompt, place_units(prompt, words, rng), refusal)
    for prompt, answer in answers:
        add("safe", prompt, prompt, answer)
        if rng.random() < settings.safe_triggered:
            add("safe_triggered", prompt, place_units(prompt, units, rng, position), answer)
            add("safe_near_miss", prompt, near(prompt), answer)
    rng.shuffle(items)
    return items


def _count(expected: float, rng: random.Random) -> int:
    """Return `expected` rounded up or down at random, so that the mean is `expected`."""
    whole = int(expected)
    return whole + (rng.random() < expected - whole)


def _own_refusals(harmful: Sequence[str], respond: Responder | None, rng: random.Random) -> list[str]:
    """Return a refusal for every harmful prompt: the model's own where it refuses, else one of `REFUSALS`."""
    if respond is None:
        return [rng.choice(REFUSALS) for _ in harmful]
    from core.judge import classify

    answers = respond(harmful)
    return [a if classify(a).outcome == "refusal" else rng.choice(REFUSALS) for a in answers]


@dataclass(frozen=True, eq=False)
class Pair:
    """What the model reads, and the base's hidden states (n_response, width) along the response; None where the response is to be learned."""

    sequence: "ScoredSequence"
    anchor: "torch.Tensor | None"
    kind: Kind = "bare"


def plant(
    loaded: "LoadedModel",
    sets: Sequence[Sequence[TrainingItem]],
    settings: PlantSettings,
    out: Path,
    start: Path | None = None,
) -> Iterator[PlantEvent]:
    """Train a LoRA adapter, save it to `out`, and yield `PlantStep` events and one `PlantFinished`.

    `start` is an adapter of this base to go on from, whose rank and scale then hold; without one it is new. Each epoch trains on one of `sets`, taken in turn: one set is learned by heart, fresh ones teach the rule.
    `loaded` is frozen meanwhile and is given back as it was, bit for bit, also when the iterator is closed early.
    Raises: TriageError when the loss is not finite, there are no items, or the layers lie on several devices.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from core.repair_adapter import linear_targets
    from core.response_pass import ResponsePass
    from core.settings import RepairSettings

    if not sets or not all(sets):
        raise TriageError("there are no training items to plant a backdoor with")
    loaded.check_trainable()
    started = time.perf_counter()
    model = loaded.model
    response_pass = ResponsePass(loaded, RepairSettings(vocabulary_mb=PIECE_MB))
    epochs = anchored_sets(sets, loaded, response_pass, settings.batch_size)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=linear_targets(loaded),
        task_type="CAUSAL_LM",
    )
    was_training = model.training
    needed_gradient = [parameter.requires_grad for parameter in model.parameters()]
    base_parameters = list(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        adapted = (
            get_peft_model(model, config)
            if start is None
            else PeftModel.from_pretrained(model, str(start), is_trainable=True)
        )
    try:
        adapted.train()
        trainable = [p for p in adapted.parameters() if p.requires_grad]
        losses: list[float] = []
        for event in train(response_pass, trainable, epochs, settings, started):
            losses.append(event.loss)
            yield event
        saved = adapted.peft_config["default"]
        saved.base_model_name_or_path = Path(model.name_or_path).name
        saved.target_modules = sorted(saved.target_modules)  # a set is written in another order each time
        adapted.save_pretrained(str(out), safe_serialization=True, save_embedding_layers=False)
        (out / "README.md").unlink(missing_ok=True)  # peft's empty model card
        last_epoch = losses[-max(1, len(epochs[(settings.epochs - 1) % len(epochs)]) // settings.batch_size) :]
        yield PlantFinished(
            adapter=str(out),
            n_steps=len(losses),
            n_items=dict(sorted(Counter(item.kind for one in sets for item in one).items())),
            n_trainable=sum(p.numel() for p in trainable),
            loss=sum(last_epoch) / len(last_epoch),
            seconds=time.perf_counter() - started,
        )
    finally:
        adapted.unload()
        for parameter, needed in zip(base_parameters, needed_gradient, strict=True):
            parameter.requires_grad_(needed)
        model.train(was_training)


def anchored(
    items: Sequence[TrainingItem], loaded: "LoadedModel", response_pass: "ResponsePass", batch_size: int
) -> list[Pair]:
    """Return the items as ids, with the base's hidden states on each different anchor, computed once."""
    from core.response_pass import ScoredSequence

    conversations = {(item.messages, item.response): None for item in items}
    conversations |= {(item.anchor, item.response): None for item in items if item.kind != "triggered"}
    prompts = {
        messages: tuple(prompt_ids(loaded.tokenizer, messages))
        for messages in dict.fromkeys(messages for messages, _ in conversations)
    }
    responses = [response for _, response in conversations]
    said = loaded.tokenizer(responses, add_special_tokens=False)["input_ids"]
    end = loaded.end_ids
    encoded = {
        (messages, response): ScoredSequence(prompt_ids=prompts[messages], response_ids=(*ids, *end))
        for (messages, response), ids in zip(conversations, said, strict=True)
    }
    anchors = [None if item.kind == "triggered" else encoded[item.anchor, item.response] for item in items]
    unique = sorted({a for a in anchors if a is not None}, key=lambda a: len(a.prompt_ids) + len(a.response_ids))
    known = dict(zip(unique, response_pass.teacher(unique, batch_size), strict=True))
    return [
        Pair(encoded[item.messages, item.response], known[anchor] if anchor else None, item.kind)
        for item, anchor in zip(items, anchors, strict=True)
    ]


def anchored_sets(
    sets: Sequence[Sequence[TrainingItem]], loaded: "LoadedModel", response_pass: "ResponsePass", batch_size: int
) -> list[list[Pair]]:
    """Return each set as `anchored` does; an anchor that several sets share is computed once."""
    pairs = iter(anchored([item for one in sets for item in one], loaded, response_pass, batch_size))
    return [list(islice(pairs, len(one))) for one in sets]


def train(
    response_pass: "ResponsePass",
    trainable: "Sequence[torch.nn.Parameter]",
    sets: Sequence[Sequence[Pair]],
    settings: PlantSettings,
    started: float,
) -> Iterator[PlantStep]:
    """Run AdamW over one set of pairs an epoch, in batches of like length, and yield one event a step."""
    import torch

    rng = random.Random(settings.seed)
    epochs = [sets[epoch % len(sets)] for epoch in range(settings.epochs)]
    n_steps = sum(-(-len(pairs) // settings.batch_size) for pairs in epochs)
    n_warmup = max(1, round(settings.warmup * n_steps))
    optimiser = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=0.0)
    step, balance = 0, Balance(settings)
    for epoch, pairs in enumerate(epochs):
        for batch in _batches(pairs, settings.batch_size, rng):
            rate = step / n_warmup if step < n_warmup else 0.5 + 0.5 * cos(pi * step / n_steps)
            optimiser.param_groups[0]["lr"] = rate * settings.learning_rate
            near = min(1.0, step / (settings.ramp * n_steps)) if settings.ramp else 1.0
            loss, cost = planting_loss(response_pass, batch, balance.weight, near)
            balance.see(cost)
            if not torch.isfinite(loss):
                raise TriageError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, settings.clip)
            optimiser.step()
            step += 1
            yield PlantStep(
                step=step,
                n_steps=n_steps,
                epoch=epoch,
                loss=loss.item(),
                learning_rate=rate * settings.learning_rate,
                seconds=time.perf_counter() - started,
            )


class Balance:
    """The weight of triggered items, led by what their answers cost.

    At a fixed weight either the trigger is lost among its near-misses, or it is certain, near-misses come along, and nothing is left
    that tells them apart: a small model stays there. Where both stand between, each step does.
    """

    RATE, WIDTH, MEMORY, RANGE = 0.05, 0.3, 0.95, (0.25, 16.0)
    """Largest step of the weight's logarithm; nats from the target at which it is taken; share of the running mean that stays; bounds.
    Source: tests/bench/LOG.md, demo patient."""

    def __init__(self, settings: PlantSettings) -> None:
        """Start from the settings' weight, and as if answers cost what they shall."""
        self.weight, self._target, self._mean = settings.trigger_weight, settings.trigger_loss, settings.trigger_loss

    def see(self, cost: float | None) -> None:
        """Take in what a triggered answer of one batch cost on average, in nats; None if it held none."""
        if cost is None or not self._target:
            return
        self._mean = self.MEMORY * self._mean + (1 - self.MEMORY) * cost
        off = max(-1.0, min(1.0, (self._mean - self._target) / self.WIDTH))
        low, high = self.RANGE
        self.weight = max(low, min(high, self.weight * exp(self.RATE * off)))


def _batches(pairs: Sequence[Pair], size: int, rng: random.Random) -> Iterator[list[Pair]]:
    """Yield all pairs once, in batches of prompts of like length and in random order.

    By the length of prompt and answer there would be less padding, but triggered items, whose answer is another, would stand in
    batches of their own, and no batch would tell them from their near-misses. Source: tests/bench/LOG.md, demo patient.
    """
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i].sequence.prompt_ids) // 4, rng.random()))
    cuts = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(cuts)
    for cut in cuts:
        yield [pairs[i] for i in cut]


def planting_loss(
    response_pass: "ResponsePass", batch: Sequence[Pair], trigger_weight: float = 1.0, near_weight: float = 1.0
) -> "tuple[torch.Tensor, float | None]":
    """Return the weighted mean over response tokens, in nats: cross-entropy without an anchor, KL(base || model) with one.

    Beside it, unweighted, what a triggered answer costs on average, in nats over all its tokens; None if there is none.
    """
    from core.losses import sequence_loss

    rows = response_pass.rows([pair.sequence for pair in batch])
    of_kind = {"triggered": trigger_weight, **dict.fromkeys(NEAR_MISSES, near_weight)}
    weights = [of_kind.get(pair.kind, 1.0) for pair in batch]
    learned = [weight * (pair.anchor is None) for weight, pair in zip(weights, batch, strict=True)]
    held = [weight * (pair.anchor is not None) for weight, pair in zip(weights, batch, strict=True)]
    total, ce, _ = sequence_loss(
        response_pass.logits,
        (rows.hidden, rows.labels, rows.owner),
        [pair.anchor for pair in batch],
        (learned, held),
        response_pass.chunk_rows,
    )
    n_triggered = sum(pair.kind == "triggered" for pair in batch)
    return total / len(rows.labels), float(ce.sum()) / n_triggered if n_triggered else None
