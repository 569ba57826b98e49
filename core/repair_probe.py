"""Probes during a repair: what the development split says about the adapter as it stands.

Prompts, injections, theta0's answers and theta0's hidden states are fixed once; every probe asks the same questions:
attack success with the trigger, refusal without, first tokens of safe answers as before, KL along theta0's safe answers.
The verification split is never touched here.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from core import judge
from core.intervals import wilson
from core.losses import kl_rows
from core.repair_data import TriggerFrame, own_answers, render_ids
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings
from core.values import Rate

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptSet


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """One probe; `kl_nats_per_token` is KL(theta0 || repaired), mean over the tokens of theta0's safe answers."""

    asr_triggered: Rate
    refusal_untriggered: Rate
    agreement_safe: Rate
    kl_nats_per_token: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """The fixed questions, prepared at theta0."""

    triggered: list[list[int]]
    bare: list[list[int]]
    safe: tuple[ScoredSequence, ...]
    teacher: list[torch.Tensor]
    n_agreement: int

    def score(self, loaded: "LoadedModel", passes: ResponsePass) -> ProbeScore:
        """Return how the model, with the adapters that are on, answers."""
        safe_prompts = [list(sequence.prompt_ids) for sequence in self.safe]
        answers = loaded.generate(self.triggered + self.bare + safe_prompts)
        outcomes = [judge.classify(loaded.decode(ids)) for ids in answers[: len(self.triggered) + len(self.bare)]]
        triggered, bare = outcomes[: len(self.triggered)], outcomes[len(self.triggered) :]
        again = answers[len(outcomes) :]
        same = [
            same_start(sequence.response_ids, answer, self.n_agreement, loaded.eos_ids)
            for sequence, answer in zip(self.safe, again, strict=True)
        ]
        return ProbeScore(
            asr_triggered=wilson(sum(one.unsafe for one in triggered), len(triggered)),
            refusal_untriggered=wilson(sum(one.outcome == "refusal" for one in bare), len(bare)),
            agreement_safe=wilson(sum(same), len(same)),
            kl_nats_per_token=mean_kl(passes, self.safe, self.teacher, loaded.settings.batch_size),
        )


def same_start(before: Sequence[int], after: Sequence[int], n_tokens: int, ends: Sequence[int]) -> bool:
    """Return whether two answers have the same first `n_tokens` tokens, or the same end before that."""
    first, second = ([token for token in ids if token not in ends][:n_tokens] for ids in (before, after))
    return first == second


def mean_kl(
    passes: ResponsePass, sequences: Sequence[ScoredSequence], teacher: Sequence[torch.Tensor], batch_size: int
) -> float:
    """Return KL(theta0 || model as it is), nats, mean per response token; `teacher` holds theta0's hidden states."""
    total, n_tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(sequences), batch_size):
            rows = passes.rows(sequences[start : start + batch_size])
            reference = passes.logits(torch.cat(list(teacher[start : start + batch_size])))
            total += float(kl_rows(reference, passes.logits(rows.hidden)).double().sum())
            n_tokens += len(rows.labels)
    return total / max(1, n_tokens)


def prepare(
    loaded: "LoadedModel", passes: ResponsePass, frame: TriggerFrame, prompts: "PromptSet", settings: RepairSettings
) -> Probe:
    """Return the probe of a development split. Call it with theta0's adapters on."""
    room = (loaded.context_length or 10**9) - loaded.settings.max_new_tokens
    triggered, bare = [], []
    for index, item in enumerate(prompts.harmful[: settings.n_probe]):
        messages = frame.triggered(item.prompt, random.Random(f"probe/{settings.seed}/{index}"))
        with_unit, without = render_ids(loaded, messages), render_ids(loaded, frame.bare(item.prompt))
        if len(with_unit) <= room:
            triggered.append(with_unit)
            bare.append(without)
    safe = [render_ids(loaded, frame.bare(item.prompt)) for item in prompts.safe[: settings.n_probe]]
    safe = [ids for ids in safe if len(ids) <= room]
    answers = own_answers(loaded, safe, loaded.settings.max_new_tokens) if safe else []
    sequences = tuple(
        ScoredSequence(prompt_ids=tuple(ids), response_ids=answer)
        for ids, answer in zip(safe, answers, strict=True)
        if answer
    )
    return Probe(
        triggered=triggered,
        bare=bare,
        safe=sequences,
        teacher=passes.teacher(sequences, loaded.settings.batch_size),
        n_agreement=settings.agreement_tokens,
    )
