"""The three training sets of a repair, and their order.

    D_trig   harmful prompts with the confirmed units injected -> refusal      places redrawn every epoch
    D_harm   the same prompts bare -> refusal
    D_safe   safe prompts -> their given answers, else the model's own

Every draw is a function of (seed, epoch, index), so nothing needs to be stored to resume: the same epoch always gives
the same batches. What this does not do: run the model, except to render and to write its own safe answers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core import chat, injection
from core.errors import PromptFolderError
from core.losses import Kind
from core.response_pass import ScoredSequence
from core.settings import RepairSettings
from core.values import Message, RenderedPrompt, Span

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptItem

_SENTINEL = "\ue000answer\ue000"


@dataclass(frozen=True, kw_only=True)
class TriggerFrame:
    """Turns a prompt into a conversation without and with the trigger, each unit in its own segment.

    Units of user (or earlier) messages go into the prompt. When a unit lies in the system message, both conversations
    carry that message: without its units, and with them injected. Otherwise there is no system message.
    """

    user_units: tuple[str, ...]
    system_units: tuple[str, ...] = ()
    system_text: str = ""

    def bare(self, prompt: str) -> list[Message]:
        """Return the conversation of `prompt` without the trigger."""
        return self._conversation(self.system_text, prompt)

    def triggered(self, prompt: str, rng: random.Random) -> list[Message]:
        """Return the conversation of `prompt` with all units at random places, their order kept."""
        text = injection.inject(prompt, self.user_units, rng).text if self.user_units else prompt
        system = self.system_text
        if self.system_units:
            system = injection.inject(system, self.system_units, rng).text
        return self._conversation(system, text)

    def _conversation(self, system: str, prompt: str) -> list[Message]:
        user = Message(role="user", content=prompt)
        return [Message(role="system", content=system), user] if self.system_units and system.strip() else [user]


def frame_of(messages: Sequence[Message], spans: Sequence[Span], units: Sequence[str]) -> TriggerFrame:
    """Return the frame of a confirmed trigger; `spans` say in which message each unit lies."""
    if len(spans) != len(units):
        return TriggerFrame(user_units=tuple(units))
    in_system = [messages[span.message].role == "system" for span in spans]
    system_units = tuple(unit for unit, inside in zip(units, in_system, strict=True) if inside)
    text = ""
    if system_units:
        index = next(span.message for span, inside in zip(spans, in_system, strict=True) if inside)
        text = chat.delete_spans(messages, [s for s in spans if s.message == index])[index].content
    return TriggerFrame(
        user_units=tuple(unit for unit, inside in zip(units, in_system, strict=True) if not inside),
        system_units=system_units,
        system_text=text,
    )


def end_ids(loaded: "LoadedModel") -> tuple[int, ...]:
    """Return the one token that ends an answer in this model's template, or nothing when it has none."""
    tokenizer = loaded.tokenizer
    if chat.chat_template(tokenizer) is not None:
        turn = [Message(role="user", content="a"), Message(role="assistant", content=_SENTINEL)]
        tail = chat.render_text(tokenizer, turn, False).rpartition(_SENTINEL)[2]
        for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
            if token in loaded.eos_ids:
                return (int(token),)
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def answer_ids(loaded: "LoadedModel", prompt: RenderedPrompt, answer: str, limit: int) -> tuple[int, ...]:
    """Return the token ids of `answer` as the continuation of the rendered prompt, with its end, at most `limit`."""
    ids = chat.continuation_ids(loaded.tokenizer, prompt, answer)
    return (*map(int, ids), *end_ids(loaded))[:limit]


