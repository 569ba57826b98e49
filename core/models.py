"""Models in: the only `from_pretrained` of the project.

1. A folder is checked before any library reads it: safetensors only, no code of the folder is run, no network.
2. fp32 on the CPU, bf16 on CUDA, evaluation mode, every weight frozen.
3. Weights that are missing, of another shape or not finite are refused, never initialised at random.
4. A reported adapter (LoRA) is attached under the name "reported"; switching it off gives the clean reference.

With the device `cuda:all` the layers are spread over all GPUs, so that a model too large for one can be localised.

What it does not do: load quantised weights, or merge adapters. Running a model is in loaded.py.
"""

import copy
import inspect
import itertools
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from core import chat, rendering
from core.config_switches import check_config, check_tokenizer, check_tokenizer_class
from core.errors import ModelLoadError
from core.loaded import REPORTED, LoadedModel, is_device_fault
from core.model_size import bounded, check_parts
from core.quantised import quantisation_of
from core.settings import ModelSettings
from core.tokenizer_growth import check_growth
from core.values import ModelSpec
from core.weight_files import ADAPTER_WEIGHTS, Shapes, check_files, check_names, check_weights, one_line, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_FORWARD_ARGUMENTS = {"attention_mask", "position_ids", "past_key_values", "inputs_embeds", "logits_to_keep"}
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", None)
"""Ways of starting a LoRA that leave the base weights alone (PEFT's pissa, olora, corda, loftq change them)."""
SPREAD = "cuda:all"
"""The device name that spreads a model's layers over all GPUs, for localising one that does not fit a single GPU."""


def load(
    model: Path | str,
    adapter: Path | str | None = None,
    settings: ModelSettings | None = None,
    spec: ModelSpec | None = None,
) -> LoadedModel:
    """Return the model of a local folder, with its adapter attached and on. Nothing is downloaded, no code is run.

    Raises: ModelLoadError, one line, for every folder that is missing, unsafe, damaged or does not fit.
    """
    settings = settings or ModelSettings()
    device = resolve_device(settings.device)
    folder, shapes = _check_model_folder(Path(model))
    adapter_folder, adapter_shapes = (None, {}) if adapter is None else _check_adapter_folder(Path(adapter))
    tokenizer, said = _load_tokenizers(folder, adapter_folder)
    rendering.start()  # its own imports run while the weights are read
    spread = settings.device == SPREAD
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights, unused = _load_weights(folder, shapes, dtype, device_map="auto" if spread else None)
    if spread:
        _check_on_gpus(weights)
    _check_architecture(weights, folder)
    lacking = _check_vocabulary(weights, tokenizer, folder)
    weights = weights if spread else _to_device(weights, device)
    _check_finite(weights, folder)
    if adapter_folder is not None:
        attached = _attach_adapter(
            weights, adapter_folder, adapter_shapes
        )  # PEFT puts each part where the layer it belongs to is
        weights = attached if spread else _to_device(attached, device)
        _check_finite(weights, adapter_folder)
    gpu = device_warning() if device.type == "cpu" else None
    length = getattr(weights.config.get_text_config(), "max_position_embeddings", None)
    return LoadedModel(
        spec=spec or ModelSpec(path=str(folder), adapter=None if adapter_folder is None else str(adapter_folder)),
        model=weights.eval().requires_grad_(False),
        tokenizer=tokenizer,
        device=device,
        settings=settings,
        context_length=length if isinstance(length, int) and length > 0 else None,
        warnings=(*said, *lacking, *unused, *([gpu] if gpu else [])),
    )


def checked_config(folder: Path) -> dict:
    """Return the config.json of a model folder that is safe to hand to the library. Raises: ModelLoadError."""
    return read_json(_check_model_folder(folder)[0] / "config.json")


