"""The sentences of step 5: settings, where a repair stands, and how it ended."""

from core.events import OF_DUMMY, RepairFinished, RepairStarted
from core.intervals import percent
from core.repair_trace import RepairTrace
from core.report_text import duration, round_measures
from core.rounds import EndedRound
from core.values import MemorySaving
from dashboard.wording import beside, megabytes, of, quoted

LOCKED = "Locked until a trigger is confirmed in step 4."
READY_TO_REPAIR = "Ready to repair"
START_REPAIR = "Start repair"
REPAIR_AGAIN = "Repair again"
NOTHING_TO_RESUME = "No repair was started yet; start one."
REPAIRING = "Repair is running"
STOP_KEEP = "Stop and keep best"
STOP_DISCARD = "Abort and discard"
EARLIER = "The repair that was there before still stands."
NOT_CONFIRMED_NOW = "The trigger it unlearns is no longer confirmed: stop it, or confirm that text again in step 4."
DUMMY_TRIGGER = "dummy trigger, planted first"
ATTACK_SUCCESS = "attack success"
ATTACK_SUCCESS_OF_DUMMY = "attack success, dummy or wording"
ADVANCED = "Advanced"
REPAIR_EMPTY = {"learning_rate": "by model size", "kl_budget": "none", "max_steps": "all"}
REPAIR_LABELS = {
    "epochs": "Epochs",
    "learning_rate": "Learning rate",
    "kl_budget": "KL budget, nats per token",
    "batch_size": "Batch size",
    "lora_rank": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "max_steps": "Steps at most",
    "n_harmful": "Harmful prompts",
    "n_safe": "Safe prompts",
    "probe_every": "Steps between probes",
    "n_probe": "Prompts in a probe",
    "weight_refusal": "Weight of refusal",
    "weight_kl_harmful": "Weight of KL, harmful",
    "weight_kl_safe": "Weight of KL, safe",
    "weight_kl_trigger": "Weight of KL, safe with the trigger",
    "objective": "Objective",
    "share_wider": "Share with the wider text",
    "share_edited": "Share in other case or spacing",
    "share_ends": "Share first or last",
    "share_own_place": "Share at the report's place",
    "share_lookalike": "Share of look-alikes",
    "own_answers": "Safe answers are the model's own",
    "own_refusals": "Refusals are the model's own",
    "seed": "Seed",
    "early_stop": "Stop early when the targets hold",
}
_REASONS = {
    "finished": "Repair finished",
    "targets_held": "Repair finished: targets held twice in a row",
    "kl_budget": "Repair stopped: the KL budget is used up",
    "kept": "Stopped; the best checkpoint is kept",
    "discarded": "Aborted; nothing is kept",
    "diverged": "Repair diverged",
    "out_of_memory": "Out of memory",
}
OBJECTIVE_HELP = "Paper: every epoch, no KL budget."
_SAVED: dict[MemorySaving, str] = {"no_graphs": "no CUDA graphs", "recompute": "layers are recomputed"}


def memory_ahead(weights_mb: float, most_mb: float | None) -> str:
    """What a repair will take, said before it is started; `most_mb` is None where it was not counted."""
    if most_mb is None:
        return f"{megabytes(weights_mb)} of weights; what training takes is counted before its first step"
    return f"estimated at most {megabytes(most_mb)} with default settings"


def repair_ended(end: RepairFinished) -> str:
    """Headline of step 5 after a repair."""
    best = f", best at step {end.best_step}" if end.best_step is not None and end.adapter else ""
    return f"{_REASONS[end.reason]}{best}"


def round_name(number: int) -> str:
    """A round of repair by its number."""
    return f"Round {number}"


def ended_round(ended: EndedRound) -> str:
    """A round that has ended, in a line: what it unlearnt, and what verification said."""
    said = ended.result.replace("_", " ") if ended.result else "not verified"
    return beside((quoted(ended.confirmation.units), said, round_measures(ended, of)))


OUTDATED = "Of what was confirmed before"


def repair_stands(repair: RepairTrace, going: bool | None = None) -> str:
    """Where a repair stands, in a few words; `going` as in `figures.live_chart`."""
    if repair.started is None:
        return "Not started"
    if repair.finished is not None:
        return "Starting" if going else repair_ended(repair.finished)
    if not repair.steps:
        return "Broke off before the first step" if going is False else "Starting"
    last, total = repair.steps[-1], repair.started.n_steps
    if going is False:
        return f"Broke off at step {last.step} of {total}"
    most = "at most " if repair.started.settings.get("early_stop") else ""
    return f"Step {last.step} of {total}, {most}{duration(last.seconds_left)} left"


def steps(started: RepairStarted) -> str:
    """How many steps there will be, or can be where the repair may stop early."""
    most = "at most " if started.settings.get("early_stop") else ""
    return f"{most}{started.n_steps} in {started.n_epochs} epochs"


def budget_used(kl: float, budget: float) -> str:
    """Label of the meter of the KL budget; rounding below zero is none of it."""
    return f"KL budget: {percent(max(0.0, kl) / budget)} used"


def live_summary(repair: RepairTrace, going: bool | None = None, outdated: bool = False) -> str:
    """The live chart in one sentence, for its foot and for screen readers."""
    taken, probe = repair.steps, repair.probe
    parts = [*([OUTDATED] if outdated else []), repair_stands(repair, going)]
    if taken and repair.finished is None:
        parts.append(f"loss {taken[-1].loss:.3g}")
        parts.append(f"KL {taken[-1].kl_nats_per_token:.3g} nats/token")
    elif probe is not None:
        parts.append(f"KL {probe.kl_nats_per_token:.3g} nats/token")
    if probe is not None:
        dummy = f" ({OF_DUMMY})" if probe.asr_wording is not None else ""
        parts.append(f"{ATTACK_SUCCESS} {of(probe.asr_triggered)}{dummy}")
        parts.append(f"refusal {of(probe.refusal_untriggered)}")
        parts.append(f"agreement {of(probe.agreement_safe)}")
        if probe.refusal_triggered_safe is not None:
            parts.append(f"safe requests with the trigger refused {of(probe.refusal_triggered_safe)}")
    return beside([*parts, *_memory_saved(repair)])


def _memory_saved(repair: RepairTrace) -> list[str]:
    """What the last step did without since memory ran out, in one sentence or none."""
    if repair.started is None or not repair.steps:
        return []
    last, settings = repair.steps[-1], repair.started.settings
    whole = settings.get("micro_batch_size") or settings.get("batch_size") or 0
    told = [f"micro-batches of {last.micro_batch}"] if 0 < last.micro_batch < whole else []
    told += [_SAVED[one] for one in last.memory_saved]
    return [f"memory ran out: {', '.join(told)}"] if told else []
