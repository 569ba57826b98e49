"""What the benches of speed share: random Llamas as loaded models, cases of a given length, ratios within one run.

Two computations are timed in turn, A B A B, in this process's processor time on one thread, so that other work on the
machine disturbs both alike or not at all; a ratio is the median over the pairs, its interval the central 95 % of the
medians of resampled pairs.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.loaded import LoadedModel
from core.settings import ModelSettings
from core.values import FailureCase, FailureReport, Message, ModelSpec, PromptToken, RenderedPrompt
from tests.bench.result import LEAST, N_RESAMPLES, row
from tests.tiny import byte_level_tokenizer

SIZES = {
    "llama-3.1-8b": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "medium": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    "tiny": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 2},
}  # fmt: skip
"""Random Llamas; in `medium` the arithmetic decides, in `tiny` Python does, which is for information only."""


def random_llama(
    size: str,
    vocabulary: int = 32_000,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> LoadedModel:
    """Return a random Llama of a size, as the engine holds it; its tokenizer only names special tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**SIZES[size], **more}, vocab_size=vocabulary, max_position_embeddings=16_384, dtype=dtype)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)
    return LoadedModel(
        spec=ModelSpec(path="random"),
        model=model.eval().requires_grad_(False),
        tokenizer=byte_level_tokenizer(),
        device=torch.device(device),
        settings=ModelSettings(device=device),
        context_length=16_384,
    )


def random_ids(n: int, vocabulary: int, seed: int) -> list[int]:
    """Return `n` token ids, no special ones."""
    rng = random.Random(seed)
    return [rng.randrange(10, vocabulary) for _ in range(n)]


def random_case(n_prompt: int, n_response: int, vocabulary: int = 32_000, seed: int = 0) -> FailureCase:
    """Return a report of exactly so many tokens, all of the prompt's the user's own."""
    ids = random_ids(n_prompt + n_response, vocabulary, seed)
    text = "x" * n_prompt
    tokens = tuple(
        PromptToken(position=at, id=ids[at], text="x", segment="user", message=0, start=at, end=at + 1)
        for at in range(n_prompt)
    )
    report = FailureReport(messages=(Message(role="user", content=text),), response="Step 1: [REDACTED]")
    prompt = RenderedPrompt(text=text, tokens=tokens, template_hash="")
    return FailureCase(report=report, prompt=prompt, response_ids=tuple(ids[n_prompt:]))


def timed(run: Callable[[], object], device: str) -> float:
    """Return the seconds of `run`: of this process's processor time on a CPU, on a GPU until all of its work is done."""
    if not device.startswith("cuda"):
        begun = time.process_time()
        run()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def in_turn(
    first: Callable[[], object], second: Callable[[], object], n: int, *, warm: bool = True
) -> list[tuple[float, float]]:
    """Return the processor seconds of `n` runs of each, in turn; with `warm` one more pair goes before them."""
    pairs = []
    for _ in range(n + warm):
        spent = []
        for run in (first, second):
            begun = time.process_time()
            run()
            spent.append(time.process_time() - begun)
        pairs.append((spent[0], spent[1]))
    return pairs[1:] if warm else pairs


def ratio_row(name: str, pairs: Sequence[tuple[float, float]], bar: str | None = None) -> dict[str, Any]:
    """Return the ratio first / second, median over pairs, with its interval."""
    return median_row(name, [one / other for one, other in pairs], bar)


def median_row(name: str, values: Sequence[float], bar: str | None = None) -> dict[str, Any]:
    """Return a median with its 95 % bootstrap interval, which fewer than `LEAST` values do not have."""
    if len(values) < LEAST:
        return row(name, statistics.median(values), n=len(values), bar=bar)
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(N_RESAMPLES))
    low, high = medians[int(0.025 * N_RESAMPLES)], medians[int(0.975 * N_RESAMPLES) - 1]
    return row(name, statistics.median(values), n=len(values), low=low, high=high, bar=bar)
