"""Which passes may be captured as CUDA graphs; what a replayed one computes is tested on a GPU (tests/integration/test_cuda.py)."""

import pytest
import torch

from core import models, repair_adapter
from core.low_rank import FewKernels
from core.recompute import decoder_layers
from core.replay import Replay
from core.settings import RepairSettings

IDS = torch.randint(10, 200, (3, 11), generator=torch.Generator().manual_seed(0))


def replay(loaded) -> Replay:
    """Return the replay of `loaded`, its repair adapter attached; adapter weights that change something."""
    repair_adapter.attach(loaded, RepairSettings(lora_rank=4))
    repair_adapter.use_repaired(loaded, trainable=True)
    with torch.no_grad():
        for one in repair_adapter.parameters(loaded).values():
            one.add_(0.1)
    return Replay(loaded.model.get_base_model().base_model)


def captures(loaded) -> bool:
    """Return whether the training pass of `loaded` may be captured."""
    passes = replay(loaded)
    with FewKernels(loaded.model).on():
        return passes._captures(IDS)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "falcon"])
def test_dense_models_may_be_captured(tiny_folder, family: str) -> None:
    assert captures(models.load(tiny_folder(family)))


def test_a_pass_that_reads_a_value_is_not_captured(tiny_loaded) -> None:
    layer = decoder_layers(tiny_loaded.model)[0]
    layer.register_forward_pre_hook(lambda _module, args: float(args[0].sum()) and None)
    assert not captures(tiny_loaded)


class Off(torch.nn.Module):
    """A captured pass whose gradients are wrong by a factor."""

    def __init__(self, body: torch.nn.Module, factor: float) -> None:
        super().__init__()
        self.body, self.factor = body, factor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.body(input_ids=ids, use_cache=False)[0]
        return states.detach() + self.factor * (states - states.detach())


@pytest.mark.parametrize(("factor", "kept"), [(1.0, True), (1.01, True), (2.0, False)])
def test_a_captured_pass_is_compared_with_a_launched_one(tiny_loaded, monkeypatch, factor: float, kept: bool) -> None:
    passes, made = replay(tiny_loaded), []
    monkeypatch.setattr(Replay, "_captured", lambda self, ids: made.append(ids) or Off(self._body, factor))
    for _ in range(2):
        assert (passes.states(IDS) is not None) == kept
    assert [one.shape for one in made] == [(3, 64)]


def test_a_capture_that_fails_is_given_up_and_want_of_memory_told(tiny_loaded, monkeypatch) -> None:
    passes, asked = replay(tiny_loaded), []

    def fail(_, ids: torch.Tensor) -> None:
        asked.append(ids)
        raise RuntimeError("CUDA error: operation not permitted" if len(asked) == 2 else "CUDA out of memory")

    monkeypatch.setattr(Replay, "_captured", fail)
    with pytest.raises(RuntimeError, match="memory"):
        passes.states(IDS)
    assert passes.states(IDS) is None
    assert passes.states(IDS) is None
    assert len(asked) == 2


def test_only_so_many_shapes_are_captured(tiny_loaded, monkeypatch) -> None:
    passes = replay(tiny_loaded)
    monkeypatch.setattr("core.replay.MOST_SHAPES", 1)
    monkeypatch.setattr(Replay, "_captured", lambda self, ids: Off(self._body, 1.0))
    assert passes.states(IDS) is not None
    assert passes.states(IDS[:2]) is None
    assert passes.states(IDS) is not None
