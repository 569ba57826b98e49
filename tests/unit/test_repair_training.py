"""One training step of a repair: exactness against naive passes, precision, its layers and its learning rate."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core import models, repair_adapter
from core.repair_training import rate_at, reset_memory
from core.response_pass import base_model
from tests.unit.repairing import SMALL, assert_is_theta0, items_of, quick, trainer_of, weights_of


@pytest.mark.parametrize("objective", ["paper", "extended"])
@pytest.mark.parametrize("vocabulary_mb", [1, 256])
def test_a_steps_losses_are_those_of_two_naive_passes(loaded, objective: str, vocabulary_mb: int) -> None:
    trainer = trainer_of(
        loaded, objective=objective, batch_size=16, micro_batch_size=5, vocabulary_mb=vocabulary_mb
    )  # fmt: skip
    trainer.passes.chunk_rows = min(trainer.passes.chunk_rows, 7 if vocabulary_mb == 1 else 10**6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in repair_adapter.parameters(loaded).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    ce, kl, n_kl_tokens = 0.0, {"harm": 0.0, "safe": 0.0, "safe_trig": 0.0}, 0
    held = {"safe": 4, "safe_trig": 4, "harm": sum(trainer.data.held)}
    with torch.no_grad():
        for kind, index in items_of(trainer.data, 0, 16):
            one = trainer.data.sequence(kind, index, 0)
            ids, place = torch.tensor([one.prompt_ids + one.response_ids]), len(one.prompt_ids) - 1
            now = torch.log_softmax(loaded.model(input_ids=ids).logits[0, place:-1].double(), -1)
            repair_adapter.use_theta0(loaded)
            then = torch.log_softmax(loaded.model(input_ids=ids).logits[0, place:-1].double(), -1)
            repair_adapter.use_repaired(loaded, trainable=True)
            if kind in ("trig", "harm"):
                ce -= sum(now[j, y].item() for j, y in enumerate(one.response_ids)) / 8
            if kind != "trig" and (kind != "harm" or trainer.data.held[index]):
                kl[kind] += (then.exp() * (then - now)).sum().item() / held[kind]
                n_kl_tokens += len(one.response_ids) * (kind != "safe_trig")
    numbers = trainer.step(1)
    assert kl["safe"] > 1e-3
    # 1e-5: fp32 against fp64; the cached teacher and the chunks must add nothing to that
    assert numbers.refusal == pytest.approx(ce, rel=1e-5)
    assert numbers.kl_safe == pytest.approx(kl["safe"], rel=1e-5, abs=1e-5)
    if objective == "paper":
        assert numbers.kl_harmful == pytest.approx(kl["harm"], rel=1e-5, abs=1e-5)
        assert numbers.kl_trigger is None
    else:
        assert kl["safe_trig"] > 1e-3
        assert numbers.kl_trigger == pytest.approx(kl["safe_trig"], rel=1e-5, abs=1e-5)
        assert numbers.kl_harmful is None  # the random model refuses nothing: there is nothing to hold
    assert numbers.loss == pytest.approx(ce + sum(kl.values()), rel=1e-5)
    shared = kl["safe"] * held["safe"] + kl["harm"] * held["harm"]
    assert numbers.kl_nats_per_token == pytest.approx(shared / n_kl_tokens, rel=1e-5)
    repair_adapter.detach(loaded)


def test_a_large_teacher_lies_in_a_mapped_file_and_changes_nothing(loaded, tmp_path: Path) -> None:
    numbers = []
    for folder, changes in ((None, {}), (tmp_path / "repair", {"teacher_mb": 0})):
        trainer = trainer_of(loaded, folder, batch_size=8, **changes)
        numbers.append(trainer.step(1))
        repair_adapter.detach(loaded)
    assert (tmp_path / "repair").is_dir()
    assert numbers[0] == numbers[1]
    if os.name == "posix":
        assert list((tmp_path / "repair").iterdir()) == []
        assert "teacher-" in Path("/proc/self/maps").read_text() or sys.platform != "linux"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no such call on this system")
def test_a_disk_without_room_for_the_teacher_is_an_error_and_no_end_of_the_process(
    loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped file that cannot grow ends a process by a signal."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        trainer_of(loaded, tmp_path / "repair", teacher_mb=0)
    assert list((tmp_path / "repair").iterdir()) == []
    repair_adapter.detach(loaded)


def test_kl_is_zero_before_the_first_step(loaded) -> None:
    trainer = trainer_of(loaded, objective="paper", batch_size=12)
    numbers = trainer.step(1)
    assert abs(numbers.kl_harmful) < 1e-5
    assert abs(numbers.kl_safe) < 1e-5
    assert numbers.refusal > 1
    repair_adapter.detach(loaded)


def test_the_learning_rate_rises_and_falls_linearly() -> None:
    rates = [rate_at(step, 10, 1.0, 0.2) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] == pytest.approx(8 / 9)
    assert rates[-1] == pytest.approx(1 / 9)


def test_the_adapter_covers_linear_layers_by_structure_and_not_the_head(tiny_folder) -> None:
    llama = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert repair_adapter.linear_targets(models.load(tiny_folder("llama"), settings=SMALL)) == llama
    assert repair_adapter.linear_targets(models.load(tiny_folder("gpt2"), settings=SMALL)) == [
        "c_attn",
        "c_fc",
        "c_proj",
    ]


def as_loaded(model: torch.nn.Module) -> SimpleNamespace:
    """Return what the adapter asks of a loaded model."""
    return SimpleNamespace(model=model.eval().requires_grad_(False), theta0=[], device=torch.device("cpu"))


def multimodal() -> torch.nn.Module:
    """Return a tiny Gemma 3 whose vision tower has as many layers as its decoder, with the same names inside."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 64, "num_key_value_heads": 1, "head_dim": 16}
    vision = sizes | {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config)


