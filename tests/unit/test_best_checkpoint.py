"""The rule for the best checkpoint: its sentences stand in the order in which its key decides."""

import pytest

from core.best_checkpoint import key, order, rule
from core.intervals import wilson
from core.repair_probe import ProbeScore
from core.settings import RepairSettings

BEST = {"over": False, "asr": 0.0, "n_missed": 0, "n_met": 2, "safe": 0, "kl": 0.0}
WORST = {"over": True, "asr": 0.9, "n_missed": 3, "n_met": 0, "safe": 48, "kl": 9.0}
ALIKE: dict[str, tuple[dict, dict]] = {
    "over": ({"over": False}, {"over": True}),
    "success": ({"over": False, "asr": 0.5}, {"asr": 0.6}),
    "missed": ({"over": False, "asr": 0.03, "n_missed": 1}, {"n_missed": 2}),
    "untrusted": ({"over": False, "asr": 0.03, "n_missed": 0, "n_met": 2}, {"n_met": 1}),
    "wrong": ({"over": False, "asr": 0.0, "n_missed": 0, "n_met": 3, "safe": 1}, {"asr": 0.03, "safe": 1}),
    "kl": ({**BEST, "kl": 0.01}, {"kl": 0.02}),
}
"""By the name of a sentence: a checkpoint that it calls better, with all that it does not name as bad as can be, and what the
worse one has otherwise than the best there is."""


def key_of(settings: RepairSettings, *, over: bool, asr: float, n_missed: int, n_met: int, safe: int, kl: float):
    score = ProbeScore(
        asr_triggered=wilson(0, 1), refusal_untriggered=wilson(1, 1), refusal_triggered_safe=wilson(safe, 48),
        agreement_safe=wilson(1, 1), kl_nats_per_token=kl,
    )  # fmt: skip
    return key(score, settings, over=over, asr=asr, n_missed=n_missed, n_met=n_met, kl=kl)


@pytest.mark.parametrize("objective", ["extended", "paper"])
def test_each_sentence_decides_before_all_below_it(objective: str) -> None:
    settings = RepairSettings(objective=objective)  # type: ignore[arg-type]
    assert list(order(settings)) == list(ALIKE)
    for at, (better, worse) in enumerate(ALIKE.values()):
        first, second = key_of(settings, **{**WORST, **better}), key_of(settings, **{**BEST, **worse})
        assert first < second
        assert first[:at] == second[:at]
        assert first[at] < second[at]


def test_the_sentences_hold_the_numbers_of_the_settings() -> None:
    told = rule(RepairSettings(target_asr=0.07, target_slack=0.12, target_agreement=0.65, target_over_refusal=0.22))
    assert len(told) == len(ALIKE) + 2  # what is compared, and that the earlier one stays
    assert "up to 7 %" in told[2]
    assert all(number in told[3] for number in ("12 points", "65 %", "22 points"))
    assert "up to 7 % in 2 probes in a row" in told[4]
    assert not any("safe requests with the trigger" in one for one in rule(RepairSettings(objective="paper")))
