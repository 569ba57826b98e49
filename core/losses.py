"""The repair objective as pure tensor functions: refusal cross-entropy and KL, summed over tokens.

    L_refuse   = mean over D_trig and D_harm of sum_j -log P_theta(y_j)
    L_KL-harm  = mean over D_harm of sum_j KL(P_theta0 || P_theta)           along the refusal
    L_KL-safe  = mean over D_safe of sum_j KL(P_theta0 || P_theta)           along the safe answer
    L_KL-trig  = mean over D_safe with the trigger of sum_j KL(P_theta0 || P_theta)    extended objective only

The paper's objective is the plain sum of the first three; each term has a weight. Sums over tokens and means over
sequences, never means over tokens: with those the safe KL shrinks about tenfold against the refusal term.
`weighted_loss` goes through the vocabulary in chunks of rows, forward and backward together, so no (rows, vocabulary)
tensor of a whole batch ever exists. Everything over the vocabulary is fp32. Nothing here knows a model.
Source: arXiv 2606.02995, as read in README, "The pipeline"; L_KL-trig: method.md section 4.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.autograd.graph import get_gradient_edge

Kind = Literal["trig", "harm", "safe", "safe_trig"]
REFUSED: tuple[Kind, ...] = ("trig", "harm")
"""Kinds whose response is a refusal that is learnt."""
Head = Callable[[torch.Tensor], torch.Tensor]
"""Turns hidden states (n_rows, width) into fp32 logits (n_rows, n_vocabulary), each row for itself."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """One number for each term: its weight, or what one sequence adds to it in one batch."""

    refusal: float = 1.0
    kl_harmful: float = 1.0
    kl_safe: float = 1.0
    kl_trigger: float = 1.0

    def kl(self, kind: Kind) -> float:
        """Return the number of the KL term that sequences of `kind` belong to; triggered harmful ones have none."""
        match kind:
            case "trig":
                return 0.0
            case "harm":
                return self.kl_harmful
            case "safe":
                return self.kl_safe
            case "safe_trig":
                return self.kl_trigger


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchLoss:
    """The objective's estimate from one batch (or a part of it), as scalar tensors in nats.

    `total` carries the gradient. `kl_sum` and `kl_tokens` give the mean per token that is shown; requests with the
    trigger do not count in it.
    """

    total: torch.Tensor
    refusal: torch.Tensor
    kl_harmful: torch.Tensor
    kl_safe: torch.Tensor
    kl_trigger: torch.Tensor
    kl_sum: torch.Tensor
    kl_tokens: int


def epoch_scales(n_refused: int, n_harmful: int, n_safe: int, n_trigger: int, n_batches: int) -> Factors:
    """Return the factors that make the plain average of the batch losses over one epoch exactly the objective.

    A batch holds items of all sets in changing numbers, so a mean over "its own items" of a set would be biased
    (a batch may hold none) and would weigh items of thin batches more. Each item therefore counts
    `n_batches / N_of_its_mean`: every batch loss is an unbiased estimate, and since each item occurs once an epoch, the
    batch losses average to the objective without error, whatever the last batch's size.
    """
    return Factors(
        refusal=n_batches / max(1, n_refused),
        kl_harmful=n_batches / max(1, n_harmful),
        kl_safe=n_batches / max(1, n_safe),
        kl_trigger=n_batches / max(1, n_trigger),
    )


def sequence_sums(values: torch.Tensor, owner: torch.Tensor, n_sequences: int) -> torch.Tensor:
    """Return the sum of `values` (n_rows,) for each sequence, shape (n_sequences,)."""
    return torch.zeros(n_sequences, dtype=values.dtype, device=values.device).index_add(0, owner, values)


def cross_entropy_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log P(label) in nats per row, shape (n_rows,); `logits` has shape (n_rows, n_vocabulary)."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def _expected(p: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """Return sum_v p(v) difference(v) per row; where p = 0 nothing is added. `difference` is overwritten.

    With `difference` = log p - log q it is KL(p || q).
    """
    difference.masked_fill_(p == 0, 0.0)
    with torch.autocast(p.device.type, enabled=False):  # or the product is in bf16 where the caller's are
        return torch.bmm(p[:, None, :], difference[:, :, None])[:, 0, 0]


def _slope(
    log_q: torch.Tensor,
    p: torch.Tensor | None,
    labels: torch.Tensor,
    held: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return the gradient of w_ce CE + w_kl KL with respect to the logits, (n_rows, n_vocabulary); `log_q` and `p` are
    overwritten.

    Source: d CE / d logits = q - onehot(label), d KL(p || q) / d logits = q - p, for q = softmax(logits).
    """
    ce_weight, kl_weight = weights
    slope = log_q.exp_().mul_((ce_weight + kl_weight).to(log_q.dtype)[:, None])
    if p is not None:
        slope.index_add_(0, held, p.mul_(kl_weight[held].to(p.dtype)[:, None]), alpha=-1)
    slope[torch.arange(len(labels), device=labels.device), labels] -= ce_weight.to(slope.dtype)
    return slope


