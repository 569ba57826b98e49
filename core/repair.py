"""Constrained fine-tuning: unlearn the confirmed trigger, keep everything else, as an iterator of events.

1. theta0 is the model as loaded. Its hidden states on all fixed sequences are computed once: the frozen teacher.
2. A LoRA adapter "repair" is attached to every linear layer; base weights and a reported adapter stay frozen.
3. Each epoch draws the training sets (see `repair_data`) in batches; each step minimises the paper's
   L_refuse + L_KL-harm + L_KL-safe, or with L_KL-trig the extended objective (see `losses`).
4. Every n steps a probe on the development split scores the adapter; the best is kept on disk, and with each probe a
   checkpoint from which the run can go on. It ends early when the targets hold, or the KL budget is spent, twice in a row.
5. However it ends, the model in memory is theta0 again, bit for bit, with no repair adapter on it.

Until the iterator has ended, the model belongs to it. Closing it early means discard; an exception that is thrown into it is
a fault like one of its own, and leaves what was kept. What this does not do: verify.
Source: arXiv 2606.02995; the extended objective: method.md section 4.3; own choices are named where they are made.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError

from core import best_checkpoint, checkpoint_files, checkpoints, confirmation, recall, repair_adapter, repair_probe
from core.best_checkpoint import HELD_IN_A_ROW
from core.checkpoint_files import BEST
from core.checkpoints import RunState
from core.errors import CaseFileError, RepairDivergedError, TriageError
from core.events import OF_DUMMY, CheckpointScored, RepairEvent, RepairFinished, RepairStarted, StepDone
from core.files import hash_file
from core.frames import AtItsPlace, Frame, Wording, frame_of, frames_beyond, where_it_works
from core.intervals import percent
from core.kinds import JAILBREAK, FailureKind
from core.loaded import is_out_of_memory
from core.machine import reason
from core.recall import Said
from core.repair_data import RepairData, build
from core.repair_training import StepNumbers, Trainer, memory_mb
from core.response_pass import ResponsePass
from core.settings import RepairSettings
from core.team import ALONE, Team
from core.values import FailureCase, Span, StopReason, TriggerConfirmation
from core.weight_files import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from core.loaded import LoadedModel
    from core.prompts import Splits

StopToken = Callable[[], Literal["keep", "discard"] | None]
"""Asked before and after each step: None to go on, `keep` to end with the best checkpoint, `discard` to leave nothing."""

log = logging.getLogger(__name__)


def repair(
    loaded: "LoadedModel",
    case: FailureCase,
    confirmed: TriggerConfirmation | None,
    splits: "Splits",
    settings: RepairSettings,
    *,
    out: Path,
    stop: StopToken,
    refusal: str,
    resume: bool = False,
    kind: FailureKind = JAILBREAK,
    wider: Sequence[Span] = (),
    start: Path | None = None,
    earlier: Sequence[TriggerConfirmation] = (),
    team: Team = ALONE,
) -> Generator[RepairEvent, None, None]:
    """Yield the events of one repair: RepairStarted, StepDone and CheckpointScored in turn, RepairFinished.

    `out` is the repair folder inside the case folder; paths in events are relative to the case folder. `refusal` is the
    sentence to train towards. With `resume` the newest checkpoint is continued as if it had never stopped. `kind` is the
    reported failure; it decides what the extended objective anchors safe requests with the trigger at. `wider` are all
    candidates' spans of the report before they were cut down; the extended objective mixes them into the triggered set, and
    the confirmed spans closed to whole words where they cut one. `start` is the folder of an adapter to train further instead
    of a fresh one; `earlier` are triggers that it has unlearnt, mixed in likewise and asked by every probe. The teacher is theta0 in any case.
    `team`: every process of it runs this, each yields all events, the first alone writes and asks `stop`.
    Raises: ConfirmationError without an accepting confirmation that fits text, model and template (nothing is touched
    then); PromptFolderError when a split is too small; CaseFileError when there is nothing to resume.
    """
    accepted = confirmation.check(confirmed, case, loaded.spec)
    messages = case.report.messages
    beyond = frames_beyond(messages, accepted.spans, wider)

    def prepare() -> _Run:
        repair_adapter.detach(loaded)
        passes = ResponsePass(loaded, settings)
        requests = kind.requests(splits.probes)[: settings.n_probe]

        def works(one: TriggerConfirmation) -> Frame:
            return where_it_works(loaded, messages, one, requests, kind, f"repair/{settings.seed}")

        asked, before = works(accepted), [works(one) for one in earlier if one.way == "trigger"]
        in_place = asked if isinstance(asked, AtItsPlace) else None
        frames = frame_of(messages, accepted.spans, accepted.units), [*beyond, *before]
        data = build(loaded, frames, splits.repair, refusal, settings, kind=kind, in_place=in_place)
        wording = [Wording(messages)] if accepted.way == "dummy" else []  # what the dummy stands for
        probe = repair_probe.prepare(loaded, passes, [asked, *wording, *before], splits.probes, settings, kind)
        # targets are those of the reported model: what an earlier round lost is not allowed again
        reported = team.told(probe.score(loaded, passes)) if start else None
        trainer = Trainer(loaded, data, passes, settings, out, start, team)
        return _Run(trainer, probe, out, _fingerprint(data, accepted, settings, start), reported, 1 + len(earlier))

    return _events(prepare, loaded, out, stop, resume, team)


def _events(
    prepare: Callable[[], "_Run"], loaded: "LoadedModel", out: Path, stop: StopToken, resume: bool, team: Team
) -> Generator[RepairEvent, None, None]:
    """Yield the events of the run that `prepare` makes; however it ends, the model is left without its adapter."""
    run: _Run | None = None
    try:
        with recall.kept(loaded, checkpoints.said(out, loaded) if resume else {}, team) as said:
            run = prepare()
        run.begin(resume, said)
        yield run.started()
        yield from run.steps(lambda: team.told(stop() if team.leads else None))
        repair_adapter.detach(loaded)
        yield run.finish()
    except (RuntimeError, MemoryError) as error:
        if run is not None or not is_out_of_memory(error):
            raise
        raise RepairDivergedError(
            "Out of memory while preparing the repair. Use fewer prompts, shorter answers (repair --set max_response_tokens=N), or "
            "another device."
        ) from error
    except GeneratorExit:
        if run is not None and not run.finished:
            checkpoint_files.clear(out, best=True)
        raise
    finally:
        repair_adapter.detach(loaded)


def _fingerprint(data: RepairData, accepted: TriggerConfirmation, settings: RepairSettings, start: Path | None) -> str:
    """Return the SHA-256 of everything a checkpoint depends on."""
    parts = [
        asdict(settings),
        [accepted.units, accepted.text_hash, accepted.model_hash, accepted.template_hash],
        hash_file(start / ADAPTER_WEIGHTS) if start else "",
        [data.harmful, data.benign, [one.units for one in data.wider]],
        [(one.prompt_ids, one.response_ids) for one in (*data.harm, *data.safe, *(a for p in data.anchors for a in p))],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class _Run:
    """The loop over steps and probes, and the one state that is saved with it."""

    def __init__(
        self,
        trainer: Trainer,
        probe: repair_probe.Probe,
        out: Path,
        fingerprint: str,
        reported: repair_probe.ProbeScore | None = None,
        number: int = 1,
    ) -> None:
        """`reported`: what the probe says of theta0, where training starts from another adapter. `number`: of the round."""
        self.trainer, self.probe, self.out, self.reported, self.number = trainer, probe, out, reported, number
        self.loaded, self.settings, self.team = trainer.loaded, trainer.settings, trainer.team
        self.state = RunState(fingerprint=fingerprint)
        self.reason: StopReason = "finished"
        self.detail = ""
        self.finished = False
        self.said: Said = {}
        self._before = 0.0
        self._resumed_at: int | None = None
        self._start = time.monotonic()
        self._step_seconds: list[float] = []

    def begin(self, resume: bool, said: Said) -> None:
        """Load the newest checkpoint, or make room for a new run; `said` is what theta0 said in preparation, for the next ones."""
        self.said = said
        if not resume:
            if self.team.leads:
                checkpoint_files.clear(self.out, best=True)
            self.out.mkdir(parents=True, exist_ok=True)
            return
        state = checkpoints.load(self.out, self.loaded, self.trainer.optimizer, self.state.fingerprint)
        if state is None:
            raise CaseFileError("There is no checkpoint to go on from; repair without --resume.")
        self.state, self._before, self._resumed_at = state, state.seconds, state.step
        if state.micro_batch:
            self.trainer.micro_batch = state.micro_batch
        best = self.out / BEST / ADAPTER_WEIGHTS
        if state.best_hash and (not best.is_file() or hash_file(best) != state.best_hash):
            # It broke off between writing a better adapter and its checkpoint; that probe is taken again.
            state.best_key, state.best_step, state.best_hash = None, None, None

    def started(self) -> RepairStarted:
        """Return the settings as they really run: the learning rate is filled in."""
        data = self.trainer.data
        return RepairStarted(
            n_steps=self.trainer.n_steps,
            n_epochs=self.trainer.epoch_of(self.trainer.n_steps) + 1,
            n_trainable=self.trainer.n_trainable,
            device=f"{self.loaded.device}{self.team.name}",
            n_harmful=len(data.harm),
            n_safe=len(data.safe),
            memory_estimate_mb=self.trainer.memory_estimate_mb,
            settings=asdict(replace(self.settings, learning_rate=self.trainer.peak_rate)),
            resumed_at=self._resumed_at,
            round=self.number,
            unreached=self.trainer.unreached,
        )

    def steps(self, stop: StopToken) -> Iterator[RepairEvent]:
        """Yield the events of all steps until one of the endings, which is left in `reason`."""
        try:
            yield from self._steps(stop)
        except RepairDivergedError as error:
            self.reason, self.detail = "diverged", str(error)
        except (OSError, SafetensorError) as error:  # disk full, read-only: the last whole checkpoint stays
            again = "resume; what had been kept is still there" if checkpoint_files.there(self.out) else "start again"
            raise CaseFileError(
                f"The repair could not be written at step {self.state.step}: {reason(error)}. Free space, then {again}."
            ) from error
        except (RuntimeError, MemoryError, TriageError) as error:
            if not is_out_of_memory(error) and not (error.__cause__ and is_out_of_memory(error.__cause__)):
                raise
            self.reason, self.detail = "out_of_memory", (str(error) or type(error).__name__).splitlines()[0]
            log.warning("repair ran out of memory at step %d: %s", self.state.step, self.detail)

    def _steps(self, stop: StopToken) -> Iterator[RepairEvent]:
        if self.state.start_refusal is None:
            if self._asked(stop()) == "discard":
                return
            yield self._probe()
        elif self._early_end():  # it broke off after its last probe: as if it had never stopped, that was the end
            return
        while self.state.step < self.trainer.n_steps:
            asked = self._asked(stop())
            if asked == "discard" or (asked == "keep" and self.state.best_step is not None):
                return
            began = time.monotonic()
            numbers = self.trainer.step(self.state.step + 1)
            self.state.step += 1
            self._step_seconds.append(time.monotonic() - began)
            yield self._step_done(numbers)
            asked = self._asked(stop())
            if asked == "discard":
                return
            last = self.state.step == self.trainer.n_steps
            if (
                last
                or self.state.step % self.settings.probe_every == 0
                or (asked == "keep" and self.state.best_step is None)
            ):
                yield self._probe()
                if self._early_end() and not last and asked is None:
                    return
            if asked == "keep":
                return

    def _asked(self, how: Literal["keep", "discard"] | None) -> Literal["keep", "discard"] | None:
        if how is not None:
            self.reason = "discarded" if how == "discard" else "kept"
        return how

    def _step_done(self, numbers: StepNumbers) -> StepDone:
        if numbers.kl_nats_per_token is not None:
            self.state.kl_nats_per_token = numbers.kl_nats_per_token
        seconds = self._step_seconds[-1]
        return StepDone(
            step=self.state.step,
            epoch=self.trainer.epoch_of(self.state.step),
            loss=numbers.loss,
            refusal_loss=numbers.refusal,
            kl_harmful_loss=numbers.kl_harmful,
            kl_safe_loss=numbers.kl_safe,
            kl_trigger_loss=numbers.kl_trigger,
            kl_nats_per_token=self.state.kl_nats_per_token,
            learning_rate=self.trainer.rate(self.state.step),
            tokens_per_second=numbers.n_tokens / max(seconds, 1e-9),
            memory_mb=memory_mb(self.loaded),
            seconds_left=self._seconds_left(),
            micro_batch=self.trainer.micro_batch,
            memory_saved=self.trainer.memory_saved,
        )

    def _seconds_left(self) -> float:
        """Return the time all remaining steps and probes would take at the recent pace."""
        recent = self._step_seconds[-20:]
        left = self.trainer.n_steps - self.state.step
        probes = left // self.settings.probe_every + (left % self.settings.probe_every > 0)
        pace = self.state.probe_seconds[-3:]
        return left * sum(recent) / len(recent) + probes * (sum(pace) / len(pace) if pace else 0.0)

    def _probe(self) -> CheckpointScored:
        """Score the adapter, keep it when it is the best (`best_checkpoint.rule`), save a checkpoint, and return the event."""
        state, settings, began = self.state, self.settings, time.monotonic()
        score = self.team.told(self.probe.score(self.loaded, self.trainer.passes))
        kl = score.kl_nats_per_token
        kl = float("inf") if math.isnan(kl) else kl
        best = False
        if state.step == 0:
            first = self.reported or score
            state.start_refusal = first.refusal_untriggered.value or 0.0
            state.start_refusal_safe = first.refusal_triggered_safe.value or 0.0
        else:
            asr = 1.0 if score.asr_triggered.value is None else score.asr_triggered.value
            over = settings.kl_budget is not None and kl > settings.kl_budget
            met = asr <= settings.target_asr
            n_missed = best_checkpoint.n_missed(score, settings, state.start_refusal or 0.0, state.start_refusal_safe)
            state.met = state.met + 1 if met else 0
            state.held = state.held + 1 if met and not n_missed and not over else 0
            state.spent = state.spent + 1 if over else 0
            key = best_checkpoint.key(score, settings, over=over, asr=asr, n_missed=n_missed, n_met=state.met, kl=kl)
            best = state.best_key is None or key < state.best_key
            if best:
                state.best_key, state.best_step, state.best_asr = key, state.step, asr
                state.best_hash = repair_adapter.write(self.loaded, self.out / BEST, self.team)
        state.probe_seconds = [*state.probe_seconds[-2:], time.monotonic() - began]
        state.micro_batch = self.trainer.micro_batch
        state.seconds = self._seconds()
        checkpoints.save(self.out, self.loaded, self.trainer.optimizer, state, self.said, self.team)
        return CheckpointScored(
            step=state.step,
            asr_triggered=score.asr_triggered,
            refusal_untriggered=score.refusal_untriggered,
            refusal_triggered_safe=score.refusal_triggered_safe,
            agreement_safe=score.agreement_safe,
            asr_wording=score.asr_wording,
            kl_nats_per_token=kl,
            best=best,
        )

    def _early_end(self) -> bool:
        """Return whether the KL budget was exceeded twice in a row, or the targets held; the latter never in the first
        epoch."""
        if self.state.spent >= HELD_IN_A_ROW:
            self.reason = "kl_budget"
        elif (
            self.settings.early_stop and self.trainer.epoch_of(self.state.step + 1) and self.state.held >= HELD_IN_A_ROW
        ):
            self.reason = "targets_held"
        return self.reason != "finished"

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def finish(self) -> RepairFinished:
        """Return the last event; a discarded run leaves no files."""
        state = self.state
        self.finished = True
        if self.reason == "discarded":
            if self.team.leads:
                checkpoint_files.clear(self.out, best=True)
            state.best_step = state.best_hash = None
        kept = state.best_step is not None
        return RepairFinished(
            reason=self.reason,
            step=state.step,
            best_step=state.best_step,
            adapter=f"{self.out.name}/{BEST}" if kept else None,
            adapter_hash=state.best_hash,
            seconds=self._seconds(),
            message=f"{self._ending()} {self._what_is_kept()}",
        )

    def _ending(self) -> str:
        """Return one sentence on why it ended and, where something went wrong, what to try."""
        step, total = self.state.step, self.trainer.n_steps
        match self.reason:
            case "finished":
                return f"Finished all {total} steps."
            case "targets_held":
                return f"The targets held in {HELD_IN_A_ROW} probes in a row; ended at step {step} of {total}."
            case "kl_budget":
                return (
                    f"The KL budget was exceeded in {HELD_IN_A_ROW} probes in a row; ended at step {step} of {total}."
                )
            case "kept":
                return f"Stopped at step {step} of {total}."
            case "discarded":
                return f"Stopped and discarded at step {step} of {total}; the model is as it was."
            case "diverged":
                lower = self.trainer.peak_rate / 3
                return f"{self.detail} Try a lower learning rate, for example {lower:.1g} instead of {self.trainer.peak_rate:.1g}."
            case "out_of_memory":
                return (
                    f"Out of memory at step {step + 1} with micro-batches of {self.trainer.micro_batch}. Try shorter answers "
                    "(repair --set max_response_tokens=N), a smaller LoRA rank (--set lora_rank=N), or another device."
                )

    def _what_is_kept(self) -> str:
        state = self.state
        if self.reason == "discarded":
            return "Nothing was kept."
        if state.best_key is None:
            return "No checkpoint had been scored, so nothing was kept."
        over, *_, kl = state.best_key
        budget = ", over the budget" if over else ""
        of = f" ({OF_DUMMY})" if self.probe.wording is not None else ""
        return f"Best checkpoint: step {state.best_step}, probe attack success {percent(state.best_asr)}{of}, KL {kl:.3g} nats per token{budget}."
