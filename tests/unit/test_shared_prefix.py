"""What prompts begin with is run once, and what comes out is as if it were not."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from core import chat, repair_adapter, shared_prefix
from core.loaded import LoadedModel
from core.models import load
from core.response_pass import base_model
from core.settings import ModelSettings
from core.values import Message, Sampling
from tests.bench.repair_speed import sequences, trainer
from tests.tiny import FAMILIES, TEXTS, Folder

SYSTEM = Message(role="system", content="You are the help of a garden club. Answer in one sentence and name no prices.")


def with_system(loaded: LoadedModel) -> list[list[int]]:
    """Return prompts of different lengths behind one system prompt."""
    return [chat.prompt_ids(loaded.tokenizer, [SYSTEM, Message(role="user", content=text)]) for text in TEXTS]


def tokens_run(loaded: LoadedModel) -> list[int]:
    """Return a list to which each forward pass adds how many tokens it runs, padding included."""
    seen: list[int] = []
    base_model(loaded).base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return seen


def test_what_all_prompts_begin_with() -> None:
    long = list(range(40))
    assert shared_prefix.common([[*long, 1, 2], [*long, 3]]) == 40
    assert shared_prefix.common([[*long, 1], tuple(long), [*long, 1, 5]]) == 39  # one token is left to each
    assert shared_prefix.common([long, long]) == 39
    assert shared_prefix.common([[*long, 1], [9, *long]]) == 0
    assert shared_prefix.common([[*long[: shared_prefix.LEAST - 1], 5], long]) == 0  # not worth a pass
    assert shared_prefix.common([long]) == 0
    assert shared_prefix.common([]) == 0


@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "gemma3_text", "gpt_neox", "falcon", "phi"])
def test_answers_and_scores_are_those_without_it(
    tiny_folder: Folder, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny_folder(family), settings=ModelSettings(batch_size=3))
    prompts, responses = with_system(loaded), [[7, 8, 9], [300], [], list(range(50, 70))]
    drawn = Sampling(temperature=1.0, top_p=0.9)

    def outcome() -> tuple[list[list[int]], list[list[int]], list[np.ndarray]]:
        return (
            loaded.generate(prompts, max_new_tokens=12),
            loaded.generate(prompts, max_new_tokens=12, sampling=drawn),
            loaded.logprobs(prompts, responses),
        )

    greedy, sampled, scores = outcome()
    shares = loaded._shares
    monkeypatch.setattr(shared_prefix, "LEAST", 10**6)
    assert (greedy, sampled) == outcome()[:2]
    for score, plain in zip(scores, outcome()[2], strict=True):
        np.testing.assert_allclose(score, plain, rtol=1e-4, atol=1e-4)  # fp32, other order of sums
    assert shares is (family not in ("mistral", "gemma3_text"))  # a sliding window keeps no beginning


def test_the_beginning_is_run_once_a_call(tiny_folder: Folder) -> None:
    loaded = load(tiny_folder("llama"), settings=ModelSettings(batch_size=2))
    prompts = with_system(loaded)
    n_shared = shared_prefix.common(prompts)
    assert n_shared > 30
    loaded.generate(prompts, max_new_tokens=4)  # asks once whether the model can
    seen = tokens_run(loaded)
    loaded.generate(prompts, max_new_tokens=1)
    assert seen[0] == n_shared
    rest = sorted((len(one) - n_shared for one in prompts), reverse=True)
    assert seen[1:] == [2 * rest[0], 2 * rest[2]]  # batches of two, the longest first
    asked = loaded.model_calls
    loaded.logprobs(prompts, [[5]] * 4)
    assert loaded.model_calls == asked + 4  # the beginning is no sequence


def test_a_model_that_counts_padding_as_distance_shares_nothing(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions by place, as relative biases have them: what stands behind padding would be further from the beginning."""
    loaded = load(tiny_folder("llama"))
    forward = type(loaded.model).forward

    def by_place(self, input_ids, attention_mask=None, position_ids=None, **rest):
        n = attention_mask.shape[1] if attention_mask is not None else input_ids.shape[1]
        places = torch.arange(n)[None].expand(len(input_ids), -1)[:, -input_ids.shape[1] :]
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, position_ids=places, **rest)

    monkeypatch.setattr(type(loaded.model), "forward", by_place)
    prompts = with_system(loaded)
    loaded.generate([prompts[0], [*prompts[0][:-1], 9]], max_new_tokens=1)
    assert loaded._shares is None  # of one length: no padding, so nothing is known of others
    answers = loaded.generate(prompts, max_new_tokens=8)
    assert loaded._shares is False
    assert answers == list(chain.from_iterable(loaded.generate([one], max_new_tokens=8) for one in prompts))


def test_a_beginning_follows_the_adapter(tiny_folder: Folder, tiny_adapter) -> None:
    loaded = load(tiny_folder("llama"), tiny_adapter)
    prompts = with_system(loaded)
    with_adapter = loaded.logprobs(prompts, [[7, 8]] * 4)
    with loaded.reference():
        without = loaded.logprobs(prompts, [[7, 8]] * 4)
    plain = load(tiny_folder("llama")).logprobs(prompts, [[7, 8]] * 4)
    assert not np.allclose(with_adapter[0], without[0], atol=1e-3)
    for one, other in zip(without, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        *((family, {}) for family in (*FAMILIES, "gpt_neox", "falcon", "phi", "mixtral")),
        ("llama", {"recompute": True}),
        ("llama", {"micro_batch_size": 2}),
    ],
)
def test_losses_and_gradients_of_a_repair_pass_through_the_beginning(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch, family: str, more: dict
) -> None:
    loaded = load(tiny_folder(family))
    system = tuple(range(30, 70))
    made = [
        replace(one, prompt_ids=system + one.prompt_ids[: 5 + at]) for at, one in enumerate(sequences(6, 12, 7, 300))
    ]
    repairing = trainer(loaded, made, **more)
    generator = torch.Generator().manual_seed(1)
    adapter = repair_adapter.parameters(loaded)
    with torch.no_grad():
        for one in adapter.values():
            one.add_(torch.randn(one.shape, generator=generator) * 0.02)
    seen = tokens_run(loaded)

    def step() -> tuple[list[float | None], dict[str, torch.Tensor]]:
        seen.clear()
        for one in adapter.values():
            one.grad = None
        numbers = repairing._gradients(repairing.data.batches(0, 6)[0], 0)
        found = [numbers.loss, numbers.refusal, numbers.kl_harmful, numbers.kl_safe]
        return found, {key: one.grad.clone() for key, one in adapter.items()}

    shared, gradients = step()
    n_run = sum(seen)
    monkeypatch.setattr(shared_prefix, "LEAST", 10**6)
    whole, plain = step()
    assert shared == pytest.approx(whole, rel=1e-5)
    for key, one in plain.items():
        torch.testing.assert_close(gradients[key], one, rtol=1e-4, atol=1e-6 * float(one.abs().max() + 1))
    saved = sum(seen) - n_run
    n_passes = -(-6 // more.get("micro_batch_size", 6))
    assert saved == (0 if "recompute" in more else 40 * (6 - n_passes))
    repair_adapter.detach(loaded)
