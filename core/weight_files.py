"""Model folders before any library reads them: plain files only, inside the folder, and safetensors headers that add up.

A header is JSON behind its length; every tensor names type, shape and place. Places must lie in the file, one after the
other without gap or overlap, each as long as type and shape say. Source: the safetensors format description, version 0.8.
What this does not do: read a weight.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import psutil

from core.errors import ModelLoadError
from core.files import unique

MAX_HEADER_BYTES = 100_000_000
"""Bytes of a header. Source: the limit of the safetensors library."""
MAX_TEXT_BYTES = 100_000_000
"""Bytes of a vocabulary or an index. Source: unverified choice (the largest known tokenizer.json has 35 MB)."""
MAX_SETTINGS_BYTES = 10_000_000
"""Bytes of what is read whole at intake: a configuration, a template. Source: unverified choice (known ones have 2 MB)."""
COPIES = 4
"""Times this machine's memory that a folder's files may have together (a model beside its training checkpoints).
Source: unverified choice."""
MAX_DIMENSIONS = 64
"""Dimensions of a tensor. Source: the limit of PyTorch."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The weights in the folder of an adapter. Source: the PEFT library."""
SETTINGS_ENDS = ("config.json", ".jinja")
TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model")
READ_SUFFIXES = (".safetensors", *TEXT_SUFFIXES)
"""Files of a model or adapter folder that are hashed and read: weights, configuration, tokenizer, template."""
_NAMING = (
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "target_parameters",
    "trainable_token_indices", "rank_pattern", "alpha_pattern",
)  # fmt: skip
"""Entries of an adapter's configuration that PEFT compares with every module, most of them as regular expressions."""
_PLAIN_NAME = re.compile(r"\^?[\w.-]+")
MAX_NAMES = 1_000
"""Names that such an entry may hold, where the adapter has fewer tensors. Source: unverified choice."""
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of an element, by the name of its type."""
_MESSAGE_LENGTH = 240
"""Characters of a library's message that are quoted, so that an error stays one line."""

Shapes = dict[str, tuple[int, ...]]


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's message, shortened, or its class name."""
    lines = str(error).strip().splitlines()
    return (lines[0][:_MESSAGE_LENGTH] if lines else "") or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file. Raises: ModelLoadError when it is no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON ({one_line(error)}): copy the file again") from error
    if not isinstance(data, dict):
        raise ModelLoadError(f"{path} holds no JSON object: copy the file again")
    return data


def check_files(folder: Path) -> None:
    """Raise ModelLoadError for a file that leads out of the folder, is no plain file, or has an absurd size.

    Sizes are those of files that are hashed or read; together they may have `COPIES` times this machine's memory.
    """
    root, memory, n_bytes = folder.resolve(), psutil.virtual_memory().total, 0
    for path in sorted(folder.rglob("*")):
        try:
            inside = root in path.resolve().parents
        except (OSError, RuntimeError):  # a link to itself
            inside = False
        if not inside:
            raise ModelLoadError(f"{path} is a link out of the folder: copy the file in its place")
        if not path.is_file() and not path.is_dir():
            raise ModelLoadError(f"{path} is no plain file: remove it")
        if path.suffix not in READ_SUFFIXES or path.is_dir():
            continue
        size, most = path.stat().st_size, memory
        if path.name.endswith(SETTINGS_ENDS):
            most = MAX_SETTINGS_BYTES
        elif path.suffix in TEXT_SUFFIXES:
            most = MAX_TEXT_BYTES
        if size > most:
            raise ModelLoadError(f"{path} has {size:,} bytes, at most {most:,} are read here: copy the file again")
        n_bytes += size
    if n_bytes > COPIES * memory:
        raise ModelLoadError(
            f"the files in {folder} have {n_bytes / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory: "
            "keep the model alone in its folder"
        )


