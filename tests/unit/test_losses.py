"""The objective against sums worked out by hand and by the plainest code."""

import math

import pytest
import torch

from core.losses import (
    Factors,
    batch_loss,
    cross_entropy_rows,
    epoch_scales,
    sequence_sums,
    weighted_loss,
)

PAPER = Factors(kl_trigger=0.0)


def kl_rows(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Return KL(reference || model) of each row, as `weighted_loss` sees it where hidden states are the logits."""
    n = len(model)
    alone = (torch.zeros(n), torch.ones(n))
    return weighted_loss(lambda logits: logits, model, torch.zeros(n, dtype=torch.long), reference, alone, 8)[2]


def naive_kl_rows(reference: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Return the same in the plainest code."""
    log_p, log_q = torch.log_softmax(reference, dim=-1), torch.log_softmax(model, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


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
    head = _Counting(6, 13)
    hidden, labels, reference, weights = _rows(11)
    reference.requires_grad_()
    weighted_loss(head, hidden, labels, reference, weights, 4)[0].backward()
    assert reference.grad is None
    assert hidden.grad is not None


def test_sequences_sum_over_their_tokens() -> None:
    sums = sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    assert sums.tolist() == [3.0, 0.0, 4.0]


def _items(seed: int) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Return items (kind, logits, labels, reference logits) of unequal lengths: 3 trig, 3 harm, 4 safe, 2 safe_trig."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for place, kind in enumerate(["trig"] * 3 + ["harm"] * 3 + ["safe"] * 4 + ["safe_trig"] * 2):
        n = 1 + (place * 3) % 5
        logits = torch.randn(n, 7, generator=generator, requires_grad=True)
        labels = torch.randint(0, 7, (n,), generator=generator)
        items.append((kind, logits, labels, None if kind == "trig" else torch.randn(n, 7, generator=generator)))
    return items


def _loss_of(batch, n_batches: int, weights: Factors = Factors(), chunk_rows: int = 3):  # noqa: B008
    owner = torch.cat([torch.full((len(labels),), place) for place, (_, _, labels, _) in enumerate(batch)])
    return batch_loss(
        lambda hidden: hidden,
        (torch.cat([one[1] for one in batch]), torch.cat([one[2] for one in batch]), owner),
        [one[0] for one in batch],
        [one[3] for one in batch],
        (epoch_scales(6, 3, 4, 2, n_batches), weights),
        chunk_rows,
    )


def _objective(items):
    """Return the objective's terms, written down plainly: sums over tokens, means over sequences."""
    ce = [
        sum(-torch.log_softmax(lo, -1)[j, y] for j, y in enumerate(la))
        for k, lo, la, _ in items
        if k in ("trig", "harm")
    ]
    kl = {"harm": [], "safe": [], "safe_trig": []}
    for kind, logits, _, reference in items:
        if kind != "trig":
            p = torch.softmax(reference, -1)
            kl[kind].append((p * (torch.log(p) - torch.log_softmax(logits, -1))).sum())
    return sum(ce) / 6, sum(kl["harm"]) / 3, sum(kl["safe"]) / 4, sum(kl["safe_trig"]) / 2


@pytest.mark.parametrize("size", [1, 3, 4, 12])
def test_batch_losses_average_to_the_objective_over_an_epoch_whatever_the_batch_size(size: int) -> None:
    items = _items(0)
    order = [7, 0, 4, 10, 9, 2, 3, 8, 11, 1, 6, 5]
    batches = [[items[i] for i in order[start : start + size]] for start in range(0, 12, size)]
    losses = [_loss_of(batch, len(batches)) for batch in batches]
    terms = dict(zip(("refusal", "kl_harmful", "kl_safe", "kl_trigger"), _objective(items), strict=True))
    n = len(batches)
    # 1e-5: fp32 sums in another order
    for name, expected in terms.items():
        assert sum(getattr(one, name) for one in losses).item() / n == pytest.approx(expected.item(), rel=1e-5)
    assert sum(one.total for one in losses).item() / n == pytest.approx(sum(terms.values()).item(), rel=1e-5)


def test_without_the_trigger_term_the_objective_is_the_papers() -> None:
    items = _items(0)
    paper = [one for one in items if one[0] != "safe_trig"]
    whole, without = _loss_of(items, 1, PAPER), _loss_of(paper, 1, PAPER)
    assert whole.total.item() == without.total.item() == pytest.approx(sum(_objective(items)[:3]).item(), rel=1e-5)
    assert whole.kl_trigger == 0


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_gradients_of_an_epoch_average_to_the_objectives_gradient(chunk_rows: int) -> None:
    items = _items(1)
    batches = [items[:3], items[3:6], items[6:]]
    (sum(_loss_of(batch, 3, chunk_rows=chunk_rows).total for batch in batches) / 3).backward()
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
    shown = sum(len(la) for k, _, la, _ in items if k in ("harm", "safe"))
    assert first.kl_tokens + second.kl_tokens == whole.kl_tokens == shown
    weights = Factors(refusal=2.0, kl_harmful=0.0, kl_safe=0.5, kl_trigger=3.0)
    weighted = _loss_of(items, 1, weights)
    expected = 2 * whole.refusal + 0.5 * whole.kl_safe + 3 * whole.kl_trigger
    assert weighted.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert weighted.kl_safe.item() == pytest.approx(whole.kl_safe.item(), rel=1e-6)  # shown without its weight


def test_a_sequence_without_a_reference_has_no_kl() -> None:
    items = _items(3)
    free = [(k, lo, la, None if at == 3 else ref) for at, (k, lo, la, ref) in enumerate(items)]
    held = _loss_of([items[3]], 1).kl_harmful
    assert (_loss_of(items, 1).kl_harmful - _loss_of(free, 1).kl_harmful).item() == pytest.approx(held.item(), rel=1e-4)


# --- chunks of the vocabulary ---------------------------------------------------------------------------------------


class _Counting(torch.nn.Module):
    """A head with bias, scale and soft cap that remembers the most rows it was given at once."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
        self.bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
        self.most = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, len(hidden))
        return 5 * torch.tanh((hidden @ self.weight.T + self.bias) * 0.3 / 5)


def _rows(n: int, width: int = 6, vocabulary: int = 13):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, width, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, vocabulary, (n,), generator=generator)
    ce = torch.tensor([(0.0, 1.5, 0.7)[at % 3] for at in range(n)], dtype=torch.float64)
    kl = torch.tensor([(0.9, 0.0, 0.4, 2.0)[at % 4] for at in range(n)], dtype=torch.float64)
    reference = torch.randn(int((kl != 0).sum()), width, generator=generator, dtype=torch.float64)
    return hidden, labels, reference, (ce, kl)


@pytest.mark.parametrize("chunk_rows", [1, 3, 11, 50])
def test_chunks_give_the_naive_losses_and_gradient_and_never_more_rows(chunk_rows: int) -> None:
    head = _Counting(6, 13)
    hidden, labels, reference, weights = _rows(11)
    total, ce, kl = weighted_loss(head, hidden, labels, reference, weights, chunk_rows)
    assert head.most <= chunk_rows
    (3 * total).backward()
    logits = head(other := hidden.detach().clone().requires_grad_())
    held = weights[1] != 0
    naive_ce, naive_kl = cross_entropy_rows(logits, labels), naive_kl_rows(head(reference), logits[held])
    naive = (naive_ce * weights[0]).sum() + (naive_kl * weights[1][held]).sum()
    (3 * naive).backward()
    # 1e-5: losses are fp32 by design
    assert total.item() == pytest.approx(naive.item(), rel=1e-5)
    torch.testing.assert_close(ce[weights[0] != 0].double(), naive_ce[weights[0] != 0].double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kl[held].double(), naive_kl.double(), rtol=1e-5, atol=1e-6)
    assert (ce[weights[0] == 0] == 0).all()
    assert (kl[~held] == 0).all()
    torch.testing.assert_close(hidden.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    head = _Counting(6, 13)
    hidden, labels, reference, weights = _rows(5)
    weighted_loss(head, hidden, labels, reference, weights, 2)[0].backward()
    step = 1e-2  # the losses are fp32: a smaller step drowns in rounding
    for row in range(5):
        for column in range(6):
            values = []
            for sign in (1, -1):
                moved = hidden.detach().clone()
                moved[row, column] += sign * step
                with torch.no_grad():
                    values.append(weighted_loss(head, moved, labels, reference, weights, 2)[0].item())
            assert (values[0] - values[1]) / (2 * step) == pytest.approx(hidden.grad[row, column].item(), abs=2e-3)


def test_under_autocast_the_losses_stay_near_and_in_fp32() -> None:
    """bf16 has 8 bits of mantissa: the head's logits are off by under a hundredth, what is summed from them is not rounded again."""
    head = _Counting(6, 13)
    head.weight, head.bias = head.weight.float(), head.bias.float()
    hidden, labels, reference, weights = _rows(11)
    hidden, reference = hidden.detach().float().requires_grad_(), reference.float()
    weights = (weights[0].float(), weights[1].float())
    exact = weighted_loss(head, hidden, labels, reference, weights, 4)
    with torch.autocast("cpu", torch.bfloat16):
        near = weighted_loss(head, hidden, labels, reference, weights, 4)
    for one, other in zip(exact, near, strict=True):
        assert other.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03, check_dtype=False)


def test_what_backward_needs_is_one_gradient_of_the_hidden_states() -> None:
    head = _Counting(6, 13)
    hidden, labels, reference, weights = _rows(11)
    total, ce, kl = weighted_loss(head, hidden, labels, reference, weights, 4)
    assert [tuple(one.shape) for one in total.grad_fn.saved_tensors] == [(11, 6)]
    assert not ce.requires_grad
    assert not kl.requires_grad


def test_a_response_twice_as_long_counts_twice() -> None:
    logits, labels = torch.randn(2, 7), torch.tensor([1, 2])
    once = cross_entropy_rows(logits, labels).sum()
    twice = cross_entropy_rows(logits.repeat(2, 1), labels.repeat(2)).sum()
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-6)
