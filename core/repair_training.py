"""One optimiser step of the repair: batch, micro-batches, the objective's terms against the cached teacher, AdamW.

The teacher's final hidden states of every fixed sequence are computed once, at theta0; the frozen head turns them back
into exact logits at each step. The model stays in evaluation mode, so there is no dropout and the KL is
exactly zero before the first step. LoRA weights, losses and optimiser are fp32, whatever the model is.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from core import repair_adapter, repair_memory
from core.errors import RepairDivergedError, TriageError
from core.loaded import is_out_of_memory
from core.losses import BatchLoss, Factors, Kind, batch_loss, epoch_scales
from core.low_rank import FewKernels
from core.recompute import recomputed
from core.repair_data import RepairData
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings
from core.team import ALONE, Team, whole
from core.values import MemorySaving

if TYPE_CHECKING:
    from core.loaded import LoadedModel

MB = 2**20
SMALL_MODEL, LARGE_MODEL = 100_000_000, 1_000_000_000
RATES = (1e-3, 3e-4, 1e-4)
"""Learning rate below `SMALL_MODEL` parameters, below `LARGE_MODEL`, and above. Source: `RepairSettings.learning_rate`."""
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
        team: Team = ALONE,
    ) -> None:
        """Cache the teacher (theta0 must be on), attach a fresh adapter, or the one in `start`, and switch it on for training.

        A teacher that is too large for memory goes into a file in `folder`. Each of the team's processes takes its part of
        every batch.
        """
        self.team = team
        reset_memory(loaded)
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
        self.unreached = repair_adapter.unreached_share(loaded)
        repair_adapter.attach(loaded, settings, start)
        repair_adapter.use_repaired(loaded, trainable=True)
        self.n_trainable = sum(parameter.numel() for parameter in repair_adapter.parameters(loaded).values())
        self.micro_batch = settings.micro_batch_size or settings.batch_size
        self.recompute = settings.recompute
        self.memory_saved: tuple[MemorySaving, ...] = ()
        self.few_kernels = FewKernels(loaded.model if team.n == 1 else torch.nn.Module())
        self.memory_estimate_mb = repair_memory.estimate_mb(self)
        passes.join(team)
        self._parameters = list(repair_adapter.parameters(loaded).values())  # the team's own, where it shards them
        self.optimizer = torch.optim.AdamW(self._parameters, lr=self.peak_rate, weight_decay=settings.weight_decay)
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

    @property
    def teacher_bytes(self) -> int:
        """Bytes of the kept hidden states in memory, 0 where they lie in a file."""
        n_bytes = sum(one.numel() * one.element_size() for one in self._references.values())
        return n_bytes if n_bytes <= self.settings.teacher_mb * MB else 0

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
        """Take optimiser step number `step` (from 1). Out of memory gives up CUDA graphs, then halves the micro-batch, and repeats
        the step; at one sequence the layers are computed again in the backward pass.

        Raises: RepairDivergedError when loss or gradient is not finite (the weights are then as before the step), TriageError
        when one process of several is out of memory, and whatever torch raises when even one sequence does not fit.
        """
        epoch = self.epoch_of(step)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.data.batches(epoch, self.settings.batch_size)
        batch = self._batches[(step - 1) % self.n_batches]
        while True:
            try:
                with self.few_kernels.on():
                    numbers = self._gradients(batch, epoch)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or (self.micro_batch == 1 and self.recompute):
                    raise
                if self.team.n > 1:  # the others wait for this one's gradient: all must end
                    raise TriageError(
                        f"One of {self.team.n} processes ran out of memory at step {step}; repair with --set "
                        f"micro_batch_size=N (now {self.micro_batch}), --set recompute=true or --sharded."
                    ) from None
            self._save_memory(step, len(batch))
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm))
        if not (math.isfinite(numbers.loss) and bool(torch.isfinite(norm))):
            self.optimizer.zero_grad(set_to_none=True)
            raise RepairDivergedError(f"The loss or its gradient is not finite at step {step} (loss {numbers.loss}).")
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def _save_memory(self, step: int, n_items: int) -> None:
        """Give up captured passes, which hold memory of their own; else halve the micro-batch, or at one sequence let the layers
        be recomputed."""
        if self.passes.replay and self.passes.replay.forget():
            self.memory_saved += ("no_graphs",)
            log.warning("repair step %d ran out of memory: going on without CUDA graphs", step)
        elif self.micro_batch > 1:
            self.micro_batch = max(1, min(self.micro_batch, n_items) // 2)
            log.warning("repair step %d ran out of memory: going on with micro-batches of %d", step, self.micro_batch)
        else:
            self.recompute = True
            self.memory_saved += ("recompute",)
            log.warning("repair step %d ran out of memory with one sequence: going on with recomputed layers", step)
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _gradients(self, batch: Sequence[tuple[Kind, int]], epoch: int) -> StepNumbers:
        """Leave the gradient of the batch's loss on the adapter and return its numbers."""
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[BatchLoss] = []
        n_tokens, mine = 0, self.team.parts(batch, self.micro_batch)
        for number, items in enumerate(mine):
            # A process without an item of its own takes part in the exchange of gradients with one that counts nothing.
            part, tokens = self._part(items or batch[:1], epoch, alone=len(mine) == 1)
            self.team.backward(part.total if items else part.total * 0.0, last=number + 1 == len(mine))
            if items:
                parts.append(part)
                n_tokens += tokens
        weights, names = self._weights, ("total", "refusal", "kl_harmful", "kl_safe", "kl_trigger", "kl_sum")
        own = [float(sum(getattr(part, name).detach() for part in parts)) for name in names]
        *sums, kl_sum, kl_tokens, tokens_of_all = self.team.summed(
            [*own, sum(one.kl_tokens for one in parts), n_tokens]
        )
        loss, refusal, kl_harmful, kl_safe, kl_trigger = sums
        return StepNumbers(
            loss=loss,
            refusal=refusal if weights.refusal else None,
            kl_harmful=kl_harmful if weights.kl_harmful else None,
            kl_safe=kl_safe if weights.kl_safe else None,
            kl_trigger=kl_trigger if weights.kl_trigger else None,
            kl_nats_per_token=kl_sum / kl_tokens if kl_tokens else None,
            n_tokens=int(tokens_of_all),
        )

    def _part(self, items: Sequence[tuple[Kind, int]], epoch: int, *, alone: bool) -> tuple[BatchLoss, int]:
        """Return the losses of one micro-batch and its number of tokens; `alone`: it is the whole step."""
        sequences = [self.data.sequence(kind, index, epoch) for kind, index in items]
        with recomputed(self.loaded.model) if self.recompute else nullcontext():
            rows = self.passes.rows(sequences, replayed=alone and not self.recompute, shared=not self.recompute)
        loss = batch_loss(
            self.passes.logits,
            (rows.hidden, rows.labels, rows.owner),
            [kind for kind, _ in items],
            [self._reference(kind, index, epoch) for kind, index in items],
            (self._scales, self._weights),
            self.passes.chunk_rows,
        )
        return loss, rows.n_tokens


def reset_memory(loaded: "LoadedModel") -> None:
    """Let `memory_mb` count from here on, so that a peak of an earlier stage is not the repair's."""
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loaded.device)


def memory_mb(loaded: "LoadedModel") -> float:
    """Return the peak of CUDA memory, or the resident size of this process on the CPU."""
    if loaded.device.type == "cuda":
        return torch.cuda.max_memory_allocated(loaded.device) / MB
    import psutil  # comes with peft; imported here so that this module needs torch and transformers alone

    return psutil.Process().memory_info().rss / MB
