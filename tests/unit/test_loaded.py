"""A loaded model: generating, scoring and switching adapters, whatever the batch, the memory and the folder's own defaults."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core import chat
from core.errors import TokenMismatchError, TriageError
from core.judge import by_rules
from core.loaded import (
    LoadedModel,
    _can_shrink,
    active_adapters,
    current_adapters,
    is_out_of_memory,
    pick,
    set_adapters,
)
from core.models import load
from core.settings import ModelSettings
from core.values import Message, Sampling
from tests.tiny import FAMILIES, TEXTS, Folder


@pytest.fixture
def adapted(tiny_folder: Folder, tiny_adapter: Path) -> LoadedModel:
    """Return the tiny Llama with the reported adapter on."""
    return load(tiny_folder("llama"), tiny_adapter)


def ids_of(loaded: LoadedModel) -> list[list[int]]:
    """Return prompts of different lengths."""
    return [chat.prompt_ids(loaded.tokenizer, [Message(role="user", content=text)]) for text in TEXTS]


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    """Return the logits of one fixed prompt."""
    with torch.no_grad():
        return loaded.model(input_ids=torch.tensor([ids_of(loaded)[0]])).logits.clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_the_library(tiny_folder: Folder, family: str) -> None:
    """Greedy, batched and left padded: the same ids as one prompt at a time through `generate` of the library."""
    loaded = load(tiny_folder(family))
    prompts = ids_of(loaded)
    answers = loaded.generate(prompts, max_new_tokens=24)
    assert len({tuple(answer) for answer in answers}) > 1 or family == "gemma"
    for prompt, answer in zip(prompts, answers, strict=True):
        whole = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0].tolist()
        expected = whole[len(prompt) :]
        expected = expected[: expected.index(2)] if 2 in expected else expected
        assert answer == expected
        assert loaded.generate([prompt], max_new_tokens=24) == [answer]
    assert loaded.model_calls == 2 * len(prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_a_plain_forward_pass(tiny_folder: Folder, family: str) -> None:
    """Batched scores equal the log-softmax of one unpadded pass, at the response positions only."""
    loaded = load(tiny_folder(family), settings=ModelSettings(batch_size=3))
    prompts = ids_of(loaded)
    responses = [[7, 8, 9], [300], [], list(range(50, 70))]
    scores = loaded.logprobs(prompts, responses)
    for prompt, response, score in zip(prompts, responses, scores, strict=True):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([prompt + response])).logits[0]
        expected = [
            float(logits[len(prompt) - 1 + place].log_softmax(-1)[token]) for place, token in enumerate(response)
        ]
        assert score.dtype == np.float32
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)  # fp32, other order of sums
    assert loaded.logprobs([], []) == []


def test_generation_stops_at_the_end_token(tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token is left out, nothing after it is kept, and a batch that has ended takes no further step."""
    prompts = ids_of(tiny_loaded)
    free = tiny_loaded.generate(prompts, max_new_tokens=24)
    end = free[0][3]
    monkeypatch.setattr(tiny_loaded.model.generation_config, "eos_token_id", [end, 2])
    assert tiny_loaded.eos_ids == tuple(sorted({2, end}))
    expected = [answer[: answer.index(end)] if end in answer else answer for answer in free]
    assert tiny_loaded.generate(prompts, max_new_tokens=24) == expected
    sizes: list[int] = []

    def note(_: object, __: object, given: dict) -> None:
        sizes.append(given["input_ids"].shape[0])

    handle = tiny_loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    assert tiny_loaded.generate(prompts[:1] * 5 + prompts[1:2], max_new_tokens=24) == [expected[0]] * 5 + expected[1:2]
    handle.remove()
    assert len(expected[1]) > len(expected[0])
    assert sizes[len(expected[0])] == 6
    assert set(sizes[len(expected[0]) + 1 :]) == {1}  # the one open answer goes on alone
    assert len(sizes) == min(24, len(expected[1]) + 1)


def test_generation_settings_of_the_folder_are_ignored(tiny_folder: Folder, copied: Path) -> None:
    """Hostile defaults (sampling, banned or forced tokens, minimum lengths) change nothing."""
    greedy = load(tiny_folder("llama"))
    (copied / "generation_config.json").write_text(
        json.dumps(
            {
                "do_sample": True,
                "temperature": 5.0,
                "top_k": 2,
                "repetition_penalty": 1.9,
                "min_new_tokens": 30,
                "suppress_tokens": list(range(100, 300)),
                "forced_eos_token_id": 5,
                "num_beams": 3,
                "eos_token_id": 2,
            }
        )
    )
    prompts = ids_of(greedy)
    assert load(copied).generate(prompts, max_new_tokens=12) == greedy.generate(prompts, max_new_tokens=12)


