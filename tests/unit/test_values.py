"""Frozen values: nothing can be changed after the fact, arrays included; settings name their sources."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from core import settings, values

CLASSES = [
    one
    for one in vars(values).values()
    if isinstance(one, type) and dataclasses.is_dataclass(one) and one.__module__ == "core.values"
]
SETTINGS = [one for one in vars(settings).values() if isinstance(one, type) and dataclasses.is_dataclass(one)]


def test_read_only_is_a_locked_copy() -> None:
    """Neither the copy nor, through it, the original can be written to."""
    original = np.arange(3.0)
    locked = values.read_only(original)
    with pytest.raises(ValueError):
        locked[0] = 7
    original[0] = 9
    assert locked[0] == 0


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_values_are_frozen_and_named(kind: type) -> None:
    """Every value is frozen and takes keywords only; those with arrays do not compare by content."""
    assert kind.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(kind))
    holds_array = any(field.type is np.ndarray or "ndarray" in str(field.type) for field in dataclasses.fields(kind))
    assert kind.__dataclass_params__.eq is not holds_array


def test_ids_of_a_prompt_are_in_order() -> None:
    """`ids` follows the tokens."""
    tokens = tuple(values.PromptToken(position=i, id=9 - i, text="x", segment="user") for i in range(3))
    assert values.RenderedPrompt(text="xxx", tokens=tokens, template_hash="h").ids == [9, 8, 7]


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_setting_says_where_it_comes_from(kind: type) -> None:
    """Under each field stands a text with `Source:`."""
    tree = ast.parse(Path(settings.__file__).read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__).body
    for number, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            after = body[number + 1]
            assert isinstance(after, ast.Expr), ast.unparse(node)
            assert "Source:" in ast.unparse(after), ast.unparse(node)


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_settings_are_frozen_and_have_defaults(kind: type) -> None:
    """Defaults pass their own checks and cannot be changed in place."""
    made = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(kind)[0].name, None)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (settings.ModelSettings, {"batch_size": 0}),
        (settings.ModelSettings, {"max_new_tokens": 0}),
        (settings.SplitSettings, {"causal": 0.9}),
        (settings.SplitSettings, {"causal": 0.6, "repair": 0.0}),
        (settings.AttributionSettings, {"occlusion_floor": 0.0}),
        (settings.CausalSettings, {"sufficient_share": 0.0}),
        (settings.RepairSettings, {"learning_rate": 0.0}),
        (settings.RepairSettings, {"kl_budget": 0.0}),
        (settings.RepairSettings, {"epochs": 0}),
        (settings.RepairSettings, {"share_lookalike": 1.5}),
    ],
)
def test_settings_out_of_range(kind: type, fault: dict[str, float]) -> None:
    """Nonsense is refused where it is made, by its name where it is one setting's."""
    with pytest.raises(ValueError, match="shares" if kind is settings.SplitSettings else next(iter(fault))):
        kind(**fault)
