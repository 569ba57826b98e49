"""What many prompts begin with is computed once: a system prompt, earlier turns, the frame around a request.

The keys and values of the common tokens are kept, and each batch goes on from copies of them. Not every model can: its cache
must hold all tokens of every layer, and what it says must not change when padding stands between the beginning and the rest, which
`LoadedModel` asks once of each model.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import Cache

LEAST = 16
"""Common tokens that are worth a pass of their own. Source: unverified choice (a chat template's marks are fewer)."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of logits with and without a shared beginning, as a share of their largest magnitude, by data type; `ROUNDED` for others.
Padding that counts as distance changes them by a tenth and more. Source: unverified choice."""
ROUNDED = 0.05


@dataclass(frozen=True, eq=False)
class Beginning:
    """The first `n_tokens` of every prompt, and their keys and values; nothing where nothing is shared."""

    n_tokens: int = 0
    cache: "Cache | None" = None

    def copies(self, n: int) -> "Cache | None":
        """Return what `n` sequences go on from."""
        return None if self.cache is None else copies(self.cache, self.n_tokens, n)


def common(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with; each keeps at least one of its own. 0 where that is not worth a pass."""
    if len(prompts) < 2:
        return 0
    shared = commonprefix([tuple(one) for one in prompts])  # noqa: RUF071  of ids, element by element
    n = min(len(shared), min(map(len, prompts)) - 1)
    return n if n >= LEAST else 0


def can_be_cut(cache: "Cache | None") -> bool:
    """Whether a cache holds all tokens of every layer (none with a sliding window), so that a prefix can be taken."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers or ())


def copies(cache: "Cache", n_tokens: int, n: int) -> "Cache | None":
    """Return `n` copies of the first `n_tokens` of a cache of one sequence; they share its memory until they grow."""
    if n_tokens == 0:
        return None
    prefix = copy.copy(cache)
    prefix.layers = []
    for layer in cache.layers:
        part = copy.copy(layer)
        part.keys = layer.keys[:, :, :n_tokens].expand(n, -1, -1, -1)
        part.values = layer.values[:, :, :n_tokens].expand(n, -1, -1, -1)
        prefix.layers.append(part)
    return prefix


def alike(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether logits differ by no more than rounding in `dtype`."""
    limit = TOLERANCE.get(dtype, ROUNDED) * float(one.abs().max())
    return bool((one - other).abs().max() <= limit)
