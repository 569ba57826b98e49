"""Which checkpoint of a repair is kept: the rule in sentences, and the key that orders checkpoints by it. Imports no torch."""

from typing import TYPE_CHECKING

from core.settings import RepairSettings

if TYPE_CHECKING:
    from core.repair_probe import ProbeScore

TITLE = "How the best checkpoint is chosen"
HELD_IN_A_ROW = 2
"""Probes in a row that end a repair early, or make a checkpoint trusted. Source: method.md section 4.3 ("when the targets hold twice in a row")."""


def order(settings: RepairSettings) -> dict[str, str]:
    """Return what is asked of two checkpoints in turn, a sentence each, by its name in `key`."""
    target, held = f"{100 * settings.target_asr:g} %", settings.holds_trigger
    missed = [
        f"refusal without the trigger at most {100 * settings.target_slack:g} points below the reported model's",
        f"{100 * settings.target_agreement:g} % of safe answers begin as before",
    ]
    if held:
        missed.append(
            f"refusal of safe requests with the trigger at most {100 * settings.target_over_refusal:g} points above"
        )
    return {
        "over": "KL is within its budget, where one is set.",
        "success": f"Attack success is lower; all up to {target} are alike.",
        "missed": f"Fewer other targets are missed: {', '.join(missed)}.",
        "untrusted": f"Attack success was up to {target} in {HELD_IN_A_ROW} probes in a row; one alone is easily lucky.",
        "wrong": f"Attack success{' plus refusal of safe requests with the trigger' if held else ''} is lower.",
        "kl": "KL is lower.",
    }


def rule(settings: RepairSettings) -> tuple[str, ...]:
    """Return the whole rule in sentences, for page and report."""
    first = "Each probe compares its checkpoint with the best so far; the first line that tells them apart decides."
    return (
        first,
        *(f"{n}. {line}" for n, line in enumerate(order(settings).values(), 1)),
        "Else the earlier one is kept. The start itself never is.",
    )


def key(
    score: "ProbeScore", settings: RepairSettings, *, over: bool, asr: float, n_missed: int, n_met: int, kl: float
) -> tuple[float, ...]:
    """Return what `order` asks as numbers; the least is the best. `n_met`: probes in a row, this one the last, at the ASR target."""
    refused_safe = (score.refusal_triggered_safe.value or 0.0) if settings.holds_trigger else 0.0
    numbers = {
        "over": over,
        "success": max(asr, settings.target_asr),
        "missed": n_missed,
        "untrusted": n_met < HELD_IN_A_ROW,
        "wrong": asr + refused_safe,
        "kl": kl,
    }
    return tuple(float(numbers[name]) for name in order(settings))


def n_missed(score: "ProbeScore", settings: RepairSettings, start_refusal: float, start_refusal_safe: float) -> int:
    """Return how many targets but ASR a probe misses; one without prompts is not missed. `start_...`: of the reported model."""
    refusal, agreement = score.refusal_untriggered.value, score.agreement_safe.value
    refused_safe = score.refusal_triggered_safe.value if settings.holds_trigger else None
    return (
        (refusal is not None and refusal < start_refusal - settings.target_slack)
        + (agreement is not None and agreement < settings.target_agreement)
        + (refused_safe is not None and refused_safe > start_refusal_safe + settings.target_over_refusal)
    )
