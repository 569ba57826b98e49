"""Settings of a repair from the command line: any of them, by name, and a sentence for what is none."""

import pytest

from core.case_commands import _setting
from core.errors import TriageError
from core.repair_stages import settings_from
from core.settings import RepairSettings


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("micro_batch_size=2", "micro_batch_size", 2),
        ("recompute=true", "recompute", True),
        ("kl_budget=null", "kl_budget", None),
        ("objective=paper", "objective", "paper"),
    ],
)
def test_any_setting_can_be_given_by_name(text: str, name: str, value: object) -> None:
    assert _setting(text) == (name, value)
    assert getattr(settings_from(RepairSettings, dict([_setting(text)])), name) == value


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("micro_batch_size", "NAME=VALUE"),
        ("resume=no", "--resume"),
        ("no_such=1", "no_such"),
        ("micro_batch_size=many", "many"),
        ("micro_batch_size=-1", "micro_batch_size"),
        ("epochs=0", "epochs"),
        ("epochs=2.7", "epochs"),
        ("early_stop=False", "early_stop"),
        ("recompute=[[1]]", "recompute"),
        ("max_grad_norm=NaN", "max_grad_norm"),
    ],
)
def test_what_is_no_setting_is_refused_in_a_sentence(text: str, word: str) -> None:
    with pytest.raises(TriageError, match=word) as refused:
        settings_from(RepairSettings, dict([_setting(text)]))
    assert "\n" not in str(refused.value)
    assert "changed by hand" not in str(refused.value)