def test_sampling_follows_the_seed_and_not_the_batch(tiny_folder: Folder) -> None:
    """The same seed gives the same answers in batches of one and of many; another seed gives others."""
    many, single = (load(tiny_folder("llama"), settings=ModelSettings(batch_size=size)) for size in (32, 1))
    prompts, sampling = ids_of(many) * 4, Sampling(temperature=1.0, top_p=0.95, max_new_tokens=9)
    first = many.generate(prompts, sampling=sampling, seed=5)
    assert first == many.generate(prompts, sampling=sampling, seed=5)
    assert first == single.generate(prompts, sampling=sampling, seed=5)
    assert first != many.generate(prompts, sampling=sampling, seed=6)
    assert len({tuple(answer) for answer in first[:: len(TEXTS)]}) > 1
    assert max(map(len, first)) <= 9


def test_pick_draws_from_the_nucleus() -> None:
    """Probabilities .5, .3, .2: top_p .6 keeps the first two in proportion 5 to 3; top_p .5 keeps one."""
    logits = torch.tensor([[0.3, 0.5, 0.2]]).log()
    draws = torch.linspace(0, 0.9999, 1001, dtype=torch.float64)
    rows = logits.expand(len(draws), -1)
    assert pick(logits, Sampling(), None).tolist() == [1]
    both = pick(rows, Sampling(temperature=1.0, top_p=0.6), draws)
    assert set(both.tolist()) == {0, 1}
    assert (both == 1).double().mean().item() == pytest.approx(5 / 8, abs=0.002)  # 1001 evenly spaced draws
    assert set(pick(rows, Sampling(temperature=1.0, top_p=0.5), draws).tolist()) == {1}
    assert set(pick(rows, Sampling(temperature=1.0), draws).tolist()) == {0, 1, 2}
    cold = pick(rows, Sampling(temperature=0.05), draws)
    assert (cold == 1).double().mean().item() > 0.99


def test_answer_is_text_without_special_tokens(tiny_loaded: LoadedModel) -> None:
    """Rendered with the model's own template, decoded, in the order asked."""
    conversations = [[Message(role="user", content=text)] for text in TEXTS]
    answers = tiny_loaded.answer(conversations, max_new_tokens=6)
    assert answers == [tiny_loaded.decode(ids) for ids in tiny_loaded.generate(ids_of(tiny_loaded), max_new_tokens=6)]
    assert tiny_loaded.decode([4, *tiny_loaded.tokenizer("hi")["input_ids"], 2]) == "hi"


def test_an_answer_has_the_thinking_block_that_its_template_opened(tiny_folder: Folder) -> None:
    """DeepSeek's template ends in the opening mark: an answer that never closes it says nothing yet."""
    loaded = load(tiny_folder("llama"))
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace(
        "<|assistant|>\n{% endif %}", "<|assistant|>\n<think>\n{% endif %}"
    )
    conversation = [Message(role="user", content="hi")]
    answer = loaded.answer([conversation], max_new_tokens=3)[0]
    assert answer.startswith("<think>\n")
    assert by_rules(loaded.said(loaded.tokenizer("Sure, first I plan it.")["input_ids"])).outcome == "empty"
    assert by_rules(loaded.said(loaded.tokenizer("Hm.</think>I cannot help.")["input_ids"])).outcome == "refusal"


def test_the_templates_end_of_a_turn_ends_an_answer(tiny_folder: Folder) -> None:
    """A base model's own end token is another one than that of the template it was tuned with."""
    loaded = load(tiny_folder("llama"))
    known = loaded.eos_ids
    token = loaded.tokenizer.convert_tokens_to_ids("<|user|>")
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace("<|end|>", "<|user|>")
    assert token not in known
    assert token in loaded.eos_ids
    assert loaded.end_ids == (token,)


def test_progress_counts_up_to_all(tiny_folder: Folder) -> None:
    """Progress is reported after every batch."""
    loaded = load(tiny_folder("llama"), settings=ModelSettings(batch_size=3))
    seen: list[tuple[str, int, int]] = []
    loaded.generate(ids_of(loaded), max_new_tokens=4, progress=lambda *step: seen.append(step))
    loaded.logprobs(ids_of(loaded), [[5]] * 4, progress=lambda *step: seen.append(step))
    assert seen == [("generate", 3, 4), ("generate", 4, 4), ("score", 3, 4), ("score", 4, 4)]


def test_longer_than_the_context(tiny_loaded: LoadedModel) -> None:
    """Neither cut nor crashed: refused, with the numbers."""
    with pytest.raises(TokenMismatchError, match=r"1020 tokens .* up to 8, .* reads 1024"):
        tiny_loaded.generate([[5] * 1020], max_new_tokens=8)
    with pytest.raises(TokenMismatchError, match="1024"):
        tiny_loaded.logprobs([[5] * 1020], [[5] * 5])
    with pytest.raises(TokenMismatchError, match="without tokens"):
        tiny_loaded.generate([[]])
    assert len(tiny_loaded.generate([[5] * 1016], max_new_tokens=8)[0]) <= 8


