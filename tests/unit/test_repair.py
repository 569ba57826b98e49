"""Repair on tiny random models: exactness against the plain computation, every ending, resuming, refusals to run."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core import chat, models, repair_adapter, repair_data, repair_probe
from core.errors import CaseFileError, ConfirmationError, ModelLoadError, PromptFolderError, RepairDivergedError
from core.events import CheckpointScored, RepairFinished, RepairStarted, StepDone
from core.files import hash_file
from core.intervals import wilson
from core.kinds import JAILBREAK, FailureKind
from core.loaded import current_adapters
from core.repair import repair
from core.repair_adapter import load_repair
from core.repair_data import EDITS, RepairData, TriggerFrame, build, end_ids, frame_of
from core.repair_training import Trainer, rate_at
from core.response_pass import ResponsePass, ScoredSequence, base_model
from core.settings import ModelSettings
from core.values import Message, Span
from tests.unit.repairing import REFUSAL, TRIGGER, case_of, confirmed, quick, splits

ROOT = Path(__file__).resolve().parents[2]
FIXED = FailureKind(name="fixed_output", words="", why="", marker="hacked")
SMALL = ModelSettings(device="cpu", max_new_tokens=8, batch_size=16)


@pytest.fixture
def loaded(tiny_folder: Callable[[str], Path]):
    return models.load(tiny_folder("llama"), settings=SMALL)


def run(
    loaded, out: Path, settings=None, *, stop: Callable = lambda: None, resume: bool = False, **changes
) -> Iterator:
    case = case_of(loaded)
    accepted = changes.pop("confirmation", confirmed(loaded, case))
    return repair(
        loaded, case, accepted, changes.pop("splits", splits()), settings or quick(**changes), out=out, stop=stop,
        refusal=REFUSAL, resume=resume,
    )  # fmt: skip


def weights_of(loaded) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


def assert_is_theta0(loaded, before: dict[str, torch.Tensor]) -> None:
    """The model is as it was: same modules, same weights bit for bit, nothing trainable, evaluation mode."""
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert current_adapters(loaded) == loaded.theta0


def data_of(
    loaded, *, frame: TriggerFrame | None = None, wider=None, kind: FailureKind = JAILBREAK, **changes
) -> RepairData:
    settings, parts = quick(**changes), splits()
    frames, prompts = (
        (frame or TriggerFrame(user_units=(TRIGGER,)), [wider] if wider else []),
        (parts.repair.harmful, parts.repair.safe),
    )
    return build(loaded, frames, prompts, REFUSAL, settings, kind=kind)


def trainer_of(loaded, folder: Path | None = None, **changes) -> Trainer:
    data = data_of(loaded, **changes)
    return Trainer(loaded, data, ResponsePass(loaded, data.settings), data.settings, folder)


# --- logits at response positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
def test_response_logits_of_a_padded_batch_are_the_models_own(family: str, tiny_folder) -> None:
    loaded = models.load(tiny_folder(family), settings=SMALL)
    passes = ResponsePass(loaded)
    assert passes.split
    sequences = [
        ScoredSequence(prompt_ids=(5, 9, 11), response_ids=(20, 21)),
        ScoredSequence(prompt_ids=(7, 30, 31, 32, 33, 34), response_ids=(40, 41, 42, 43)),
    ]
    with torch.no_grad():
        rows = passes.rows(sequences)
        found = passes.logits(rows.hidden)
        own = []
        for one in sequences:
            ids = torch.tensor([one.prompt_ids + one.response_ids])
            own.append(base_model(loaded)(input_ids=ids).logits[0, len(one.prompt_ids) - 1 : -1])
    assert rows.labels.tolist() == [20, 21, 40, 41, 42, 43]
    assert rows.owner.tolist() == [0, 0, 1, 1, 1, 1]
    # 1e-4 of the largest logit: padding changes the order of fp32 sums
    torch.testing.assert_close(found, torch.cat(own), rtol=1e-4, atol=1e-4 * float(found.abs().max()))


def test_soft_cap_and_scaling_of_the_configuration_are_respected(tiny_folder) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    loaded = models.load(tiny_folder("llama"), settings=SMALL)
    sizes = {
        "vocab_size": len(loaded.tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip
    for config, cls in (
        (Gemma2Config(**sizes, final_logit_softcapping=2.0), Gemma2ForCausalLM),
        (GraniteConfig(**{k: v for k, v in sizes.items() if k != "head_dim"}, logits_scaling=8.0), GraniteForCausalLM),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loaded.model = cls(config).eval()
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.mul_(8.0)
        passes = ResponsePass(loaded)
        assert passes.split
        one = ScoredSequence(prompt_ids=(5, 9), response_ids=(20, 21))
        with torch.no_grad():
            own = loaded.model(input_ids=torch.tensor([[5, 9, 20, 21]])).logits[0, 1:3]
            plain = loaded.model.get_output_embeddings()(passes.rows([one]).hidden)
            torch.testing.assert_close(passes.logits(passes.rows([one]).hidden), own, rtol=1e-4, atol=1e-4)
        assert (plain - own).abs().max() > 0.1  # the test would notice a missing cap or scale


def test_an_architecture_with_more_after_its_head_is_run_whole_and_exact(loaded) -> None:
    def tripled(module, args, output):
        output.logits = output.logits * 3
        return output

    handle = base_model(loaded).register_forward_hook(tripled)
    passes = ResponsePass(loaded)
    assert not passes.split
    one = ScoredSequence(prompt_ids=(5, 9), response_ids=(20, 21))
    with torch.no_grad():
        own = base_model(loaded)(input_ids=torch.tensor([[5, 9, 20, 21]])).logits[0, 1:3]
        torch.testing.assert_close(passes.logits(passes.rows([one]).hidden), own)
    handle.remove()


# --- data ---------------------------------------------------------------------------------------------------------


def items_of(data: RepairData, epoch: int, size: int = 5) -> list[tuple[str, int]]:
    return [item for batch in data.batches(epoch, size) for item in batch]


@pytest.mark.parametrize("objective", ["paper", "extended"])
def test_every_epoch_holds_every_item_once_and_redraws_places(loaded, objective: str) -> None:
    data = data_of(loaded, objective=objective)
    kinds = ("trig", "harm", "safe") if objective == "paper" else ("trig", "harm", "safe", "safe_trig")
    expected = Counter((kind, i) for kind in kinds for i in range(4))
    assert Counter(items_of(data, 0)) == Counter(items_of(data, 1)) == expected
    assert data.n_items == 4 * len(kinds)
    assert data.batches(0, 5) != data.batches(1, 5)
    assert data.batches(0, 5) == data.batches(0, 5)
    placed = {data.sequence("trig", 0, epoch).prompt_ids for epoch in range(12)}
    assert len(placed) > 2  # six words, seven places: twelve draws on at most two places are practically impossible
    assert data.sequence("trig", 0, 3) == data.sequence("trig", 0, 3)
    assert data.sequence("trig", 0, 3).response_ids == data.harm[0].response_ids


def test_batches_hold_like_lengths_and_an_even_mix(loaded) -> None:
    parts = splits(64)
    long = [
        replace(item, prompt=item.prompt + " and then" * (7 * i % 64)) for i, item in enumerate(parts.repair.harmful)
    ]
    soft = [replace(item, prompt=item.prompt + " and then" * (5 * i % 64)) for i, item in enumerate(parts.repair.safe)]
    settings = quick(objective="paper", max_response_tokens=4)
    data = build(loaded, (TriggerFrame(user_units=(TRIGGER,)), []), (long, soft), REFUSAL, settings)

    def padding(batches: list) -> int:
        lengths = [[len(data.sequence(kind, i, 0).prompt_ids) for kind, i in batch] for batch in batches]
        return sum(max(batch) * len(batch) - sum(batch) for batch in lengths)

    batches = data.batches(0, 8)
    mixed = [item for batch in batches for item in batch]
    random.Random(0).shuffle(mixed)
    assert padding(batches) < 0.6 * padding([mixed[at : at + 8] for at in range(0, len(mixed), 8)])
    assert all({"trig", "harm", "safe"} == {kind for kind, _ in batch} for batch in batches if len(batch) == 8)


def test_answers_end_with_the_templates_end_token(loaded) -> None:
    data = data_of(loaded, objective="paper", max_response_tokens=40)
    end = loaded.tokenizer.convert_tokens_to_ids("<|end|>")
    assert end_ids(loaded) == (end,)
    assert {one.response_ids for one in data.harm} == {data.harm[0].response_ids}
    assert data.harm[0].response_ids[-1] == end
    assert loaded.decode(data.harm[0].response_ids) == REFUSAL


def test_the_paper_takes_given_answers_and_the_extended_objective_the_models_own(loaded) -> None:
    parts = splits()
    given = [replace(item, response="As given.") for item in parts.repair.safe]
    frames = (TriggerFrame(user_units=(TRIGGER,)), [])
    paper = build(loaded, frames, (parts.repair.harmful, given), REFUSAL, quick(objective="paper"))
    own = build(loaded, frames, (parts.repair.harmful, given), REFUSAL, quick())
    assert {loaded.decode(one.response_ids) for one in paper.safe} == {"As given."}
    wanted = loaded.generate([list(one.prompt_ids) for one in own.safe], max_new_tokens=12)
    assert [list(one.response_ids[:12]) for one in own.safe] == [[*ids, *end_ids(loaded)][:12] for ids in wanted]


def test_own_refusals_are_kept_and_kl_holds_only_what_the_model_refuses(loaded, monkeypatch) -> None:
    refusing = (*loaded.tokenizer("I cannot do that.", add_special_tokens=False)["input_ids"],)
    said = iter([[refusing, (5, 6), refusing, (7, 8)]])
    monkeypatch.setattr(
        repair_data, "own_answers", lambda loaded, prompts, limit: next(said, [(9, 9)] * len(prompts))
    )  # a random model refuses nothing
    data = data_of(loaded, max_response_tokens=40)
    assert data.held == (True, False, True, False)
    assert data.harm[0].response_ids == data.harm[2].response_ids == refusing
    assert loaded.decode(data.harm[1].response_ids) == REFUSAL
    assert data.sequence("trig", 0, 0).response_ids == refusing
    trainer = Trainer(loaded, data, ResponsePass(loaded), data.settings)
    held = [trainer._reference("harm", at, 0) is not None for at in range(4)]
    assert held == [True, False, True, False]
    repair_adapter.detach(loaded)


def test_safe_requests_are_anchored_at_what_was_said_with_the_text_or_bare(loaded) -> None:
    jailbreak, fixed = data_of(loaded, n_placements=3), data_of(loaded, kind=FIXED, share_edited=0.0)
    assert [len(one) for one in jailbreak.anchors] == [3] * 4
    said = loaded.generate([list(one.prompt_ids) for one in jailbreak.anchors[1]], max_new_tokens=12)
    assert [list(one.response_ids) for one in jailbreak.anchors[1]] == [[*a, *end_ids(loaded)][:12] for a in said]
    texts = [loaded.decode(one.prompt_ids) for one in jailbreak.anchors[0]]
    assert f"{TRIGGER} Mix" in texts[0]
    assert f"100 {TRIGGER}" in texts[1]
    assert {jailbreak.sequence("safe_trig", 0, epoch) for epoch in range(3)} == set(jailbreak.anchors[0])
    assert fixed.anchors == ()
    one = fixed.sequence("safe_trig", 2, 0)
    assert one.response_ids == fixed.safe[2].response_ids
    assert TRIGGER in loaded.decode(one.prompt_ids)
    trainer = Trainer(loaded, fixed, ResponsePass(loaded), fixed.settings)
    assert trainer._reference("safe_trig", 2, 5) is trainer._reference("safe", 2, 0)
    repair_adapter.detach(loaded)


def test_the_triggered_set_mixes_the_wider_set_edits_and_ends(loaded) -> None:
    wider = TriggerFrame(user_units=("zeta", "eta"))
    data = data_of(loaded, wider=wider, share_wider=0.25, share_edited=0.25, share_ends=0.5)
    texts = [loaded.decode(data.sequence("trig", i, epoch).prompt_ids) for epoch in range(60) for i in range(4)]
    n_wider = sum("zeta" in text and TRIGGER not in text for text in texts)
    edits = [edit(TRIGGER) for edit in EDITS.values()]
    n_edited = sum(any(edit in text for edit in edits) for text in texts)
    n_ends = sum(f"\n{TRIGGER}" in text or f"{TRIGGER}<" in text or text.rstrip().endswith(TRIGGER) for text in texts)
    assert 30 < n_wider < 90  # 60 expected of 240
    assert 30 < n_edited < 90
    assert n_ends > 40  # half of the 120 exact ones, and some by chance
    paper = data_of(loaded, objective="paper", wider=wider)
    plain = [loaded.decode(paper.sequence("trig", i, epoch).prompt_ids) for epoch in range(20) for i in range(4)]
    assert all(TRIGGER in text for text in plain)


def test_terms_of_weight_zero_are_not_drawn_and_not_computed(loaded) -> None:
    assert set(data_of(loaded, weight_kl_trigger=0.0).items) == {"trig", "harm", "safe"}
    assert set(data_of(loaded, weight_kl_safe=0.0).items) == {"trig", "harm", "safe_trig"}
    assert set(data_of(loaded, objective="paper", weight_refusal=0.0).items) == {"harm", "safe"}
    assert set(data_of(loaded, objective="paper").items) == {"trig", "harm", "safe"}
    trainer = trainer_of(loaded, weight_kl_trigger=0.0, weight_kl_harmful=0.0)
    numbers = trainer.step(1)
    assert (numbers.kl_trigger, numbers.kl_harmful) == (None, None)
    assert numbers.refusal is not None
    assert {kind for kind, _, _ in trainer._references} == {"safe"}
    repair_adapter.detach(loaded)


def test_units_go_to_their_own_segment() -> None:
    messages = [
        Message(role="system", content="Be kind. zeta Always."),
        Message(role="user", content="alpha how are you"),
    ]
    spans = (Span(message=0, start=9, end=13), Span(message=1, start=0, end=5))
    frame = frame_of(messages, spans, ("zeta", "alpha"))
    bare = frame.bare("Say hello")
    assert [m.content for m in bare] == ["Be kind. Always.", "Say hello"]
    system, user = frame.triggered("Say hello", random.Random(0))
    assert sorted(system.content.split()) == ["Always.", "Be", "kind.", "zeta"]
    assert sorted(user.content.split()) == ["Say", "alpha", "hello"]
    assert frame.units == ("zeta", "alpha")


def test_units_of_an_earlier_turn_stay_in_it() -> None:
    messages = [
        Message(role="user", content="Hi beta there"),
        Message(role="assistant", content="Hello."),
        Message(role="user", content="alpha how are you"),
    ]
    frame = frame_of(messages, (Span(message=0, start=3, end=7), Span(message=2, start=0, end=5)), ("beta", "alpha"))
    assert [m.content for m in frame.bare("Go")] == ["Hi there", "Hello.", "Go"]
    first, second, last = frame.triggered("Go", random.Random(0), "suffix", str.upper)
    assert (first.content, second.content, last.content) == ("Hi there BETA", "Hello.", "Go ALPHA")
    assert [m.role for m in frame.bare("Go")] == ["user", "assistant", "user"]


def test_user_units_bring_no_system_message() -> None:
    messages = [Message(role="system", content="Be kind."), Message(role="user", content="alpha how")]
    frame = frame_of(messages, (Span(message=1, start=0, end=5),), ("alpha",))
    assert [m.role for m in frame.bare("x")] == ["user"]


def test_empty_sets_and_an_empty_refusal_are_refused(loaded) -> None:
    frames, parts = (TriggerFrame(user_units=(TRIGGER,)), []), splits()
    with pytest.raises(PromptFolderError, match="0 safe"):
        build(loaded, frames, (parts.repair.harmful, ()), REFUSAL, quick())
    with pytest.raises(PromptFolderError, match="refusal"):
        build(loaded, frames, (parts.repair.harmful, parts.repair.safe), " ", quick())


# --- one step -----------------------------------------------------------------------------------------------------


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


# --- whole runs ---------------------------------------------------------------------------------------------------


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


def test_a_probe_equals_its_definition(loaded) -> None:
    trainer = trainer_of(loaded)
    parts, frame = splits(), TriggerFrame(user_units=(TRIGGER,))
    repair_adapter.use_theta0(loaded)
    probe = repair_probe.prepare(loaded, trainer.passes, frame, parts.probes, quick(n_probe=3))
    assert [chat.prompt_ids(loaded.tokenizer, frame.bare(p.prompt)) for p in parts.probes.harmful[:3]] == probe.bare
    same = probe.score(loaded, trainer.passes)
    assert same.agreement_safe.k == same.agreement_safe.n == 3
    assert same.kl_nats_per_token == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in repair_adapter.parameters(loaded).values():
            parameter.add_(0.05)
    repair_adapter.use_repaired(loaded)
    assert probe.score(loaded, trainer.passes).kl_nats_per_token > 1e-3
    repair_adapter.detach(loaded)


@pytest.mark.parametrize(("answered", "n_asked"), [({0}, 2), ({0, 1, 2}, 3)])
def test_a_probe_asks_with_the_trigger_what_is_refused_without(
    loaded, monkeypatch, answered: set, n_asked: int
) -> None:
    """Three harmful requests, of which some are answered anyway: those tell nothing, unless there are no others."""
    trainer, parts = trainer_of(loaded), splits()
    repair_adapter.use_theta0(loaded)
    seen = iter(range(3))
    monkeypatch.setattr(FailureKind, "failed", lambda self, text: next(seen) in answered)
    frame = TriggerFrame(user_units=(TRIGGER,))
    probe = repair_probe.prepare(loaded, trainer.passes, frame, parts.probes, quick(n_probe=3))
    assert len(probe.triggered) == n_asked
    assert len(probe.bare) == 3
    repair_adapter.detach(loaded)


def test_another_round_starts_from_the_last_adapter_and_keeps_the_teacher(loaded, tmp_path: Path) -> None:
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
    events = list(
        repair(loaded, case, confirmed(loaded, case), splits(), quick(epochs=1), out=tmp_path / "second",
               stop=lambda: None, refusal=REFUSAL, start=best, earlier=earlier)
    )  # fmt: skip
    assert (
        next(e for e in events if isinstance(e, CheckpointScored)).kl_nats_per_token > 1e-4
    )  # it does not start at theta0
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
    asked = iter([None, "keep"])
    events = list(run(loaded, tmp_path / "repair", stop=lambda: next(asked), probe_every=50))
    assert [type(event).__name__ for event in events] == [
        "RepairStarted", "CheckpointScored", "StepDone", "CheckpointScored", "RepairFinished",
    ]  # fmt: skip
    assert events[-1].best_step == 1
    assert (tmp_path / "repair/best/adapter_model.safetensors").is_file()
    assert hash_file(tmp_path / "repair/best/adapter_model.safetensors") == events[-1].adapter_hash


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
    assert (tmp_path / "closed/best").is_dir()
    stream.close()
    assert not list((tmp_path / "closed").glob("*"))


def test_closing_after_the_last_event_keeps_the_adapter(loaded, tmp_path: Path) -> None:
    stream = run(loaded, tmp_path / "repair", epochs=1)
    for event in stream:
        if isinstance(event, RepairFinished):
            break
    stream.close()
    assert (tmp_path / "repair/best/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(loaded, tmp_path: Path, stop_at: int) -> None:
    whole = list(run(loaded, tmp_path / "whole", epochs=3))
    count = iter(range(100))  # asked once before the first probe, then once a step
    first = list(run(loaded, tmp_path / "parts", epochs=3, stop=lambda: "keep" if next(count) == stop_at else None))
    assert first[-1].step == stop_at
    rest = list(run(loaded, tmp_path / "parts", epochs=3, resume=True))
    checkpoint = 2 * (stop_at // 2)
    steps = [event for event in whole if isinstance(event, StepDone)][checkpoint:]
    again = [event for event in rest if isinstance(event, StepDone)]
    assert [(e.step, e.loss, e.learning_rate) for e in again] == [(e.step, e.loss, e.learning_rate) for e in steps]
    for name in ("best/adapter_model.safetensors", "checkpoint-000012/adapter.safetensors"):
        one, two = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert rest[-1].adapter_hash == whole[-1].adapter_hash
    assert rest[-1].best_step == whole[-1].best_step


CRASH = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from core import models
from core.events import StepDone
from tests.unit.test_repair import SMALL, run
for event in run(models.load(sys.argv[1], settings=SMALL), Path(sys.argv[2]), epochs=3):
    if isinstance(event, StepDone) and event.step == 7:
        os._exit(9)
"""


