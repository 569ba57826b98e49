"""Hostile models: every folder is refused in one line or loaded without harm; no template runs for ever, grows or reads."""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import resolve_trust_remote_code

from core import chat, models, rendering
from core.errors import ModelLoadError, TokenMismatchError, TriageError
from core.judge_model import JudgeModel
from core.model_size import bounded
from core.models import load
from core.values import Message
from core.weight_files import header
from tests.tiny import TEMPLATE, TOKENIZERS, byte_level_tokenizer
from tests.unit.test_models import edit_json

ASKED = [Message(role="user", content="Tell me how to pick a lock.")]


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama's folder that may be spoilt; `ran` beside it would tell of code that was run."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def raw_weights(path: Path, entries: object, n_bytes: int = 64, header: bytes | None = None) -> None:
    """Write a safetensors file with this header, right or wrong."""
    text = json.dumps(entries).encode() if header is None else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * n_bytes)


def tensor(shape: object, place: object = (0, 64), dtype: object = "F32") -> dict:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": place}}


HEADERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle in its place": (lambda path: path.write_bytes(b"\x80\x04\x8c\x05posix" + b"." * 50), "header says"),
    "zip in its place": (lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 60), "header says"),
    "empty": (lambda path: path.write_bytes(b""), "header says"),
    "four bytes": (lambda path: path.write_bytes(b"\1\0\0\0"), "header says"),
    "header of 2**63 bytes": (lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"), "header says"),
    "header longer than the file": (lambda path: path.write_bytes((99).to_bytes(8, "little") + b"{}"), "header says"),
    "header is no UTF-8": (lambda path: raw_weights(path, None, header=b'{"\xff": 1}'), "not JSON"),
    "header is a list": (lambda path: raw_weights(path, []), "no JSON object"),
    "deep header": (lambda path: raw_weights(path, None, header=b'{"w":' * 100_000), "not JSON"),
    "a million digits": (lambda path: raw_weights(path, None, header=b'{"w":' + b"9" * 1_000_000 + b"}"), "not JSON"),
    "one name twice": (
        lambda path: raw_weights(path, None, header=json.dumps(tensor([16])).encode()[:-1] + b', "w": {}}'), "stands twice"),
    "negative shape": (lambda path: raw_weights(path, tensor([-16])), "whole numbers"),
    "two negatives": (lambda path: raw_weights(path, tensor([-4, -4])), "whole numbers"),
    "fractions": (lambda path: raw_weights(path, tensor([16.0])), "whole numbers"),
    "truth for a number": (lambda path: raw_weights(path, tensor([True])), "whole numbers"),
    "huge shape": (lambda path: raw_weights(path, tensor([2**62, 2**62])), "type and shape say"),
    "shape beyond 64 bits": (lambda path: raw_weights(path, tensor([2**64, 1])), "whole numbers"),
    "product beyond 64 bits": (lambda path: raw_weights(path, tensor([2**33, 2**33])), "type and shape say"),
    "thousand dimensions": (lambda path: raw_weights(path, tensor([1] * 1000 + [16])), "whole numbers"),
    "no shape": (lambda path: raw_weights(path, {"w": {"dtype": "F32", "data_offsets": [0, 64]}}), "whole numbers"),
    "entry is a text": (lambda path: raw_weights(path, {"w": "../../etc/passwd"}), "unknown type"),
    "unknown type": (lambda path: raw_weights(path, tensor([16], dtype="OBJECT")), "unknown type"),
    "type is a list": (lambda path: raw_weights(path, tensor([16], dtype=["F32"])), "unknown type"),
    "place before the file": (lambda path: raw_weights(path, tensor([16], (-64, 0))), "whole numbers"),
    "place after the file": (lambda path: raw_weights(path, tensor([16], (64, 128))), "leaves a gap"),
    "place runs backwards": (lambda path: raw_weights(path, tensor([16], (64, 0))), "type and shape say"),
    "shorter than its shape": (lambda path: raw_weights(path, tensor([32])), "type and shape say"),
    "overlapping": (
        lambda path: raw_weights(path, tensor([16]) | {"v": {"dtype": "F32", "shape": [16], "data_offsets": [32, 96]}}, 96),
        "overlaps another",
    ),
    "the same place twice": (
        lambda path: raw_weights(path, tensor([16]) | {"v": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}),
        "overlaps another",
    ),
    "a gap": (
        lambda path: raw_weights(path, tensor([16]) | {"v": {"dtype": "F32", "shape": [4], "data_offsets": [80, 96]}}, 96),
        "leaves a gap",
    ),
    "cut": (lambda path: raw_weights(path, tensor([16]), 40), "tensors end at"),
    "bytes behind the last tensor": (lambda path: raw_weights(path, tensor([16]), 80), "tensors end at"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_add_up(tmp_path: Path, name: str) -> None:
    spoil, words = HEADERS[name]
    path = tmp_path / "model.safetensors"
    spoil(path)
    with pytest.raises(ModelLoadError, match="damaged or cut short") as caught:
        header(path)
    assert words in str(caught.value)


def test_headers_that_do(tiny_folder: Callable[[str], Path]) -> None:
    from safetensors import safe_open

    path = tiny_folder("llama") / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        assert header(path) == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def swap(path: Path, target: Path | str) -> None:
    """Put a link in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def moved(path: Path) -> None:
    """Move a file out of its folder and put a link in its place."""
    swap(path, shutil.move(path, path.parent.parent / path.name))


def indexed(folder: Path, name: str) -> None:
    """Move the weights to where an index names them, outside the folder."""
    weights = folder.parent / "outside.safetensors"
    shutil.move(folder / "model.safetensors", weights)
    shutil.copy(weights, folder / "other.safetensors")
    table = {"weight_map": {"lm_head.weight": name.replace("OUT", str(folder.parent))}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))


def sparse(path: Path, n_bytes: int) -> None:
    with open(path, "ab"):
        os.truncate(path, n_bytes)


def tokenizer_json(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def named_weights(folder: Path, name: str, where: str = "transformers_weights", **changes: object) -> None:
    """Have config.json name weights of our own making, which would load; they are neither checked nor hashed."""
    tensors = {key: value * 2 for key, value in load_file(folder / "model.safetensors").items()}
    torch.save(tensors, folder / "adapter_model.bin")
    for path in (folder / "other.safetensors", folder.parent / "outside.safetensors"):
        save_file(tensors, path, {"format": "pt"})
    outside = "../outside.safetensors" if name.startswith("up") else str(folder.parent / "outside.safetensors")
    table = {"metadata": {}, "weight_map": dict.fromkeys(tensors, outside)}
    for index in ("up.safetensors.index.json", "absolute.safetensors.index.json"):
        (folder / index).write_text(json.dumps(table))
    edit_json(folder / "config.json", **{where: name}, **changes)


def shard(folder: Path) -> None:
    """Put weights of our own making under the name of a distributed checkpoint's shard; those that are checked go unused."""
    tensors = load_file(folder / "model.safetensors")
    twice = {key: value * 2 for key, value in tensors.items()}
    save_file(twice, folder / "shard-00001-model-00001-of-00001.safetensors", {"format": "pt"})
    save_file({f"not.{key}": value for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def second_configuration(folder: Path) -> None:
    """Have config.json name another one, of which nothing is checked."""
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    edit_json(folder / "config.4.0.0.json", rms_norm_eps=0.5)
    edit_json(folder / "config.json", configuration_files=["config.4.0.0.json"])


def secret(folder: Path) -> Path:
    """Return a tokenizer outside the folder in which one word is another; its vocabulary and merges lie beside it."""
    outside = folder.parent / "outside" / "tokenizer.4.0.0.json"
    outside.parent.mkdir(exist_ok=True)
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
    vocabulary["SECRET"] = vocabulary.pop("".join(merges.pop()))
    outside.write_text(json.dumps(data))
    (outside.parent / "vocab.json").write_text(json.dumps(vocabulary))
    (outside.parent / "merges.txt").write_text("\n".join(" ".join(pair) for pair in merges))
    return outside


def named_tokenizer(folder: Path, file: str, whole: bool = True, **named: object) -> None:
    """Have settings of the tokenizer name that one (OUT) or what is BESIDE it; without tokenizer.json when not `whole`."""
    outside = str(secret(folder))
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    if not whole:
        (folder / "tokenizer.json").unlink()
    path = folder / file
    path.write_text(path.read_text() if path.is_file() else "{}")
    text = json.dumps(named).replace("OUT", outside).replace("BESIDE", str(Path(outside).parent))
    edit_json(path, **json.loads(text))


def put(pattern: str, content: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def growing(folder: Path, part: str, steps: list) -> None:
    """Give the tokenizer ten rounds of steps that lengthen a text; thirty would take the process along, where nothing refused them."""
    names = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    tokenizer_json(folder, lambda t: t.update({part: {"type": "Sequence", names[part]: steps * 10}}))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TWICE = put("a", "aa")
GROWING: dict[str, tuple[str, list]] = {
    "a letter twice": ("normalizer", [TWICE]),
    "in a sequence in a sequence": (
        "normalizer", [{"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [TWICE]}]}]),
    "by a type that is none": ("normalizer", [TWICE | {"type": "NFC2"}]),
    "by no type": ("normalizer", [{"pattern": {"String": "a"}, "content": "aa"}]),
    "by a pattern that matches nothing": ("normalizer", [put("(?=a)", "a", "Regex")]),
    "by nothing to be replaced": ("normalizer", [put("", "a")]),
    "in front and all over": ("normalizer", [{"type": "Prepend", "prepend": "abab"}, put("b", "a")]),
    "a letter that Unicode takes apart": ("normalizer", [put(" ", "\ufdfa"), {"type": "NFKC"}]),
    "bytes of bytes": ("normalizer", [{"type": "ByteLevel"}]),
    "spaces around signs": (
        "normalizer",
        [{"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": True, "strip_accents": False, "lowercase": False},
         put(" ", "\u4e2d")],
    ),
    "bytes of bytes, before splitting": ("pre_tokenizer", [BYTES]),
    "marks before letters": (
        "pre_tokenizer",
        [{"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
         {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": False},
         {"type": "Metaspace", "replacement": "-", "prepend_scheme": "always", "split": False}],
    ),
    "a letter of the answer twice": ("decoder", [TWICE]),
    "spaces between letters of the answer": ("decoder", [{"type": "BPEDecoder", "suffix": ""}]),
}  # fmt: skip
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "other weights are a pickle": (lambda f: named_weights(f, "adapter_model.bin"), "'transformers_weights'"),
    "other weights": (lambda f: named_weights(f, "other.safetensors"), "'transformers_weights'"),
    "other weights by a path above": (lambda f: named_weights(f, "up.safetensors.index.json"), "'transformers_weights'"),
    "other weights by an absolute path": (
        lambda f: named_weights(f, "absolute.safetensors.index.json"), "'transformers_weights'"),
    "other weights under a name of its own": (
        lambda f: named_weights(f, "other.safetensors", "note", attribute_map={"transformers_weights": "note"}),
        "'attribute_map'",
    ),
    "other weights further in": (
        lambda f: edit_json(f / "config.json", text_config={"transformers_weights": "x.safetensors"}), "'transformers_weights'"),
    "index names what is read as a pickle": (
        lambda f: (shutil.move(f / "model.safetensors", f / "weights.bin"), (f / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "weights.bin"}}))),
        "does not name the weight files",
    ),
    "a shard of a distributed checkpoint": (shard, "distributed checkpoint"),
    "another configuration": (second_configuration, "'configuration_files'"),
    "patches of classes": (lambda f: edit_json(f / "config.json", fusion_config={"patch_embeddings": True}), "'fusion_config'"),
    "code to be copied": (lambda f: edit_json(f / "config.json", _auto_class="AutoConfig"), "'_auto_class'"),
    "a kernel further in": (
        lambda f: edit_json(f / "config.json", text_config={"attn_implementation": "a/b"}), "kernel from the network"),
    "a kernel for experts": (lambda f: edit_json(f / "config.json", experts_implementation="a/b"), "kernel from the network"),
    "a tokenizer above": (
        lambda f: named_tokenizer(f, SETTINGS, fast_tokenizer_files=["../outside/tokenizer.4.0.0.json"]),
        "'fast_tokenizer_files'",
    ),
    "a tokenizer anywhere": (lambda f: named_tokenizer(f, SETTINGS, fast_tokenizer_files=["OUT"]), "'fast_tokenizer_files'"),
    "a tokenizer in place of the one found": (lambda f: named_tokenizer(f, SPECIAL, tokenizer_file="OUT"), "'tokenizer_file'"),
    "another folder's name": (lambda f: named_tokenizer(f, SPECIAL, name_or_path="OUT"), "'name_or_path'"),
    "a file of another format": (lambda f: named_tokenizer(f, SETTINGS, False, gguf_file="OUT"), "'gguf_file'"),
    "arguments of the tokenizer": (lambda f: named_tokenizer(f, SETTINGS, False, init_inputs=["OUT"]), "'init_inputs'"),
    "a vocabulary anywhere": (lambda f: named_tokenizer(f, SETTINGS, False, vocab="OUT"), "'vocab'"),
    "a vocabulary that the class does not look for": (
        lambda f: named_tokenizer(
            f, SETTINGS, False, tokenizer_class="GemmaTokenizer", vocab_file="BESIDE/vocab.json", merges_file="BESIDE/merges.txt"
        ),
        "_file'",
    ),
    "merges anywhere": (lambda f: named_tokenizer(f, SETTINGS, False, merges_file="OUT"), "'merges_file'"),
    "a model for a tokenizer": (
        lambda f: named_tokenizer(f, SETTINGS, False, tokenizer_class="AutoModelForCausalLM"), "as the tokenizer's class"),
    "a function for a tokenizer": (
        lambda f: named_tokenizer(f, SETTINGS, False, tokenizer_class="pipeline"), "as the tokenizer's class"),
    "a model for a tokenizer, named by the configuration": (
        lambda f: (named_tokenizer(f, SETTINGS, False, tokenizer_class=None),
                   edit_json(f / "config.json", tokenizer_class="AutoModelForCausalLM")),
        "as the tokenizer's class",
    ),
    "settings of the tokenizer are a list": (lambda f: (f / SETTINGS).write_text("[]"), "no JSON object"),
    "index names an absolute path": (lambda f: indexed(f, "OUT/outside.safetensors"), "does not name the weight files"),
    "index names a path above": (lambda f: indexed(f, "../outside.safetensors"), "does not name the weight files"),
    "index names a path above, the other way": (lambda f: indexed(f, "..\\outside.safetensors"), "does not name"),
    "index names a drive": (lambda f: indexed(f, "C:outside.safetensors"), "does not name the weight files"),
    "index names the folder above": (lambda f: indexed(f, ".."), "does not name the weight files"),
    "index names nothing": (lambda f: indexed(f, ""), "does not name the weight files"),
    "weights are a link out": (lambda f: moved(f / "model.safetensors"), "link out of the folder"),
    "configuration is a link out": (lambda f: moved(f / "config.json"), "link out of the folder"),
    "tokenizer is a link out": (lambda f: swap(f / "tokenizer.json", "/etc/passwd"), "link out of the folder"),
    "template is a link out": (lambda f: swap(f / "chat_template.jinja", "/etc/passwd"), "link out of the folder"),
    "a folder is a link out": (lambda f: swap(f / "more", "/etc"), "link out of the folder"),
    "a link that leads nowhere": (lambda f: swap(f / "more", f / "nothing"), "no plain file"),
    "a link to itself": (lambda f: swap(f / "more", f / "more"), ""),
    "a pipe": (lambda f: os.mkfifo(f / "special_tokens_map.json.pipe"), "no plain file"),
    "configuration of a gigabyte": (lambda f: sparse(f / "config.json", 10**9), "at most"),
    "vocabulary of a gigabyte": (lambda f: sparse(f / "tokenizer.json", 10**9), "at most"),
    "weights larger than the machine": (
        lambda f: (raw_weights(f / "model.safetensors", tensor([10**12], (0, 4 * 10**12)), 0),
                   sparse(f / "model.safetensors", (f / "model.safetensors").stat().st_size + 4 * 10**12)),
        "at most",
    ),
    "a trillion words": (lambda f: edit_json(f / "config.json", vocab_size=10**12), "do not fit its config.json"),
    "a billion layers": (lambda f: edit_json(f / "config.json", num_hidden_layers=10**9), "do not fit its config.json"),
    "a billion blocks": (lambda f: edit_json(f / "config.json", num_blocks=10**9), "do not fit its config.json"),
    "a billion labels": (lambda f: edit_json(f / "config.json", num_labels=10**9), "do not fit its config.json"),
    "a billion layers in a list": (
        lambda f: edit_json(f / "config.json", attention_types=[[["global"], 10**9]]), "do not fit its config.json"),
    "a trillion wide": (lambda f: edit_json(f / "config.json", hidden_size=10**12), "config.json"),
    "negative width": (lambda f: edit_json(f / "config.json", hidden_size=-32), "config.json"),
    "no heads": (lambda f: edit_json(f / "config.json", num_attention_heads=0), "config.json"),
    "deep configuration": (lambda f: (f / "config.json").write_text('{"a":' * 100_000), "cannot be read as JSON"),
    "vocabulary with a huge id": (
        lambda f: tokenizer_json(f, lambda t: t["model"]["vocab"].update({"<x>": 2**31})), "token ids up to"),
    "vocabulary with a negative id": (
        lambda f: tokenizer_json(f, lambda t: t["model"]["vocab"].update({"<x>": -1})), "tokenizer in"),
    "merges of unknown tokens": (
        lambda f: tokenizer_json(f, lambda t: t["model"]["merges"].append(["nowhere", "no"])), "tokenizer in"),
    "unknown pre-tokenizer": (
        lambda f: tokenizer_json(f, lambda t: t.update(pre_tokenizer={"type": "Exec", "cmd": "touch ran"})), "tokenizer in"),
    "a pattern that is none": (
        lambda f: tokenizer_json(f, lambda t: t.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Removed", "invert": False})),
        "tokenizer in",
    ),
    **{
        f"text without end, {name}": (lambda f, part=part, steps=steps: growing(f, part, steps), "times as long")
        for name, (part, steps) in GROWING.items()
    },
    "adapter in the model": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_refused_in_one_line(folder: Path, name: str) -> None:
    spoil, words = FOLDERS[name]
    spoil(folder)
    begun = time.monotonic()
    with pytest.raises(ModelLoadError) as caught:
        load(folder)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - begun < 60


def test_code_of_the_folder_is_not_run(folder: Path) -> None:
    """A known type with `auto_map`: the library's own class is used, for model, configuration and tokenizer."""
    witness = folder.parent / "ran"
    for name in ("evil", "modeling_llama", "tokenization_llama"):
        (folder / f"{name}.py").write_text(f"open({str(witness)!r}, 'w')\n")
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    edit_json(folder / "config.json", auto_map=names)
    edit_json(folder / "tokenizer_config.json", auto_map=names, tokenizer_class="evil.T")
    loaded = load(folder)
    assert type(loaded.model).__module__.startswith("transformers.")
    assert not witness.exists()


def test_old_folders_without_a_whole_tokenizer_are_taken(folder: Path) -> None:
    """Vocabulary and merges of their own, and paths of the machine that wrote them, which the library overrules."""
    secret(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder.parent / "outside" / name, folder / name)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    words = {
        "eos_token": "<|end|>",
        "pad_token": {"content": "<|pad|>", "lstrip": False},
        "additional_special_tokens": [],
    }
    (folder / SPECIAL).write_text(json.dumps(words))
    (folder / "tokenizer.json").unlink()
    edit_json(
        folder / SETTINGS, tokenizer_class="GPT2TokenizerFast", tokenizer_file="/home/them/tokenizer.json", init_inputs=[],
        special_tokens_map_file="/home/them/special_tokens_map.json", bos_token="<|end|>", unk_token="<|end|>",
    )  # fmt: skip
    assert vocabulary.items() <= load(folder).tokenizer.get_vocab().items()


def test_nobody_is_asked_whether_to_run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that is no tokenizer is not told that no code may be run: it asks on the terminal, and a yes runs it."""
    witness = folder.parent / "ran"
    (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    edit_json(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "evil.C"})
    named_tokenizer(folder, SETTINGS, False, tokenizer_class="AutoModel")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    with pytest.raises(ModelLoadError, match="as the tokenizer's class"):
        load(folder)
    assert not witness.exists()
    with models._quiet(), pytest.raises(ValueError, match="execute custom code"):  # as parts of a model ask for it
        resolve_trust_remote_code(None, str(folder), has_local_code=False, has_remote_code=True)


def test_files_that_a_tokenizer_names_elsewhere_are_not_read(folder: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Neither by Python, which an audit hook sees, nor by compiled code, whose vocabulary would have one word more."""
    files = (
        "tokenizer",
        "vocab",
        "merges",
        "added_tokens",
        "special_tokens_map",
        "tokenizer_config",
        "chat_template",
        "spm",
    )
    named_tokenizer(folder, SETTINGS, **{f"{name}_file": "OUT" for name in files}, name_or_path="OUT")
    opened: list[str] | None = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and opened is not None:
            opened.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")

    sys.addaudithook(watch)  # there is no way to remove it
    found, seen = load(folder).tokenizer.get_vocab(), opened
    opened = None
    assert found == load(tiny_folder("llama")).tokenizer.get_vocab()
    assert str(folder / "tokenizer_config.json") in seen
    assert not [path for path in seen if path.startswith(str(folder.parent / "outside"))]


def test_nothing_of_the_folder_is_logged(folder: Path) -> None:
    """The library logs values as they are, and its log goes to the terminal: it is silent while a folder is loaded."""
    edit_json(folder / "config.json", use_return_dict="\x1b[31mred")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        with pytest.raises(ModelLoadError):
            load(folder)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert records == []


def test_arguments_of_loading_are_not_the_folders(folder: Path, tiny_folder: Callable[[str], Path]) -> None:
    """An entry of config.json that is named like an argument would take that argument's value, and the argument away."""
    edit_json(folder / "config.json", use_safetensors=False, output_loading_info=False, ignore_mismatched_sizes=False)
    found, wanted = load(folder).model.state_dict(), load(tiny_folder("llama")).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("where", ["adapter", "judge"])
def test_adapters_and_judges_name_no_other_files(folder: Path, tiny_adapter: Path, where: str) -> None:
    """Judges pass the checks of models; an adapter's own tokenizer passes those of tokenizers."""
    other = Path(shutil.copytree(tiny_adapter if where == "adapter" else folder, folder.parent / "other"))
    shutil.copy(folder / "tokenizer.json", other / "tokenizer.json")
    named_tokenizer(
        other, SPECIAL if where == "adapter" else SETTINGS, tokenizer_file="OUT", fast_tokenizer_files=["OUT"]
    )
    if where == "judge":
        edit_json(other / "config.json", id2label={"0": "refusal", "1": "compliance"})
    with pytest.raises(ModelLoadError, match="tokenizer_file"):
        load(folder, other) if where == "adapter" else JudgeModel(other)
    if where == "judge":
        named_weights(other, "other.safetensors")
        with pytest.raises(ModelLoadError, match="transformers_weights"):
            JudgeModel(other)


@pytest.mark.parametrize("where", ["adapter", "judge"])
def test_adapters_and_judges_pass_the_same_checks(
    folder: Path, tiny_folder: Callable[[str], Path], tiny_adapter: Path, where: str
) -> None:
    other = Path(shutil.copytree(tiny_adapter if where == "adapter" else folder, folder.parent / "other"))
    swap(other / "README.md", "/etc/passwd")
    with pytest.raises(ModelLoadError, match="link out of the folder"):
        load(folder, other) if where == "adapter" else JudgeModel(other)
    (other / "README.md").unlink()
    stem = "adapter_model" if where == "adapter" else "model"
    raw_weights(other / f"{stem}.safetensors", tensor([-1]))
    with pytest.raises(ModelLoadError, match="whole numbers"):
        load(folder, other) if where == "adapter" else JudgeModel(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.ModuleList(torch.nn.Identity() for _ in range(50_000)),
        lambda: torch.nn.Linear(10_000, 10_000, device="meta"),
    ],
)
def test_modules_without_end_are_stopped_as_they_are_made(tmp_path: Path, make: Callable[[], object]) -> None:
    """Whatever name the number had in the configuration; after the block nothing is watched any more."""
    fault = pytest.raises(ModelLoadError, match=r"fit its config\.json \(it describes .* modules and more")
    with fault as caught, bounded(tmp_path / "config.json", {"w": (4,)}):
        make()
    assert len(str(caught.value).splitlines()) == 1
    make()


EVIL = r"((\w+\.?)+)+!"
ADAPTERS: dict[str, tuple[dict[str, object], str]] = {
    "a target that never ends": ({"target_modules": EVIL}, "names modules by a pattern"),
    "a target in a list": ({"target_modules": ["q_proj", EVIL]}, "names modules by a pattern"),
    "an exclusion that never ends": ({"exclude_modules": EVIL}, "names modules by a pattern"),
    "a saved module that never ends": ({"modules_to_save": [EVIL]}, "names modules by a pattern"),
    "layers that never end": ({"layers_to_transform": [0], "layers_pattern": EVIL}, "names modules by a pattern"),
    "a rank that never ends": ({"rank_pattern": {EVIL: 4}}, "names modules by a pattern"),
    "an alpha that never ends": ({"alpha_pattern": {EVIL: 4}}, "names modules by a pattern"),
    "a million ranks": ({"rank_pattern": {f"m{i}": 4 for i in range(100_000)}}, "100,000 entries under rank_pattern"),
    "a rank of millions": ({"r": 2_000_000}, "do not fit its adapter_config.json"),
    "a rank of millions in a pattern": ({"rank_pattern": {"q_proj": 2_000_000}}, "do not fit its adapter_config.json"),
    "a rank beyond 64 bits": ({"r": 10**30}, "does not fit this model"),
    "a start that takes rank times rank": ({"r": 100_000, "init_lora_weights": "orthogonal"}, "fit"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_refused_in_one_line(folder: Path, tiny_adapter: Path, name: str) -> None:
    changes, words = ADAPTERS[name]
    adapter = Path(shutil.copytree(tiny_adapter, folder.parent / "adapter"))
    edit_json(adapter / "adapter_config.json", **changes)
    begun = time.monotonic()
    with pytest.raises(ModelLoadError) as caught:
        load(folder, adapter)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - begun < 60


def test_honest_numbers_and_names_are_taken(folder: Path, tiny_adapter: Path) -> None:
    edit_json(folder / "config.json", vocab_size_per_layer_input=262_144)
    adapter = Path(shutil.copytree(tiny_adapter, folder.parent / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    name = sorted(config["target_modules"])[0]
    edit_json(adapter / "adapter_config.json", rank_pattern={f"^model.layers.0.self_attn.{name}": config["r"]})
    assert load(folder, adapter).has_reference


# templates ------------------------------------------------------------------------------------------------------------

DOUBLE = (
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = STEP %}{% endfor %}{{ n.s | length }}"
)
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops in a macro": "{% macro m(n) %}{% for a in range(9999) %}{{ m(n - 1) if n else '' }}{% endfor %}{% endmacro %}{{ m(50) }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of a power": "{{ (7 ** 9999999) % 10 ** 5 + (9 ** 99999999) }}",
}
GROWING = {
    "addition": DOUBLE.replace("STEP", "n.s + n.s"),
    "joining": DOUBLE.replace("STEP", "n.s ~ n.s"),
    "replacing": DOUBLE.replace("STEP", "n.s | replace('a', 'aaaaaaaaaaaaaaaa')"),
    "a block": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set t %}{{ n.s }}{{ n.s }}{% endset %}"
    "{% set n.s = t %}{% endfor %}",
    "product": "{{ 'a' * 10 ** 11 }}",
    "list": "{{ ([0] * 10 ** 11) | length }}",
    "padding": "{{ 'a'.ljust(10 ** 11) }}",
    "format": "{{ '%99999999999d' % 1 }}",
    "format call": "{{ '{:99999999999}'.format(1) }}",
    "indent": "{{ 'a' | indent(10 ** 11, true) }}",
    "long text": "{{ 'a' * (8 * 10 ** 6 + 1) }}",
}
READING = {
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "import": "{% import 'os' as o %}{{ o }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].system('touch ran') }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute filter": "{{ ('' | attr('__class__')).__mro__ }}",
    "format string": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "own exception": "{{ raise_exception.__globals__ }}",
    "its own template": "{{ self._TemplateReference__context.environment.loader }}",
    "changes the messages": "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "names": "{{ namespace(__class__=1) }}",
}
FAILING = {
    "raises": "{{ raise_exception('no\nfaith\u202e' * 10000) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "syntax": "{% for %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "division": "{{ 1 / 0 }}",
    "undefined": "{{ nothing.at.all }}",
    "unknown filter": "{{ 'a' | system }}",
}


def with_template(template: str):
    tokenizer = byte_level_tokenizer(template=template + TEMPLATE)
    return tokenizer


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_loops_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    chat.render(with_template(""), ASKED)
    begun = time.monotonic()
    with pytest.raises(TokenMismatchError, match=r"was stopped|GB of memory"):
        chat.render(with_template(ENDLESS[name]), ASKED)
    assert time.monotonic() - begun < 30
    assert chat.render(with_template(""), ASKED).ids  # the next one works again


@pytest.mark.parametrize("name", GROWING)
def test_a_template_that_grows_is_stopped(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 60.0)  # so that the limit it meets is that of memory
    limit = "8,000,000 characters" if name == "long text" else "more than 1 GB of memory"
    with pytest.raises(TokenMismatchError, match=limit) as caught:
        chat.render(with_template(GROWING[name]), ASKED)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", [*READING, *FAILING])
def test_a_template_that_reads_or_fails_is_one_line(tmp_path: Path, name: str) -> None:
    """An undefined value may print as nothing; then the text is that of the rest, and nothing was read."""
    tokenizer = with_template((READING | FAILING)[name])
    try:
        found = chat.render(tokenizer, ASKED)
    except TriageError as error:
        said = str(error)
        assert len(said.splitlines()) == 1
        assert len(said) < 1000
    else:
        assert name in ("globals of a macro", "undefined", "own exception", "its own template")
        assert found.text == chat.render(with_template(""), ASKED).text
    assert not (Path(rendering.__file__).parents[1] / "ran").exists()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_text_is_the_librarys(name: str) -> None:
    """What the child renders is what `apply_chat_template` renders, for every feature templates use."""
    rich = (
        "{{ bos_token }}{% generation %}{% endgeneration %}{{ messages | tojson(indent=2) }}{{ strftime_now('%Y') }}"
        "{% for m in messages %}{% if loop.index0 > 9 %}{% break %}{% endif %}{{ m.content | trim }}\n{% endfor %}"
    )
    for template in (TEMPLATE, rich):
        tokenizer = TOKENIZERS[name]()
        tokenizer.chat_template = template
        for content in ("plain", "é 你 \U0001f600 \u200b\u202e", " {{ 7 * 7 }}\n\n", "\ud83d half"):
            messages = [Message(role="system", content="x"), Message(role="user", content=content)]
            for add in (True, False):
                data = [vars(one) for one in messages]
                wanted = tokenizer.apply_chat_template(data, tokenize=False, add_generation_prompt=add)
                assert chat.render_text(tokenizer, messages, add) == wanted


def test_the_process_ends_with_its_parent_and_is_started_again() -> None:
    import psutil

    tokenizer = byte_level_tokenizer()
    first = chat.render_text(tokenizer, ASKED)
    alive = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    mine = [one for one in alive if "core.rendering" in one.cmdline()]
    assert len(mine) == 1
    mine[0].kill()
    mine[0].wait(10)
    assert chat.render_text(tokenizer, ASKED) == first