def load_classifier(folder: Path, device: torch.device) -> tuple["PreTrainedTokenizerFast", nn.Module]:
    """Return tokenizer and weights of a sequence classifier, under the checks of `load`. Raises: ModelLoadError."""
    folder, shapes = _check_model_folder(folder)
    tokenizer, _ = _load_tokenizers(folder, None)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights, _ = _load_weights(folder, shapes, dtype, classifier=True)
    if _check_vocabulary(weights, tokenizer, folder):
        raise ModelLoadError(f"the classifier in {folder} lacks weights for tokens of its tokenizer: copy it again")
    weights = _to_device(weights, device)
    _check_finite(weights, folder)
    return tokenizer, weights.eval().requires_grad_(False)


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `cuda:all` (where inputs go, the first GPU).

    Raises: ModelLoadError when it is not there.
    """
    if name == SPREAD:
        name = "cuda:0"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"device {name!r} is unknown: use auto, cpu, cuda, cuda:N or cuda:all") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"device {name!r} is not supported: use auto, cpu, cuda, cuda:N or cuda:all")
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= n_cuda:
        raise ModelLoadError(f"device {name!r} is not there ({n_cuda} CUDA devices are usable): use --device cpu")
    return device


def device_warning() -> str | None:
    """Return a sentence when a GPU is present that this torch cannot use, else None."""
    present = any(Path("/dev").glob("nvidia[0-9]*")) or (os.name == "nt" and shutil.which("nvidia-smi") is not None)
    if not present or torch.cuda.is_available():
        return None
    build = "is a CPU build" if torch.version.cuda is None else f"needs a driver for CUDA {torch.version.cuda}"
    return f"An NVIDIA GPU is present, but this torch {build}: everything runs on the CPU. See the README, CPU or CUDA."


def _check_model_folder(folder: Path) -> tuple[Path, Shapes]:
    """Return the absolute folder of a model that is safe to hand to the library, and the shapes of its tensors."""
    if not folder.is_dir():
        raise ModelLoadError(f"the model folder {folder} does not exist: give the path of a local Hugging Face folder")
    folder = folder.resolve()
    check_files(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelLoadError(
            f"{folder} holds an adapter (adapter_config.json): give the base model's folder as the model and this "
            "adapter, in a folder of its own, as the adapter"
        )
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json, so it is not a Hugging Face model folder: check the path")
    config = read_json(folder / "config.json")
    check_config(folder / "config.json", config)
    how = quantisation_of(config)
    if how is not None:
        raise ModelLoadError(
            f"the weights in {folder} are quantised ({how}), and gradients and repair need plain ones: give the original "
            "folder, or dequantise it first (model.dequantize(), then save_pretrained)"
        )
    return folder, check_weights(folder, "model")


def _check_adapter_folder(folder: Path) -> tuple[Path, Shapes]:
    """Return the absolute folder of a LoRA adapter that can be switched on and off, and the shapes of its tensors."""
    if not folder.is_dir():
        raise ModelLoadError(f"the adapter folder {folder} does not exist: give the path of a local PEFT adapter")
    folder = folder.resolve()
    check_files(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ModelLoadError(f"{folder} has no adapter_config.json, so it is not a PEFT adapter: check the path")
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelLoadError(
            f"{folder} is an adapter of type {config.get('peft_type')!r}: only LoRA adapters can be used"
        )
    odd = [key for key in sorted(config) if config[key] and (key.endswith("_config") or key == "layer_replication")]
    if config.get("init_lora_weights", True) not in _PLAIN_INITIALISATIONS:
        odd.append("init_lora_weights")
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise ModelLoadError(
            f"{folder} may also change weights of the base model ({odd[0]}={str(config[odd[0]])[:40]!r}), so it cannot be "
            "switched off: convert it to a plain LoRA adapter, or merge it and give the merged model"
        )
    shapes = check_weights(folder, "adapter_model")
    check_names(folder, config, len(shapes))
    return folder, shapes


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the library prints while it loads, errors too: they quote the folder. What matters is checked here.

    It also asks nothing: where nobody told it whether a folder's code may be run, it asks for a yes on the terminal.
    """
    from transformers import dynamic_module_utils as code
    from transformers.utils import logging as library

    level, bars, seconds = library.get_verbosity(), library.is_progress_bar_enabled(), code.TIME_OUT_REMOTE_CODE
    library.set_verbosity(library.CRITICAL)
    code.TIME_OUT_REMOTE_CODE = 0  # seconds it waits for an answer; without any it refuses
    library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.set_verbosity(level)
        code.TIME_OUT_REMOTE_CODE = seconds
        if bars:
            library.enable_progress_bar()