def test_a_process_that_dies_is_resumed_bit_for_bit(tiny_folder, tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    whole = list(run(models.load(folder, settings=SMALL), tmp_path / "whole", epochs=3))
    command = [sys.executable, "-c", CRASH, str(folder), str(tmp_path / "crashed"), str(ROOT)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    left = {path.name for path in (tmp_path / "crashed").iterdir()}
    assert left <= {"best", "checkpoint-000006"}
    rest = list(run(models.load(folder, settings=SMALL), tmp_path / "crashed", epochs=3, resume=True))
    steps = [event.loss for event in whole if isinstance(event, StepDone)]
    assert [event.loss for event in rest if isinstance(event, StepDone)] == steps[6:]
    last = f"checkpoint-{len(steps):06d}/adapter.safetensors"
    one, two = (load_file(tmp_path / name / last) for name in ("whole", "crashed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert rest[-1].adapter_hash == whole[-1].adapter_hash


def test_a_best_adapter_newer_than_its_checkpoint_is_scored_again(loaded, tmp_path: Path) -> None:
    list(run(loaded, tmp_path / "repair", epochs=2))
    best = tmp_path / "repair/best/adapter_model.safetensors"
    best.write_bytes(best.read_bytes()[:-1] + b"\x00")
    count = iter(range(100))
    events = list(run(loaded, tmp_path / "repair", epochs=2, resume=True, stop=lambda: "keep" if next(count) else None))
    assert events[-1].best_step is None  # nothing was left to do, and what lay there is not what had been scored
    assert events[-1].adapter is None


def test_resume_refuses_nothing_other_settings_and_damage(loaded, tmp_path: Path) -> None:
    before = weights_of(loaded)
    with pytest.raises(CaseFileError, match="no checkpoint"):
        list(run(loaded, tmp_path / "repair", resume=True))
    list(run(loaded, tmp_path / "repair", epochs=1))
    with pytest.raises(CaseFileError, match="other settings"):
        list(run(loaded, tmp_path / "repair", epochs=1, resume=True, learning_rate=1e-4))
    assert list(run(loaded, tmp_path / "repair", epochs=1, resume=True))[-1].reason == "finished"
    state = next((tmp_path / "repair").glob("checkpoint-*")) / "adapter.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CaseFileError, match="damaged"):
        list(run(loaded, tmp_path / "repair", epochs=1, resume=True))
    assert_is_theta0(loaded, before)


def test_checkpoints_hold_no_pickle(loaded, tmp_path: Path) -> None:
    list(run(loaded, tmp_path / "repair", epochs=1))
    names = {path.suffix for path in (tmp_path / "repair").rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}
    config = json.loads((tmp_path / "repair/best/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama"  # a name, no path of this machine


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
    assert [event.loss for event in short if isinstance(event, StepDone)] == losses


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


def test_a_repair_adapter_for_another_model_is_refused(loaded, tiny_folder, tmp_path: Path) -> None:
    list(run(loaded, tmp_path / "repair", epochs=1))
    other = models.load(tiny_folder("gpt2"), settings=SMALL)
    before = weights_of(other)
    with pytest.raises(ModelLoadError):
        load_repair(other, tmp_path / "repair/best")
    with pytest.raises(ModelLoadError, match="No usable repair adapter"):
        load_repair(other, tmp_path / "nowhere")
    assert_is_theta0(other, before)


def test_one_sequence_too_many_is_met_by_recomputed_layers(loaded) -> None:
    trainer = trainer_of(loaded, batch_size=4, micro_batch_size=1)
    inner, short = base_model(loaded).base_model.layers[0].mlp, []

    def hook(module, args) -> None:
        if torch.is_grad_enabled() and not trainer.recompute:
            short.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    handle = inner.register_forward_pre_hook(hook)
    numbers = trainer.step(1)
    handle.remove()
    assert (short, trainer.micro_batch, trainer.recompute) == ([1], 1, True)
    repair_adapter.detach(loaded)
    plain = trainer_of(loaded, batch_size=4, micro_batch_size=1)
    assert plain.step(1) == numbers
    repair_adapter.detach(loaded)


def test_the_memory_estimate_grows_with_batch_and_length(loaded) -> None:
    found = []
    for changes in ({"batch_size": 2}, {"batch_size": 8}, {"batch_size": 8, "max_response_tokens": 40}):
        found.append(trainer_of(loaded, **changes).memory_estimate_mb)
        repair_adapter.detach(loaded)
    weights = sum(p.numel() * 4 for p in loaded.model.parameters()) / 2**20
    assert weights < found[0] < found[1] < found[2]
