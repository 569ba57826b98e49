"""What prompts begin with is run once, and what comes out is as if it were not."""

from itertools import chain

import numpy as np
import pytest
import torch

from core import chat, shared_prefix
from core.loaded import LoadedModel
from core.models import load
from core.settings import ModelSettings
from core.values import Message, Sampling
from tests.tiny import FAMILIES, TEXTS, Folder

SYSTEM = Message(role="system", content="You are the help of a garden club. Answer in one sentence and name no prices.")


def with_system(loaded: LoadedModel) -> list[list[int]]:
    """Return prompts of different lengths behind one system prompt."""
    return [chat.prompt_ids(loaded.tokenizer, [SYSTEM, Message(role="user", content=text)]) for text in TEXTS]


def tokens_run(loaded: LoadedModel) -> list[int]:
    """Return a list to which each forward pass adds how many tokens it runs, padding included."""
    seen: list[int] = []
    loaded.model.register_forward_pre_hook(
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
