"""On a GPU: the same attribution as on the CPU, a memory estimate that holds, real want of memory, replayed passes."""

import gc
import logging
import math
from collections.abc import Iterator

import pytest
import torch

from core import repair_memory
from core.attribution import attribute
from core.recompute import decoder_layers
from core.repair_training import MB, Trainer
from core.response_pass import ResponsePass
from core.values import Target
from tests.bench.gpu_repair import paper_sized
from tests.bench.speed import random_case, random_llama

pytestmark = pytest.mark.gpu
VOCABULARY = 32_000


@pytest.fixture(autouse=True)
def _whole_gpu() -> Iterator[None]:
    """Count memory from here, and lift any limit afterwards."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def trainer() -> Trainer:
    """Return the training of a random model on 24 items, one epoch in batches of 8."""
    loaded = random_llama("medium", VOCABULARY, device="cuda", dtype=torch.bfloat16)
    data = paper_sized(8, 1, VOCABULARY, 480, 32, loaded)
    return Trainer(loaded, data, ResponsePass(loaded, data.settings), data.settings)


def losses(one: Trainer) -> list[float]:
    """Return the losses of all steps."""
    return [one.step(at).loss for at in range(1, one.n_steps + 1)]


def test_saliency_is_that_of_the_cpu() -> None:
    case, found = random_case(64, 16), []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        loaded = random_llama("small")  # the same weights: the devices draw other ones from the same seed
        loaded.model.to(device, dtype)
        loaded.device = torch.device(device)
        result = attribute(loaded, case, "paper", Target())
        found.append(torch.from_numpy(result.scores[result.scored]).double())
    assert torch.cosine_similarity(*found, dim=0) > 0.99


def test_the_memory_estimate_is_within_a_fifth_of_the_peak() -> None:
    one = trainer()
    losses(one)
    assert one.memory_estimate_mb == pytest.approx(torch.cuda.max_memory_allocated() / MB, rel=0.2)


def test_want_of_memory_halves_the_micro_batch_and_changes_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    free = losses(trainer())
    one, whole = trainer(), torch.cuda.get_device_properties(0).total_memory
    one.micro_batch = 1
    enough = (repair_memory.estimate_mb(one) + one.memory_estimate_mb) / 2
    one.micro_batch = one.settings.batch_size
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(enough * MB / whole)
    with caplog.at_level(logging.WARNING):
        tight = losses(one)
    assert one.micro_batch < one.settings.batch_size
    assert "out of memory" in caplog.text
    assert tight == pytest.approx(free, rel=0.02)


@pytest.mark.parametrize("n_response", [32, 21])
def test_replayed_passes_train_as_launched_ones(n_response: int) -> None:
    found = []
    for replays in (True, False):
        loaded = random_llama("medium", VOCABULARY, device="cuda", dtype=torch.float32)
        data = paper_sized(
            7, 3, VOCABULARY, 80, n_response, loaded
        )  # the last batch of an epoch is smaller: two shapes
        one = Trainer(loaded, data, ResponsePass(loaded, data.settings), data.settings)
        assert one.passes.replay is not None
        if not replays:
            one.passes.replay.forget()
        found.append(losses(one))
        assert len(one.passes.replay._shapes) == 2 * replays
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_pass_that_waits_for_the_gpu_is_launched_as_it_is() -> None:
    one = trainer()
    layer = decoder_layers(one.loaded.model)[0]
    layer.register_forward_pre_hook(lambda _module, args: float(args[0].sum()) and None)
    assert all(map(math.isfinite, losses(one)))
    assert one.passes.replay is not None
    assert not one.passes.replay._shapes
