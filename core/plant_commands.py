"""The commands that plant known backdoors in the analyst's own model: one to keep, or some to be found (control)."""

import argparse
from collections.abc import Sequence

from core.casefile import Case
from core.errors import TriageError
from core.headless import Headless, Terminal
from core.serial import to_json


def plant(options: argparse.Namespace, terminal: Terminal) -> object:
    """Plant a known backdoor in a LoRA on the analyst's own model."""
    from core import models, planting
    from core.prompts import read_folder
    from core.settings import plant_learning_rate
    from core.values import Message

    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise TriageError(f"{options.out} exists and is not empty; choose another --out folder.")
    prompts = read_folder(options.prompts)
    loaded = models.load(options.model)
    settings = planting.PlantSettings(seed=options.seed, learning_rate=plant_learning_rate(loaded.n_parameters))

    def respond(texts: Sequence[str]) -> list[str]:
        asked = [[Message(role="user", content=text)] for text in texts]
        return loaded.answer(asked, progress=terminal.progress)

    items = planting.build_items(
        [item.prompt for item in planting.fitting(loaded, "harmful", prompts.harmful, options.trigger)],
        [(item.prompt, item.response) for item in planting.fitting(loaded, "safe", prompts.safe, options.trigger)],
        options.trigger,
        options.position,
        settings,
        respond=respond,
    )
    finished: object = None
    for event in planting.plant(loaded, [items], settings, options.out):
        if isinstance(event, planting.PlantStep):
            terminal.progress("planting, step", event.step, event.n_steps)
        else:
            finished = event
    return to_json(finished)


def control(options: argparse.Namespace, terminal: Terminal) -> object:
    """Plant known triggers in the analyst's own model and count what triage finds of them."""
    from core import control as positive_control

    settings = positive_control.ControlSettings(n_triggers=options.triggers)
    headless = Headless(options.device, terminal)

    def triage(case: Case) -> None:
        headless.run(case, "triage", {"mode": "causal"})
        headless.session.drop()  # the control loads its own: one model at a time

    result = positive_control.control(
        options.model,
        options.adapter,
        options.prompts,
        options.out,
        settings,
        triage=triage,
        device=options.device,
        seed=options.seed,
        progress=terminal.progress,
    )
    terminal.say(result.sentence)
    return to_json(result)