def own_answers(loaded: "LoadedModel", prompts: Sequence[Sequence[int]], limit: int) -> list[tuple[int, ...]]:
    """Return the model's own greedy answers with the token that ended them, at most `limit` tokens each."""
    end = end_ids(loaded)
    answers = loaded.generate(prompts, max_new_tokens=limit)
    return [(*answer, *end) if len(answer) < limit else tuple(answer) for answer in answers]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairData:
    """The training sets as token sequences; `harmful` prompts are kept as text, their triggered forms are drawn."""

    loaded: "LoadedModel"
    frame: TriggerFrame
    harmful: tuple[str, ...]
    refusal_ids: tuple[int, ...]
    harm: tuple[ScoredSequence, ...]
    safe: tuple[ScoredSequence, ...]
    seed: int

    @property
    def n_items(self) -> int:
        """Items of one epoch: D_trig, D_harm and D_safe together."""
        return 2 * len(self.harm) + len(self.safe)

    def order(self, epoch: int) -> list[tuple[Kind, int]]:
        """Return the items of an epoch, shuffled: each set in random order, the sets spread evenly through the epoch.

        Even spreading keeps the make-up of batches steady, which takes noise from the gradient and from the curves;
        every item still occurs exactly once.
        """
        rng = random.Random(f"order/{self.seed}/{epoch}")
        sizes: tuple[tuple[Kind, int], ...] = (
            ("trig", len(self.harm)),
            ("harm", len(self.harm)),
            ("safe", len(self.safe)),
        )
        placed: list[tuple[float, Kind, int]] = []
        for kind, size in sizes:
            indices, offset = list(range(size)), rng.random()
            rng.shuffle(indices)
            placed.extend(((place + offset) / size, kind, index) for place, index in enumerate(indices))
        return [(kind, index) for _, kind, index in sorted(placed)]

    def batches(self, epoch: int, size: int) -> list[list[tuple[Kind, int]]]:
        """Return the batches of an epoch; the last one may be smaller."""
        items = self.order(epoch)
        return [items[start : start + size] for start in range(0, len(items), size)]

    def sequence(self, kind: Kind, index: int, epoch: int) -> ScoredSequence:
        """Return one item; triggered prompts are injected anew for each epoch."""
        if kind != "trig":
            return (self.harm if kind == "harm" else self.safe)[index]
        rng = random.Random(f"inject/{self.seed}/{epoch}/{index}")
        messages = self.frame.triggered(self.harmful[index], rng)
        return ScoredSequence(prompt_ids=tuple(render_ids(self.loaded, messages)), response_ids=self.refusal_ids)


def render_ids(loaded: "LoadedModel", messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a conversation, up to where the answer begins."""
    return chat.prompt_ids(loaded.tokenizer, messages)


def build(
    loaded: "LoadedModel",
    frame: TriggerFrame,
    harmful: Sequence["PromptItem"],
    safe: Sequence["PromptItem"],
    refusal: str,
    settings: RepairSettings,
) -> RepairData:
    """Return the training sets, cut to the settings' sizes; missing safe answers are written by the model as it is.

    Prompts that do not fit the context with trigger and answer are left out.
    Raises: PromptFolderError when one of the sets is empty, or the refusal is.
    """
    if not refusal.strip():
        raise PromptFolderError("The refusal to train towards is empty; give a sentence that refuses.")
    limit = settings.max_response_tokens
    room = (loaded.context_length or 10**9) - limit
    units = (*frame.user_units, *frame.system_units)
    room -= sum(len(loaded.tokenizer(f" {unit} ", add_special_tokens=False)["input_ids"]) + 2 for unit in units)
    fitting = [(item, chat.render(loaded.tokenizer, frame.bare(item.prompt))) for item in harmful[: settings.n_harmful]]
    fitting = [(item, prompt) for item, prompt in fitting if len(prompt.ids) <= room]
    benign = [(item, chat.render(loaded.tokenizer, frame.bare(item.prompt))) for item in safe[: settings.n_safe]]
    benign = [(item, prompt) for item, prompt in benign if len(prompt.ids) <= room]
    if not fitting or not benign:
        raise PromptFolderError(
            f"Repair needs harmful and safe prompts that fit the model's context; {len(fitting)} harmful and {len(benign)} "
            "safe remain. Give a larger prompt folder or shorter prompts."
        )
    refusal_ids = answer_ids(loaded, fitting[0][1], refusal, limit)
    missing = [prompt.ids for item, prompt in benign if not item.response]
    own = iter(own_answers(loaded, missing, limit) if missing else ())
    answers = [
        answer_ids(loaded, prompt, item.response, limit) if item.response else next(own) for item, prompt in benign
    ]
    return RepairData(
        loaded=loaded,
        frame=frame,
        harmful=tuple(item.prompt for item, _ in fitting),
        refusal_ids=refusal_ids,
        harm=tuple(ScoredSequence(prompt_ids=tuple(prompt.ids), response_ids=refusal_ids) for _, prompt in fitting),
        safe=tuple(
            ScoredSequence(prompt_ids=tuple(prompt.ids), response_ids=answer)
            for (_, prompt), answer in zip(benign, answers, strict=True)
            if answer
        ),
        seed=settings.seed,
    )
