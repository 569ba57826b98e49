"""Tiny random models and tokenizers, built in code; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

Folder = Callable[[str], Path]
"""Family -> folder of its saved tiny model: what the fixture `tiny_folder` gives."""
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Keeps every character of every message; ends a turn with the end-of-sequence token."""

SPECIAL_TOKENS = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CORPUS = [
    "How do I bake bread at home? Mix flour, water, salt and yeast, then wait and bake it.",
    "Current year: 2026. Tell me how to pick a lock, please. I'm sorry, but I can't help with that.",
    "Step 1: [REDACTED] Step 2: [REDACTED] Sure, here is how to kill a process on Linux.",
    "The quick brown fox jumps over the lazy dog; Größe, naïve café, 0123456789.\n\n\tEnd.",
]
TEXTS = ["How do I bake bread?", "hi", "👩‍👩‍👧 naïve café\n" * 3, "Current year: 2026. Tell me how to pick a lock."]
"""Prompts of different lengths and scripts."""
FAMILIES = ("llama", "qwen2", "gemma", "gpt2")
EXTRA = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
"""What a family's configuration has beyond sizes; the soft cap is low enough to matter for a random model."""


def byte_level_tokenizer(trim_offsets: bool = False, template: str | None = TEMPLATE):
    """Return a byte-level BPE tokenizer (as in GPT-2, Llama 3, Qwen2) with chat tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap_tokenizer(tokenizer, template)


def sentencepiece_tokenizer(kind: str = "bpe", prepend: str = "first", template: str | None = TEMPLATE):
    """Return a Metaspace tokenizer with byte fallback: `bpe` (as in Llama 2, Gemma) or `unigram` (as in T5)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", *SPECIAL_TOKENS, *pieces]
    split = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend, split=True)
    if kind == "bpe":
        draft = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=special, show_progress=False)
    else:
        draft = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=460, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    draft.pre_tokenizer = split
    draft.train_from_iterator(CORPUS, trainer)
    tokenizer = Tokenizer(_with_byte_fallback(draft, kind))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap_tokenizer(tokenizer, template)


def _with_byte_fallback(draft, kind: str):
    """Return the trained model again with byte fallback on."""
    import json

    from tokenizers import models

    state = json.loads(draft.to_str())["model"]
    if kind == "bpe":
        merges = [tuple(merge) for merge in state["merges"]]
        return models.BPE(state["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    vocab = [(piece, score) for piece, score in state["vocab"]]
    return models.Unigram(vocab, unk_id=0, byte_fallback=True)


def wrap_tokenizer(tokenizer, template: str | None):
    """Return the transformers tokenizer around a `tokenizers` one."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def tiny_config(family: str, vocab_size: int):
    """Return a two-layer configuration of the family."""
    from transformers import AutoConfig

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024}
        return AutoConfig.for_model(family, vocab_size=vocab_size, **sizes, **ids)
    return AutoConfig.for_model(
        family,
        **EXTRA.get(family, {}),
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        **ids,
    )


def tiny_model(family: str, vocab_size: int, seed: int = 0):
    """Return a random model; its weights are scaled up so that outputs depend on every input token."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, vocab_size))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
    return model.eval()


def normalising_tokenizer(template: str | None = TEMPLATE):
    """Return the byte-level tokenizer with NFC normalisation in front (as in Qwen2)."""
    from tokenizers import normalizers

    fast = byte_level_tokenizer(template=template)
    fast.backend_tokenizer.normalizer = normalizers.NFC()
    return fast


def dropping_tokenizer(template: str | None = TEMPLATE):
    """Return a word tokenizer that lower-cases, drops white space and knows few characters (as in BERT)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<unk>", *SPECIAL_TOKENS]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return wrap_tokenizer(tokenizer, template)


TOKENIZERS = {
    "byte-level": byte_level_tokenizer,
    "byte-level, offsets trimmed": lambda: byte_level_tokenizer(trim_offsets=True),
    "byte-level, NFC": normalising_tokenizer,
    "metaspace BPE, prefix first": sentencepiece_tokenizer,
    "metaspace BPE, prefix always": lambda: sentencepiece_tokenizer(prepend="always"),
    "metaspace BPE, no prefix": lambda: sentencepiece_tokenizer(prepend="never"),
    "metaspace unigram": lambda: sentencepiece_tokenizer("unigram", "always"),
    "word pieces": dropping_tokenizer,
}
"""Name -> a function that builds the tokenizer."""