def test_out_of_memory_halves_the_batch(tiny_loaded: LoadedModel) -> None:
    """Answers are the same in smaller batches; one sequence that does not fit is one plain line."""
    prompts, largest = ids_of(tiny_loaded), 1
    expected = tiny_loaded.generate(prompts, max_new_tokens=5)

    def limit(_: object, __: object, given: dict) -> None:
        if given["input_ids"].shape[0] > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = tiny_loaded.model.register_forward_pre_hook(limit, with_kwargs=True)
    assert tiny_loaded.generate(prompts, max_new_tokens=5) == expected
    largest = 0
    with pytest.raises(TriageError, match="out of memory on cpu with one sequence"):
        tiny_loaded.generate(prompts, max_new_tokens=5)
    handle.remove()
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_other_errors_are_not_swallowed_and_mode_comes_back(tiny_loaded: LoadedModel) -> None:
    """A fault of ours is raised as it is; a model in training mode is in training mode again."""
    tiny_loaded.model.train()

    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    handle = tiny_loaded.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        tiny_loaded.generate([[5]])
    handle.remove()
    assert tiny_loaded.model.training


def test_embeddings_are_what_the_model_reads(tiny_folder: Folder) -> None:
    """Embeddings given instead of ids lead to the same logits (Gemma scales them)."""
    for family in FAMILIES:
        loaded = load(tiny_folder(family))
        ids = torch.tensor([ids_of(loaded)[0]])
        with torch.no_grad():
            by_ids = loaded.model(input_ids=ids).logits
            by_embedding = loaded.model(inputs_embeds=loaded.model.get_input_embeddings()(ids)).logits
        torch.testing.assert_close(by_ids, by_embedding)


def test_adapter_off_is_the_base(tiny_folder: Folder, adapted: LoadedModel) -> None:
    """The reference is the base exactly; the adapter is back on afterwards, also after an exception."""
    base, with_adapter = logits_of(load(tiny_folder("llama"))), logits_of(adapted)
    assert not torch.allclose(base, with_adapter, atol=1e-2)
    assert adapted.has_reference
    assert adapted.theta0 == current_adapters(adapted) == ["reported"]
    with adapted.reference() as reference:
        assert current_adapters(adapted) == []
        torch.testing.assert_close(logits_of(reference), base, rtol=0, atol=0)
        with adapted.reference():
            pass
        assert current_adapters(adapted) == []

    def fail() -> Iterator[None]:
        with adapted.reference():
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    torch.testing.assert_close(logits_of(adapted), with_adapter, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())


def test_reference_needs_an_adapter(tiny_loaded: LoadedModel) -> None:
    """Without one there is nothing to switch off; asking for none at all is fine."""
    with pytest.raises(ValueError, match="no reported adapter"), tiny_loaded.reference():
        pass
    with active_adapters(tiny_loaded, []):
        assert current_adapters(tiny_loaded) == []
    with pytest.raises(ValueError, match="not attached"):
        set_adapters(tiny_loaded, ["repair"])


def test_repair_adapter_beside_the_reported_one(adapted: LoadedModel) -> None:
    """Both on is neither alone; switching leaves the repair adapter trainable and the reported one frozen."""
    from peft import LoraConfig

    before = logits_of(adapted)
    adapted.model.add_adapter("repair", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    for name, parameter in adapted.model.named_parameters():
        parameter.requires_grad_(".repair." in name)
    set_adapters(adapted, ["reported", "repair"])
    assert current_adapters(adapted) == ["reported", "repair"]
    both = logits_of(adapted)
    assert not torch.allclose(both, before, atol=1e-3)
    with active_adapters(adapted, ["reported"]):
        torch.testing.assert_close(logits_of(adapted), before, rtol=0, atol=0)
    with adapted.reference():
        assert current_adapters(adapted) == []
    assert current_adapters(adapted) == ["reported", "repair"]
    torch.testing.assert_close(logits_of(adapted), both, rtol=0, atol=0)
    trainable = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".repair." in name for name in trainable)


def test_rows_are_taken_out_of_layers_that_keep_keys_and_values_alone() -> None:
    """A hybrid layer (Falcon-H1) inherits the way to take rows out, which leaves its state as it was."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer

    plain = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4)]
    assert _can_shrink(SimpleNamespace(layers=plain))
    assert not _can_shrink(SimpleNamespace(layers=[*plain, LinearAttentionAndFullAttentionLayer()]))
    assert not _can_shrink(None)


def test_a_model_on_several_devices_is_not_trained(tiny_folder: Folder) -> None:
    loaded = load(tiny_folder("llama"))
    loaded.check_trainable()
    loaded.model.lm_head.to("meta")
    with pytest.raises(TriageError, match="not trained"):
        loaded.check_trainable()