def _load_tokenizers(folder: Path, adapter_folder: Path | None) -> tuple["PreTrainedTokenizerFast", list[str]]:
    """Return the tokenizer and what is to be said about it. One that came with the adapter goes before the model's."""
    own = None if adapter_folder is None or not (adapter_folder / "tokenizer.json").is_file() else adapter_folder
    if own is None and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelLoadError(
            f"{folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model there"
        )
    tokenizer = _load_tokenizer(own or folder)
    said = [f"Tokenizer and chat template are those of the adapter folder {own}."] if own else []
    template = str(getattr(tokenizer, "chat_template", None) or "")
    if not template:
        said.append("The tokenizer has no chat template: a plain one (User: ... Assistant:) is used instead.")
    if "strftime_now" in template:
        said.append("The chat template puts today's date into the prompt, so results can differ from day to day.")
    return tokenizer, said


def _load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Return the folder's tokenizer, which must know character offsets.

    A tokenizer.json is taken as it stands: AutoTokenizer rebuilds it for some families (Qwen2), with other token ids.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_tokenizer(folder)
    whole = folder / "tokenizer.json"
    if whole.is_file():
        check_growth(whole)
    kind = PreTrainedTokenizerFast if whole.is_file() else AutoTokenizer
    try:
        with _quiet():
            if kind is AutoTokenizer:
                check_tokenizer_class(folder)
            tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ModelLoadError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizer library is no Exception
        raise ModelLoadError(
            f"the tokenizer in {folder} cannot be loaded ({one_line(error)}): "
            "copy tokenizer.json and tokenizer_config.json again"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelLoadError(f"the tokenizer in {folder} gives no character offsets: it needs a tokenizer.json")
    return tokenizer


def _sized_config(file: Path, shapes: Shapes, kind: type) -> "PreTrainedConfig":
    """Return the configuration, unless it describes far more than the files hold; no weights are made to find that out.

    Raises: ModelLoadError.
    """
    from transformers import AutoConfig

    check_parts(file, shapes)
    config = AutoConfig.from_pretrained(file.parent, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]), torch.device("meta"), bounded(file, shapes):
        kind.from_config(copy.deepcopy(config), trust_remote_code=False)  # type: ignore[attr-defined]
    return config


