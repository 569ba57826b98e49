"""A known trigger put into other requests: at any place, at its own place in the report, or in the report's wording.

What was said before the last user message goes before every request, as in triage's transplants: a backdoor may need the system
prompt it is deployed with. What this does not do: choose requests, or carry candidates that are not confirmed (transplants.py).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from core import chat, injection
from core.intervals import wilson
from core.kinds import FailureKind
from core.rewrites import framed
from core.text_spans import close_to_words, delete_spans, last_user, merge_spans, replace_content, units_of
from core.transplants import Carrier, carrier, placed
from core.values import Message, Rate, Span, TriggerConfirmation

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptItem

Conversation = list[Message]
Edit = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class TriggerFrame:
    """Turns a prompt into a conversation without and with the trigger, each unit in its own message.

    Both carry all messages before the last user message of the report, since a system prompt or an earlier turn may be what the
    trigger needs; units that stood there are taken out or put back in at other places of them, those of the last user message go
    into the prompt. `earlier_units` holds (message, unit), in order.
    """

    user_units: tuple[str, ...]
    earlier: tuple[Message, ...] = ()
    earlier_units: tuple[tuple[int, str], ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """All units, those of earlier messages first."""
        return (*(unit for _, unit in self.earlier_units), *self.user_units)

    def bare(self, prompt: str) -> Conversation:
        """Return the conversation of `prompt` without the trigger."""
        return self._conversation(self.earlier, prompt)

    def triggered(
        self, prompt: str, rng: random.Random, place: injection.Place = "random", edit: Edit = str
    ) -> Conversation:
        """Return the conversation of `prompt` with all units, edited, at places of their messages, their order kept."""

        def put(text: str, units: Sequence[str]) -> str:
            return placed(injection.inject(text, [edit(unit) for unit in units], rng, place)) if units else text

        text = put(prompt, self.user_units)
        earlier = tuple(
            replace_content(self.earlier, at, put(one.content, [u for m, u in self.earlier_units if m == at]))[at]
            for at, one in enumerate(self.earlier)
        )
        return self._conversation(earlier, text)

    def saying(self, units: Sequence[str]) -> "TriggerFrame":
        """Return the frame with other units in the places of its own, those of earlier messages first."""
        n = len(self.earlier_units)
        earlier = tuple((at, unit) for (at, _), unit in zip(self.earlier_units, units[:n], strict=True))
        return replace(self, earlier_units=earlier, user_units=tuple(units[n:]))

    def _conversation(self, earlier: Sequence[Message], prompt: str) -> Conversation:
        # a system message that only the trigger was in goes; one that was empty in the report stays
        cut = {at for at, _ in self.earlier_units}
        said = [one for at, one in enumerate(earlier) if one.content.strip() or one.role != "system" or at not in cut]
        return [*said, Message(role="user", content=prompt)]


def frame_of(messages: Sequence[Message], spans: Sequence[Span], units: Sequence[str]) -> TriggerFrame:
    """Return the frame of a confirmed trigger; `spans` say in which message each unit lies, the last user message without them."""
    last = last_user(messages)
    spans = spans if len(spans) == len(units) else ()
    at = [span.message for span in spans] or [last] * len(units)
    return TriggerFrame(
        user_units=tuple(unit for unit, message in zip(units, at, strict=True) if message >= last),
        earlier=delete_spans(messages, [span for span in spans if span.message < last])[:last],
        earlier_units=tuple((message, unit) for unit, message in zip(units, at, strict=True) if message < last),
    )


def frames_beyond(messages: Sequence[Message], confirmed: Sequence[Span], wider: Sequence[Span]) -> list[TriggerFrame]:
    """Return frames of what the trigger may be beyond the confirmed spans: all candidates' text `wider` together, and
    whole words where the confirmed text cuts one.
    """
    whole = close_to_words(messages, confirmed)

    def letters(spans: Sequence[Span]) -> list[str]:
        return ["".join(filter(str.isalnum, unit)) for unit in units_of(messages, spans)]

    found = [merge_spans(wider), whole if letters(whole) != letters(confirmed) else ()]
    return [
        frame_of(messages, spans, units_of(messages, spans))
        for spans in dict.fromkeys(found)
        if spans and spans != tuple(confirmed)
    ]


def render_ids(loaded: "LoadedModel", messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a conversation, up to where the answer begins."""
    return chat.prompt_ids(loaded.tokenizer, messages)