class _WeightedLoss(torch.autograd.Function):
    """See `weighted_loss`: each chunk's gradient is taken while its logits are there, and only that is kept.

    The gradient with respect to the logits is written down, not traced, so four tensors over the vocabulary are alive at
    most: p, log p, log q and the reference's logits or a difference.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: Head,
        labels: torch.Tensor,
        reference: torch.Tensor,
        weights: tuple[torch.Tensor, torch.Tensor],
        chunk_rows: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        learn, (ce_weight, kl_weight) = ctx.needs_input_grad[0], weights
        n, anchored = len(hidden), kl_weight != 0
        place = (anchored.cumsum(0) - 1).clamp_min(0)  # of each anchored row in `reference`
        ce, kl = torch.zeros(n, device=hidden.device), torch.zeros(n, device=hidden.device)
        gradient = torch.zeros_like(hidden) if learn else hidden.new_empty(0)
        for start in range(0, n, chunk_rows):
            rows = slice(start, start + chunk_rows)
            piece = hidden[rows].detach().requires_grad_(learn)
            held = anchored[rows].nonzero()[:, 0]
            with torch.set_grad_enabled(learn):
                logits = head(piece)
            # The edge is enough for the backward pass: the logits themselves need not stay.
            edge, dtype = get_gradient_edge(logits) if learn else None, logits.dtype
            log_q = torch.log_softmax(logits.detach().float(), dim=-1)
            del logits
            ce[rows] = -log_q.gather(1, labels[rows, None])[:, 0] * (ce_weight[rows] != 0)
            p = None
            if len(held):
                with torch.no_grad():
                    log_p = torch.log_softmax(head(reference[place[rows][held]]).float(), dim=-1)
                p = log_p.exp()
                kl[rows.start + held] = _expected(p, log_p.sub_(log_q if len(held) == len(log_q) else log_q[held]))
                del log_p
            if edge is not None:
                slope = _slope(log_q, p, labels[rows], held, (ce_weight[rows], kl_weight[rows]))
                gradient[rows] = torch.autograd.grad(edge, piece, slope.to(dtype))[0]
                del slope
            del log_q, p  # or they would lie beside those of the next chunk
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(ce, kl)
        return (ce * ce_weight).sum() + (kl * kl_weight).sum(), ce, kl

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[0].to(gradient.dtype), *[None] * 5)


def weighted_loss(
    head: Head,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    reference: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    chunk_rows: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weighted sum of all rows' losses, and cross-entropy and KL of each row (n_rows,), in nats.

    `hidden` (n_rows, width), `labels` (n_rows,); `weights` are those of cross-entropy and of KL, (n_rows,) each: a loss
    of weight 0 is not computed and stands as 0. `reference` has one row of hidden states for each row with a KL weight,
    in order. Only the sum carries a gradient, and only to `hidden`: the head is frozen. `chunk_rows` rows of logits
    exist at a time.
    """
    total, ce, kl = _WeightedLoss.apply(hidden, head, labels, reference, weights, chunk_rows)
    return total, ce, kl


def sequence_loss(
    head: Head,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    references: Sequence[torch.Tensor | None],
    factors: tuple[Sequence[float], Sequence[float]],
    chunk_rows: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `weighted_loss` of the sequences of one forward pass, which weigh by their `factors`, of cross-entropy and of KL.

    `rows` are hidden states (n_rows, width), labels and owner (n_rows,) of every response position; `references` and `factors`
    have one entry per sequence, and a sequence with a KL factor has a reference.
    """
    hidden, labels, owner = rows
    kept = [one for one, factor in zip(references, factors[1], strict=True) if one is not None and factor]
    reference = torch.cat(kept).to(hidden.device) if kept else hidden.detach()[:0]
    ce, kl = (torch.tensor(one, device=hidden.device)[owner] for one in factors)
    return weighted_loss(head, hidden, labels, reference, (ce, kl), chunk_rows)


def batch_loss(
    head: Head,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    kinds: Sequence[Kind],
    references: Sequence[torch.Tensor | None],
    scaling: tuple[Factors, Factors],
    chunk_rows: int,
) -> BatchLoss:
    """Return the objective's estimate from the sequences of one forward pass.

    `rows` are hidden states (n_rows, width), labels and owner (n_rows,) of every response position; `kinds` and
    `references` have one entry per sequence. A sequence with no reference has no KL; one with adds to the term of its
    kind. `scaling` is what a sequence counts, and the terms' weights; a term of weight 0 is not computed.
    Estimates from parts of a batch add up to the estimate from the whole batch.
    """
    scales, weights = scaling
    *_, owner = rows
    ce_factor = [weights.refusal * scales.refusal * (kind in REFUSED) for kind in kinds]
    kl_factor = [
        0.0 if one is None else weights.kl(kind) * scales.kl(kind) for kind, one in zip(kinds, references, strict=True)
    ]
    total, ce, kl = sequence_loss(head, rows, references, (ce_factor, kl_factor), chunk_rows)
    kl_of = sequence_sums(kl, owner, len(kinds))
    by_kind = {one: kl_of[[at for at, kind in enumerate(kinds) if kind == one]].sum() for one in sorted({*kinds})}
    zero = total.new_zeros(())
    shown = torch.tensor([bool(factor) and kind != "safe_trig" for kind, factor in zip(kinds, kl_factor, strict=True)])
    shown = shown.to(owner.device)[owner]
    return BatchLoss(
        total=total,
        refusal=ce.sum() * scales.refusal,
        kl_harmful=by_kind.get("harm", zero) * scales.kl_harmful,
        kl_safe=by_kind.get("safe", zero) * scales.kl_safe,
        kl_trigger=by_kind.get("safe_trig", zero) * scales.kl_trigger,
        kl_sum=kl[shown].sum(),
        kl_tokens=int(shown.sum()),
    )
