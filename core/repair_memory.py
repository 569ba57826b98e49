"""How much memory a repair step will take, counted before it is taken.

    weights + adapter's gradient and AdamW's two moments + teacher + kept for the backward pass + beside it

What is kept is counted on one forward pass of two sequences, by the tensors that autograd saves, and grows with the padded
tokens of a micro-batch: it holds for every architecture and attention. Beside it stands the larger of what the losses take
over the vocabulary and what one layer's backward pass takes. `bound_mb` counts the same before the answers are there, each
as long as it may be. What this does not count: the library's own code, fragments.
"""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, get_args

import torch

from core import repair_adapter
from core.frames import Edit, Frame, TriggerFrame, render_ids
from core.injection import Place
from core.low_rank import FewKernels
from core.recompute import MB, decoder_layers, recomputed
from core.repair_data import EDITS, chosen
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptSet
    from core.repair_training import Trainer

WITHIN_A_LAYER = 4
"""Tensors of a layer's widest shape that its backward pass holds beside what was kept. Source: tests/unit/test_repair_memory.py
(within 20 % of the counted peak)."""
LONGEST_PROMPTS = 16
"""Prompts, by characters, among which the longest in tokens is looked for. Source: unverified choice."""


def estimate_mb(trainer: "Trainer") -> float:
    """Return the expected peak of a step in MB in this process, the largest micro-batch of the first epoch at hand."""
    largest = max(_micro_batches(trainer), key=lambda sequences: len(sequences) * _longest(sequences))
    return _peak_mb(
        trainer.loaded, trainer.passes, trainer.few_kernels, largest, trainer.teacher_bytes, trainer.recompute
    )


def bound_mb(
    loaded: "LoadedModel",
    frames: tuple[TriggerFrame, Sequence[Frame]],
    prompts: "PromptSet",
    settings: RepairSettings,
) -> float | None:
    """Return what a step takes at most in MB, from the longest of the prompts with the trigger in them, or what it may be beyond that
    (`frames` as in `repair_data.build`), and answers of the greatest length, which are not asked for; None where no prompt fits the
    context. The adapter is attached meanwhile.
    """
    frame, wider = frames
    harmful, safe = ([item.prompt for item in items] for items in chosen(prompts, settings))
    limit = settings.max_response_tokens
    size = settings.micro_batch_size or settings.batch_size
    rng = random.Random(settings.seed)
    texts = sorted((*harmful, *safe), key=len)[-LONGEST_PROMPTS:]
    forms: list[tuple[Frame, Edit]] = [(frame, str)]
    if settings.extended:
        forms = [*((frame, edit) for edit in EDITS.values()), *((one, str) for one in wider if settings.share_wider)]
    rendered = [
        render_ids(loaded, one.triggered(text, rng, place, edit))
        for text in texts
        for one, edit in forms
        for place in get_args(Place)
    ]
    fitting = [tuple(ids) for ids in rendered if len(ids) <= loaded.room(limit)]
    if not fitting:
        return None
    longest = max(fitting, key=len)
    others = [longest[1:]] * (size - 1)  # not as long, so that the batch is padded and masked as real ones are
    largest = [ScoredSequence(prompt_ids=ids, response_ids=ids[:1] * limit) for ids in (longest, *others)]
    n_answers = len(harmful) + len(safe) * (1 + settings.n_placements * settings.holds_trigger)
    states = n_answers * limit * loaded.model.config.get_text_config().hidden_size
    teacher = states * next(loaded.model.parameters()).element_size()
    try:
        passes = ResponsePass(loaded, settings)
        repair_adapter.attach(loaded, settings)
        repair_adapter.use_repaired(loaded, trainable=True)
        few = FewKernels(loaded.model)
        return _peak_mb(loaded, passes, few, largest, min(teacher, settings.teacher_mb * int(MB)), settings.recompute)
    finally:
        repair_adapter.detach(loaded)


def _peak_mb(
    loaded: "LoadedModel",
    passes: ResponsePass,
    few: FewKernels,
    largest: Sequence[ScoredSequence],
    teacher: int,
    recompute: bool,
) -> float:
    """Return the peak of a step on the micro-batch `largest`, beside `teacher` bytes of kept hidden states."""
    model, parameters = loaded.model, list(loaded.model.parameters())
    trained = sum(_bytes(one) for one in parameters if one.requires_grad)
    held = sum(map(_bytes, (*parameters, *model.buffers()))) + 3 * trained + teacher
    n_tokens = len(largest) * _longest(largest)
    two = sorted(largest, key=_length)[-2:]
    share = n_tokens / (len(two) * _longest(two))
    kept = _kept_bytes(loaded, passes, few, two, recompute) * share
    rows = min(passes.chunk_rows, sum(len(one.response_ids) for one in largest))
    losses = passes.tensors_at_once * rows * int(model.config.get_text_config().vocab_size) * 4
    layer = WITHIN_A_LAYER * n_tokens * _widest(model) * parameters[0].element_size()
    if recompute:
        layer += _kept_bytes(loaded, passes, few, two, False) / max(1, len(decoder_layers(model))) * share
    return (held + kept + max(losses, layer)) / MB


def _micro_batches(trainer: "Trainer") -> list[list[ScoredSequence]]:
    """Return the sequences of every micro-batch of the first epoch, as one process of the team runs them: one without an item of its
    own runs the batch's first."""
    found = []
    for batch in trainer.data.batches(0, trainer.settings.batch_size):
        for items in trainer.team.parts(batch, trainer.micro_batch):
            found.append([trainer.data.sequence(kind, index, 0) for kind, index in items or batch[:1]])
    return found


def _kept_bytes(
    loaded: "LoadedModel",
    passes: ResponsePass,
    few: FewKernels,
    sequences: Sequence[ScoredSequence],
    recompute: bool,
) -> int:
    """Return the bytes that a forward pass over `sequences` keeps, each storage once, weights not counted."""
    weights = {one.untyped_storage()._cdata for one in loaded.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor.detach()  # itself, it would keep its own node alive, and with it the whole pass

    calls = loaded.model_calls
    with few.on(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with recomputed(loaded.model) if recompute else nullcontext():
            rows = passes.rows(sequences)
        del rows
    loaded.model_calls = calls
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