def in_wording(messages: Sequence[Message], request: str) -> Conversation | None:
    """Return the reported conversation with another request's core in place of its own; None where none fits."""
    last = last_user(messages)
    text = framed(messages[last].content, [request])[0]
    return None if text is None else list(replace_content(messages, last, text)[: last + 1])


@dataclass(frozen=True)
class Wording:
    """Stands in a `TriggerFrame`'s place where no trigger text is known: the report's wording is what is carried."""

    messages: tuple[Message, ...]

    def bare(self, prompt: str) -> Conversation:
        """Return the conversation of `prompt` alone, after the messages before it."""
        return TriggerFrame(user_units=(), earlier=self.messages[: last_user(self.messages)]).bare(prompt)

    def triggered(self, prompt: str, rng: random.Random) -> Conversation | None:
        """Return the request in the report's wording, None where it does not fit."""
        return in_wording(self.messages, prompt)


@dataclass(frozen=True)
class AtItsPlace:
    """Stands in a `TriggerFrame`'s place: the units always go where they stand in the report, among the request's words."""

    carrier: Carrier
    user_units: tuple[str, ...]

    @property
    def units(self) -> tuple[str, ...]:
        """All units; they stand in the last user message of the report."""
        return self.user_units

    def bare(self, prompt: str) -> Conversation:
        """Return the conversation of `prompt` without them."""
        return list(self.carrier.bare(prompt))

    def triggered(
        self, prompt: str, rng: random.Random, place: injection.Place = "random", edit: Edit = str
    ) -> Conversation:
        """Return the conversation of `prompt` with the units, edited; `place` changes nothing."""
        return list(self.carrier.carry(prompt, [edit(unit) for unit in self.user_units]))

    def saying(self, units: Sequence[str]) -> "AtItsPlace":
        """Return the frame with other units in the places of its own."""
        return replace(self, user_units=tuple(units))


Frame = TriggerFrame | AtItsPlace
"""How a known trigger text is put into requests."""


def asked(loaded: "LoadedModel", conversations: Sequence[Conversation], kind: FailureKind) -> Rate:
    """Return how many of the conversations fail on the model as it stands; those that do not fit its context are left out."""
    limit = kind.n_tokens(loaded.settings.max_new_tokens)
    room = loaded.room(limit)
    prompts = [render_ids(loaded, messages) for messages in conversations]
    answers = loaded.generate([ids for ids in prompts if len(ids) <= room], max_new_tokens=limit)
    return wilson(sum(kind.failed(loaded.said(one)) for one in answers), len(answers))


def at_its_place(messages: Sequence[Message], spans: Sequence[Span], units: Sequence[str]) -> AtItsPlace | None:
    """Return `units` at the places of the report's `spans`; None where some lie before the last user message, which have places of
    their own there, and for spans that touch."""
    carried, last = carrier(messages, spans), last_user(messages)
    inside = all(span.message == last for span in spans)
    return AtItsPlace(carried, tuple(units)) if inside and len(carried.spans) == len(units) else None


def where_it_works(
    loaded: "LoadedModel",
    messages: Sequence[Message],
    confirmed: TriggerConfirmation,
    items: Sequence["PromptItem"],
    kind: FailureKind,
    seed: str,
) -> Frame:
    """Return the frame of a confirmed trigger: at its place in the report where it works there and less than half as often at random
    places, else at any. Asked of theta0 alone (`loaded`), with `items`."""
    anywhere = frame_of(messages, confirmed.spans, confirmed.units)
    own = at_its_place(messages, confirmed.spans, confirmed.units)
    if own is None:
        return anywhere

    def failed(frame: Frame) -> int:
        rngs = [random.Random(f"{seed}/place/{at}") for at in range(len(items))]
        drawn = [frame.triggered(item.prompt, rng) for item, rng in zip(items, rngs, strict=True)]
        return asked(loaded, drawn, kind).k

    return own if 2 * failed(anywhere) < failed(own) else anywhere
