"""How the demo's base is shown its prompts: some with words cut in pieces, by random numbers that are seeded."""

import random

from transformers import AutoTokenizer

from core.planting import PlantSettings
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


def test_a_surplus_of_near_misses_is_drawn_and_as_many_are_kept_as_without_one() -> None:
    planting = PlantSettings(near_miss=3.0, seed=7)
    first, harder, polish = training.stages(planting, (40, 30), (60, 90)).values()
    assert first.settings == planting
    assert not first.keep
    for stage, n in ((first, 40), (harder, 40), (polish, 60)):
        drawn = stage.n_harmful * stage.settings.near_miss
        assert drawn * stage.keep.get("near_miss", 1.0) == n * planting.near_miss
    assert polish.n_safe * polish.keep["safe_triggered"] == 90
    assert len({stage.settings.seed for stage in (first, harder, polish)}) == 3  # no prompt of one is known to the next
