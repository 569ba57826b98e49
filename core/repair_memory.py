"""How much memory a repair step will take, counted before it is taken.

    weights + adapter's gradient and AdamW's two moments + teacher + kept for the backward pass + beside it

What is kept is counted on one forward pass of two sequences, by the tensors that autograd saves, and grows with the padded
tokens of a micro-batch: it holds for every architecture and attention. Beside it stands the larger of what the losses take
over the vocabulary and what one layer's backward pass takes. What this does not count: the library's own code, fragments.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from core.recompute import MB, decoder_layers, recomputed
from core.response_pass import ScoredSequence

if TYPE_CHECKING:
    from core.repair_training import Trainer

WITHIN_A_LAYER = 4
"""Tensors of a layer's widest shape that its backward pass holds beside what was kept. Source: tests/unit/test_repair_memory.py
(within 20 % of the counted peak)."""


def estimate_mb(trainer: "Trainer") -> float:
    """Return the expected peak of a step in MB in this process, the largest micro-batch of the first epoch at hand."""
    model, parameters = trainer.loaded.model, list(trainer.loaded.model.parameters())
    trained = sum(_bytes(one) for one in parameters if one.requires_grad)
    held = sum(map(_bytes, (*parameters, *model.buffers()))) + 3 * trained + trainer.teacher_bytes
    largest = max(_micro_batches(trainer), key=lambda sequences: len(sequences) * _longest(sequences))
    n_tokens = len(largest) * _longest(largest)
    two = sorted(largest, key=_length)[-2:]
    kept = _kept_bytes(trainer, two) * n_tokens / (len(two) * _longest(two))
    rows = min(trainer.passes.chunk_rows, sum(len(one.response_ids) for one in largest))
    losses = trainer.passes.tensors_at_once * rows * int(model.config.get_text_config().vocab_size) * 4
    layer = WITHIN_A_LAYER * n_tokens * _widest(model) * parameters[0].element_size()
    if trainer.recompute:
        layers = max(1, len(decoder_layers(model)))
        layer += _kept_bytes(trainer, two, whole=True) / layers * n_tokens / (len(two) * _longest(two))
    return (held + kept + max(losses, layer)) / MB


def _micro_batches(trainer: "Trainer") -> list[list[ScoredSequence]]:
    """Return the sequences of every micro-batch of the first epoch, as one process of the team sees them."""
    found = []
    for batch in trainer.data.batches(0, trainer.settings.batch_size):
        for items in trainer.team.parts(batch, trainer.micro_batch):
            if items:
                found.append([trainer.data.sequence(kind, index, 0) for kind, index in items])
    return found


def _kept_bytes(trainer: "Trainer", sequences: Sequence[ScoredSequence], whole: bool = False) -> int:
    """Return the bytes that a forward pass over `sequences` keeps, each storage once, weights not counted."""
    weights = {one.untyped_storage()._cdata for one in trainer.loaded.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    calls = trainer.loaded.model_calls
    with trainer.few_kernels.on(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with recomputed(trainer.loaded.model) if trainer.recompute and not whole else nullcontext():
            rows = trainer.passes.rows(sequences)
        del rows
    trainer.loaded.model_calls = calls
    return sum(kept.values())


def _widest(model: torch.nn.Module) -> int:
    """Return the widest output of a linear layer inside the decoder layers."""
    config = model.config.get_text_config()
    inside = [module for layer in decoder_layers(model) for module in layer.modules()]
    return max(
        (int(one.out_features) for one in inside if hasattr(one, "out_features")), default=4 * config.hidden_size
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _length(sequence: ScoredSequence) -> int:
    return len(sequence.prompt_ids) + len(sequence.response_ids)


def _longest(sequences: Sequence[ScoredSequence]) -> int:
    return max(map(_length, sequences))
