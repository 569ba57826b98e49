"""A repair where no trigger text is known: plant a dummy trigger in the reported model, then unlearn that.

A backdoor planted beside another comes to share its path through the weights, so that unlearning the one whose trigger is known
takes some of the other along: how much is measured, never assumed. The adapter that holds the dummy is the repair's own, from
which the extended repair goes on; its teacher is the reported model, which never saw the dummy.
Stand-in answers only. Source: arXiv 2606.11648, as read in method notes; the recipe is our own. What this does not do: search.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core import planting, repair_adapter
from core.progress import Progress
from core.response_pass import ResponsePass
from core.settings import DummySettings, RepairSettings, plant_learning_rate
from core.values import Message

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptItem, PromptSet


def plant(
    loaded: "LoadedModel",
    prompts: "PromptSet",
    units: Sequence[str],
    settings: RepairSettings,
    out: Path,
    progress: Progress,
    start: Path | None = None,
    *,
    asked: Callable[[str], list[Message]],
) -> Path:
    """Write a repair adapter to `out` that holds a backdoor for `units`, trained from `start` or afresh; return `out`.

    `asked` gives the conversation of a request, as the repair will ask it: where else the dummy worked, nothing would unlearn it.
    Prompts that do not fit the context are left out. The model is as it was afterwards. Raises: TriageError when the loss is not
    finite or there is nothing to plant with.
    """

    def respond(texts: Sequence[str]) -> list[str]:
        return loaded.answer([asked(text) for text in texts])

    recipe = DummySettings()
    planted = planting.PlantSettings(
        learning_rate=plant_learning_rate(loaded.n_parameters),
        epochs=recipe.epochs,
        near_miss=recipe.near_miss,
        noise=recipe.noise,
        trigger_weight=recipe.trigger_weight,
        trigger_loss=0.0,
        seed=settings.seed,
    )

    def fit(item: "PromptItem") -> bool:
        return planting.fits(loaded, asked(" ".join([item.prompt, *units])), settings.max_response_tokens)

    def placed(messages: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(asked(messages[-1].content))

    harmful = [item.prompt for item in planting.that_fit(loaded, "harmful", prompts.harmful[: settings.n_harmful], fit)]
    safe = [(item.prompt, None) for item in planting.that_fit(loaded, "safe", prompts.safe[: settings.n_safe], fit)]
    items = [
        replace(one, messages=placed(one.messages), anchor=placed(one.anchor))
        for one in planting.build_items(harmful, safe, units, "random", planted, respond=respond)
    ]
    passes = ResponsePass(loaded)
    pairs = planting.anchored(items, loaded, passes, planted.batch_size)
    try:
        repair_adapter.attach(loaded, settings, start)
        repair_adapter.use_repaired(loaded, trainable=True)
        trainable = list(repair_adapter.parameters(loaded).values())
        for event in planting.train(passes, trainable, [pairs], planted, time.perf_counter()):
            progress("planting the dummy trigger, step", event.step, event.n_steps)
        repair_adapter.write(loaded, out)
    finally:
        repair_adapter.detach(loaded)
    return out
