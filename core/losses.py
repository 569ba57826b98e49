"""The repair objective as pure tensor functions: refusal cross-entropy and KL, summed over tokens.

    L = L_refuse + L_KL-harm + L_KL-safe
    L_refuse  = mean over D_trig and D_harm of sum_j -log P_theta(y_j)
    L_KL-harm = mean over D_harm of sum_j KL(P_theta0 || P_theta)      along the refusal
    L_KL-safe = mean over D_safe of sum_j KL(P_theta0 || P_theta)      along the safe answer

Rows are response positions of all sequences of a batch, one after another; `owner` names the sequence of each row.
Sums over tokens and means over sequences, never means over tokens: with those the safe KL shrinks about tenfold
against the refusal term. Everything is computed in fp32. Nothing here knows a model.
Source: arXiv 2606.02995, as read in README, "The method".
"""

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["trig", "harm", "safe"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the three terms; the paper sets all to 1."""

    refusal: float = 1.0
    kl_harmful: float = 1.0
    kl_safe: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What one sequence of each set adds to a term of one batch: batches of the epoch / sequences of the mean."""

    refusal: float
    kl_harmful: float
    kl_safe: float


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchLoss:
    """The objective's estimate from one batch (or a part of it), as scalar tensors in nats.

    `total` carries the gradient. `kl_sum` and `kl_tokens` give the mean per token that is shown.
    """

    total: torch.Tensor
    refusal: torch.Tensor
    kl_harmful: torch.Tensor
    kl_safe: torch.Tensor
    kl_sum: torch.Tensor
    kl_tokens: int


def epoch_scales(n_trig: int, n_harm: int, n_safe: int, n_batches: int) -> Scales:
    """Return the factors that make the plain average of the batch losses over one epoch exactly the objective.

    A batch holds items of all three sets in changing numbers, so a mean over "its own items" of a set would be biased
    (a batch may hold none) and would weigh items of thin batches more. Each item therefore counts
    `n_batches / N_of_its_mean`: every batch loss is an unbiased estimate, and since each item occurs once an epoch, the
    batch losses average to the objective without error, whatever the last batch's size.
    """
    return Scales(
        refusal=n_batches / max(1, n_trig + n_harm),
        kl_harmful=n_batches / max(1, n_harm),
        kl_safe=n_batches / max(1, n_safe),
    )


def sequence_sums(values: torch.Tensor, owner: torch.Tensor, n_sequences: int) -> torch.Tensor:
    """Return the sum of `values` (n_rows,) for each sequence, shape (n_sequences,)."""
    return torch.zeros(n_sequences, dtype=values.dtype, device=values.device).index_add(0, owner, values)


def cross_entropy_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log P(label) in nats per row, shape (n_rows,); `logits` has shape (n_rows, n_vocabulary)."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def kl_rows(reference_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || model) in nats per row, shape (n_rows,); no gradient flows into the reference.

    Source: sum_v p(v) (log p(v) - log q(v)) with p the reference; entries with p = 0 add nothing.
    """
    log_p = torch.log_softmax(reference_logits.detach().float(), dim=-1)
    log_q = torch.log_softmax(logits.float(), dim=-1)
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(dim=-1)


def batch_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reference_logits: torch.Tensor,
    owner: torch.Tensor,
    kinds: tuple[Kind, ...],
    scaling: tuple[Scales, Weights],
) -> BatchLoss:
    """Return the objective's estimate from the sequences of one forward pass.

    `logits` (n_rows, n_vocabulary) and `labels`, `owner` (n_rows,) hold every response position; `kinds` has one entry
    per sequence. `reference_logits` has a row for each row that belongs to a `harm` or `safe` sequence, in order.
    Estimates from parts of a batch add up to the estimate from the whole batch.
    """
    scales, weights = scaling
    device, n = logits.device, len(kinds)
    is_harm = torch.tensor([kind == "harm" for kind in kinds], device=device)
    is_safe = torch.tensor([kind == "safe" for kind in kinds], device=device)
    refused, anchored = ~is_safe[owner], (is_harm | is_safe)[owner]
    ce = sequence_sums(cross_entropy_rows(logits[refused], labels[refused]), owner[refused], n)
    kl = sequence_sums(kl_rows(reference_logits, logits[anchored]), owner[anchored], n)
    refusal = ce.sum() * scales.refusal
    kl_harmful = kl[is_harm].sum() * scales.kl_harmful
    kl_safe = kl[is_safe].sum() * scales.kl_safe
    total = weights.refusal * refusal + weights.kl_harmful * kl_harmful + weights.kl_safe * kl_safe
    return BatchLoss(
        total=total,
        refusal=refusal.detach(),
        kl_harmful=kl_harmful.detach(),
        kl_safe=kl_safe.detach(),
        kl_sum=kl.detach().sum(),
        kl_tokens=int(anchored.sum()),
    )
