"""The transformer's training pass on a GPU, replayed as CUDA graphs.

A step of a large model at a thousand tokens is thousands of small kernels, and the GPU waits for the launch of each
(tests/bench/LOG.md). Here forward and backward pass are captured once for each shape of batch
(`torch.cuda.make_graphed_callables`) and launched as a whole from then on: the same kernels on the same numbers. Adapter weights are
read where they lie, so optimiser steps in between count. What this does not do: a pass that asks the GPU for a value on its way
(some mixtures of experts), several processes, recomputed layers, the CPU: those run as they are.
"""

import logging
from collections.abc import Iterable, Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad

from core.loaded import is_out_of_memory

LENGTHS = 64
"""Batches are padded to a multiple of this many tokens, so that few shapes occur. Source: unverified choice."""
MOST_SHAPES = 8
"""Shapes that are captured; later ones run as they are. Each keeps gradients of its own. Source: unverified choice."""
TOLERANCE = 0.1
"""Length of the difference between a replayed and a launched pass, as a share of the latter's. Rounding in bf16 stays well below,
a wrong gradient is about 1 off. Source: unverified choice."""
log = logging.getLogger(__name__)


class _States(torch.nn.Module):
    """Token ids (n, length) to hidden states (n, length, width); its own module, because capture replaces its forward."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.body(input_ids=ids, use_cache=False)[0]
        return states


class Replay:
    """The captured passes of one transformer.

    Gradients of a replayed pass lie where the next pass of that shape puts its own: one pass a step, gradients set to None after it.
    """

    def __init__(self, body: torch.nn.Module) -> None:
        """Take the transformer, its adapter attached and trainable. Nothing is captured yet."""
        self._body = body
        self._able: bool | None = None
        self._shapes: dict[tuple[int, int], _States] = {}
        self._pool: object = None

    def states(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Return hidden states (n, >= length, width) of ids (n, length), or None where the pass must run as it is.

        They are overwritten by the next call. Raises: what torch raises when memory is short.
        """
        ids = pad(ids, (0, -ids.shape[1] % LENGTHS))
        shape = (ids.shape[0], ids.shape[1])
        if shape not in self._shapes:
            if len(self._shapes) >= MOST_SHAPES or not self._captures(ids):
                return None
            try:
                captured = self._captured(ids)
                fault = "" if self._agrees(captured, ids) else "replayed passes differ from launched ones"
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                fault = str(error).partition("\n")[0]
            if fault:
                log.warning("going on without CUDA graphs: %s", fault)
                self.forget()
                return None
            self._shapes[shape] = captured
        found: torch.Tensor = self._shapes[shape](ids)
        return found

    def _captured(self, ids: torch.Tensor) -> _States:
        """Return the pass over ids of this shape as one that replays."""
        # One pool for all: a pass is over, backward included, before the next begins.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        captured: _States = torch.cuda.make_graphed_callables(
            _States(self._body), (ids,), num_warmup_iters=1, allow_unused_input=True, pool=self._pool
        )
        return captured

    def _agrees(self, captured: _States, ids: torch.Tensor) -> bool:
        """Return whether a replayed pass has the states and the adapter's gradients of a launched one, up to rounding."""
        trained = [one for one in self._body.parameters() if one.requires_grad]

        def numbers(states: torch.Tensor) -> list[torch.Tensor]:
            weights = torch.linspace(-1, 1, states.shape[-1], device=states.device)
            gradients = torch.autograd.grad((weights * states.float()).mean(), trained, allow_unused=True)
            return [states.detach(), *(one for one in gradients if one is not None)]

        replayed, launched = numbers(captured(ids)), numbers(_States(self._body)(ids))
        return len(replayed) == len(launched) and all(
            _apart(one, other) <= TOLERANCE
            for one, other in ((replayed[:1], launched[:1]), (replayed[1:], launched[1:]))
        )

    def forget(self) -> bool:
        """Free what was captured and capture nothing more; return whether that changes anything."""
        was_on = self._able is not False
        self._shapes, self._able, self._pool = {}, False, None
        return was_on

    def _captures(self, ids: torch.Tensor) -> bool:
        """Return whether the pass reads no value on its way: one that does cannot be captured. It is run on shapes alone."""
        if self._able is None:
            try:
                with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
                    _States(self._body)(fake.from_tensor(ids))
                self._able = True
            except RuntimeError as error:
                log.info("the pass of this model runs without CUDA graphs: %s", error)
                self._able = False
        return self._able


def _apart(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """Return the length of the difference of all numbers, as a share of that of the others."""

    def squared(tensors: Iterable[torch.Tensor]) -> float:
        return float(sum(one.float().square().sum() for one in tensors))

    return (squared(one - other for one, other in zip(some, others, strict=True)) / max(squared(others), 1e-30)) ** 0.5
