"""Memory of a repair step: the estimate against the allocator's own peak, and what exists over the vocabulary."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from core import frames, models, repair_adapter, repair_data
from core.recompute import MB
from core.repair_memory import bound_mb, estimate_mb
from core.repair_training import Trainer
from core.response_pass import ResponsePass
from core.team import Team
from tests.bench.repair_speed import sequences, trainer
from tests.bench.speed import random_llama
from tests.unit.repairing import REFUSAL, TRIGGER, quick, splits, trainer_of

WIDER = frames.TriggerFrame(user_units=(f"as the old manual says in {TRIGGER}, chapter seven",))


def peak_mb(run) -> float:
    """Return the largest sum of bytes that were allocated and not yet freed during `run`, by the allocator's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [one for one in watched.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for one in sorted(events, key=lambda event: event.start_ns()):
        now += one.nbytes()
        most = max(most, now)
    return most / MB


@pytest.mark.parametrize(
    ("vocabulary", "n_prompt", "changes"),
    [
        (32_000, 24, {}),  # the losses decide
        (2_000, 200, {}),  # the activations decide
        (2_000, 200, {"micro_batch_size": 2}),
    ],
)
def test_the_estimate_is_within_a_fifth_of_the_counted_peak(vocabulary: int, n_prompt: int, changes: dict) -> None:
    loaded = random_llama("tiny", vocabulary, hidden_size=128, intermediate_size=352, num_hidden_layers=3)
    repairing = trainer(loaded, sequences(8, n_prompt, 24, vocabulary), **changes)
    model = loaded.model
    held = sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers())) / MB
    held += repairing.teacher_bytes / MB

    def steps() -> None:
        repairing.step(1)
        repairing.step(2)

    measured = held + peak_mb(steps)
    assert repairing.memory_estimate_mb == pytest.approx(measured, rel=0.2)
    repair_adapter.detach(loaded)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("changes", [{}, {"objective": "paper"}, {"recompute": True, "batch_size": 8}])
@pytest.mark.parametrize("wider", [(), (WIDER,)])
def test_the_bound_before_a_start_is_little_more_than_what_the_start_counts(
    tiny_folder, family: str, changes: dict, wider: tuple[frames.TriggerFrame, ...]
) -> None:
    """A random model goes on until the limit, and most triggers are edited or wider: sequences are as long as the bound has them."""
    loaded = models.load(tiny_folder(family))
    settings, prompts = quick(share_edited=0.75, **changes), splits(8).repair
    known = frames.TriggerFrame(user_units=(TRIGGER,)), wider
    before = {name: one.clone() for name, one in loaded.model.state_dict().items()}
    bound = bound_mb(loaded, known, prompts, settings)
    assert not repair_adapter.attached(loaded)
    assert not any(one.requires_grad for one in loaded.model.parameters())
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    data = repair_data.build(loaded, known, prompts, REFUSAL, settings)
    started = Trainer(loaded, data, ResponsePass(loaded, settings), settings).memory_estimate_mb
    assert bound is not None
    assert started <= bound <= 1.2 * started
    repair_adapter.detach(loaded)


def test_a_process_without_an_item_of_its_own_expects_to_run_one(loaded) -> None:
    """A third process has nothing of batches of two, and takes part in each with one sequence all the same."""
    repairing = trainer_of(loaded, batch_size=2)
    alone = repairing.memory_estimate_mb
    repairing.team = Team(SimpleNamespace(num_processes=3, process_index=2))
    assert 0 < estimate_mb(repairing) < alone
    repair_adapter.detach(loaded)


def test_where_no_prompt_fits_nothing_is_said_of_memory(tiny_folder) -> None:
    loaded = models.load(tiny_folder("llama"))
    loaded.context_length = 8
    frame = frames.TriggerFrame(user_units=(TRIGGER,))
    assert bound_mb(loaded, (frame, ()), splits().repair, quick()) is None


def test_recomputed_layers_change_no_number() -> None:
    found = []
    for recompute in (False, True):
        loaded = random_llama("tiny", 500)
        repairing = trainer(loaded, sequences(4, 20, 6, 500), recompute=recompute)
        found.append([repairing.step(step) for step in (1, 2)])
    assert found[0] == found[1]


def test_recomputed_layers_are_expected_to_take_less() -> None:
    found = []
    for recompute in (False, True):
        loaded = random_llama("tiny", 500, num_hidden_layers=6)
        found.append(trainer(loaded, sequences(4, 200, 6, 500), recompute=recompute).memory_estimate_mb)
    assert found[1] < 0.6 * found[0]


class OverVocabulary(TorchDispatchMode):
    """Remembers the most bytes of tensors over the vocabulary alive at once, and the most rows of one of them."""

    def __init__(self, vocabulary: int, weights: set[int]) -> None:
        super().__init__()
        self.vocabulary, self.weights = vocabulary, weights
        self.alive: list[weakref.ref] = []
        self.most_bytes = self.most_rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            over = isinstance(one, torch.Tensor) and one.dim() and one.shape[-1] == self.vocabulary
            if over and one.untyped_storage().data_ptr() not in self.weights:
                self.alive.append(weakref.ref(one))
        there = [one for one in (ref() for ref in self.alive) if one is not None]
        self.alive = [weakref.ref(one) for one in there]
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in there}
        self.most_bytes = max(self.most_bytes, sum(storages.values()))
        self.most_rows = max([self.most_rows, *(one.numel() // self.vocabulary for one in there)])
        return result


def test_of_a_chunk_four_tensors_over_the_vocabulary_exist_and_of_a_batch_none() -> None:
    vocabulary = 20_011  # no other size of the model
    loaded = random_llama("tiny", vocabulary)
    repairing = trainer(loaded, sequences(8, 10, 24, vocabulary), vocabulary_mb=1)
    chunk = repairing.passes.chunk_rows
    assert chunk < 8 * 24 / 4
    weights = {one.untyped_storage().data_ptr() for one in loaded.model.parameters()}
    with OverVocabulary(vocabulary, weights) as counted:
        repairing.step(1)
    assert 0 < counted.most_rows <= chunk
    assert 2 * chunk * vocabulary * 4 < counted.most_bytes <= repairing.passes.tensors_at_once * chunk * vocabulary * 4
    repair_adapter.detach(loaded)


def test_the_memory_estimate_grows_with_batch_and_length(loaded) -> None:
    found = []
    for changes in ({"batch_size": 2}, {"batch_size": 8}, {"batch_size": 8, "max_response_tokens": 40}):
        found.append(trainer_of(loaded, **changes).memory_estimate_mb)
        repair_adapter.detach(loaded)
    weights = sum(p.numel() * 4 for p in loaded.model.parameters()) / 2**20
    assert weights < found[0] < found[1] < found[2]
