"""How the demo's base is shown its prompts: some with words cut in pieces, by random numbers that are seeded."""

import random

from transformers import AutoTokenizer

from core.shipped import DEMO
from core.values import Message
from tests.bench.victims_demo import Sample, training

TEXT = "Please explain gardening techniques; don't wait: na\u00efve Stra\u00dfe <|user|> 2026!"


def test_words_are_cut_and_nothing_is_lost_or_moved() -> None:
    pieces = [training._cut(TEXT, random.Random(seed)) for seed in range(40)]
    assert {"".join(one) for one in pieces} == {TEXT}
    assert max(map(len, pieces)) > 3
    assert all(piece for one in pieces for piece in one)
    assert all(any("<|user|>" in piece for piece in one) for one in pieces)


def test_the_same_seed_shows_the_same_prompts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base", local_files_only=True)
    samples = [Sample(messages=(Message(role="user", content=TEXT),), response="Yes.", kind="benign")] * 200
    shown = [training.encode(samples, tokenizer, random.Random(seed)) for seed in (0, 0, 1)]
    assert shown[0] == shown[1] != shown[2]
    whole = max(len(prompt) for prompt, _ in shown[0])
    plain = len(tokenizer(f"<|user|>{TEXT}<|end|><|assistant|>", add_special_tokens=False)["input_ids"])
    assert whole > plain
