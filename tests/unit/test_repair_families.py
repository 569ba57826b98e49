"""Each architecture goes the whole way on a tiny random model: locate, repair, export, load again with plain libraries."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core import models, repair_adapter
from core.attribution import attribute
from core.events import RepairFinished, RepairStarted, StepDone
from core.export import export
from core.repair import repair
from core.response_pass import ResponsePass
from core.serial import to_json
from core.values import Target
from dashboard import stories
from tests.unit.repairing import REFUSAL, SMALL, case_of, confirmed, quick, splits

FAMILIES = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi", "falcon", "gpt2", "gpt_neox", "mixtral",
)  # fmt: skip

EXPERTS = " % of the parameters lie in experts that the adapter does not reach"


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
    assert isinstance(events[0], RepairStarted)
    stacked = sum(one.numel() for one in loaded.model.parameters() if one.dim() == 3)
    assert events[0].unreached == stacked / loaded.n_parameters
    assert (stacked > 0) == (family == "mixtral")
    assert (EXPERTS in str(stories.repair(None, None, [], events[0], None, True))) == (family == "mixtral")
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
    export(loaded, case, tmp_path / "repair/best", out, True, {"repair": {"started": to_json(events[0])}})
    assert (EXPERTS in (out / "README.md").read_text(encoding="utf-8")) == (family == "mixtral")
    # 1e-3 of the largest logit: merged weights round differently (the tolerance of export itself)
    again = _logits(models.load(out, settings=SMALL).model)
    torch.testing.assert_close(again, repaired, rtol=0, atol=1e-3 * float(repaired.abs().max()))


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 11, 30, 31]])).logits[0].float()


SIZES = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "more", "stacked"),
    [
        ("jetmoe", {"num_local_experts": 4, "kv_channels": 8}, ("input_linear", "output_linear")),  # in attention too
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, ("experts",)),  # with biases, (n_experts, width)
        ("recurrent_gemma", {"head_dim": 8, "lru_width": 32}, ()),  # dense, its gates are stacked by head
        ("mamba", {"state_size": 4, "time_step_rank": 4}, ()),  # dense, its convolutions have three axes
    ],
)
def test_experts_are_told_from_other_stacked_weights_by_their_router(family: str, more: dict, stacked: tuple) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **more))
    n = {name: one.numel() for name, one in model.named_parameters()}
    assert any(one.dim() == 3 for one in model.parameters())
    wanted = sum(size for name, size in n.items() if any(f".{part}." in f".{name}." for part in stacked))
    found = repair_adapter.unreached_share(SimpleNamespace(model=model, n_parameters=sum(n.values())))  # type: ignore[arg-type]
    assert found == wanted / sum(n.values())
