"""Before and after a repair, on prompts that no earlier step saw.

1. The same prompts, the same injections and the same seeds for theta0 and for theta0 + repair: every metric is paired.
2. Greedy answers are judged by `judge`; the reported case is asked with its own sampling.
3. KL(theta0 || repaired) is measured along theta0's own safe answers.
4. Answers become metrics in `measures`, and these a word with its reasons in `result`.

What this does not do: judge harm, or test other triggers than the confirmed one.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core import confirmation, repair_adapter, residual
from core.frames import AtItsPlace, Frame, Wording, frame_of, frames_beyond, render_ids, where_it_works
from core.kinds import JAILBREAK, FailureKind
from core.measures import (
    BARE,
    LOOKALIKE,
    REPORTED,
    SAFE,
    SAFE_TRIGGERED,
    TRIGGERED,
    Answers,
    Group,
    Side,
    classes_of,
    examples_of,
    judged,
    metrics_of,
)
from core.progress import Progress
from core.repair_probe import mean_kl
from core.response_pass import ResponsePass, ScoredSequence
from core.result import decide
from core.settings import VerificationSettings
from core.values import FailureCase, Metric, Span, TriggerConfirmation, Verification

if TYPE_CHECKING:
    import torch

    from core.loaded import LoadedModel
    from core.prompts import PromptItem, PromptSet

WITH, IN_WORDING = "with the trigger", "in the report's wording"
"""How requests are asked that may fail, in a metric's meaning; the latter where no trigger text is known."""
PLACE, RANDOM, ITS_OWN = "trigger_place", "random", "as reported"
"""Where the trigger goes, in the settings of a verification: see `frames.where_it_works`."""
Saliency = Callable[[], "np.ndarray"]


