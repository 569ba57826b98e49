"""One optimiser step of the repair: batch, micro-batches, the objective's terms against the cached teacher, AdamW.

The teacher's final hidden states of every fixed sequence are computed once, at theta0; the frozen head turns them back
into exact logits at each step. The model stays in evaluation mode, so there is no dropout and the KL is
exactly zero before the first step. LoRA weights, losses and optimiser are fp32, whatever the model is.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from core import repair_adapter
from core.errors import RepairDivergedError
from core.loaded import is_out_of_memory
from core.losses import BatchLoss, Factors, Kind, batch_loss, epoch_scales
from core.repair_data import RepairData
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings

if TYPE_CHECKING:
    from core.loaded import LoadedModel

MB = 2**20
SMALL_MODEL, LARGE_MODEL = 100_000_000, 1_000_000_000
RATES = (1e-3, 3e-4, 1e-4)
"""Learning rate below `SMALL_MODEL` parameters, below `LARGE_MODEL`, and above. Source: `RepairSettings.learning_rate`."""
ACTIVATION_BYTES = 34
"""Bytes kept per token, layer and hidden unit at 16 bits, attention maps left out. Source: Korthikanti et al. 2022, eq. 2."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """What one step measured: losses as in `losses.BatchLoss`, in nats, None for a term that is off.

    `kl_nats_per_token` is None without such tokens.
    """

    loss: float
    refusal: float | None
    kl_harmful: float | None
    kl_safe: float | None
    kl_trigger: float | None
    kl_nats_per_token: float | None
    n_tokens: int


def learning_rate(settings: RepairSettings, n_parameters: int) -> float:
    """Return the settings' rate, or the one the rule gives for a model of this size."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return RATES[0] if n_parameters < SMALL_MODEL else RATES[1] if n_parameters < LARGE_MODEL else RATES[2]


def rate_at(step: int, n_steps: int, peak: float, warmup_share: float) -> float:
    """Return the rate of step 1..n_steps: linear up to `peak`, then linear down, towards zero after the last step."""
    warmup = max(1, round(warmup_share * n_steps))
    if step <= warmup:
        return peak * step / warmup
    return peak * (n_steps - step + 1) / (n_steps - warmup + 1)


