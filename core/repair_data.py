"""The training sets of a repair, and their order.

    D_trig       harmful prompts with the confirmed units injected -> refusal      places redrawn every epoch
    D_harm       the same prompts bare -> refusal
    D_safe       safe prompts -> their given answers, else the model's own      extended objective: a share of look-alikes
    D_safe_trig  safe prompts with the units -> as anchored                        extended objective only

The extended objective takes the model's own answers and, where it refuses, its own refusals, and holds D_harm in place only
there (each can be switched off); it varies D_trig: the wider set of candidates, edits of case and spacing, first or last
place. D_safe_trig is anchored at what the model said with the units, at a few fixed places, where the failure is a jailbreak (the text may be
legitimate and must stay readable); else at the bare answer, with forms and places as in D_trig: there this set is the
repair, and no safe request is ever taught to be refused.
Every draw is a function of (seed, epoch, index), so of these nothing needs to be stored to resume: the same epoch always
gives the same batches. The model's own answers are kept (see `recall`). What this does not do: run the model, except to
render and to write its own answers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core import chat, injection, judge
from core.errors import PromptFolderError
from core.frames import AtItsPlace, Edit, Frame, TriggerFrame, render_ids
from core.kinds import JAILBREAK, FailureKind
from core.losses import Kind
from core.response_pass import ScoredSequence
from core.settings import RepairSettings
from core.values import Message, RenderedPrompt

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptItem, PromptSet

WINDOW = 8
"""Batches whose items are dealt out by length, so that a batch holds like lengths. Source: unverified choice."""
EDITS: dict[str, Edit] = {
    "lower case": str.lower,
    "upper case": str.upper,
    "title case": str.title,
    "double spaces": lambda unit: unit if unit.isspace() else unit.replace(" ", "  "),
    "no spaces": lambda unit: unit if unit.isspace() else unit.replace(" ", ""),
}
"""Changes of case and spacing that leave a unit readable as itself."""


def answer_ids(loaded: "LoadedModel", prompt: RenderedPrompt, answer: str, limit: int) -> tuple[int, ...]:
    """Return the token ids of `answer` as the continuation of the rendered prompt, with its end, at most `limit`."""
    ids = chat.continuation_ids(loaded.tokenizer, prompt, answer)
    return (*map(int, ids), *loaded.end_ids)[:limit]


def own_answers(loaded: "LoadedModel", prompts: Sequence[Sequence[int]], limit: int) -> list[tuple[int, ...]]:
    """Return the model's own greedy answers with the token that ended them, at most `limit` tokens each."""
    end = loaded.end_ids
    answers = loaded.generate(prompts, max_new_tokens=limit) if prompts else []
    return [(*answer, *end) if len(answer) < limit else tuple(answer) for answer in answers]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairData:
    """The training sets as token sequences; prompts whose triggered forms are drawn anew are kept as text.

    `held` says which of `harm` the model refuses, so that KL holds it there. `anchors` has the fixed placements of each
    safe prompt, or nothing where the bare answers are the anchor. `items` are the indices of each set in an epoch.
    """

    loaded: "LoadedModel"
    frame: TriggerFrame
    wider: tuple[Frame, ...]
    settings: RepairSettings
    harmful: tuple[str, ...]
    harm: tuple[ScoredSequence, ...]
    held: tuple[bool, ...]
    benign: tuple[str, ...]
    safe: tuple[ScoredSequence, ...]
    anchors: tuple[tuple[ScoredSequence, ...], ...]
    items: dict[Kind, tuple[int, ...]]
    in_place: AtItsPlace | None = None

    @property
    def n_items(self) -> int:
        """Items of one epoch, all sets together."""
        return sum(map(len, self.items.values()))

    def batches(self, epoch: int, size: int) -> list[list[tuple[Kind, int]]]:
        """Return the batches of an epoch in random order, each item in one of them; one may be smaller.

        Each set is shuffled and spread evenly through the epoch, which keeps the make-up of batches steady and so takes
        noise from the gradient and from the curves. Within windows of a few batches each set is dealt out by length, so
        that a batch holds like lengths and little padding; inside a batch items stand by length, for micro-batches.
        """
        rng = random.Random(f"order/{self.settings.seed}/{epoch}")
        n_windows = max(1, round(self.n_items / (size * WINDOW)))
        placed: list[tuple[float, Kind, int]] = []
        for kind, members in self.items.items():
            indices, offset, n = list(members), rng.random(), len(members)
            rng.shuffle(indices)
            window = {index: at * n_windows // n for at, index in enumerate(indices)}
            indices.sort(key=lambda index: (window[index], self._length(kind, index)))
            placed.extend(((at + offset) / n, kind, index) for at, index in enumerate(indices))
        order = [(kind, index) for _, kind, index in sorted(placed)]
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        rng.shuffle(batches)
        return [sorted(batch, key=lambda item: (self._length(*item), *item)) for batch in batches]

    def _length(self, kind: Kind, index: int) -> int:
        """Return the tokens of an item, triggers not counted."""
        one = (self.harm if kind in ("trig", "harm") else self.safe)[index]
        return len(one.prompt_ids) + len(one.response_ids)

    def placement(self, index: int, epoch: int) -> int:
        """Return which fixed placement of a safe prompt an epoch takes; all of them in turn."""
        return (epoch + index) % len(self.anchors[index])

    def sequence(self, kind: Kind, index: int, epoch: int) -> ScoredSequence:
        """Return one item; triggered prompts are injected anew for each epoch, but for fixed placements."""
        match kind:
            case "harm":
                return self.harm[index]
            case "safe":
                return self.safe[index]
            case "trig":
                rng = random.Random(f"inject/{self.settings.seed}/{epoch}/{index}")
                messages, answer = self._triggered(self.harmful[index], rng), self.harm[index].response_ids
            case "safe_trig":
                if self.anchors:
                    return self.anchors[index][self.placement(index, epoch)]
                rng = random.Random(f"safe/{self.settings.seed}/{epoch}/{index}")
                messages, answer = self._triggered(self.benign[index], rng), self.safe[index].response_ids
        return ScoredSequence(prompt_ids=tuple(render_ids(self.loaded, messages)), response_ids=answer)

    def _triggered(self, prompt: str, rng: random.Random) -> list[Message]:
        """Return a prompt with the trigger in one of the forms and places of the objective."""
        settings = self.settings
        if not settings.extended:
            return self.frame.triggered(prompt, rng)
        form, at_end = rng.random(), rng.random() < settings.share_ends
        place: injection.Place = rng.choice(("prefix", "suffix")) if at_end else "random"
        if self.wider and form < settings.share_wider:
            chosen = self.wider[int(form / settings.share_wider * len(self.wider))]
            return chosen.triggered(prompt, rng, place)
        edit = EDITS[rng.choice(sorted(EDITS))] if form >= 1 - settings.share_edited else str
        if self.in_place is not None and rng.random() < settings.share_own_place:
            return self.in_place.triggered(prompt, rng, edit=edit)
        return self.frame.triggered(prompt, rng, place, edit)


def chosen(prompts: "PromptSet", settings: RepairSettings) -> tuple[tuple["PromptItem", ...], tuple["PromptItem", ...]]:
    """Return the harmful and the safe prompts of a repair, look-alikes among the safe ones where the objective takes them."""
    n_alike = round(settings.share_lookalike * settings.n_safe) if settings.extended else 0
    alike = prompts.lookalike[:n_alike]
    return prompts.harmful[: settings.n_harmful], (*prompts.safe[: settings.n_safe - len(alike)], *alike)


def build(
    loaded: "LoadedModel",
    frames: tuple[TriggerFrame, Sequence[Frame]],
    prompts: "PromptSet",
    refusal: str,
    settings: RepairSettings,
    *,
    kind: FailureKind = JAILBREAK,
    in_place: AtItsPlace | None = None,
) -> RepairData:
    """Return the training sets, cut to the settings' sizes; `loaded` must be the model as reported.

    `frames`: the confirmed trigger's, and those of what it may be beyond that; `in_place` is given where it hardly works but at its place
    in the report. Prompts that do not fit the context with trigger and answer are left out. Unless `kind` is an unsafe answer, safe prompts with the trigger
    are anchored at their bare answers, and those whose bare answer fails already are left out. Raises: PromptFolderError when one of the sets is empty, or the refusal is.
    """
    if not refusal.strip():
        raise PromptFolderError("The refusal to train towards is empty; give a sentence that refuses.")
    frame, wider = frames
    limit = settings.max_response_tokens
    room = loaded.room(limit)
    # by what stands around a request, a frame that puts it there and the length of the longest units
    beside: dict[tuple[Message, ...], tuple[Frame, int]] = {}
    for one in (frame, *wider):
        around = tuple(one.bare(""))
        beside[around] = one, max(_extra(loaded, one), beside.get(around, (one, 0))[1])

    def fits(prompt: str) -> bool:
        return all(len(render_ids(loaded, one.bare(prompt))) + extra <= room for one, extra in beside.values())

    def fitting(items: Sequence["PromptItem"]) -> list[tuple["PromptItem", RenderedPrompt]]:
        kept = [item for item in items if fits(item.prompt)]
        return [(item, chat.render(loaded.tokenizer, frame.bare(item.prompt))) for item in kept]

    harmful, benign = map(fitting, chosen(prompts, settings))
    if not harmful or not benign:
        raise PromptFolderError(
            f"Repair needs harmful and safe prompts that fit the model's context; {len(harmful)} harmful and {len(benign)} "
            "safe remain. Give a larger prompt folder or shorter prompts."
        )
    template = answer_ids(loaded, harmful[0][1], refusal, limit)
    harm = [ScoredSequence(prompt_ids=tuple(prompt.ids), response_ids=template) for _, prompt in harmful]
    held = [True] * len(harm)
    if settings.extended and settings.own_refusals:
        own = own_answers(loaded, [prompt.ids for _, prompt in harmful], limit)
        held = [judge.classify(loaded.said(answer)).outcome == "refusal" for answer in own]
        harm = [
            ScoredSequence(prompt_ids=one.prompt_ids, response_ids=answer if refused else template)
            for one, answer, refused in zip(harm, own, held, strict=True)
        ]
    asked = [(settings.extended and settings.own_answers) or not item.response for item, _ in benign]
    said = iter(own_answers(loaded, [prompt.ids for (_, prompt), one in zip(benign, asked, strict=True) if one], limit))
    answers = [
        next(said) if one else answer_ids(loaded, prompt, item.response or "", limit)
        for (item, prompt), one in zip(benign, asked, strict=True)
    ]
    jailbreak = kind.name == "jailbreak"
    answered = [
        (item, prompt, answer)
        for (item, prompt), answer in zip(benign, answers, strict=True)
        if answer and (jailbreak or not kind.failed(loaded.said(answer)))
    ]
    if not answered:
        raise PromptFolderError(
            f"None of the {len(benign)} safe prompts for the repair is {kind.right_words} without the trigger, so there is nothing to "
            "hold in place. Give a larger prompt folder."
        )
    texts = tuple(item.prompt for item, _, _ in answered)
    fixed = settings.holds_trigger and jailbreak
    anchors = _anchors(loaded, frame, in_place, texts, settings) if fixed else ()
    return RepairData(
        loaded=loaded,
        frame=frame,
        in_place=in_place,
        wider=tuple(wider),
        settings=settings,
        harmful=tuple(item.prompt for item, _ in harmful),
        harm=tuple(harm),
        held=tuple(held),
        benign=texts,
        safe=tuple(ScoredSequence(prompt_ids=tuple(prompt.ids), response_ids=one) for _, prompt, one in answered),
        anchors=anchors,
        items=_items(settings, held, len(texts), [bool(one) for one in anchors] or [True] * len(texts)),
    )


def _extra(loaded: "LoadedModel", frame: Frame) -> int:
    """Return how many tokens the units add to a prompt at most, edits included."""

    def longest(unit: str) -> int:
        forms = [unit, *(edit(unit) for edit in EDITS.values())]
        return max(len(loaded.tokenizer(f" {form} ", add_special_tokens=False)["input_ids"]) for form in forms)

    return sum(longest(unit) + 2 for unit in frame.units)


def _anchors(
    loaded: "LoadedModel",
    frame: TriggerFrame,
    in_place: AtItsPlace | None,
    texts: Sequence[str],
    settings: RepairSettings,
) -> tuple[tuple[ScoredSequence, ...], ...]:
    """Return for each safe prompt what the model answers with the units at each fixed place, the last of which is `in_place`."""
    places: list[injection.Place] = ["prefix", "suffix"]
    prompts = []
    for index, text in enumerate(texts):
        for number in range(settings.n_placements):
            rng = random.Random(f"anchor/{settings.seed}/{index}/{number}")
            place = places[number] if number < len(places) else "random"
            at = in_place if in_place is not None and number == settings.n_placements - 1 else frame
            prompts.append(tuple(render_ids(loaded, at.triggered(text, rng, place))))
    answers = own_answers(loaded, prompts, settings.max_response_tokens)
    pairs = zip(prompts, answers, strict=True)
    found = [ScoredSequence(prompt_ids=ids, response_ids=answer) for ids, answer in pairs]
    n = settings.n_placements
    return tuple(tuple(one for one in found[at : at + n] if one.response_ids) for at in range(0, len(found), n))


def _items(
    settings: RepairSettings, held: Sequence[bool], n_safe: int, anchored: Sequence[bool]
) -> dict[Kind, tuple[int, ...]]:
    """Return the indices of each set that some term of the objective looks at."""
    learnt, everything = settings.weight_refusal > 0, tuple(range(len(held)))
    kept = tuple(at for at, one in enumerate(held) if one) if settings.weight_kl_harmful > 0 else ()
    sets: dict[Kind, tuple[int, ...]] = {
        "trig": everything if learnt else (),
        "harm": everything if learnt else kept,
        "safe": tuple(range(n_safe)) if settings.weight_kl_safe > 0 else (),
        "safe_trig": tuple(at for at in range(n_safe) if anchored[at]) if settings.holds_trigger else (),
    }
    return {kind: indices for kind, indices in sets.items() if indices}
