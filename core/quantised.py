"""Are the weights in a folder quantised, and how? Read from config.json and the headers of the files; nothing is loaded.

Weights that their configuration calls quantised are refused at loading: gradients, LoRA and the merged export need plain ones.
"""

import json
import re
import struct
from pathlib import Path

from core.config_switches import entries

HEADER_BYTES = 100_000_000
"""Longest header of a safetensors file. Source: the format's own limit."""
_QUANTISED = re.compile(r"I8|U8|I4|U4|F4|F6|F8")
"""Types of tensors in safetensors files that hold quantised weights."""


def quantisation_of(config: dict) -> str | None:
    """Return the method, and bits if they are told, of a `quantization_config` at any depth of a config.json, or None."""
    values = [value for key, value in entries(config) if key == "quantization_config" and value is not None]
    if not values:
        return None
    found = values[0] if isinstance(values[0], dict) else {}
    method = found.get("quant_method", "a method that is not named")
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    return f"{str(method)[:40]}" + (f", {str(bits)[:4]} bits" if bits else "")


def quantised(folder: Path) -> str | None:
    """Return how the weights in a folder are quantised, from its config.json and the headers of its files, or None."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    named = quantisation_of(config if isinstance(config, dict) else {})
    if named is not None:
        return named
    types = {kind for file in sorted(folder.glob("*.safetensors")) for kind in tensor_types(file)}
    low = sorted(kind for kind in types if _QUANTISED.match(kind))
    return f"tensors of type {', '.join(low)}" if low else None


def tensor_types(file: Path) -> set[str]:
    """Return the types of the tensors in a safetensors file, from its header; none when it cannot be read."""
    try:
        with open(file, "rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length)) if length <= HEADER_BYTES else {}
        return {str(one["dtype"]) for name, one in header.items() if name != "__metadata__"}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