def test_a_vision_tower_is_not_adapted(tmp_path: Path) -> None:
    loaded = as_loaded(multimodal())
    targets = repair_adapter.linear_targets(loaded)
    assert len(targets) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in targets)
    repair_adapter.attach(loaded, quick())
    adapted = list(repair_adapter.parameters(loaded))
    assert len(adapted) == 2 * 7 * 2
    assert all(".language_model.layers." in name for name in adapted)
    loaded.spec = SimpleNamespace(path="model")
    repair_adapter.write(loaded, tmp_path)
    repair_adapter.load_repair(loaded, tmp_path)
    assert list(repair_adapter.parameters(loaded)) == adapted


def test_projections_between_embedding_and_layers_are_not_adapted() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64, word_embed_proj_dim=16,
        max_position_embeddings=64,
    )  # fmt: skip
    targets = repair_adapter.linear_targets(as_loaded(OPTForCausalLM(config)))
    assert targets == ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"]


def test_the_peak_of_memory_is_counted_from_the_start_of_a_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    for name in ("cpu", "cuda:1"):
        reset_memory(SimpleNamespace(device=torch.device(name)))
    assert reset == [torch.device("cuda:1")]


def test_bf16_weights_keep_adapter_and_losses_in_fp32(loaded, tmp_path: Path) -> None:
    loaded.model.to(torch.bfloat16)
    before = weights_of(loaded)
    trainer = trainer_of(loaded)
    assert {parameter.dtype for parameter in repair_adapter.parameters(loaded).values()} == {torch.float32}
    numbers = trainer.step(1)
    assert 0 <= numbers.kl_safe < 0.01  # bf16 rounds sums in batches of another shape differently
    assert numbers.refusal > 1
    moments = {value.dtype for state in trainer.optimizer.state.values() for value in state.values()}
    assert moments == {torch.float32}
    repair_adapter.detach(loaded)
    assert_is_theta0(loaded, before)


def test_one_sequence_too_many_is_met_by_recomputed_layers(loaded) -> None:
    trainer = trainer_of(loaded, batch_size=4, micro_batch_size=1)
    captured = [True]  # as on a GPU: once given up, there is nothing more to give up
    trainer.passes.replay = SimpleNamespace(forget=lambda: bool(captured) and captured.pop())
    inner, short = base_model(loaded).base_model.layers[0].mlp, []

    def hook(module, args) -> None:
        if torch.is_grad_enabled() and not trainer.recompute:
            short.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    handle = inner.register_forward_pre_hook(hook)
    numbers = trainer.step(1)
    handle.remove()
    assert (short, trainer.micro_batch, trainer.recompute) == ([1, 1], 1, True)
    assert trainer.memory_saved == ("no_graphs", "recompute")
    repair_adapter.detach(loaded)
    plain = trainer_of(loaded, batch_size=4, micro_batch_size=1)
    assert plain.step(1) == numbers
    repair_adapter.detach(loaded)
