"""A linear layer's LoRA in few kernels, for the training pass.

PEFT computes an adapter beside the layer in the adapter's fp32: casts, products, a scale and a sum, each with a backward kernel
of its own. At a thousand tokens a step a GPU waits for their launches (tests/bench/LOG.md). Here it is one function of autograd:

    forward   low = x (s A)^T,  y = base(x) + low B^T
    backward  dB = g^T low,  h = g (s B),  dA = h^T x,  dx = h A

in the layer's own dtype, on copies of A and B that are made once a step; their gradients are in the adapter's dtype. In fp32 that
is PEFT's own result up to rounding. What this does not do: several processes (their hooks sit on PEFT's parts), dropout,
adapters that are no plain LoRA: such layers run as PEFT has them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, eq=False)
class Copies:
    """A (rank, n_in) and B (n_out, rank) of one adapter in the layer's dtype, plain and times its scale."""

    a: Tensor
    b: Tensor
    scaled_a: Tensor
    scaled_b: Tensor


class _LowRank(torch.autograd.Function):
    """base (n, n_out) + x (n, n_in) (s A)^T B^T; the adapter's own weights are arguments for the sake of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, weight_a: Tensor, weight_b: Tensor, copies: Copies) -> Tensor:  # type: ignore[override]
        low = x @ copies.scaled_a.t()
        ctx.save_for_backward(x, low)
        ctx.copies, ctx.dtype = copies, weight_a.dtype
        return torch.addmm(base, low, copies.b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, low = ctx.saved_tensors
        needs_x, needs_base, needs_a, needs_b, _ = ctx.needs_input_grad
        inner = gradient @ ctx.copies.scaled_b
        return (
            inner @ ctx.copies.a if needs_x else None,
            gradient if needs_base else None,
            _product(inner.t(), x, ctx.dtype) if needs_a else None,
            _product(gradient.t(), low, ctx.dtype) if needs_b else None,
            None,
        )


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the matrix product in `dtype`; on CUDA it is never rounded to the factors' dtype."""
    if left.dtype == dtype:
        return left @ right
    if left.device.type == "cuda":
        product: Tensor = torch.ops.aten.mm.dtype(left, right, dtype)
        return product
    return (left @ right).to(dtype)


class FewKernels:
    """The plain LoRA layers of a model, and their adapters' copies."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the layers; adapters may be switched and trained afterwards, but not added."""
        self._layers = [module for module in model.modules() if isinstance(module, lora.Linear) and _plain(module)]
        self._copies: dict[tuple[int, str], Copies] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Run the layers this way, with the adapters that are switched on now; forward and backward belong inside the block."""
        adapters = [[name for name in layer.active_adapters if name in layer.lora_A] for layer in self._layers]
        self._copy([(layer, name) for layer, names in zip(self._layers, adapters, strict=True) for name in names])
        for layer, names in zip(self._layers, adapters, strict=True):
            layer.forward = self._forward(layer, names)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    @torch.no_grad()
    def _copy(self, adapters: list[tuple[lora.Linear, str]]) -> None:
        """Bring the copies up to date, all of a kind in one kernel."""
        if not adapters:
            return
        kept, weights = [], []
        for layer, name in adapters:
            pair = layer.lora_A[name].weight, layer.lora_B[name].weight
            key, dtype = (id(layer), name), layer.base_layer.weight.dtype
            if key not in self._copies:
                self._copies[key] = Copies(*(torch.empty_like(one, dtype=dtype) for one in (*pair, *pair)))
            kept.append(self._copies[key])
            weights.append(pair)
        scales = [layer.scaling[name] for layer, name in adapters]
        for side, (plain, scaled) in enumerate((("a", "scaled_a"), ("b", "scaled_b"))):
            own = [pair[side] for pair in weights]
            torch._foreach_copy_([getattr(one, plain) for one in kept], own)
            torch._foreach_copy_([getattr(one, scaled) for one in kept], torch._foreach_mul(own, scales))

    def _forward(self, layer: lora.Linear, names: list[str]) -> Callable[..., Tensor]:
        base = layer.base_layer
        parts = [(layer.lora_A[one].weight, layer.lora_B[one].weight, self._copies[id(layer), one]) for one in names]

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result: Tensor = base(x, *args, **kwargs)
            shape, rows = result.shape, x.flatten(0, -2)
            for part in parts:
                result = _LowRank.apply(rows, result.view(rows.shape[0], -1), *part)
            return result.view(shape)

        return forward


def _plain(layer: lora.Linear) -> bool:
    """Return whether all of the layer's adapters are plain LoRA beside a layer of floating-point weights."""
    dropouts = [one for one in layer.lora_dropout.values() if not isinstance(one, torch.nn.Identity)]
    return (
        not layer.merged
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and not any(one.training for one in dropouts)
        and layer.base_layer.weight.is_floating_point()
    )
