"""Probes during a repair: what the development split says about the adapter as it stands.

Prompts, injections, theta0's answers and theta0's hidden states are fixed once; every probe asks the same questions:
attack success with the trigger, refusal without, refusals of safe requests that hold it, first tokens of safe answers as
before, KL along theta0's safe answers. Attack success counts the reported kind of failure, on harmful requests for a
jailbreak and on safe ones for the other kinds; where a dummy trigger is unlearnt, of requests in the report's wording too.
The verification split is never touched here.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from core import judge
from core.frames import Wording, render_ids
from core.intervals import wilson
from core.kinds import JAILBREAK, FailureKind
from core.losses import sequence_loss
from core.measures import same_start
from core.repair_data import own_answers
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings
from core.values import Rate

if TYPE_CHECKING:
    from core.frames import Frame
    from core.loaded import LoadedModel
    from core.prompts import PromptItem, PromptSet


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """One probe. `asr_triggered` is that of the trigger, or of the report's wording (`asr_wording`, where that is asked), that succeeds most; `kl_nats_per_token` is KL(theta0 || repaired), mean over the tokens of theta0's safe answers."""

    asr_triggered: Rate
    refusal_untriggered: Rate
    refusal_triggered_safe: Rate
    agreement_safe: Rate
    kl_nats_per_token: float
    asr_wording: Rate | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """The fixed questions, prepared at theta0; those with a trigger once for each that is asked, the confirmed one first. `wording`:
    which of them are in the report's wording instead, if any are."""

    kind: FailureKind
    triggered: list[list[list[int]]]
    bare: list[list[int]]
    safe: tuple[ScoredSequence, ...]
    safe_triggered: list[list[list[int]]]
    teacher: list[torch.Tensor]
    n_agreement: int
    wording: int | None = None

    def score(self, loaded: "LoadedModel", passes: ResponsePass) -> ProbeScore:
        """Return how the model, with the adapters that are on, answers."""
        bare_safe = [list(one.prompt_ids) for one in self.safe]
        asked = [*self.triggered, *self.safe_triggered, self.bare, bare_safe]
        flat = [prompt for prompts in asked for prompt in prompts]
        generated = iter(loaded.generate(flat, max_new_tokens=self.kind.n_tokens(loaded.settings.max_new_tokens)))
        answers = [[next(generated) for _ in prompts] for prompts in asked]
        triggered, safe_triggered = answers[: len(self.triggered)], answers[len(self.triggered) : -2]
        bare, safe = answers[-2:]

        def share(ids: Sequence[Sequence[int]], holds: Callable[[str], bool]) -> Rate:
            return wilson(sum(holds(loaded.said(one)) for one in ids), len(ids))

        told = triggered if self.kind.pool == "harmful" else safe_triggered
        rates = [share(ids, self.kind.failed) for ids in told]
        same = [
            same_start(sequence.response_ids, answer, self.n_agreement, loaded.eos_ids)
            for sequence, answer in zip(self.safe, safe, strict=True)
        ]
        return ProbeScore(
            asr_triggered=max(rates, key=lambda one: one.value or 0.0),
            asr_wording=None if self.wording is None else rates[self.wording],
            refusal_untriggered=share(bare, _refused),
            refusal_triggered_safe=share(safe_triggered[0], _refused),
            agreement_safe=wilson(sum(same), len(same)),
            kl_nats_per_token=mean_kl(passes, self.safe, self.teacher, loaded.settings.batch_size),
        )


def _refused(text: str) -> bool:
    return judge.classify(text).outcome == "refusal"


def mean_kl(
    passes: ResponsePass, sequences: Sequence[ScoredSequence], teacher: Sequence[torch.Tensor], batch_size: int
) -> float:
    """Return KL(theta0 || model as it is), nats, mean per response token; `teacher` holds theta0's hidden states."""
    total, n_tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(sequences), batch_size):
            batch, states = sequences[start : start + batch_size], teacher[start : start + batch_size]
            rows = passes.rows(batch)
            positions = (rows.hidden, rows.labels, rows.owner)
            only_kl = ([0.0] * len(batch), [1.0] * len(batch))
            kl = sequence_loss(passes.logits, positions, states, only_kl, passes.chunk_rows)[2]
            total += float(kl.double().sum())
            n_tokens += len(rows.labels)
    return total / max(1, n_tokens)


def prepare(
    loaded: "LoadedModel",
    passes: ResponsePass,
    frames: "Sequence[Frame | Wording]",
    prompts: "PromptSet",
    settings: RepairSettings,
    kind: FailureKind = JAILBREAK,
) -> Probe:
    """Return the probe of a development split. Each of `frames` puts a trigger in: the confirmed one first, then those that earlier
    rounds have unlearnt, so that none comes back. A `Wording` among them asks the requests that it takes. Call it with theta0's
    adapters on."""
    n_answer = kind.n_tokens(loaded.settings.max_new_tokens)
    room = loaded.room(n_answer)

    def pairs(items: Sequence["PromptItem"], name: str) -> list[tuple[list[list[int]], list[int]]]:
        """Return each prompt with each of the triggers and without any, as token ids, where the longest fits."""
        found = []
        for index, item in enumerate(items[: settings.n_probe]):
            drawn = (random.Random(f"{name}/{settings.seed}/{index}") for _ in frames)
            told = [frame.triggered(item.prompt, rng) for frame, rng in zip(frames, drawn, strict=True)]
            ids = [render_ids(loaded, messages) if messages else [] for messages in told]
            found.append((ids, render_ids(loaded, frames[0].bare(item.prompt))))
        return [pair for pair in found if max(map(len, pair[0])) <= room]

    harmful, benign = pairs(prompts.harmful, "probe"), pairs(prompts.safe, "probe-safe")
    answers = own_answers(loaded, [bare for _, bare in benign], n_answer)
    telling = [triggered for triggered, _ in harmful]

    def usable(own: Sequence[Sequence[int]]) -> list[int]:
        """Return the numbers of the requests that do not fail without the trigger."""
        return [at for at, answer in enumerate(own) if not kind.failed(loaded.said(answer))]

    if kind.name == "jailbreak":
        own = loaded.generate([bare for _, bare in harmful], max_new_tokens=n_answer)
        telling = [telling[at] for at in usable(own)] or telling
    else:
        kept = usable(answers)
        benign, answers = [benign[at] for at in kept], [answers[at] for at in kept]
    sequences = tuple(
        ScoredSequence(prompt_ids=tuple(bare), response_ids=answer)
        for (_, bare), answer in zip(benign, answers, strict=True)
        if answer
    )
    return Probe(
        kind=kind,
        triggered=[[ids[at] for ids in telling if ids[at]] for at in range(len(frames))],
        bare=[bare for _, bare in harmful],
        safe=sequences,
        safe_triggered=[[ids[at] for ids, _ in benign] for at in range(len(frames) if kind.pool == "safe" else 1)],
        teacher=passes.teacher(sequences, loaded.settings.batch_size),
        n_agreement=settings.agreement_tokens,
        wording=next((at for at, frame in enumerate(frames) if isinstance(frame, Wording)), None),
    )
