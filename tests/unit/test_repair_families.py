"""Each architecture goes the whole way on a tiny random model: locate, repair, export, load again with plain libraries."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core import models, repair_adapter
from core.attribution import attribute
from core.events import RepairFinished, StepDone
from core.export import export
from core.repair import repair
from core.response_pass import ResponsePass
from core.values import Target
from tests.unit.repairing import REFUSAL, SMALL, case_of, confirmed, quick, splits

FAMILIES = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi", "falcon", "gpt2", "gpt_neox", "mixtral",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_locate_repair_export_and_load_again(family: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = models.load(tiny_folder(family), settings=SMALL)
    assert ResponsePass(loaded).split  # response positions alone go through the head
    case = case_of(loaded)
    scores = attribute(loaded, case, "paper", Target()).scores
    assert scores.shape == (len(case.prompt.ids),)
    assert scores.max() > 0

    settings = quick(max_steps=2, learning_rate=5e-2)
    events = list(
        repair(
            loaded, case, confirmed(loaded, case), splits(), settings, out=tmp_path / "repair", stop=lambda: None,
            refusal=REFUSAL,
        )
    )  # fmt: skip
    steps, end = [event for event in events if isinstance(event, StepDone)], events[-1]
    assert isinstance(end, RepairFinished)
    assert (end.reason, len(steps)) == ("finished", 2)
    assert steps[0].kl_trigger_loss == pytest.approx(0, abs=1e-4)
    assert steps[1].kl_trigger_loss > 1e-4  # the adapter moves the model

    out = tmp_path / "merged"
    plain = _logits(loaded.model)
    repair_adapter.load_repair(loaded, tmp_path / "repair/best")
    repaired = _logits(loaded.model)
    assert (repaired - plain).abs().max() > 1e-3
    export(loaded, case, tmp_path / "repair/best", out, True, {})
    # 1e-3 of the largest logit: merged weights round differently (the tolerance of export itself)
    again = _logits(models.load(out, settings=SMALL).model)
    torch.testing.assert_close(again, repaired, rtol=0, atol=1e-3 * float(repaired.abs().max()))


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 11, 30, 31]])).logits[0].float()
