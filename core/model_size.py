"""A configuration may not describe far more than the files of its folder hold: found while modules are made, not after.

1. Numbers of layers, blocks, labels and the like are read first: a configuration's class may make lists of that length.
2. The model is made without weights (on the device "meta"); every module and value made is counted, and one too many ends it.
   The same count watches PEFT make an adapter, whose rank may be any number.

What this does not do: compare shapes; loading the weights does.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from core.errors import ModelLoadError
from core.weight_files import Shapes, read_json

_MOST, _SPARE_VALUES, _SPARE_MODULES = 4, 10_000_000, 10_000
"""A configuration may describe so many times the values (and modules) that the files hold (and tensors), and so many more:
tables that are computed, tied weights, modules without weights. Source: unverified choice."""
_COUNTS = re.compile(r"(?!.*size)(num_|.*layer|.*types)")
"""Names of a configuration under which numbers of parts stand."""


@contextmanager
def bounded(config: Path, shapes: Shapes) -> Iterator[None]:
    """Raise ModelLoadError in the block as soon as it makes far more values or modules than the files of a folder hold."""
    n_held, n_values, n_modules = sum(math.prod(shape) for shape in shapes.values()), 0, 0

    def count(_: nn.Module, __: str, made: nn.Module | torch.Tensor | None) -> None:
        nonlocal n_values, n_modules
        if isinstance(made, torch.Tensor):
            n_values += made.numel()
        else:
            n_modules += 1
        if n_values > _MOST * n_held + _SPARE_VALUES or n_modules > _MOST * len(shapes) + _SPARE_MODULES:
            raise ModelLoadError(
                f"the weights in {config.parent} do not fit its {config.name} (it describes {n_values:,} values in {n_modules:,} "
                f"modules and more, the files hold {n_held:,} in {len(shapes):,} tensors): copy the model again"
            )

    library = nn.modules.module
    hooks = (
        library.register_module_parameter_registration_hook(count),
        library.register_module_buffer_registration_hook(count),
        library.register_module_module_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_parts(config: Path, shapes: Shapes) -> None:
    """Raise ModelLoadError when a configuration gives far larger numbers of parts than there are tensors."""
    n_parts = _parts(read_json(config))
    if n_parts > max(len(shapes), _SPARE_MODULES):
        raise ModelLoadError(
            f"the weights in {config.parent} do not fit its {config.name} ({n_parts:,} layers or other parts, {len(shapes):,} "
            "tensors): copy the model again"
        )


def _parts(value: object, counts: bool = False) -> int:
    """Return the largest whole number that a configuration holds under a name that counts parts (`_COUNTS`)."""
    if isinstance(value, dict):
        return max((_parts(inner, counts or bool(_COUNTS.match(key))) for key, inner in value.items()), default=0)
    if isinstance(value, list):
        return max((_parts(inner, counts) for inner in value), default=0)
    return value if counts and type(value) is int else 0
