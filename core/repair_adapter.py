"""The repair's LoRA adapter on a loaded model: attach, switch, save, load, detach.

The adapter is called "repair" and sits on every linear layer inside the decoder layers, found by structure. theta0 is the model
as loaded (with its reported adapter, if any); the repaired model is theta0 plus "repair". Base weights are never written
to, so switching "repair" off is theta0 bit for bit. What this does not do: train.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from core.errors import ModelLoadError
from core.files import hash_file, write_atomic
from core.loaded import REPAIR as NAME
from core.loaded import is_device_fault, set_adapters
from core.recompute import decoder_layers
from core.response_pass import base_model
from core.settings import RepairSettings
from core.team import ALONE, Team, like, whole
from core.weight_files import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from core.loaded import LoadedModel

CONFIG_FILE = "adapter_config.json"


def linear_targets(loaded: "LoadedModel") -> list[str]:
    """Return the last name parts of all linear layers (GPT-2's Conv1D included) inside the decoder layers, sorted; whole names where
    other modules end in the same part, as in a vision tower. Without a list of decoder layers: of all but the LM head.
    """
    model = base_model(loaded)
    head = model.get_output_embeddings()
    layers = decoder_layers(model) or [model]
    inside = {module for layer in layers for module in layer.modules()}
    adapted: set[str] = set()
    others: set[str] = set()
    for name, module in model.named_modules():
        if any(part in ("base_layer", "lora_A", "lora_B") for part in name.split(".")):
            continue
        plain = module.get_base_layer() if isinstance(module, LoraLayer) else module
        linear = isinstance(plain, torch.nn.Linear | Conv1D) and module in inside and module is not head
        (adapted if linear else others).add(name)
    parts = {_last_part(name) for name in adapted}
    return sorted(adapted if parts & {_last_part(name) for name in others} else parts)


def unreached_share(loaded: "LoadedModel") -> float:
    """Return the share of all parameters, 0..1, in experts that are stored as one tensor, on which no LoRA layer is put.

    Told by shapes: the experts' (n_experts, a, b), a router's in the same layer (n_experts, a) or (n_experts, b). Not told where the
    experts are stacked in two axes.
    """
    model = base_model(loaded)
    experts: set[torch.nn.Parameter] = set()
    for layer in decoder_layers(model) or [model]:
        for module in layer.modules():
            own = set(module.parameters(recurse=False))
            stacks = [one.shape for one in own if one.dim() == 3 and 1 not in one.shape]
            beside = [one.shape for one in set(layer.parameters()) - own if one.dim() == 2] if stacks else []
            if any(router[0] == n and router[1] in sizes for n, *sizes in stacks for router in beside):
                experts |= own
    return sum(one.numel() for one in experts) / loaded.n_parameters


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def use_theta0(loaded: "LoadedModel") -> None:
    """Switch the repair adapter off."""
    set_adapters(loaded, loaded.theta0)


def use_repaired(loaded: "LoadedModel", *, trainable: bool = False) -> None:
    """Switch the repair adapter on, on top of theta0; only its weights are trainable, and only if asked."""
    set_adapters(loaded, [*loaded.theta0, NAME])
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(trainable and f".{NAME}." in name)


def attach(loaded: "LoadedModel", settings: RepairSettings, start: Path | None = None) -> None:
    """Put a fresh adapter on `loaded`, initialised from the settings' seed, and switch it off; the global random state
    is left as it was. With `start` it takes the weights of the adapter in that folder, and its rank and scale.

    Raises: ModelLoadError when that does not fit.
    """
    if start is not None:
        load_repair(loaded, start)
        use_theta0(loaded)
        return
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=linear_targets(loaded),
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in loaded.model.modules()),
    )
    devices = [loaded.device.index or 0] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed)
        _add(loaded, config)
    use_theta0(loaded)


def _add(loaded: "LoadedModel", config: LoraConfig) -> None:
    if isinstance(loaded.model, PeftModel):
        loaded.model.add_adapter(NAME, config)
    else:
        loaded.model = get_peft_model(loaded.model, config, adapter_name=NAME)
    loaded.model.eval()


def attached(loaded: "LoadedModel") -> bool:
    """Return whether a repair adapter is on the model, switched on or off."""
    return isinstance(loaded.model, PeftModel) and NAME in loaded.model.peft_config


def detach(loaded: "LoadedModel") -> None:
    """Take the repair adapter off; the model is as it was loaded, in evaluation mode, nothing trainable."""
    if attached(loaded):
        if len(loaded.model.peft_config) > 1:
            use_theta0(loaded)
            loaded.model.delete_adapter(NAME)
            use_theta0(loaded)
        else:
            loaded.model = loaded.model.unload()
    loaded.model.eval()
    loaded.model.requires_grad_(False)


def parameters(loaded: "LoadedModel") -> dict[str, torch.nn.Parameter]:
    """Return the adapter's parameters by name, in a fixed order."""
    return {name: p for name, p in sorted(loaded.model.named_parameters()) if f".{NAME}." in name}


def state(loaded: "LoadedModel") -> dict[str, torch.Tensor]:
    """Return a copy of the adapter's weights on the CPU, under the names of PEFT's files."""
    tensors = get_peft_model_state_dict(loaded.model, adapter_name=NAME, save_embedding_layers=False)
    return {name: whole(tensor.detach()).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def load_state(loaded: "LoadedModel", tensors: dict[str, torch.Tensor]) -> None:
    """Put saved weights into the attached adapter."""
    there = get_peft_model_state_dict(loaded.model, adapter_name=NAME, save_embedding_layers=False)
    tensors = {name: like(tensor, there[name]) if name in there else tensor for name, tensor in tensors.items()}
    result = set_peft_model_state_dict(loaded.model, tensors, adapter_name=NAME)
    if result.unexpected_keys:
        raise ModelLoadError(
            f"The repair adapter was made for another model ({len(result.unexpected_keys)} weights have no place); use the "
            "model of this case."
        )


def config_json(loaded: "LoadedModel", name: str = NAME) -> str:
    """Return an attached adapter's configuration as PEFT's JSON; the base model is named without its path."""
    config = loaded.model.peft_config[name].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    config |= {"inference_mode": True, "base_model_name_or_path": Path(loaded.spec.path).name}
    return json.dumps(config, indent=2, sort_keys=True, default=str)


def write(loaded: "LoadedModel", folder: Path, team: Team = ALONE) -> str:
    """Save the adapter as a PEFT folder, weights moved into place whole, and return the SHA-256 of the weights file."""
    tensors = state(loaded)
    return team.told(_written(loaded, tensors, folder) if team.leads else "")


def _written(loaded: "LoadedModel", tensors: dict[str, torch.Tensor], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / CONFIG_FILE, config_json(loaded))
    temporary = folder / f"{ADAPTER_WEIGHTS}.tmp"
    save_file(tensors, temporary)
    temporary.replace(folder / ADAPTER_WEIGHTS)
    return hash_file(folder / ADAPTER_WEIGHTS)


def load_repair(loaded: "LoadedModel", folder: Path) -> None:
    """Attach a saved repair adapter and switch it on (nothing trainable); a repair adapter already there is replaced.

    Raises: ModelLoadError when the folder holds no adapter, is damaged, or belongs to another model.
    """
    try:
        config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelLoadError(
            f"No usable repair adapter in {folder} ({type(error).__name__}); run the repair again."
        ) from error
    config.base_model_name_or_path = None  # the name is for readers; what counts is that the weights fit
    detach(loaded)
    try:
        _add(loaded, config)
        load_state(loaded, tensors)
    except (RuntimeError, ValueError, ModelLoadError) as error:
        detach(loaded)
        if is_device_fault(error):
            raise
        raise ModelLoadError(
            f"The repair adapter in {folder} does not fit this model; use the model of its case."
        ) from error
    use_repaired(loaded)
