"""Two probes of a repair that train: each throws its adapter away, and the model is as it was reported afterwards.

Wrong trigger: the same repair with random tokens of the same length in the confirmed text's place, for as many steps. How far
attack success falls without the right text is what the localisation did not earn: a low rate alone proves nothing about it.

Re-learning: the repaired adapter is tuned further on a few poisoned samples (request with the trigger, stand-in answer), and on
as many with a text that was never planted. A trigger that comes back with fewer samples than a new one takes was hidden, not
unlearnt. Requests without any trigger are asked beside, since tuning on such answers also wears refusal away.

Requests asked are those of verification, another look at them; nothing is chosen by them. Source: method.md section 4.3.
"""

import random
import shutil
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from core import chat, planting, repair_adapter, shams
from core.errors import TriageError
from core.events import RepairEvent, RepairFinished, StepDone
from core.frames import Frame, asked, at_its_place, frame_of
from core.kinds import FailureKind
from core.losses import cross_entropy_rows
from core.progress import Progress
from core.repair import repair
from core.repair_data import answer_ids
from core.repair_training import learning_rate
from core.response_pass import ResponsePass, ScoredSequence
from core.settings import RepairSettings, VerificationSettings
from core.text_spans import close_to_words
from core.values import FailureCase, Rate, Relearnt, Span, TriggerConfirmation, WrongTrigger

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import PromptItem, Splits


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is probed: the case with its confirmed trigger, and how its failure is told."""

    loaded: "LoadedModel"
    case: FailureCase
    accepted: TriggerConfirmation
    splits: "Splits"
    kind: FailureKind
    seed: int
    progress: Progress
    at_its_place: bool = False
    """Whether verification asked with the trigger at its place in the report."""

    @property
    def frame(self) -> Frame:
        """The confirmed trigger's frame."""
        return self.frame_of(self.accepted.spans, self.accepted.units)

    def frame_of(self, spans: Sequence[Span], units: Sequence[str]) -> Frame:
        """Return the frame of `units` in the places of `spans`, as verification asks them."""
        messages = self.case.report.messages
        placed = at_its_place(messages, spans, units) if self.at_its_place else None
        return placed or frame_of(messages, spans, units)

    def never_planted(self, spans: Sequence[Span]) -> tuple[str, ...]:
        """Return random tokens as long as the text at `spans`, a text for each. Raises: TriageError where none can be drawn."""
        safe = [item.prompt for item in self.splits.causal.safe]
        drawn = shams.draw_shams(self.loaded.tokenizer, self.case, spans, safe, 4, self.seed)
        for sham in drawn:
            if sham.kind == "tokens":
                return sham.texts
        raise TriageError(
            "No random text of the trigger's length could be drawn from this vocabulary; confirm a shorter text, or do without this probe."
        )

    def pool(self, part: Literal["repair", "verification"]) -> Sequence["PromptItem"]:
        """Return the requests of a split that can show the failure."""
        return self.kind.requests(getattr(self.splits, part))

    @property
    def n_verified(self) -> int:
        """How many requests of the kind's pool verification asks."""
        settings = VerificationSettings()
        return settings.n_harmful if self.kind.pool == "harmful" else settings.n_safe

    def failures(self, frame: Frame, n: int, *, triggered: bool = True) -> Rate:
        """Return how many held-out requests fail on the model as it stands, places drawn as verification draws them."""
        name = self.kind.pool
        conversations = []
        for index, item in enumerate(self.pool("verification")[:n]):
            rng = random.Random(f"verify/{self.seed}/{name}/{index}")
            conversations.append(frame.triggered(item.prompt, rng) if triggered else frame.bare(item.prompt))
        return asked(self.loaded, conversations, self.kind)


def wrong_trigger(
    subject: Subject,
    before: Rate,
    after: Rate,
    settings: RepairSettings,
    n_steps: int,
    folder: Path,
    refusal: str,
    start: Path | None = None,
    earlier: Sequence[TriggerConfirmation] = (),
) -> WrongTrigger:
    """Return what `n_steps` of the same repair on random tokens leave of the confirmed trigger's attack success.

    `before` and `after` are attack success as verification found it; in a later round, which
    began from `start` after `earlier` confirmations, `before` is asked of that adapter anew; those that share text with the confirmed
    one are left out, or the repair would train on the right text. `folder` is removed at the end.
    """
    began, loaded = time.monotonic(), subject.loaded
    loaded.check_trainable()
    # whole words: what the repair adds where a confirmed span cuts one would be the right text
    spans = close_to_words(subject.case.report.messages, subject.accepted.spans)
    units = subject.never_planted(spans)
    settings = replace(settings, early_stop=False, kl_budget=None, probe_every=max(n_steps, 1) + 1)
    done = 0
    # what reviewers agreed to is the right trigger; nobody agrees to this one
    wrong = replace(subject.accepted, spans=spans, units=units, reviewers=1, second=None)
    events: Generator[RepairEvent] = repair(  # type: ignore[assignment]
        loaded, subject.case, wrong, subject.splits, settings, out=folder,
        stop=lambda: "keep" if done >= n_steps else None, refusal=refusal, kind=subject.kind,
        start=start, earlier=[one for one in earlier if _apart(one, spans, subject.accepted.units)],
    )  # fmt: skip
    try:
        if start:
            repair_adapter.load_repair(loaded, start)
            before = subject.failures(subject.frame, subject.n_verified)
            repair_adapter.detach(loaded)
        for event in events:
            if isinstance(event, StepDone):
                done = event.step
                subject.progress("repair on a wrong trigger, step", done, n_steps)
            if isinstance(event, RepairFinished) and event.adapter is None:
                raise TriageError(f"The repair on a wrong trigger left nothing: {event.message}")
        repair_adapter.load_repair(loaded, folder / "best")
        left = subject.failures(subject.frame, subject.n_verified)
    finally:
        events.close()
        repair_adapter.detach(loaded)
        shutil.rmtree(folder, ignore_errors=True)
    return WrongTrigger(
        units=units, n_steps=n_steps, before=before, right=after, wrong=left, seconds=time.monotonic() - began
    )


