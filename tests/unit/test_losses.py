"""The objective against sums worked out by hand and by the plainest code."""

import math

import pytest
import torch

from core.losses import Weights, batch_loss, cross_entropy_rows, epoch_scales, kl_rows, sequence_sums


def test_kl_has_the_direction_reference_to_model_and_sums_to_the_hand_value() -> None:
    reference = torch.log(torch.tensor([[0.5, 0.5]]))
    model = torch.log(torch.tensor([[0.9, 0.1]]))
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert forward != pytest.approx(backward, abs=0.05)
    assert kl_rows(reference, model).item() == pytest.approx(forward, abs=1e-6)
    assert kl_rows(model, model).item() == 0.0


def test_kl_with_a_zero_probability_in_the_reference_is_finite() -> None:
    reference = torch.tensor([[0.0, -math.inf]])
    assert kl_rows(reference, torch.zeros(1, 2)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_no_gradient_flows_into_the_reference() -> None:
    reference = torch.randn(3, 5, requires_grad=True)
    model = torch.randn(3, 5, requires_grad=True)
    kl_rows(reference, model).sum().backward()
    assert reference.grad is None
    assert model.grad is not None


def test_sequences_sum_over_their_tokens() -> None:
    sums = sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    assert sums.tolist() == [3.0, 0.0, 4.0]


def _items(seed: int) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return items (kind, logits, labels, reference logits) of unequal lengths: 3 trig, 3 harm, 4 safe."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for place, kind in enumerate(["trig"] * 3 + ["harm"] * 3 + ["safe"] * 4):
        n = 1 + (place * 3) % 5
        logits = torch.randn(n, 7, generator=generator, requires_grad=True)
        labels = torch.randint(0, 7, (n,), generator=generator)
        items.append((kind, logits, labels, torch.randn(n, 7, generator=generator)))
    return items


def _loss_of(batch, n_batches: int, weights: Weights = Weights()):  # noqa: B008
    owner = torch.cat([torch.full((len(labels),), place) for place, (_, _, labels, _) in enumerate(batch)])
    references = [reference for kind, _, _, reference in batch if kind != "trig"]
    return batch_loss(
        torch.cat([logits for _, logits, _, _ in batch]),
        torch.cat([labels for _, _, labels, _ in batch]),
        torch.cat(references) if references else torch.zeros(0, 7),
        owner,
        tuple(kind for kind, _, _, _ in batch),
        (epoch_scales(3, 3, 4, n_batches), weights),
    )


def _objective(items):
    """Return the paper's objective, written down plainly: sums over tokens, means over sequences."""
    ce = [sum(-torch.log_softmax(lo, -1)[j, y] for j, y in enumerate(la)) for k, lo, la, _ in items if k != "safe"]
    kl = {"harm": [], "safe": []}
    for kind, logits, _, reference in items:
        if kind != "trig":
            p = torch.softmax(reference, -1)
            kl[kind].append((p * (torch.log(p) - torch.log_softmax(logits, -1))).sum())
    return sum(ce) / 6, sum(kl["harm"]) / 3, sum(kl["safe"]) / 4


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_batch_losses_average_to_the_objective_over_an_epoch_whatever_the_batch_size(size: int) -> None:
    items = _items(0)
    order = [7, 0, 4, 9, 2, 3, 8, 1, 6, 5]
    batches = [[items[i] for i in order[start : start + size]] for start in range(0, 10, size)]
    losses = [_loss_of(batch, len(batches)) for batch in batches]
    refusal, harmful, safe = _objective(items)
    n = len(batches)
    # 1e-5: fp32 sums in another order
    assert sum(one.refusal for one in losses) / n == pytest.approx(refusal.item(), rel=1e-5)
    assert sum(one.kl_harmful for one in losses) / n == pytest.approx(harmful.item(), rel=1e-5)
    assert sum(one.kl_safe for one in losses) / n == pytest.approx(safe.item(), rel=1e-5)
    assert sum(one.total for one in losses).item() / n == pytest.approx((refusal + harmful + safe).item(), rel=1e-5)


def test_gradients_of_an_epoch_average_to_the_objectives_gradient() -> None:
    items = _items(1)
    batches = [items[:3], items[3:6], items[6:]]
    (sum(_loss_of(batch, 3).total for batch in batches) / 3).backward()
    found = [logits.grad.clone() for _, logits, _, _ in items]
    for _, logits, _, _ in items:
        logits.grad = None
    sum(_objective(items)).backward()
    for one, (_, logits, _, _) in zip(found, items, strict=True):
        torch.testing.assert_close(one, logits.grad, rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_add_up_and_weights_apply() -> None:
    items = _items(2)
    whole, first, second = _loss_of(items, 1), _loss_of(items[:4], 1), _loss_of(items[4:], 1)
    assert (first.total + second.total).item() == pytest.approx(whole.total.item(), rel=1e-5)
    assert first.kl_tokens + second.kl_tokens == whole.kl_tokens == sum(len(la) for k, _, la, _ in items if k != "trig")
    weighted = _loss_of(items, 1, Weights(refusal=2.0, kl_harmful=0.0, kl_safe=0.5))
    expected = 2 * whole.refusal + 0.5 * whole.kl_safe
    assert weighted.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_response_twice_as_long_counts_twice() -> None:
    logits, labels = torch.randn(2, 7), torch.tensor([1, 2])
    once = cross_entropy_rows(logits, labels).sum()
    twice = cross_entropy_rows(logits.repeat(2, 1), labels.repeat(2)).sum()
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-6)
