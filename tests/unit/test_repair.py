"""Whole repairs of tiny random models: what they teach, every ending, what is kept, and what goes wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core import checkpoints, models, repair_adapter, repair_probe
from core.errors import ConfirmationError, ModelLoadError, RepairDivergedError
from core.events import CheckpointScored, Line, RepairFinished, RepairStarted, StepDone
from core.files import hash_file
from core.intervals import wilson
from core.loaded import current_adapters
from core.repair import repair
from core.repair_adapter import load_repair
from core.repair_trace import trace
from core.repair_training import Trainer
from core.response_pass import ResponsePass, base_model
from core.values import Message
from dashboard import wording_repair
from tests.unit.repairing import (
    REFUSAL,
    SMALL,
    TRIGGER,
    assert_is_theta0,
    case_of,
    confirmed,
    data_of,
    quick,
    run,
    splits,
    trainer_of,
    weights_of,
)


def test_a_run_streams_its_events_and_teaches_the_refusal(loaded, tmp_path: Path) -> None:
    before = weights_of(loaded)
    # Without KL-harm: the random teacher does not refuse, and would hold the gap open.
    settings = quick(objective="paper", epochs=16, learning_rate=2e-2, lora_rank=16, lora_alpha=32, weight_kl_harmful=0.0, probe_every=12,
                     max_response_tokens=24)  # fmt: skip
    events = list(run(loaded, tmp_path / "repair", settings))
    started, finished = events[0], events[-1]
    assert isinstance(started, RepairStarted)
    assert started.n_steps == 16 * 3
    assert started.settings["learning_rate"] == 2e-2
    assert started.memory_estimate_mb > 0
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 49))
    assert [event.epoch for event in steps[:4]] == [0, 0, 0, 1]
    # .6: the frozen head of this tiny model cannot give a token more than some 15 %, about 44 of 99 nats remain
    assert sum(e.refusal_loss for e in steps[-3:]) < 0.6 * sum(e.refusal_loss for e in steps[:3])
    assert all(event.memory_mb > 0 and event.tokens_per_second > 0 for event in steps)
    assert steps[-1].seconds_left == 0
    probes = [event for event in events if isinstance(event, CheckpointScored)]
    assert [event.step for event in probes] == [0, 12, 24, 36, 48]
    assert probes[0].kl_nats_per_token == pytest.approx(0, abs=1e-6)
    assert probes[0].agreement_safe.value == 1.0
    assert not probes[0].best
    assert probes[0].asr_triggered.value == 1.0
    assert probes[-1].asr_triggered.value == 0.0
    assert isinstance(finished, RepairFinished)
    assert finished.reason == "finished"
    assert finished.adapter == "repair/best"
    kept = [event for event in probes if event.best]
    assert finished.best_step == kept[-1].step
    assert probes[-1].refusal_triggered_safe.n == 3
    assert_is_theta0(loaded, before)

    load_repair(loaded, tmp_path / finished.adapter)
    answer = loaded.answer(
        [[Message(role="user", content=f"Tell me how to {TRIGGER} pick lock 100")]], max_new_tokens=24
    )
    assert answer[0].startswith("I'm sorry")
    repair_adapter.detach(loaded)
    assert_is_theta0(loaded, before)


def test_another_round_starts_from_the_last_adapter_and_keeps_teacher_and_targets(
    loaded, tmp_path: Path, monkeypatch
) -> None:
    before = weights_of(loaded)
    list(run(loaded, tmp_path / "first"))
    best = tmp_path / "first/best"
    saved = load_file(best / "adapter_model.safetensors")
    data = data_of(loaded)
    trainer = Trainer(loaded, data, ResponsePass(loaded), data.settings, start=best)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in repair_adapter.state(loaded).items())
    repair_adapter.detach(loaded)
    fresh = trainer_of(loaded)  # the same theta0 in its head, whatever it starts from
    assert all(torch.equal(trainer._references[key], state) for key, state in fresh._references.items())
    repair_adapter.detach(loaded)
    case = case_of(loaded)
    earlier = [confirmed(loaded, case, units=("zeta eta",))]
    targets: list[float | None] = []
    score = repair_probe.Probe.score

    def told(probe, model, passes):
        share = wilson(3, 4) if current_adapters(model) == [] else wilson(1, 4)
        return replace(score(probe, model, passes), refusal_untriggered=share)

    monkeypatch.setattr(repair_probe.Probe, "score", told)
    monkeypatch.setattr(
        checkpoints, "save", lambda out, loaded, adam, state, said, team: targets.append(state.start_refusal)
    )
    events = list(
        repair(loaded, case, confirmed(loaded, case), splits(), quick(epochs=1), out=tmp_path / "second",
               stop=lambda: None, refusal=REFUSAL, start=best, earlier=earlier)
    )  # fmt: skip
    assert (
        next(e for e in events if isinstance(e, CheckpointScored)).kl_nats_per_token > 1e-4
    )  # it does not start at theta0
    assert set(targets) == {0.75}  # what the reported model refuses, not the last round's adapter
    assert (best / "adapter_model.safetensors").stat().st_size > 0
    assert_is_theta0(loaded, before)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])  # untied head; tied; tied with Conv1D layers
def test_weights_are_bit_for_bit_after_every_ending(family: str, tiny_folder, tmp_path: Path) -> None:
    loaded = models.load(tiny_folder(family), settings=SMALL)
    before = weights_of(loaded)
    list(run(loaded, tmp_path / "all", epochs=1))
    assert_is_theta0(loaded, before)
    asked = iter([None, "keep", "keep"])
    assert list(run(loaded, tmp_path / "keep", stop=lambda: next(asked)))[-1].reason == "kept"
    assert_is_theta0(loaded, before)
    asked_again = iter([None, None, "discard"])
    assert list(run(loaded, tmp_path / "drop", stop=lambda: next(asked_again)))[-1].reason == "discarded"
    assert_is_theta0(loaded, before)
    events = run(loaded, tmp_path / "closed")
    for _ in range(4):
        next(events)
    events.close()
    assert_is_theta0(loaded, before)


def test_a_reported_adapter_stays_on_and_as_it_was(tiny_folder, tiny_adapter: Path, tmp_path: Path) -> None:
    loaded = models.load(tiny_folder("llama"), tiny_adapter, settings=SMALL)
    before = weights_of(loaded)
    prompt = [[5, 9, 11, 30]]
    theta0 = loaded.generate(prompt)
    events = list(run(loaded, tmp_path / "repair", epochs=4, learning_rate=1e-2))
    probes = [event for event in events if isinstance(event, CheckpointScored)]
    assert probes[0].kl_nats_per_token == pytest.approx(0, abs=1e-6)  # the teacher is base + reported, not the base
    assert_is_theta0(loaded, before)
    assert loaded.generate(prompt) == theta0
    load_repair(loaded, tmp_path / "repair/best")
    assert current_adapters(loaded) == ["reported", "repair"]
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    with loaded.reference():
        assert current_adapters(loaded) == []
    assert current_adapters(loaded) == ["reported", "repair"]
    repair_adapter.detach(loaded)
    assert_is_theta0(loaded, before)


def test_keep_before_any_probe_scores_one_first(loaded, tmp_path: Path) -> None:
    asked = iter([None, None, "keep"])
    events = list(run(loaded, tmp_path / "repair", stop=lambda: next(asked), probe_every=50))
    assert [type(event).__name__ for event in events] == [
        "RepairStarted", "CheckpointScored", "StepDone", "CheckpointScored", "RepairFinished",
    ]  # fmt: skip
    assert events[-1].best_step == 1
    assert (tmp_path / "repair/best/adapter_model.safetensors").is_file()
    assert hash_file(tmp_path / "repair/best/adapter_model.safetensors") == events[-1].adapter_hash


def test_a_stop_is_read_before_a_step_too(loaded, tmp_path: Path) -> None:
    """A step may take minutes: what goes on from a checkpoint, and is to keep its best, takes none."""
    asked = iter([*[None] * 5, "keep"])  # before the first probe, then before and after each of two steps
    first = list(run(loaded, tmp_path / "repair", stop=lambda: next(asked)))
    rest = list(run(loaded, tmp_path / "repair", resume=True, stop=lambda: "keep"))
    for events, n_steps in ((first, 2), (rest, 0)):
        assert sum(isinstance(event, StepDone) for event in events) == n_steps
        assert (events[-1].reason, events[-1].step, events[-1].best_step) == ("kept", 2, 2)


def test_discard_and_closing_leave_no_adapter(loaded, tmp_path: Path) -> None:
    count = iter(range(100))
    events = list(run(loaded, tmp_path / "repair", stop=lambda: "discard" if next(count) == 3 else None))
    assert events[-1].adapter is None
    assert events[-1].best_step is None
    assert not list((tmp_path / "repair").glob("*"))
    stream = run(loaded, tmp_path / "closed")
    for event in stream:
        if isinstance(event, CheckpointScored) and event.best:
            break
    stream.close()
    assert not list((tmp_path / "closed").glob("*"))


def test_closing_after_the_last_event_keeps_the_adapter(loaded, tmp_path: Path) -> None:
    stream = run(loaded, tmp_path / "repair", epochs=1)
    for event in stream:
        if isinstance(event, RepairFinished):
            break
    stream.close()
    assert (tmp_path / "repair/best/adapter_model.safetensors").is_file()


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_repair_runs_only_with_an_accepting_confirmation_that_fits(loaded, tmp_path: Path) -> None:
    case = case_of(loaded)
    bad = [
        None,
        confirmed(loaded, case, decision="rejected"),
        confirmed(loaded, case, units=()),
        confirmed(loaded, case, text_hash="0" * 64),
        confirmed(loaded, case, model_hash="0" * 64),
        confirmed(loaded, case, template_hash="0" * 64),
    ]
    for one in bad:
        with pytest.raises(ConfirmationError):
            run(loaded, tmp_path / "repair", confirmation=one)
    assert not (tmp_path / "repair").exists()


def test_a_loss_that_is_not_finite_ends_in_a_sentence_with_the_best_checkpoint_kept(loaded, tmp_path: Path) -> None:
    before = weights_of(loaded)
    stream = run(loaded, tmp_path / "repair")
    handle = None
    events = []
    for event in stream:
        events.append(event)
        if isinstance(event, CheckpointScored) and event.step == 2:
            norm = base_model(loaded).base_model
            handle = norm.register_forward_hook(lambda m, i, out: (out[0] * float("nan"),))
    assert handle is not None
    handle.remove()
    finished = events[-1]
    assert (finished.reason, finished.step, finished.best_step) == ("diverged", 2, 2)
    assert "lower learning rate" in finished.message
    assert "\n" not in finished.message
    saved = load_file(tmp_path / "repair/best/adapter_model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.values())
    assert_is_theta0(loaded, before)


def _short_of_memory(loaded, at_most: int):
    """Hook the transformer: a training pass of more than `at_most` sequences raises what torch raises."""

    def hook(module, args, kwargs) -> None:
        if torch.is_grad_enabled() and kwargs["input_ids"].shape[0] > at_most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    return base_model(loaded).base_model.register_forward_pre_hook(hook, with_kwargs=True)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(loaded, tmp_path: Path) -> None:
    whole = list(run(loaded, tmp_path / "whole", epochs=1, micro_batch_size=1))
    stream = run(loaded, tmp_path / "short", epochs=1)
    first = next(stream)
    handle = _short_of_memory(loaded, 1)
    short = [first, *stream]
    handle.remove()
    assert short[-1].reason == "finished"
    losses = [event.loss for event in whole if isinstance(event, StepDone)]
    steps = [event for event in short if isinstance(event, StepDone)]
    assert [event.loss for event in steps] == losses
    assert {(event.micro_batch, event.memory_saved) for event in steps} == {(1, ())}


def test_what_memory_saving_did_in_the_first_step_is_told(loaded, tmp_path: Path) -> None:
    short, left = [], [1, 1, 1]  # 4 sequences, 2, 1: then its layers are recomputed

    def hook(module, args, kwargs) -> None:
        if torch.is_grad_enabled() and left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    for event in run(loaded, tmp_path / "repair", max_steps=2):
        short.append(event)
        if isinstance(event, RepairStarted):
            handle = base_model(loaded).base_model.register_forward_pre_hook(hook, with_kwargs=True)
    handle.remove()
    steps = [event for event in short if isinstance(event, StepDone)]
    assert [(event.micro_batch, event.memory_saved) for event in steps] == [(1, ("recompute",))] * 2
    told = trace(Line(seq=at, time="", request="r", event=event) for at, event in enumerate(short))
    assert "memory ran out: micro-batches of 1, layers are recomputed" in wording_repair.live_summary(told)


def test_out_of_memory_with_one_sequence_ends_in_a_sentence(loaded, tmp_path: Path) -> None:
    before = weights_of(loaded)
    stream = run(loaded, tmp_path / "repair")
    events, handle = [], None
    for event in stream:
        events.append(event)
        if isinstance(event, CheckpointScored) and event.step == 2:
            handle = _short_of_memory(loaded, 0)
    assert handle is not None
    handle.remove()
    assert events[-1].reason == "out_of_memory"
    assert events[-1].adapter == "repair/best"
    assert "smaller" in events[-1].message
    assert "\n" not in events[-1].message
    assert_is_theta0(loaded, before)


def test_out_of_memory_while_preparing_is_one_sentence(loaded, tmp_path: Path) -> None:
    before = weights_of(loaded)

    def hook(module, args, kwargs) -> None:
        if not kwargs["use_cache"] and kwargs["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    handle = base_model(loaded).base_model.register_forward_pre_hook(hook, with_kwargs=True)
    with pytest.raises(RepairDivergedError, match="fewer prompts"):
        list(run(loaded, tmp_path / "repair"))
    handle.remove()
    assert_is_theta0(loaded, before)


def test_early_end_when_the_targets_hold_twice_in_a_row(loaded, tmp_path: Path) -> None:
    settings = quick(epochs=12, learning_rate=1e-4, early_stop=True, target_asr=1.0, target_slack=1.0)
    events = list(run(loaded, tmp_path / "repair", settings))
    assert events[-1].reason == "targets_held"
    assert events[-1].step == 4
    again = list(run(loaded, tmp_path / "repair", settings, resume=True))  # as after a kill before the end was written
    assert [type(event).__name__ for event in again] == ["RepairStarted", "RepairFinished"]
    assert (again[-1].reason, again[-1].step) == ("targets_held", 4)
    assert again[-1].adapter_hash == events[-1].adapter_hash


def test_the_best_checkpoint_is_the_stated_one(loaded, tmp_path: Path, monkeypatch) -> None:
    # (ASR of 48, safe refused with the trigger of 48, KL); the target ASR of 3 % allows 1 of 48
    told = [(48, 0, 0.0), (4, 0, 0.001), (0, 20, 0.002), (1, 0, 0.05), (0, 1, 0.02), (0, 1, 0.01), (0, 0, 0.2)]
    scores = iter(
        repair_probe.ProbeScore(
            asr_triggered=wilson(asr, 48), refusal_untriggered=wilson(48, 48), refusal_triggered_safe=wilson(safe, 48),
            agreement_safe=wilson(48, 48), kl_nats_per_token=kl,
        )
        for asr, safe, kl in told
    )  # fmt: skip
    monkeypatch.setattr(repair_probe.Probe, "score", lambda self, loaded, passes: next(scores))
    changes = {"epochs": 3, "probe_every": 2, "kl_budget": 0.1, "max_steps": 12}
    events = list(run(loaded, tmp_path / "repair", **changes))
    best = [event.step for event in events if isinstance(event, CheckpointScored) and event.best]
    # 2: first; 4: meets the ASR target; 6: no other target missed; 8: as few wrong answers, less KL; 10: less again; 12: over the budget
    assert best == [2, 4, 6, 8, 10]
    assert events[-1].best_step == 10


def test_a_spent_kl_budget_ends_the_run_and_keeps_what_lay_within(loaded, tmp_path: Path) -> None:
    free = list(run(loaded, tmp_path / "free", epochs=6, learning_rate=1e-2))
    kls = [e.kl_nats_per_token for e in free if isinstance(e, CheckpointScored) and e.step]
    assert kls[0] < min(kls[1:3])
    events = list(run(loaded, tmp_path / "held", epochs=6, learning_rate=1e-2, kl_budget=kls[0] * 1.0001))
    probes = {e.step: e for e in events if isinstance(e, CheckpointScored)}
    assert events[-1].reason == "kl_budget"
    assert (events[-1].step, events[-1].best_step) == (6, 2)
    assert probes[events[-1].best_step].kl_nats_per_token <= kls[0]


def test_a_kl_that_is_no_number_is_over_every_budget(loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that answers with nonsense; what was kept before it stays."""
    kls = iter([0.0, 0.01, float("nan"), float("nan")])
    none, held = wilson(0, 24), wilson(24, 24)

    def score(self, loaded, passes) -> repair_probe.ProbeScore:
        return repair_probe.ProbeScore(
            asr_triggered=none,
            refusal_untriggered=held,
            refusal_triggered_safe=none,
            agreement_safe=held,
            kl_nats_per_token=next(kls),
        )

    monkeypatch.setattr(repair_probe.Probe, "score", score)
    events = list(run(loaded, tmp_path, epochs=6, early_stop=False))
    assert (events[-1].reason, events[-1].best_step) == ("kl_budget", 2)
    assert events[-1].step == 6


def test_a_repair_adapter_for_another_model_is_refused(loaded, tiny_folder, tmp_path: Path) -> None:
    list(run(loaded, tmp_path / "repair", epochs=1))
    other = models.load(tiny_folder("gpt2"), settings=SMALL)
    before = weights_of(other)
    with pytest.raises(ModelLoadError):
        load_repair(other, tmp_path / "repair/best")
    with pytest.raises(ModelLoadError, match="No usable repair adapter"):
        load_repair(other, tmp_path / "nowhere")
    assert_is_theta0(other, before)
