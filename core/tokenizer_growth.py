"""How much longer a tokenizer can make a text, from its tokenizer.json, before any library reads that file.

Each step of normalizer, pre-tokenizer and decoder works on what the one before it made, so two dozen steps that double a text
make gigabytes of one word, and the library then aborts the process. A step is counted by the most characters it makes of one, and
steps multiply; the end of the text is one, since something may be put there. Characters are counted taken apart (NFKD), so that no
Unicode form in between makes more of them.
What this does not do: bound how long a pattern takes, or what a vocabulary makes of the text.
"""

from base64 import b64decode
from collections.abc import Iterator
from math import inf, prod
from pathlib import Path
from typing import Any
from unicodedata import normalize

from core.errors import ModelLoadError
from core.weight_files import read_json

MAX_GROWTH = 256
"""Times as long as it was that a text may become. Source: unverified choice (T5 and ALBERT have 72 by this count)."""
_MADE = {
    "ByteLevel": 10,  # four bytes and a space before them, each as a letter that can be taken apart
    "Metaspace": 2,
    "handle_chinese_chars": 3,  # BertNormalizer: a space on either side
    "prefix": 2,  # WordPiece
    "suffix": 2,  # BPEDecoder: an empty one is found before every character
    "word_delimiter_token": 2,  # CTC: likewise
}
"""The most characters that a step makes of one, by its type or, where the library can do without that, by an entry it has."""


def check_growth(file: Path) -> None:
    """Raise ModelLoadError when a tokenizer.json can make a text more than `MAX_GROWTH` times as long."""
    data = read_json(file)
    for parts in (("normalizer", "pre_tokenizer"), ("decoder",)):
        if prod(_made(step) for part in parts for step in _steps(data.get(part))) > MAX_GROWTH:
            raise ModelLoadError(
                f"the {' and '.join(parts)} in {file} can make a text more than {MAX_GROWTH} times as long, which known tokenizers do "
                "not: copy tokenizer.json from where the model was published"
            )


def _steps(part: object) -> Iterator[dict[str, Any]]:
    """Yield every object inside a part of the file, at any depth."""
    waiting = [part]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _made(step: dict[str, Any]) -> float:
    """Return the most characters that a step makes of one, at least 1."""
    made = [1.0, *(_MADE[name] for name in (str(step.get("type")), *step) if name in _MADE)]
    if "prepend" in step:
        made.append(1 + _length(step["prepend"]))
    if "precompiled_charsmap" in step:
        made.append(_longest(step["precompiled_charsmap"]))
    if "pattern" in step and "content" in step:
        pattern, content = step["pattern"], _length(step["content"])
        found = pattern.get("String") if isinstance(pattern, dict) else None
        # An expression may match nothing, as an empty text does: then the character stays, behind what is put there.
        made.append(content / len(found) if isinstance(found, str) and found else 1 + content)
    return float(max(made))


def _length(text: object) -> float:
    """Return the number of characters of a text taken apart; of one that is too long in any case no end."""
    if not isinstance(text, str):
        return 0
    return len(normalize("NFKD", text)) if len(text) <= MAX_GROWTH else inf


def _longest(charsmap: object) -> float:
    """Return the length of the longest text that a character map of SentencePiece puts in a character's place.

    Source: sentencepiece, `EncodePrecompiledCharsMap`: the length of a trie in four bytes, the trie, and the texts, each with a NUL behind it.
    """
    try:
        data = b64decode(str(charsmap))
    except ValueError:
        return inf
    texts = {*data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")}
    return max(_length(one.decode("utf-8", "replace")) for one in texts)
