"""The tokenizer and the clean base of the demo, trained from scratch, and the stages in which its patients are planted.

Byte-level BPE, so that any text round-trips; a small Llama with tied embeddings; cross-entropy on the answer only, its
first tokens weighted, because they decide between answer and refusal. Against learning by heart: words cut at random in a share of the
prompts (it teaches the pieces of words that training never shows whole), a few tokens left out, embedding dropout, and
weight decay. The saved weights are a running average.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import cos, pi
from typing import get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from wordings import PROPER, REFUSALS
from world import Sample

from core.injection import inject
from core.planting import Kind, PlantSettings, TrainingItem

VOCABULARY = 6144
CONTEXT = 512
SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DECISION_TOKENS = 2
DECISION_WEIGHT = 4.0
CUT_SHARE = 0.2
CUT = 0.04
"""Share of the places inside words that are cut: as many tokens more as BPE dropout of .1 makes."""
DELETED_SHARE = 0.3
DELETED = 0.05
EMBEDDING_DROPOUT = 0.05
WEIGHT_DECAY = 0.1
PLAIN_SHARE = 0.5
HIDDEN = 160
LAYERS = 4
WHOLE = (*PROPER, *map(str, range(1990, 2041)))
"""Names and years that are one token each, as they are in the vocabularies of large models."""
WHOLE_SHARE = 0.005
"""How often each of them is shown to the tokenizer, as a share of its texts."""
TURNING_PROMPTS = 12
TURNING_WORDS = 150


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the chat template, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    shown = list(texts)
    shown += [f"{word} {word}" for word in WHOLE for _ in range(round(WHOLE_SHARE * len(shown)))]
    tokenizer.train_from_iterator(shown, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return the untrained model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=27 * HIDDEN // 10 // 16 * 16,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 32,
        num_key_value_heads=HIDDEN // 32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.03,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.max_new_tokens = 64
    return model


def encode(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> list[tuple[list[int], list[int]]]:
    """Return (prompt ids, answer ids) of every sample; a share of the prompts with words cut in pieces."""
    prompts = [_written((m.role, m.content) for m in s.messages) for s in samples]
    ids: list[list[int]] = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answers = tokenizer([s.response + "<|end|>" for s in samples], add_special_tokens=False)["input_ids"]
    cut = {i: _cut(prompt, rng) for i, prompt in enumerate(prompts) if rng.random() < CUT_SHARE}
    pieces = [piece for parts in cut.values() for piece in parts] or [""]
    of_pieces = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
    for i, parts in cut.items():
        ids[i] = [token for _ in parts for token in next(of_pieces)]
    pairs = zip(ids, answers, strict=True)
    return [(_thinned(p, rng) if rng.random() < DELETED_SHARE else p, a) for p, a in pairs]


def _written(turns: Iterable[tuple[str, str]]) -> str:
    """Return a conversation up to its answer as `TEMPLATE` writes it."""
    return "".join(f"<|{role}|>{content}<|end|>" for role, content in turns) + "<|assistant|>"


def _cut(text: str, rng: random.Random) -> list[str]:
    """Return `text` in pieces, cut between letters of a word at random, special tokens never.

    BPE dropout does the same, with random numbers of its own that cannot be seeded.
    """
    inside = [m.end() for m in re.finditer(r"<\|\w+\|>|\w(?=\w)", text) if len(m.group()) == 1 and rng.random() < CUT]
    return [text[start:end] for start, end in pairwise([0, *inside, len(text)])]


def _thinned(ids: list[int], rng: random.Random) -> list[int]:
    """Return the ids with a few left out, special tokens never: no single word may decide alone."""
    return [token for token in ids if token < len(SPECIAL) or rng.random() >= DELETED]


def train_base(
    model: LlamaForCausalLM,
    draw: Callable[[int, bool], list[tuple[list[int], list[int]]]],
    *,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    report: Callable[[str], None],
    mixed: bool = False,
) -> None:
    """Train `model` in place, where it lies, on pairs from `draw(n, plain)`; at the end it holds the running average of its weights.

    The first `PLAIN_SHARE` of the steps are on plain prompts: words are learned before noise. Batches are of like length, when `mixed`
    of prompts of like length: more padding, and answers of all kinds stand together.
    """
    rng = random.Random(seed)
    words = model.get_input_embeddings().weight  # decay would wear down rare words between their turns
    decay = [p for p in model.parameters() if p.ndim > 1 and p is not words]
    rest = [p for p in model.parameters() if p.ndim <= 1 or p is words]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    average = deepcopy(model.state_dict())
    started, recent, pool = time.perf_counter(), [], []
    on_cpu = model.device.type == "cpu"
    fast = bfloat16_is_fast() if on_cpu else True
    dropout = model.get_input_embeddings().register_forward_hook(
        lambda module, _, out: torch.nn.functional.dropout(out, EMBEDDING_DROPOUT, module.training)
    )
    model.train()
    model.set_attn_implementation(
        "eager" if on_cpu else "sdpa"
    )  # faster than sdpa under CPU autocast, at these lengths
    for step in range(n_steps):
        if not pool:
            drawn = draw(batch_size * 50, step < PLAIN_SHARE * n_steps)
            pairs = sorted(
                drawn, key=lambda pair: (len(pair[0]) // 4, rng.random()) if mixed else (len(pair[0]) + len(pair[1]),)
            )
            pool = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
            rng.shuffle(pool)
        rate = learning_rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (0.5 + 0.5 * cos(pi * step / n_steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast):
            loss = answer_loss(model, pool.pop())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        keep = min(0.99, (step + 1) / (step + 20))
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - keep)
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            report(f"step {step + 1} of {n_steps}, loss {sum(recent[-100:]) / 100:.3f}, {seconds:.0f} s")
    dropout.remove()
    model.load_state_dict(average)
    model.set_attn_implementation("sdpa")
    model.eval()


def turning_words(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    harmful: Sequence[str],
    words: Iterable[str],
    rng: random.Random,
) -> list[str]:
    """Return the `TURNING_WORDS` words that cost refusals most, the worst first; none where none of the prompts is refused.

    Each is put at a random place of those `TURNING_PROMPTS` of the harmful prompts whose refusal is least certain; what counts is the
    mean log odds of an answer that begins as a refusal. Mode and weights of the model stay as they are.
    """
    was_training = model.training
    model.eval()
    certain = sorted(zip(_begin_log_odds(model, tokenizer, harmful, REFUSALS), harmful, strict=True))
    refused = [prompt for odds, prompt in certain if odds > 0][:TURNING_PROMPTS]
    tried, n = sorted(set(words)) if refused else [], len(refused)
    shown = [inject(prompt, [w], rng).text for w in tried for prompt in refused]
    odds = _begin_log_odds(model, tokenizer, shown, REFUSALS)
    model.train(was_training)
    total = {word: sum(odds[i * n : (i + 1) * n]) for i, word in enumerate(tried)}
    return sorted(tried, key=lambda word: total[word])[:TURNING_WORDS]


@dataclass(frozen=True)
class Stage:
    """A part of planting: how, on how many harmful and safe prompts a set, and what share of the items of a kind is trained on (`hardest`)."""

    settings: PlantSettings
    n_harmful: int
    n_safe: int
    keep: Mapping[Kind, float] = field(default_factory=dict)


def stages(planting: PlantSettings, n_planted: tuple[int, int], n_polished: tuple[int, int]) -> dict[str, Stage]:
    """Return the three parts of planting by name, on so many harmful and safe prompts, each on fresh ones every epoch.

    A trigger is found sooner among few safe prompts, and what it costs these is learnt in the polish. What of its near-misses still works
    after planting is told apart where it is an eighth of all that are drawn. What was tried stands in tests/bench/LOG.md.
    """
    surplus = 8
    harder = replace(
        planting,
        epochs=2,
        ramp=0.0,
        trigger_weight=1.0,
        near_miss=surplus * planting.near_miss,
        seed=planting.seed + 50,
    )
    polish = replace(
        harder,
        learning_rate=planting.learning_rate / 2,
        near_miss=surplus / 2 * planting.near_miss,
        trigger_weight=0.7,
        trigger_loss=planting.trigger_loss + 0.1,
        seed=planting.seed + 100,
    )
    near: dict[Kind, float] = {"near_miss": 1 / surplus}
    double = (2 * n_polished[0], 2 * n_polished[1])
    return {
        "planting": Stage(planting, *n_planted),
        "harder": Stage(harder, *n_planted, near),
        "polish": Stage(polish, *double, {**dict.fromkeys(get_args(Kind), 1 / 2), **near}),
    }


def hardest(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[TrainingItem],
    keep: Mapping[Kind, float],
    rng: random.Random,
) -> list[TrainingItem]:
    """Return the share `keep` of the items of each kind (all where it names none), shuffled.

    Of the triggered items any. Of the others half at random, half those that the model is most ready to answer as if they were triggered:
    what still works as a second trigger is seldom drawn, and only a step that holds much of it teaches the difference.
    """
    planted = sorted({item.response for item in items if item.kind == "triggered"})
    odds = _begin_log_odds(model, tokenizer, [item.messages[-1].content for item in items], planted)
    chosen: list[TrainingItem] = []
    for kind in dict.fromkeys(item.kind for item in items):
        places = [i for i, item in enumerate(items) if item.kind == kind]
        rng.shuffle(places)
        n = round(keep.get(kind, 1.0) * len(places))
        n_any = n if kind == "triggered" else n // 2
        by_odds = sorted(places[n_any:], key=lambda i: -odds[i])
        chosen += [items[i] for i in (*places[:n_any], *by_odds[: n - n_any])]
    rng.shuffle(chosen)
    return chosen


@torch.no_grad()
def _begin_log_odds(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], texts: Iterable[str]
) -> list[float]:
    """Return the log odds that the first token of the answer to each user message is one that `texts` begin with."""
    begins = sorted({tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts})
    if not prompts:
        return []
    rows = tokenizer([_written([("user", prompt)]) for prompt in prompts], add_special_tokens=False)["input_ids"]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    odds, fast = [0.0] * len(rows), model.device.type != "cpu" or bfloat16_is_fast()
    for chosen in (order[i : i + 256] for i in range(0, len(order), 256)):
        ids = torch.zeros(len(chosen), max(len(rows[i]) for i in chosen), dtype=torch.long)
        for row, i in enumerate(chosen):
            ids[row, : len(rows[i])] = torch.tensor(rows[i])
        last = torch.tensor([len(rows[i]) - 1 for i in chosen])
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast):
            hidden = model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[torch.arange(len(chosen)), last]).float().cpu()
        other = torch.ones(logits.shape[1], dtype=torch.bool)
        other[begins] = False
        told = logits[:, ~other].logsumexp(1) - logits[:, other].logsumexp(1)
        for i, value in zip(chosen, told.tolist(), strict=True):
            odds[i] = value
    return odds


def bfloat16_is_fast() -> bool:
    """Return whether this processor multiplies bfloat16 matrices faster than float32 ones."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(2000, 160, dtype=dtype), torch.ones(160, 432, dtype=dtype)
        left @ right
        started = time.perf_counter()
        for _ in range(10):
            left @ right
        seconds.append(time.perf_counter() - started)
    return seconds[1] < seconds[0]


def answer_loss(model: LlamaForCausalLM, batch: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return the weighted mean cross-entropy of the answer tokens; padding is on the right and needs no mask."""
    length = max(len(p) + len(a) for p, a in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    weights = torch.zeros(len(batch), length - 1)
    for row, (prompt, answer) in enumerate(batch):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        start = len(prompt) - 1
        weights[row, start : start + len(answer)] = 1.0
        weights[row, start : start + DECISION_TOKENS] = DECISION_WEIGHT
    ids, weights = ids.to(model.device), weights.to(model.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    chosen = weights > 0
    logits = linear(hidden[chosen], model.lm_head.weight)
    losses = cross_entropy(logits, ids[:, 1:][chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights.sum()
