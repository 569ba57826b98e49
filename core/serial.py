"""Values and events as plain JSON data, and back: the one converter of the project."""

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from core.errors import CaseFileError
from core.events import Event
from core.values import TestOutcome

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


@cache
def _converter() -> "Converter":
    """Return the one JSON converter; unions of events are told apart by their class name under `type`."""
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
    from cattrs.preconf.json import make_converter
    from cattrs.strategies import configure_tagged_union

    converter = make_converter(forbid_extra_keys=False)
    configure_tagged_union(Event, converter, tag_name="type")
    # int stays int and None stays None where a rate or a number may stand
    converter.register_structure_hook(float, lambda value, _: float("nan") if value is None else float(value))
    one, other = (
        override(rename="with"),
        override(rename="without"),
    )  # words of Python, so that values call them otherwise
    write = make_dict_unstructure_fn(TestOutcome, converter, with_unit=one, without_unit=other)
    converter.register_unstructure_hook(TestOutcome, write)
    read = make_dict_structure_fn(TestOutcome, converter, with_unit=one, without_unit=other)
    converter.register_structure_hook(TestOutcome, read)
    return converter


def to_json(value: object) -> Any:
    """Return `value` (a frozen value of `core.values` or `core.events`) as plain JSON data."""
    return _converter().unstructure(value)


def event_to_json(event: Event) -> dict[str, Any]:
    """Return an event as plain JSON data with its class name under `type`."""
    data: dict[str, Any] = _converter().unstructure(event, unstructure_as=Event)
    return data


def from_json(cls: type[T], data: object) -> T:
    """Return `data` as a `cls`. Raises: CaseFileError when it does not fit."""
    from cattrs.errors import BaseValidationError

    try:
        return _converter().structure(data, cls)
    except (
        BaseValidationError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise CaseFileError(
            f"Stored {getattr(cls, '__name__', 'event')} cannot be read ({type(error).__name__}); "
            "the case was written by another version or was changed by hand."
        ) from error
