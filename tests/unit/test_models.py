"""Loading: what a folder's model, tokenizer, template and device become; every folder that must be refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import chat, models
from core.errors import ModelLoadError, TokenMismatchError
from core.models import load, resolve_device
from core.settings import ModelSettings
from core.values import Message, ModelSpec
from tests.tiny import (
    FAMILIES,
    TEMPLATE,
    TEXTS,
    TOKENIZERS,
    Folder,
    byte_level_tokenizer,
    sentencepiece_tokenizer,
    tiny_model,
)


@pytest.fixture
def adapter(tiny_adapter: Path, tmp_path: Path) -> Path:
    """Return a copy of the adapter's folder, to be damaged."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.mark.parametrize("family", FAMILIES)
def test_load_freezes_and_describes(tiny_folder: Folder, family: str) -> None:
    """fp32 on the CPU, evaluation mode, frozen, and tokens as the saved tokenizer makes them."""
    loaded = load(tiny_folder(family), settings=ModelSettings(device="cpu"))
    assert loaded.context_length == 1024
    assert loaded.eos_ids == (2,)
    assert loaded.pad_id == 0
    assert not loaded.model.training
    assert all(not one.requires_grad and one.dtype == torch.float32 for one in loaded.model.parameters())
    assert loaded.n_parameters == sum(one.numel() for one in loaded.model.parameters())
    assert loaded.spec == ModelSpec(path=str(tiny_folder(family)))
    assert not loaded.has_reference
    assert loaded.theta0 == []
    original = byte_level_tokenizer()
    assert [original(text)["input_ids"] for text in TEXTS] == [loaded.tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_tokenizer_comes_back_from_its_folder(family: str, name: str, tmp_path: Path) -> None:
    """A family's own tokenizer class must not replace the one in the folder (AutoTokenizer does so for Qwen2)."""
    original = TOKENIZERS[name]()
    tiny_model(family, len(original)).save_pretrained(tmp_path)
    original.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for text in TEXTS:
        message = [Message(role="user", content=text)]
        assert chat.render(loaded.tokenizer, message) == chat.render(original, message)


def test_given_spec_is_kept(tiny_folder: Folder) -> None:
    """Hashes worked out elsewhere stay with the model."""
    spec = ModelSpec(path="p", files={"config.json": "00"})
    assert load(tiny_folder("llama"), spec=spec).spec is spec


def test_missing_template_is_said(copied: Path) -> None:
    """The plain template is used, with a warning."""
    (copied / "chat_template.jinja").unlink()
    loaded = load(copied)
    assert any("no chat template" in warning for warning in loaded.warnings)
    assert chat.render(loaded.tokenizer, [Message(role="user", content="x")]).fallback_template


def test_date_in_the_template_is_said(copied: Path) -> None:
    """A prompt that changes with the day is no stable evidence."""
    (copied / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + TEMPLATE)
    loaded = load(copied)
    assert any("today's date" in warning for warning in loaded.warnings)
    assert chat.render(loaded.tokenizer, [Message(role="user", content="x")]).tokens[-1].segment == "template"


def test_tokenizer_of_the_adapter_goes_first(copied: Path, adapter: Path) -> None:
    """Fine-tuning may bring its own chat template: that is the one the reported model was used with."""
    assert load(copied, adapter).warnings == ()
    byte_level_tokenizer(template=TEMPLATE.replace("<|end|>", "<|end|>!")).save_pretrained(adapter)
    remove_tokenizer(copied)
    loaded = load(copied, adapter)
    assert any("adapter folder" in warning for warning in loaded.warnings)
    assert "<|end|>!" in chat.render(loaded.tokenizer, [Message(role="user", content="x")]).text


def test_unused_tensors_are_said(copied: Path) -> None:
    """Extra tensors in the file are no fault, but are not hidden."""
    tensors = load_file(copied / "model.safetensors")
    save_file({**tensors, "model.secret": torch.zeros(2)}, copied / "model.safetensors", {"format": "pt"})
    assert any("model.secret" in warning for warning in load(copied).warnings)


def test_added_tokens_without_weights_are_said_and_other_ones_refused(copied: Path) -> None:
    """As in Gemma 3 1B, whose tokenizer has a mark for images that its table has no row for."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["<image_soft_token>"])
    tokenizer.save_pretrained(copied)
    loaded = load(copied)
    assert any("<image_soft_token>" in warning for warning in loaded.warnings)
    assert loaded.answer([[Message(role="user", content="hi")]], max_new_tokens=2)
    with pytest.raises(TokenMismatchError, match="image_soft_token"):
        loaded.answer([[Message(role="user", content="<image_soft_token>")]], max_new_tokens=2)


def change_tensor(folder: Path, change: Callable[[torch.Tensor], torch.Tensor | None], stem: str = "model") -> None:
    """Replace the first tensor of a safetensors file; None removes it."""
    path = folder / f"{stem}.safetensors"
    tensors = load_file(path)
    name = next(iter(sorted(tensors)))
    changed = change(tensors.pop(name))
    save_file(tensors if changed is None else {**tensors, name: changed}, path, {"format": "pt"})


def only_pickle(folder: Path, stem: str, out: str) -> None:
    """Replace the safetensors file by a pickle that would write a file when it is loaded."""

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (folder / "ran",))

    (folder / f"{stem}.safetensors").unlink()
    (folder / out).write_bytes(pickle.dumps(Bomb()))


def cut(path: Path, n_bytes: int) -> None:
    """Keep the first bytes of a file."""
    path.write_bytes(path.read_bytes()[:n_bytes])


def with_index(folder: Path, name: str) -> None:
    """Replace the weights by an index that names a file."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))


def other_tokenizer(folder: Path) -> None:
    """Put a tokenizer with more tokens than the model has rows."""
    sentencepiece_tokenizer().save_pretrained(folder)


def remove_tokenizer(folder: Path) -> None:
    """Remove every tokenizer file."""
    for path in [*folder.glob("tokenizer*"), *folder.glob("special*"), *folder.glob("vocab*")]:
        path.unlink()


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda folder: cut(folder / "config.json", 40), "cannot be read as JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
    "unknown type": (lambda folder: edit_json(folder / "config.json", model_type="nonsense"), "cannot be loaded"),
    "code of its own": (
        lambda folder: edit_json(
            folder / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.C"}
        ),
        "cannot be loaded",
    ),
    "not causal": (lambda folder: edit_json(folder / "config.json", model_type="t5"), "causal language model"),
    "kernel": (
        lambda folder: edit_json(folder / "config.json", attn_implementation="someone/kernel"), "from the network"),
    "other shape": (lambda folder: edit_json(folder / "config.json", intermediate_size=65), "(32, 64), not (32, 65)"),
    "more layers": (lambda folder: edit_json(folder / "config.json", num_hidden_layers=3), "do not fit"),
    "nonsense size": (lambda folder: edit_json(folder / "config.json", hidden_size="big"), "cannot be loaded"),
    "adapter inside": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "pickle only": (lambda folder: only_pickle(folder, "model", "pytorch_model.bin"), "pickle weights only"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    "cut weights": (lambda folder: cut(folder / "model.safetensors", 5_000), "damaged or cut short"),
    "cut header": (lambda folder: cut(folder / "model.safetensors", 6), "damaged or cut short"),
    "no bytes": (lambda folder: cut(folder / "model.safetensors", 0), "damaged or cut short"),
    "missing shard": (lambda folder: with_index(folder, "model-2.safetensors"), "lacks model-2.safetensors"),
    "shard elsewhere": (lambda folder: with_index(folder, "../other.safetensors"), "does not name the weight files"),
    "missing tensor": (lambda folder: change_tensor(folder, lambda _: None), "do not fit"),
    "tensor shape": (lambda folder: change_tensor(folder, lambda one: one[:3].clone()), "not (420, 32)"),
    "NaN": (lambda folder: change_tensor(folder, lambda one: one * float("nan")), "not finite"),
    "infinite": (lambda folder: change_tensor(folder, lambda one: one + float("inf")), "not finite"),
    "a table that is no number": (
        lambda folder: edit_json(
            folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": float("nan")}
        ),
        "not finite (model.rotary_emb",
    ),
    "no tokenizer": (remove_tokenizer, "no tokenizer"),
    "tokenizer is no JSON": (lambda folder: cut(folder / "tokenizer.json", 500), "cannot be read as JSON"),
    "tokenizer of another model": (other_tokenizer, "token ids up to 459, but the model has 420"),
    "huge vocabulary": (lambda folder: edit_json(folder / "config.json", vocab_size=421), "not (421, 32)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model_folder_is_one_line(copied: Path, name: str) -> None:
    """Missing, unsafe, damaged or unfit folders: one line with the remedy, no code run."""
    damage, words = BAD_MODELS[name]
    damage(copied)
    with pytest.raises(ModelLoadError) as caught:
        load(copied)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ":" in str(caught.value)
    assert not (copied / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_buffer_must_be_finite(tmp_path: Path, value: float) -> None:
    """Some models keep what they were trained to in buffers (biases of a router)."""
    module = torch.nn.Linear(2, 2)
    module.register_buffer("bias_of_experts", torch.tensor([0.0, 1.0]))
    models._check_finite(module, tmp_path)
    module.bias_of_experts[1] = value
    with pytest.raises(ModelLoadError, match=r"not finite \(bias_of_experts\)"):
        models._check_finite(module, tmp_path)


def test_architecture_without_a_cache_is_refused(copied: Path) -> None:
    """A state-space model has no key-value cache and no positions."""
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=420, hidden_size=32, num_hidden_layers=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(copied)
    with pytest.raises(ModelLoadError, match=r"'mamba' .* cannot be used"):
        load(copied)


def test_missing_folders(tmp_path: Path, tiny_folder: Folder) -> None:
    """A folder that is not there, or a file, is never taken for a name on a hub."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "none", "meta-llama/Llama-3-8B", tmp_path / "file"):
        with pytest.raises(ModelLoadError, match="does not exist"):
            load(path)
    with pytest.raises(ModelLoadError, match=r"adapter folder .* does not exist"):
        load(tiny_folder("llama"), tmp_path / "none")


BAD_ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
    "config is no JSON": (lambda folder: cut(folder / "adapter_config.json", 30), "cannot be read as JSON"),
    "pickle only": (lambda folder: only_pickle(folder, "adapter_model", "adapter_model.bin"), "pickle weights only"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
    "cut weights": (lambda folder: cut(folder / "adapter_model.safetensors", 900), "damaged or cut short"),
    "other kind": (lambda folder: edit_json(folder / "adapter_config.json", peft_type="IA3"), "only LoRA"),
    "changes the base": (
        lambda folder: edit_json(folder / "adapter_config.json", init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    "biases": (lambda folder: edit_json(folder / "adapter_config.json", bias="all"), "bias='all'"),
    "imports a module": (
        lambda folder: edit_json(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="this"),
        "megatron_config",
    ),
    "copies layers": (
        lambda folder: edit_json(folder / "adapter_config.json", layer_replication=[[0, 2], [0, 2]]), "layer_replication"),
    "other rank": (lambda folder: edit_json(folder / "adapter_config.json", r=3), "does not fit this model"),
    "unknown modules": (
        lambda folder: edit_json(folder / "adapter_config.json", target_modules=["nowhere"]), "does not fit this model"),
    "fewer modules": (
        lambda folder: edit_json(folder / "adapter_config.json", target_modules=["q_proj"]), "does not fit this model"),
    "missing tensor": (lambda folder: change_tensor(folder, lambda _: None, "adapter_model"), "does not fit this model"),
    "NaN": (lambda folder: change_tensor(folder, lambda one: one * float("nan"), "adapter_model"), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_bad_adapter_is_one_line(tiny_folder: Folder, adapter: Path, name: str) -> None:
    """The same for adapters."""
    damage, words = BAD_ADAPTERS[name]
    damage(adapter)
    with pytest.raises(ModelLoadError) as caught:
        load(tiny_folder("llama"), adapter)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (adapter / "ran").exists()


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_adapter_for_another_base(tiny_folder: Folder, adapter: Path, family: str) -> None:
    """Modules or shapes that differ are refused, also where some of them fit."""
    with pytest.raises(ModelLoadError, match="does not fit this model"):
        load(tiny_folder(family) if family == "gpt2" else _wider(tiny_folder, adapter.parent / "wider"), adapter)


def _wider(tiny_folder: Folder, folder: Path) -> Path:
    """Return a tiny Llama with wider layers, so that the adapter's shapes differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(tiny_folder("llama"), folder)
    config = AutoConfig.from_pretrained(tiny_folder("llama"), intermediate_size=96)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_devices() -> None:
    """Known names only, and never one that is not there."""
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99", "mps", "cuda:x"):
        with pytest.raises(ModelLoadError):
            resolve_device(name)


def test_device_warning_speaks_only_where_a_gpu_is_unused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver file without a usable torch is said; without the file, or with a usable torch, nothing is."""
    monkeypatch.setattr(models, "Path", lambda _: tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.device_warning() is None
    (tmp_path / "nvidia0").touch()
    assert "GPU is present" in (models.device_warning() or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.device_warning() is None


def test_template_of_the_folder_is_used(copied: Path) -> None:
    """The chat template in the folder decides, and its hash names it."""
    changed = TEMPLATE.replace("<|end|>", "<|end|>!")
    (copied / "chat_template.jinja").write_text(changed)
    rendered = chat.render(load(copied).tokenizer, [Message(role="user", content="x")])
    assert rendered.text == "<|user|>\nx<|end|>!\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "gptq", "bits": 8}, "gptq, 8 bits"),
        ({}, "a method that is not named"),
    ],
)
def test_quantised_models_are_refused_with_a_reason(copied: Path, found: dict, words: str) -> None:
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    for entry in ({"quantization_config": found}, {"text_config": {"quantization_config": found}}):
        (copied / "config.json").write_text(json.dumps(config | entry), encoding="utf-8")
        with pytest.raises(ModelLoadError, match=rf"quantised \({words}\).*dequantise") as refused:
            load(copied)
        assert "\n" not in str(refused.value)


def test_a_spread_model_that_the_gpus_do_not_hold_is_refused(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import dispatch_model

    weights = load(tiny_folder("llama")).model
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = dispatch_model(weights, places, main_device="cpu", offload_dir=tmp_path)
    monkeypatch.setattr(models, "resolve_device", lambda _: torch.device("cpu"))
    monkeypatch.setattr(models, "_load_weights", lambda *_, **__: (spread, []))
    with pytest.raises(ModelLoadError, match=r"needs .* GB and the GPUs together have not that much free"):
        load(tiny_folder("llama"), settings=ModelSettings(device="cuda:all"))


def test_all_gpus_need_a_gpu_and_a_spread_model_loads_where_it_can(tiny_folder: Folder) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ModelLoadError, match="not there"):
            load(tiny_folder("llama"), settings=ModelSettings(device="cuda:all"))
    folder, shapes = models._check_model_folder(tiny_folder("llama"))
    weights, said = models._load_weights(folder, shapes, torch.float32, device_map="auto")
    assert said == []
    plain = load(tiny_folder("llama"), settings=ModelSettings(device="cpu"))
    if not torch.cuda.is_available():
        for one, other in zip(weights.parameters(), plain.model.parameters(), strict=True):
            assert torch.equal(one, other)