class Trainer:
    """The attached adapter with its optimiser and the cached teacher."""

    def __init__(
        self,
        loaded: "LoadedModel",
        data: RepairData,
        passes: ResponsePass,
        settings: RepairSettings,
        folder: Path | None = None,
        start: Path | None = None,
    ) -> None:
        """Cache the teacher (theta0 must be on), attach a fresh adapter, or the one in `start`, and switch it on for training.

        A teacher that is too large for memory goes into a file in `folder`.
        """
        self.loaded, self.data, self.passes, self.settings = loaded, data, passes, settings
        self._references = self._teacher(folder)
        self.n_batches = math.ceil(data.n_items / settings.batch_size)
        n = {kind: len(indices) for kind, indices in data.items.items()}
        n_held = sum(data.held[index] for index in data.items.get("harm", ()))
        self._scales = epoch_scales(
            n.get("trig", 0) + n.get("harm", 0), n_held, n.get("safe", 0), n.get("safe_trig", 0), self.n_batches
        )
        self._weights = Factors(
            refusal=settings.weight_refusal,
            kl_harmful=settings.weight_kl_harmful if n_held else 0.0,
            kl_safe=settings.weight_kl_safe,
            kl_trigger=settings.weight_kl_trigger if settings.holds_trigger else 0.0,
        )
        n_steps = settings.epochs * self.n_batches
        self.n_steps = min(n_steps, settings.max_steps) if settings.max_steps else n_steps
        self.peak_rate = learning_rate(settings, loaded.n_parameters)
        repair_adapter.attach(loaded, settings, start)
        repair_adapter.use_repaired(loaded, trainable=True)
        self._parameters = list(repair_adapter.parameters(loaded).values())
        self.n_trainable = sum(parameter.numel() for parameter in self._parameters)
        self.optimizer = torch.optim.AdamW(self._parameters, lr=self.peak_rate, weight_decay=settings.weight_decay)
        self.micro_batch = settings.micro_batch_size or settings.batch_size
        self._epoch = -1
        self._batches: list[list[tuple[Kind, int]]] = []

    def _teacher(self, folder: Path | None) -> dict[tuple[Kind, int, int], torch.Tensor]:
        """Return theta0's hidden states by (set, index, placement), of all sequences that some term compares with."""
        data, settings = self.data, self.settings
        wanted: dict[tuple[Kind, int, int], ScoredSequence] = {}
        if settings.weight_kl_harmful > 0:
            wanted |= {("harm", at, 0): one for at, one in enumerate(data.harm) if data.held[at]}
        if settings.weight_kl_safe > 0 or (settings.holds_trigger and not data.anchors):
            wanted |= {("safe", at, 0): one for at, one in enumerate(data.safe)}
        for at, placed in enumerate(data.anchors):
            wanted |= {("safe_trig", at, number): one for number, one in enumerate(placed)}
        states = self.passes.teacher(list(wanted.values()), self.loaded.settings.batch_size, folder)
        return dict(zip(wanted, states, strict=True))

    def _reference(self, kind: Kind, index: int, epoch: int) -> torch.Tensor | None:
        """Return what an item is compared with, None where no KL holds it."""
        if kind == "safe_trig":
            if not self.data.anchors:
                return self._references[("safe", index, 0)]
            return self._references[(kind, index, self.data.placement(index, epoch))]
        return self._references.get((kind, index, 0))

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that step number `step` (from 1) belongs to."""
        return (step - 1) // self.n_batches

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return rate_at(step, self.n_steps, self.peak_rate, self.settings.warmup_share)

    def step(self, step: int) -> StepNumbers:
        """Take optimiser step number `step` (from 1). Out of memory halves the micro-batch and repeats the step.

        Raises: RepairDivergedError when loss or gradient is not finite (the weights are then as before the step), and
        whatever torch raises when even one sequence does not fit into memory.
        """
        epoch = self.epoch_of(step)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.data.batches(epoch, self.settings.batch_size)
        batch = self._batches[(step - 1) % self.n_batches]
        while True:
            try:
                numbers = self._gradients(batch, epoch)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.micro_batch == 1:
                    raise
            self.micro_batch = max(1, min(self.micro_batch, len(batch)) // 2)
            log.warning("repair step %d ran out of memory: going on with micro-batches of %d", step, self.micro_batch)
            if self.loaded.device.type == "cuda":
                torch.cuda.empty_cache()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        if not (math.isfinite(numbers.loss) and bool(torch.isfinite(norm))):
            self.optimizer.zero_grad(set_to_none=True)
            raise RepairDivergedError(f"The loss or its gradient is not finite at step {step} (loss {numbers.loss}).")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def _gradients(self, batch: Sequence[tuple[Kind, int]], epoch: int) -> StepNumbers:
        """Leave the gradient of the batch's loss on the adapter and return its numbers."""
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[BatchLoss] = []
        n_tokens = 0
        for start in range(0, len(batch), self.micro_batch):
            part, tokens = self._part(batch[start : start + self.micro_batch], epoch)
            part.total.backward()
            parts.append(part)
            n_tokens += tokens
        kl_tokens, weights = sum(part.kl_tokens for part in parts), self._weights

        def term(name: str, weight: float) -> float | None:
            return float(sum(getattr(part, name) for part in parts)) if weight else None

        return StepNumbers(
            loss=float(sum(part.total.detach() for part in parts)),
            refusal=term("refusal", weights.refusal),
            kl_harmful=term("kl_harmful", weights.kl_harmful),
            kl_safe=term("kl_safe", weights.kl_safe),
            kl_trigger=term("kl_trigger", weights.kl_trigger),
            kl_nats_per_token=float(sum(part.kl_sum for part in parts)) / kl_tokens if kl_tokens else None,
            n_tokens=n_tokens,
        )

    def _part(self, items: Sequence[tuple[Kind, int]], epoch: int) -> tuple[BatchLoss, int]:
        rows = self.passes.rows([self.data.sequence(kind, index, epoch) for kind, index in items])
        loss = batch_loss(
            self.passes.logits,
            (rows.hidden, rows.labels, rows.owner),
            [kind for kind, _ in items],
            [self._reference(kind, index, epoch) for kind, index in items],
            (self._scales, self._weights),
            self.passes.chunk_rows,
        )
        return loss, rows.n_tokens


def memory_estimate_mb(loaded: "LoadedModel", settings: RepairSettings, n_tokens: int) -> float:
    """Return a rough peak in MB of a step with sequences of `n_tokens`: weights, adapter with Adam, activations, logits."""
    model = loaded.model
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    config = model.config.get_text_config()
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    element = next(model.parameters()).element_size()
    sequences = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    # Per layer four projections of width x width and three of width x inner, each with two thin factors; weight,
    # gradient and two moments in fp32.
    adapter = layers * settings.lora_rank * (8 * width + 3 * (width + inner)) * 16
    activations = sequences * n_tokens * layers * width * ACTIVATION_BYTES * element / 2
    rows = sequences * settings.max_response_tokens
    logits = 8 * min(rows * int(config.vocab_size) * 4, settings.vocabulary_mb * MB)
    kept = settings.n_harmful + settings.n_safe * (1 + settings.n_placements * settings.holds_trigger)
    teacher = min(kept * settings.max_response_tokens * width * element, settings.teacher_mb * MB)
    return (weights + adapter + activations + logits + teacher) / MB


def memory_mb(loaded: "LoadedModel") -> float:
    """Return the peak of CUDA memory, or the resident size of this process on the CPU."""
    if loaded.device.type == "cuda":
        return torch.cuda.max_memory_allocated(loaded.device) / MB
    import psutil  # comes with peft; imported here so that this module needs torch and transformers alone

    return psutil.Process().memory_info().rss / MB