def _load_weights(
    folder: Path, shapes: Shapes, dtype: torch.dtype, classifier: bool = False, device_map: str | None = None
) -> tuple[nn.Module, list[str]]:
    """Return the folder's model and what is to be said about it; a `device_map` of "auto" spreads it over the GPUs."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    what = "a sequence classifier" if classifier else "a causal language model"
    try:
        with _quiet():
            config = _sized_config(folder / "config.json", shapes, kind)
            weights, info = kind.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=dtype,
                output_loading_info=True, ignore_mismatched_sizes=True, device_map=device_map,
            )  # fmt: skip
    except ModelLoadError:
        raise
    except Exception as error:  # any library may raise anything on a hostile folder
        if is_device_fault(error):
            raise
        raise ModelLoadError(
            f"the model in {folder} cannot be loaded ({one_line(error)}): it must be {what} whose "
            "config.json fits its weights"
        ) from error
    if info["mismatched_keys"]:
        name, found, wanted = sorted(info["mismatched_keys"])[0]
        raise ModelLoadError(
            f"the weights in {folder} do not fit its config.json ({name} is {tuple(found)}, not {tuple(wanted)}): "
            "copy the model again"
        )
    if info["missing_keys"]:
        raise ModelLoadError(
            f"the weights in {folder} do not fit its config.json ({sorted(info['missing_keys'])[0]} is missing): "
            "copy the model again"
        )
    unexpected = sorted(info["unexpected_keys"])
    if not unexpected:
        return weights, []
    return weights, [f"{len(unexpected)} tensors of the model files are not used (for instance {unexpected[0][:80]})."]


def _check_architecture(weights: nn.Module, folder: Path) -> None:
    """Raise ModelLoadError for an architecture that cannot be run in left-padded batches with a key-value cache."""
    missing = sorted(_FORWARD_ARGUMENTS - set(inspect.signature(weights.forward).parameters))
    if missing:
        raise ModelLoadError(
            f"models of type {weights.config.model_type!r} ({folder}) cannot be used: their forward pass takes no "
            f"{missing[0]}, so give a decoder-only transformer such as Llama, Qwen, Gemma, Mistral, Phi or GPT-2"
        )


def _check_vocabulary(weights: nn.Module, tokenizer: "PreTrainedTokenizerFast", folder: Path) -> list[str]:
    """Return what is to be said of added tokens that the embedding lacks: text with one of them is refused where it comes up.

    Such pairs are published (Gemma 3 1B has a mark for images, Llama 2 folders an added padding token). Raises: ModelLoadError when
    other ids are lacking.
    """
    n_rows = weights.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise ModelLoadError(f"the tokenizer in {folder} has no vocabulary: copy its tokenizer.json again")
    added = tokenizer.get_added_vocab()
    largest = max((number for token, number in vocabulary.items() if token not in added), default=-1)
    if largest >= n_rows:
        raise ModelLoadError(
            f"the tokenizer in {folder} has token ids up to {largest}, but the model has {n_rows} embedding rows: "
            "use the tokenizer that belongs to this model"
        )
    beyond = sorted(token for token, number in added.items() if number >= n_rows)
    chat.limit(tokenizer, n_rows)
    named = ", ".join(token[:40] for token in beyond[:3])
    return [f"The model has no weights for {len(beyond)} added tokens of its tokenizer ({named})."] if beyond else []


def _check_finite(weights: nn.Module, folder: Path) -> None:
    """Raise ModelLoadError when a weight or a buffer is not finite."""
    for name, value in itertools.chain(weights.named_parameters(), weights.named_buffers()):
        if not bool(torch.isfinite(value).all()):
            raise ModelLoadError(
                f"the weights or tables of {folder} hold values that are not finite ({name}): copy it again"
            )


def _attach_adapter(weights: nn.Module, folder: Path, shapes: Shapes) -> nn.Module:
    """Return the model with the folder's adapter attached, every tensor of which must have found its place."""
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    fault = f"the adapter in {folder} does not fit this model"
    remedy = "give the base model it was trained on"
    try:
        with _quiet():
            config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
            config.inference_mode = True
            config.init_lora_weights = True  # every value comes from the file; other ways to start may cost rank x rank
            with bounded(folder / "adapter_config.json", shapes):
                model = PeftModel(weights, config, adapter_name=REPORTED)
            result = set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS), REPORTED)
    except ModelLoadError:
        raise
    except Exception as error:  # any library may raise anything on a hostile folder
        if is_device_fault(error):
            raise
        raise ModelLoadError(f"{fault} ({one_line(error)}): {remedy}") from error
    unfilled = [name for name in result.missing_keys if f".{REPORTED}." in name]
    stray = sorted(result.unexpected_keys) + unfilled
    if stray:
        raise ModelLoadError(f"{fault} (no place or no value for {stray[0]}): {remedy}")
    return model


def _check_on_gpus(weights: nn.Module) -> None:
    """Raise ModelLoadError where a layer of a spread model found no room on the GPUs."""
    places = {str(place) for place in getattr(weights, "hf_device_map", {}).values()}
    if places & {"cpu", "disk"} or any(parameter.is_meta for parameter in weights.parameters()):
        raise ModelLoadError(
            f"the model needs {_gigabytes(weights):.1f} GB and the GPUs together have not that much free: "
            "free memory there or use --device cpu"
        )


def _gigabytes(weights: nn.Module) -> float:
    return sum(parameter.numel() * parameter.element_size() for parameter in weights.parameters()) / 1e9


def _to_device(weights: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on the device. Raises: ModelLoadError when it does not fit there."""
    try:
        return weights.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(
            f"the model needs {_gigabytes(weights):.1f} GB and {device} has not that much free: "
            "free memory there or use --device cpu"
        ) from error