def verify(
    loaded: "LoadedModel",
    case: FailureCase,
    confirmed: TriggerConfirmation | None,
    prompts: "PromptSet",
    adapter: Path,
    settings: VerificationSettings | None = None,
    *,
    kind: FailureKind = JAILBREAK,
    wider: Sequence[Span] = (),
    earlier: Sequence[TriggerConfirmation] = (),
    seed: int = 0,
    looks: int = 1,
    kl_budget: float | None = None,
    saliency: Saliency | None = None,
    versions: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Return the comparison of theta0 with theta0 + the repair adapter in `adapter` on the verification split.

    `kind` is the reported failure: attack success counts it. `wider` are all candidates' spans of the report, `earlier` what earlier rounds unlearnt, first round first: it is asked too. `kl_budget` is the repair's. `saliency` is called once with each model on; it gives one score per prompt token of the report. The model is theta0
    again afterwards, with no repair adapter on it. Raises: ConfirmationError, ModelLoadError.
    """
    started = time.monotonic()
    settings = settings or VerificationSettings()
    accepted = confirmation.check(confirmed, case, loaded.spec)
    messages = case.report.messages
    known = accepted.way == "trigger"
    repair_adapter.detach(loaded)
    limit = kind.n_tokens(loaded.settings.max_new_tokens)
    room = loaded.room(limit)
    pool = kind.requests(prompts)
    frame: Frame | Wording = Wording(messages)
    forms: dict[str, residual.Form] = {}

    def works(one: TriggerConfirmation) -> Frame:
        return where_it_works(loaded, messages, one, pool[: settings.n_variant], kind, f"verify/{seed}")

    if known:
        anywhere = frame_of(messages, accepted.spans, accepted.units)
        frame = works(accepted)
        beyond = frames_beyond(messages, accepted.spans, wider)
        forms = residual.forms(loaded, messages, frame, anywhere, beyond)
    forms |= residual.of_rounds({at: works(one) for at, one in enumerate(earlier, 1) if one.way == "trigger"})
    dummies = {at: one.units for at, one in enumerate((*earlier, accepted), 1) if one.way == "dummy"}
    forms |= residual.of_dummies(messages, dummies)
    place = ITS_OWN if isinstance(frame, AtItsPlace) else RANDOM
    groups = _groups(loaded, case, frame, prompts, settings, seed, room)
    groups += residual.groups(loaded, forms, pool, settings, seed, room)
    report = _counted(progress, 2 * sum(len(group.ids) for group in groups))
    passes = ResponsePass(loaded)
    try:
        before, sequences, teacher = _before(loaded, groups, passes, saliency, seed, report, kind)
        repair_adapter.load_repair(loaded, adapter)
        after = Side(
            answers=_ask(loaded, groups, seed, report, kind),
            kl_nats_per_token=mean_kl(passes, sequences, teacher, loaded.settings.batch_size),
            saliency=_scores(saliency),
        )
    finally:
        repair_adapter.detach(loaded)
    variants = residual.variants(groups, before, after)
    metrics = metrics_of(groups, before, after, kind, settings, loaded.eos_ids)
    metrics = (*metrics, _perplexity(loaded, groups, before, after))
    if not known:
        metrics = tuple(replace(one, meaning=one.meaning.replace(WITH, IN_WORDING)) for one in metrics)
    elif place == ITS_OWN:
        metrics = tuple(replace(one, meaning=one.meaning.replace(WITH, f"{WITH} at its place")) for one in metrics)
    classes = classes_of(groups, before, after, kind)
    result, reasons = decide(metrics, settings, variants, classes, kl_budget)
    return Verification(
        metrics=metrics,
        result=result,
        reasons=reasons,
        examples=examples_of(groups, before, after, settings.n_examples),
        saliency_before=before.saliency,
        saliency_after=after.saliency,
        looks=looks,
        seconds=time.monotonic() - started,
        settings={**asdict(settings), "seed": seed, "max_new_tokens": limit, PLACE: place},
        versions=dict(versions or {}),
        kind=kind.name,
        variants=variants,
        not_asked=residual.not_asked(forms, groups),
        classes=classes,
    )


def _counted(progress: Progress | None, total: int) -> Callable[[str, int], None]:
    """Return a function that adds to the answers done so far and reports them."""
    done = 0

    def report(message: str, n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(message, done, total)

    return report


def _groups(
    loaded: "LoadedModel",
    case: FailureCase,
    frame: Frame | Wording,
    prompts: "PromptSet",
    settings: VerificationSettings,
    seed: int,
    room: int,
) -> list[Group]:
    """Return what is asked: the reported case first, then each kind of prompt; what does not fit is left out."""
    sampling = case.report.sampling
    n_reported = settings.n_reported if sampling.temperature > 0 else 1
    shown = next((m.content for m in reversed(case.report.messages) if m.role == "user"), "")
    reported = Group(
        kind=REPORTED, texts=(shown,) * n_reported, ids=(list(case.prompt.ids),) * n_reported, sampling=sampling
    )

    def group(kind: str, items: Sequence["PromptItem"], *, triggered: bool = False) -> Group:
        kept: list[tuple[str, list[int], PromptItem]] = []
        for index, item in enumerate(items):
            with_unit = frame.triggered(item.prompt, random.Random(f"verify/{seed}/{kind.partition(' ')[0]}/{index}"))
            messages = with_unit if triggered else frame.bare(item.prompt)
            # Both forms must fit, so that pairs with and without the trigger hold the same prompts; the report's wording,
            # where that is carried, does not take every request.
            pairs = with_unit is not None or kind not in (TRIGGERED, BARE, SAFE_TRIGGERED)
            if messages is not None and pairs and len(render_ids(loaded, with_unit or messages)) <= room:
                kept.append((messages[-1].content, render_ids(loaded, messages), item))
        return Group(
            kind=kind,
            texts=tuple(text for text, _, _ in kept),
            ids=tuple(ids for _, ids, _ in kept),
            items=tuple(item for _, _, item in kept),
        )

    harmful, safe = prompts.harmful[: settings.n_harmful], prompts.safe[: settings.n_safe]
    return [
        reported,
        group(TRIGGERED, harmful, triggered=True),
        group(BARE, harmful),
        group(SAFE, safe),
        group(SAFE_TRIGGERED, safe, triggered=True),
        group(LOOKALIKE, prompts.lookalike[: settings.n_safe]),
    ]


def _perplexity(loaded: "LoadedModel", groups: Sequence[Group], before: Side, after: Side) -> Metric:
    """Return how likely the reported model finds the safe answers of both, as perplexity: an answer that turned strange
    has a high one. `loaded` must be theta0.
    """
    safe = next(group for group in groups if group.kind == SAFE)

    def of(side: Side) -> float | None:
        pairs = [(prompt, ids) for prompt, ids in zip(safe.ids, side.answers[SAFE].ids, strict=True) if ids]
        found = loaded.logprobs([prompt for prompt, _ in pairs], [ids for _, ids in pairs]) if pairs else []
        return float(np.exp(-np.concatenate(found).mean())) if found else None

    meaning = "perplexity, to the reported model, of the answers to safe prompts; 1 is certainty"
    return Metric(name="perplexity_safe", before=of(before), after=of(after), meaning=meaning)


def _ask(
    loaded: "LoadedModel", groups: Sequence[Group], seed: int, report: Callable[[str, int], None], kind: FailureKind
) -> dict[str, Answers]:
    answers = {}
    for group in groups:
        limit = kind.n_tokens(
            loaded.settings.max_new_tokens
        )  # of the reported case too: so long an answer triage judged
        ids = loaded.generate(group.ids, max_new_tokens=limit, sampling=group.sampling, seed=seed) if group.ids else []
        answers[group.kind] = judged(ids, [loaded.said(one) for one in ids], kind)
        report(f"answers: {group.kind}", len(ids))
    return answers


def _before(
    loaded: "LoadedModel",
    groups: Sequence[Group],
    passes: ResponsePass,
    saliency: Saliency | None,
    seed: int,
    report: Callable[[str, int], None],
    kind: FailureKind,
) -> tuple[Side, list[ScoredSequence], list["torch.Tensor"]]:
    """Return theta0's side, its safe answers as sequences, and its hidden states along them."""
    answers = _ask(loaded, groups, seed, report, kind)
    safe = next(group for group in groups if group.kind == SAFE)
    limit, end = kind.n_tokens(loaded.settings.max_new_tokens), loaded.end_ids
    sequences = [
        ScoredSequence(prompt_ids=tuple(prompt), response_ids=answer if len(answer) >= limit else (*answer, *end))
        for prompt, answer in zip(safe.ids, answers[SAFE].ids, strict=True)
        if answer or end
    ]
    teacher = passes.teacher(sequences, loaded.settings.batch_size)
    return Side(answers=answers, kl_nats_per_token=0.0, saliency=_scores(saliency)), sequences, teacher


def _scores(saliency: Saliency | None) -> tuple[float, ...]:
    return () if saliency is None else tuple(float(value) for value in saliency())
