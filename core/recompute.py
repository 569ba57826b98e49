"""Activation checkpointing: a decoder layer keeps its input alone, and its inside is computed again for the backward pass.

Memory then grows with the width a layer hands on, not with everything inside; the price is one more forward pass. Layers are
found by structure and stay in evaluation mode (the library's own switch works in training mode alone, where dropout would
change the result). What this does not do: decide when. Source: Chen et al. 2016, arXiv 1604.06174.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

MB = 2**20
ACTIVATION_BYTES = 34
"""Bytes kept per token, layer and hidden unit at 16 bits, attention maps left out. Source: Korthikanti et al. 2022, eq. 2."""


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers of a causal language model, in order: its list of as many modules as it has layers."""
    n_layers = int(model.config.get_text_config().num_hidden_layers)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # not a vision tower of as many layers
    for module in decoder.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return list(module)
    return []


def kept_mb(model: torch.nn.Module, n_tokens: int) -> float:
    """Return roughly how many MB a forward pass over `n_tokens` keeps for its backward pass."""
    config = model.config.get_text_config()
    element = next(model.parameters()).element_size()
    return n_tokens * int(config.num_hidden_layers) * int(config.hidden_size) * ACTIVATION_BYTES * element / 2 / MB


@contextmanager
def recomputed(model: torch.nn.Module) -> Iterator[None]:
    """Let forward passes in the block keep the layers' inputs alone; backward passes may come after it."""
    layers = decoder_layers(model)
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _recomputing(layer.forward)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
