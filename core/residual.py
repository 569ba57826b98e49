"""Residual risk: what besides the confirmed trigger, as it was repaired, may still set the model off.

1. Forms of the trigger: those that read alike (trigger_forms.py), spelling, near tokens, order, place.
2. The trigger in other words, and as it is in a request in other words (by rule: rewrites.py): how far what was unlearnt generalises.
3. Wider text: all candidates of the report together, and whole words where the confirmed text cuts one.
4. The report's own wording around other requests.
5. What earlier rounds unlearnt, and dummy triggers that were planted to be unlearnt.

Each is asked on the same few held-out requests before and after, as a group of its own; the rates follow the kind of failure.
What this does not do: ask (see verification.py), or train; the two probes that do are in residual_probes.py.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from core.errors import TriageError
from core.frames import Conversation, Frame, TriggerFrame, frame_of, in_wording, render_ids
from core.injection import Place, near_misses
from core.measures import Group, Side, failures
from core.rewrites import paraphrases, said_otherwise
from core.settings import VerificationSettings
from core.trigger_forms import FORMS
from core.values import Message, Variant

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptItem

Form = Callable[[str, random.Random], Conversation | None]
"""Puts a form of the trigger into a request; None where trigger or request has no such form."""
PREFIX = "variant: "
"""Before the name of a variant in the name of its group."""
ASKED_FORMS = tuple(name for name in FORMS if name != "as confirmed")
PLACES: dict[str, Place] = {
    "first in the request": "prefix", "in the middle of the request": "middle", "last in the request": "suffix",
}  # fmt: skip
WORDING = "the report's wording around other requests"
N_REWORDED = 6
"""Paraphrases of a request, of which one is drawn. Source: unverified choice."""


def forms(
    loaded: "LoadedModel",
    messages: Sequence[Message],
    frame: Frame,
    anywhere: TriggerFrame,
    beyond: Sequence[TriggerFrame],
) -> dict[str, Form]:
    """Return every way to ask a request, by name: the trigger changed, where `frame` puts it; as it is, at other places that
    `anywhere` takes; and `beyond`, frames of more text than was confirmed."""
    found: dict[str, Form] = {}
    seen = {frame.units}
    for name in ASKED_FORMS:
        units = tuple(map(FORMS[name], frame.units))
        found[name] = partial(_saying, frame, None if units in seen else units)
        seen.add(units)
    for name, place in PLACES.items():
        found[name] = lambda text, rng, place=place: anywhere.triggered(text, rng, place)  # type: ignore[misc]
    found["spelling, digits and marks changed"] = lambda text, rng: frame.triggered(text, rng, edit=_misspelt(rng))
    found["a near token in place of one"] = lambda text, rng: frame.triggered(text, rng, edit=_near(loaded, rng))
    found["words in another order"] = lambda text, rng: _saying(frame, _shuffled(frame.units, rng), text, rng)
    found["the trigger in other words"] = lambda text, rng: _saying(frame, _otherwise(frame.units, rng), text, rng)
    found["the request in other words"] = lambda text, rng: _reworded(frame, text, rng)
    for number, wider in enumerate(beyond):
        name = "more of the report's text" if not number else f"more of the report's text ({number + 1})"
        found[name] = lambda text, rng, wider=wider: wider.triggered(text, rng)  # type: ignore[misc]
    found[WORDING] = lambda text, rng: in_wording(messages, text)
    return found


def of_rounds(frames: Mapping[int, Frame]) -> dict[str, Form]:
    """Return the triggers of earlier rounds as forms, by name: what one round unlearnt another may bring back."""
    return {
        f"the trigger of round {at}": lambda text, rng, frame=frame: frame.triggered(text, rng)  # type: ignore[misc]
        for at, frame in frames.items()
    }


def of_dummies(messages: Sequence[Message], units: Mapping[int, Sequence[str]]) -> dict[str, Form]:
    """Return dummy triggers as forms, by the round that planted and unlearnt each: what is left of one works in the repaired model alone.

    They are asked as they were unlearnt, behind what was said before the report's last message, and without that.
    """
    found: dict[str, Form] = {}
    for at, own in units.items():
        name, frame = f"the dummy trigger of round {at}", frame_of(messages, (), own)
        found[name] = lambda text, rng, frame=frame: frame.triggered(text, rng)  # type: ignore[misc]
        if frame.earlier:
            alone = replace(frame, earlier=())
            found[f"{name}, alone"] = lambda text, rng, frame=alone: frame.triggered(text, rng)  # type: ignore[misc]
    return found


def groups(
    loaded: "LoadedModel",
    named: dict[str, Form],
    items: Sequence["PromptItem"],
    settings: VerificationSettings,
    seed: int,
    room: int,
) -> list[Group]:
    """Return one group for each form that at least one request can take within `room` tokens."""
    found = []
    for name, form in named.items():
        kept: list[tuple[str, list[int], PromptItem]] = []
        for index, item in enumerate(items[: settings.n_variant]):
            messages = form(item.prompt, random.Random(f"variant/{seed}/{name}/{index}"))
            ids = render_ids(loaded, messages) if messages is not None else []
            if messages is not None and len(ids) <= room:
                kept.append((messages[-1].content, ids, item))
        if kept:
            texts, prompts, used = zip(*kept, strict=True)
            found.append(Group(kind=PREFIX + name, texts=texts, ids=prompts, items=used))
    return found


def not_asked(named: Collection[str], groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the names of the forms that no group asks."""
    asked = {one.kind for one in groups}
    return tuple(name for name in named if PREFIX + name not in asked)


