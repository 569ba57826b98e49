"""Entries of a folder's settings by which a library would read other files, or use other classes, than are checked here.

1. config.json, at any depth: weights or settings by another name, renamed attributes, patches, kernels from the network.
2. tokenizer_config.json: vocabularies by another name. special_tokens_map.json may name tokens only, for what it holds goes
   before the paths that the library found in the folder.
3. A class of the tokenizer that is no tokenizer: a model's class would read weights, and ask whether to run code.

What this does not do: read weights or vocabularies. Names in an index of weight files are checked in weight_files.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import ModelLoadError
from core.weight_files import read_json

_MODEL_SWITCHES = ("transformers_weights", "configuration_files", "attribute_map", "fusion_config", "_auto_class")
"""Entries of config.json that name other weights or settings, rename attributes, patch classes, or copy code at saving."""
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
_TOKENIZER_SWITCHES = ("fast_tokenizer_files", "gguf_file", "init_inputs", "tokenizer_object")
_INLINE = ("vocab", "merges")
"""Entries that may hold a vocabulary; as a text they are the path of one."""
_OVERRULED = ("tokenizer_file", "added_tokens_file", "special_tokens_map_file")
"""Entries in whose place the library always puts what it found in the folder. Old folders have them."""
_TOKEN = re.compile(r"\w+_tokens?(_ids?)?")
_REMOVE = "by which other files would be read than are checked here: remove that entry"


def entries(settings: object) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of a JSON value, at any depth."""
    waiting = [settings]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def check_config(file: Path, config: dict[str, Any]) -> None:
    """Raise ModelLoadError when a config.json would have the library read, fetch or change something else."""
    for key, value in entries(config):
        if key in _MODEL_SWITCHES and value is not None:
            raise ModelLoadError(f"{file} has the entry {key!r}, {_REMOVE}")
        if key in _KERNELS and "/" in str(value):
            raise ModelLoadError(f"{file} asks for a kernel from the network ({key}): remove that entry")


def check_tokenizer(folder: Path) -> None:
    """Raise ModelLoadError when the settings of a folder's tokenizer name files. A tokenizer.json is taken whole."""
    file, whole = folder / "tokenizer_config.json", (folder / "tokenizer.json").is_file()
    for key, value in _settings(file).items():
        elsewhere = key in _TOKENIZER_SWITCHES and value
        path = isinstance(value, str) and (key in _INLINE or (key.endswith("_file") and not whole))
        if elsewhere or (path and key not in _OVERRULED):
            raise ModelLoadError(f"{file} has the entry {key!r}, {_REMOVE}")
    file = folder / "special_tokens_map.json"
    for key in _settings(file):
        if not _TOKEN.fullmatch(key):
            raise ModelLoadError(f"{file} has the entry {key[:40]!r}, which names no token: remove that entry")


def check_tokenizer_class(folder: Path) -> None:
    """Raise ModelLoadError when the class that a folder names for its tokenizer is none."""
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    for file in (folder / "tokenizer_config.json", folder / "config.json"):
        name = _settings(file).get("tokenizer_class")
        if name is None:
            continue
        plain = str(name).removesuffix("Fast")
        kinds = [tokenizer_class_from_name(one) for one in (str(name), plain, f"{plain}Fast")]
        if any(not isinstance(kind, type) or not issubclass(kind, PreTrainedTokenizerBase) for kind in kinds if kind):
            raise ModelLoadError(
                f"{file} names {plain[:40]!r} as the tokenizer's class, which is none: remove that entry"
            )


def _settings(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