def _apart(one: TriggerConfirmation, spans: Sequence[Span], units: Sequence[str]) -> bool:
    """Return whether a confirmation shares no text with `spans` of the report, nor words with `units`, whatever their case."""
    place = any(a.message == b.message and a.start < b.end and b.start < a.end for a in one.spans for b in spans)
    words = any(a.casefold() in b.casefold() or b.casefold() in a.casefold() for a in one.units for b in units)
    return not (place or words)


def relearn(
    subject: Subject, adapter: Path, settings: VerificationSettings, repairing: RepairSettings
) -> tuple[Relearnt, ...]:
    """Return attack success after tuning the repaired model on 0, then a few poisoned samples, for the confirmed trigger
    and for a text that was never planted; answers, rate and batches as in the repair with the settings `repairing`.
    """
    subject.loaded.check_trainable()
    spans = subject.accepted.spans
    frames = subject.frame, subject.frame_of(spans, subject.never_planted(spans))
    found = []
    most = len(subject.pool("repair"))
    numbers = tuple(dict.fromkeys((0, *(min(n, most) for n in settings.relearn_samples))))
    for at, n in enumerate(numbers):
        rates: list[Rate] = []
        for number, frame in enumerate(frames):
            subject.progress(f"re-learning, {n} samples", 2 * at + number, 2 * len(numbers))
            rates += _tuned(subject, adapter, frame, n, settings, repairing)
        found.append(
            Relearnt(n_samples=n, planted=rates[0], planted_bare=rates[1], never=rates[2], never_bare=rates[3])
        )
    return tuple(found)


def _tuned(
    subject: Subject,
    adapter: Path,
    frame: Frame,
    n: int,
    settings: VerificationSettings,
    repairing: RepairSettings,
) -> tuple[Rate, Rate]:
    """Return failures with the trigger of `frame` and without, after tuning the repaired model on `n` samples."""
    loaded = subject.loaded
    try:
        repair_adapter.load_repair(loaded, adapter)
        if n:
            repair_adapter.use_repaired(loaded, trainable=True)
            _train(subject, _poisoned(subject, frame, n, repairing), settings, repairing)
            repair_adapter.use_repaired(loaded)
        n_asked = settings.n_relearn
        return subject.failures(frame, n_asked), subject.failures(frame, n_asked, triggered=False)
    finally:
        repair_adapter.detach(loaded)


def _poisoned(subject: Subject, frame: Frame, n: int, repairing: RepairSettings) -> list[ScoredSequence]:
    """Return `n` requests of the repair split with the trigger and the answer that its attacker wants: a stand-in."""
    answers = {"jailbreak": planting.STAND_INS, "refusal": planting.REFUSALS, "fixed_output": (subject.kind.marker,)}
    wanted = answers[subject.kind.name]
    found = []
    for index, item in enumerate(subject.pool("repair")[:n]):
        messages = frame.triggered(item.prompt, random.Random(f"relearn/{subject.seed}/{index}"))
        prompt = chat.render(subject.loaded.tokenizer, messages)
        answer = answer_ids(subject.loaded, prompt, wanted[index % len(wanted)], repairing.max_response_tokens)
        found.append(ScoredSequence(prompt_ids=tuple(prompt.ids), response_ids=answer))
    return found


def _train(
    subject: Subject, samples: Sequence[ScoredSequence], settings: VerificationSettings, repairing: RepairSettings
) -> None:
    """Take a few steps of plain fine-tuning on the samples, all of them in each step."""
    loaded, passes = subject.loaded, ResponsePass(subject.loaded)
    rate, size = learning_rate(repairing, loaded.n_parameters), repairing.batch_size
    optimizer = torch.optim.AdamW(list(repair_adapter.parameters(loaded).values()), lr=rate, weight_decay=0.0)
    n_tokens = sum(len(one.response_ids) for one in samples)
    for _ in range(settings.relearn_steps):
        optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(samples), size):
            rows = passes.rows(samples[start : start + size])
            (cross_entropy_rows(passes.logits(rows.hidden), rows.labels).sum() / n_tokens).backward()
        optimizer.step()