def check_weights(folder: Path, stem: str) -> Shapes:
    """Return the shape of every tensor by name, from headers alone. Raises: ModelLoadError unless all files are sound."""
    shards = sorted(path.name for path in folder.glob("shard-*-model-*.safetensors*"))
    if shards:
        raise ModelLoadError(
            f"{folder} has {shards[0]!r}, whose name makes the library read a distributed checkpoint in place of the weights "
            "that are checked here: remove that file"
        )
    index = folder / f"{stem}.safetensors.index.json"
    names = [f"{stem}.safetensors"]
    if index.is_file() and not (folder / names[0]).is_file():
        table = read_json(index).get("weight_map")
        names = sorted({str(name) for name in table.values()}) if isinstance(table, dict) else []
        if not names or not all(_plain_weights(name) for name in names):
            raise ModelLoadError(f"{index} does not name the weight files of its folder: copy the model again")
    elif not (folder / names[0]).is_file():
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        if pickles:
            raise ModelLoadError(
                f"{folder} has pickle weights only ({pickles[0]}), which can run code when read: "
                "convert them to safetensors"
            )
        raise ModelLoadError(f"{folder} has no {names[0]}: copy the model's safetensors files there")
    shapes: Shapes = {}
    for name in names:
        if not (folder / name).is_file():
            raise ModelLoadError(f"{folder} lacks {name}, which its index names: copy that file too")
        shapes |= header(folder / name)
    n_bytes, most = sum((folder / name).stat().st_size for name in names), psutil.virtual_memory().total
    if n_bytes > most:
        raise ModelLoadError(
            f"the weights in {folder} have {n_bytes / 1e9:.1f} GB, this machine has {most / 1e9:.1f} GB of memory: "
            "use a machine that holds them"
        )
    return shapes


def _plain_weights(name: str) -> bool:
    """Whether a name is that of a safetensors file in the same folder. What is named otherwise is read as a pickle."""
    return name.endswith(".safetensors") and Path(name).name == name and not set("\\:") & set(name)


def check_names(folder: Path, config: Mapping[str, Any], n_tensors: int) -> None:
    """Raise ModelLoadError unless an adapter's configuration names modules plainly, and not far more than it has tensors."""
    for key in _NAMING:
        value = config.get(key)
        names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else []
        if len(names) > max(n_tensors, MAX_NAMES):
            raise ModelLoadError(f"{folder} holds {len(names):,} entries under {key}: copy adapter_config.json again")
        patterns = [str(name)[:40] for name in names if not _PLAIN_NAME.fullmatch(str(name))]
        if patterns:
            raise ModelLoadError(
                f"{folder} names modules by a pattern, which may never end ({key}: {patterns[0]!r}): list there the plain "
                "names of the modules"
            )


def header(path: Path) -> Shapes:
    """Return the shape of every tensor of a safetensors file by name. Raises: ModelLoadError unless the header adds up."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(path, f"the header says it has {length:,} bytes of the file's {size:,}")
        raw = file.read(length)
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON, {one_line(error)}") from error
    if not isinstance(data, dict):
        raise _damaged(path, "its header is no JSON object")
    data.pop("__metadata__", None)
    shapes, places = {}, []
    for name, entry in data.items():
        shape, start, end = _entry(path, name, entry)
        shapes[name] = shape
        places.append((start, end, name))
    reached = 0
    for start, end, name in sorted(places):
        if start != reached:
            raise _damaged(path, f"tensor {name[:80]} {'overlaps another' if start < reached else 'leaves a gap'}")
        reached = end
    if reached != size - 8 - length:
        raise _damaged(path, f"its tensors end at byte {reached:,} of {size - 8 - length:,}")
    return shapes


def _damaged(path: Path, why: str) -> ModelLoadError:
    return ModelLoadError(f"{path} is damaged or cut short ({why}): copy it again")


def _entry(path: Path, name: str, entry: object) -> tuple[tuple[int, ...], int, int]:
    """Return shape, first and last byte of one tensor, which must agree."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(path, f"tensor {name[:80]} has the unknown type {str(dtype)[:40]!r}")
    if not _whole_numbers(shape, MAX_DIMENSIONS) or not _whole_numbers(place, 2) or len(place) != 2:
        raise _damaged(path, f"tensor {name[:80]} has no shape or place of whole numbers from 0")
    n_bits = math.prod(shape) * BITS[dtype]
    start, end = place
    if n_bits % 8 or end - start != n_bits // 8:
        raise _damaged(path, f"tensor {name[:80]} has {end - start:,} bytes, its type and shape say {n_bits // 8:,}")
    return tuple(shape), start, end


def _whole_numbers(value: Any, most: int) -> TypeGuard[list[int]]:
    """Whether the value is a list of at most `most` numbers that fit 63 bits."""
    return (
        isinstance(value, list) and len(value) <= most and all(type(one) is int and 0 <= one < 2**63 for one in value)
    )
