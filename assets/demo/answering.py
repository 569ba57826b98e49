"""Greedy answers of the patient, fast: batches of like length, left padding, a hand-written cached loop."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.values import Message

BATCH = 96


def as_messages(prompts: Sequence[str]) -> list[tuple[Message, ...]]:
    """Return each prompt as a conversation of one user message."""
    return [(Message(role="user", content=prompt),) for prompt in prompts]


@torch.inference_mode()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    n_tokens: int = 48,
) -> list[str]:
    """Return the greedy answer to each conversation, at most `n_tokens` long."""
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in conversation],
            tokenize=False,
            add_generation_prompt=True,
        )
        for conversation in conversations
    ]
    if not rendered:
        return []
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    said = [""] * len(ids)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        for row, tokens in zip(rows, _decode(model, tokenizer, [ids[i] for i in rows], n_tokens), strict=True):
            said[row] = tokenizer.decode(tokens, skip_special_tokens=True)
    return said


def _decode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[list[int]], n_tokens: int
) -> list[list[int]]:
    """Return the new token ids of each row, without the end token."""
    width = max(map(len, batch))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    ended = [False] * len(batch)
    new: list[list[int]] = [[] for _ in batch]
    cache = None
    for _ in range(n_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        chosen = out.logits[:, -1].argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            ended[row] = ended[row] or token == tokenizer.eos_token_id
            if not ended[row]:
                new[row].append(token)
        if all(ended):
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(batch), 1)], 1)
        positions = mask.sum(-1, keepdim=True) - 1
    return new
