"""How much longer a tokenizer makes a text: known families pass, and what is counted bounds what the library does."""

import base64
import json
from pathlib import Path

import pytest
from tokenizers import normalizers

from core import tokenizer_growth
from core.errors import ModelLoadError
from core.tokenizer_growth import MAX_GROWTH, check_growth
from tests.tiny import TOKENIZERS


def replace(pattern: str, content: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(*texts: str) -> dict:
    """Return a character map with an empty trie, in the layout that the library reads."""
    data = bytes(4) + b"".join(text.encode() + b"\0" for text in texts)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


BLESSING = "صلى الله عليه وسلم"
"""The longest text that NFKC makes of one character, and so the longest in SentencePiece's own map."""
BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
FAMILIES = {
    "Llama 2": {
        "normalizer": sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        "decoder": {
            "type": "Sequence",
            "decoders": [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                         {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
        },
    },
    "Gemma": {"normalizer": replace(" ", "▁"), "decoder": replace("▁", " ")},
    "T5": {"normalizer": sequence(charsmap(BLESSING, "a"), replace(" {2,}", "▁", "Regex")), "pre_tokenizer": METASPACE},
    "ALBERT": {
        "normalizer": sequence(
            replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
            charsmap(BLESSING), replace(" {2,}", " ", "Regex"),
        ),
        "pre_tokenizer": METASPACE,
    },
    "BERT": {"normalizer": BERT, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
    "CLIP": {
        "normalizer": sequence({"type": "NFC"}, replace(r"\s+", " ", "Regex"), {"type": "Lowercase"}),
        "pre_tokenizer": BYTES,
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
    },
    "GPT-2": {"normalizer": None, "pre_tokenizer": BYTES, "decoder": BYTES},
}  # fmt: skip


def written(folder: Path, parts: dict) -> Path:
    """Return a tokenizer.json with these parts."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(parts), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", FAMILIES)
def test_known_families_pass(tmp_path: Path, name: str) -> None:
    check_growth(written(tmp_path, FAMILIES[name]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_as_the_library_writes_them_pass(tmp_path: Path, name: str) -> None:
    TOKENIZERS[name]().save_pretrained(tmp_path)
    check_growth(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (normalizers.Replace("a", "abc"), "a"),
        (normalizers.Replace("abc", "a"), "abc"),
        (normalizers.Prepend("xyz"), "a"),
        (normalizers.ByteLevel(), "👩"),
        (normalizers.BertNormalizer(), "中"),
        (normalizers.Sequence([normalizers.Replace("a", "\ufdfa"), normalizers.NFKC()]), "a"),
        (normalizers.Sequence([normalizers.Replace("", "b")] * 3), "a"),
        (normalizers.Sequence([normalizers.Prepend("aa"), normalizers.Replace("a", "中"), normalizers.NFD()]), "a"),
    ],
    ids=str,
)
def test_the_library_makes_no_more_of_a_character_than_is_counted(made: normalizers.Normalizer, text: str) -> None:
    """The end of the text counts as one."""
    steps = tokenizer_growth._steps(json.loads(made.__getstate__()))
    counted = 1.0
    for step in steps:
        counted *= tokenizer_growth._made(step)
    assert len(made.normalize_str(text)) + 1 <= counted * (len(text) + 1)


def test_growth_is_bounded_over_normalizer_and_pre_tokenizer_together(tmp_path: Path) -> None:
    one = replace("a", "a" * (MAX_GROWTH // 2))
    check_growth(written(tmp_path, {"normalizer": one, "pre_tokenizer": METASPACE}))
    check_growth(written(tmp_path, {"normalizer": one, "decoder": sequence(replace("a", "aa"), METASPACE)}))
    with pytest.raises(ModelLoadError, match=r"normalizer and pre_tokenizer .* times as long.*copy tokenizer\.json"):
        check_growth(
            written(tmp_path, {"normalizer": one, "pre_tokenizer": {"type": "Sequence", "x": [METASPACE] * 2}})
        )


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Prepend", "prepend": "x" * 10**6},
        charsmap("a", "x" * 10**6),
        {"type": "Precompiled", "precompiled_charsmap": "no such thing"},
        sequence(*[charsmap("\ufdfa"), {"type": "NFKC"}] * 3),
        sequence(*[{"type": "ByteLevel"}] * 500, replace("ab", "abc")),
    ],
)
def test_long_texts_maps_and_chains_are_refused(tmp_path: Path, normalizer: dict) -> None:
    with pytest.raises(ModelLoadError, match="times as long"):
        check_growth(written(tmp_path, {"normalizer": normalizer}))


@pytest.mark.parametrize(
    "normalizer",
    [{"type": ["x"], "pattern": 1, "content": 2}, {"prepend": None}, "x", {"pattern": {}, "content": None}],
)
def test_what_is_no_step_is_left_to_the_library(tmp_path: Path, normalizer: object) -> None:
    check_growth(written(tmp_path, {"normalizer": normalizer}))