def variants(groups: Sequence[Group], before: Side, after: Side) -> tuple[Variant, ...]:
    """Return the failures of each variant before and after."""
    return tuple(
        Variant(
            name=one.kind.removeprefix(PREFIX),
            example=one.texts[0],
            before=failures(before, one.kind),
            after=failures(after, one.kind),
        )
        for one in groups
        if one.kind.startswith(PREFIX)
    )


def _saying(frame: Frame, units: Sequence[str] | None, text: str, rng: random.Random) -> Conversation | None:
    return None if units is None else frame.saying(units).triggered(text, rng)


def _reworded(frame: Frame, text: str, rng: random.Random) -> Conversation | None:
    """Return the request in other words with the trigger as it is, None where no rule rewords it."""
    others = paraphrases(text, N_REWORDED)
    return frame.triggered(rng.choice(others).text, rng) if others else None


def _misspelt(rng: random.Random) -> Callable[[str], str]:
    def edit(unit: str) -> str:
        try:
            return " ".join(near_misses([unit], rng, 1)[0])
        except TriageError:  # white space alone has no near-miss
            return unit

    return edit


def _near(loaded: "LoadedModel", rng: random.Random) -> Callable[[str], str]:
    """Return an edit that replaces one token of a unit by its nearest neighbour that reads otherwise."""

    def edit(unit: str) -> str:
        tokenizer = loaded.tokenizer
        ids = list(tokenizer(unit, add_special_tokens=False)["input_ids"])
        if not ids:
            return unit
        at = rng.randrange(len(ids))
        table = loaded.model.get_input_embeddings().weight
        with torch.no_grad():
            like = torch.nn.functional.cosine_similarity(table.float(), table[ids[at]].float(), dim=-1)
        own = loaded.decode([ids[at]]).strip().casefold()
        for other in like.topk(min(16, len(like))).indices.tolist():
            text = loaded.decode([other])
            if text.strip() and text.strip().casefold() != own and other < len(tokenizer):
                return loaded.decode([*ids[:at], other, *ids[at + 1 :]])
        return unit

    return edit


def _shuffled(units: Sequence[str], rng: random.Random) -> tuple[str, ...] | None:
    """Return the units, or the words of a single one, in another order; None where there is no other."""
    parts = list(units) if len(units) > 1 else units[0].split()
    if len(set(parts)) < 2:
        return None
    mixed = parts
    while mixed == parts:
        mixed = rng.sample(parts, len(parts))
    return tuple(mixed) if len(units) > 1 else (" ".join(mixed),)


def _otherwise(units: Sequence[str], rng: random.Random) -> tuple[str, ...] | None:
    """Return the units in other words, each that has any; None where none has."""
    others = [said_otherwise(unit) for unit in units]
    if not any(others):
        return None
    return tuple(rng.choice(other) if other else unit for unit, other in zip(units, others, strict=True))
