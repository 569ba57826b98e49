"""Everything a long stage says while it runs: small frozen events, one a line in `events.jsonl`.

Each event is complete in itself. The worker (or the command line) wraps it in a `Line`, which adds the running number,
the time and the request it belongs to; stages know nothing of that.
"""

from dataclasses import dataclass, field

from core.values import MemorySaving, Rate, Result, StopReason, Verdict

OF_DUMMY = "dummy trigger or report's wording, whichever is more"
"""Whose attack success a probe tells where a dummy trigger is unlearnt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStarted:
    """A request was taken up."""

    stage: str
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """`done` of `total` steps of the part named `message`; `total` 0: unknown."""

    stage: str
    message: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFinished:
    """A request was answered; `files` are the results, relative to the case folder."""

    stage: str
    headline: str
    files: tuple[str, ...] = ()
    seconds: float = 0.0
    verdict: Verdict | None = None
    result: Result | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFailed:
    """A request ended in a fault; `message` is one line with the remedy, `ours` tells a bug from an input's fault."""

    stage: str
    message: str
    ours: bool = False
    reference: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairStarted:
    """Settings as they really run. `resumed_at`: step of the checkpoint it goes on from, None for a repair from the start. `round`: of
    the case's rounds of repair, from 1. `unreached`: share of the model's parameters in experts that get no adapter, 0..1."""

    n_steps: int
    n_epochs: int
    n_trainable: int
    device: str
    n_harmful: int
    n_safe: int
    memory_estimate_mb: float
    settings: dict = field(default_factory=dict)
    resumed_at: int | None = None
    round: int = 1
    unreached: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One optimiser step. Losses are those of the objective (sums over response tokens, means over sequences, nats), None
    for a term that is off; `kl_trigger_loss` is the extended objective's. `micro_batch` is smaller than in settings after
    memory ran out, 0 in older files; `memory_saved` is what else that led to so far, in order.

    `kl_nats_per_token`: KL(reference || repaired) over the response tokens of this batch's harmful-bare and safe
    sequences together, mean per token. `seconds_left` estimates the whole repair, probes included.
    """

    step: int
    epoch: int
    loss: float
    refusal_loss: float | None
    kl_harmful_loss: float | None
    kl_safe_loss: float | None
    kl_nats_per_token: float
    learning_rate: float
    tokens_per_second: float
    memory_mb: float
    seconds_left: float
    kl_trigger_loss: float | None = None
    micro_batch: int = 0
    memory_saved: tuple[MemorySaving, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointScored:
    """A probe on the development split: attack success with the trigger, refusal without, benign agreement.

    `agreement_safe`: share of safe prompts answered word for word as the reference does (first tokens, see settings).
    `refusal_triggered_safe`: share of safe prompts with the trigger that are refused, None in older files. `asr_wording`: of requests
    in the report's wording, where a dummy trigger is unlearnt; then `asr_triggered` is whichever is more. None else, and in older files.
    `best` says whether this checkpoint is the best so far, by the rule in `repair.py`.
    """

    step: int
    asr_triggered: Rate
    refusal_untriggered: Rate
    agreement_safe: Rate
    kl_nats_per_token: float
    best: bool
    refusal_triggered_safe: Rate | None = None
    asr_wording: Rate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairFinished:
    """The end, however it came; `adapter` is relative to the case folder, None when discarded or nothing was kept."""

    reason: StopReason
    step: int
    best_step: int | None
    adapter: str | None
    adapter_hash: str | None
    seconds: float
    message: str


RepairEvent = RepairStarted | StepDone | CheckpointScored | RepairFinished
Event = StageStarted | Progress | StageFinished | StageFailed | RepairEvent


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of `events.jsonl`: `seq` runs from 0 without gaps, `time` is UTC in ISO 8601."""

    seq: int
    time: str
    request: str
    event: Event
