"""The repaired model as files: a PEFT adapter, or plain merged weights, with a model card. Both are checked after writing.

Adapter: reported and repair adapter become one by concatenation of their factors (exact), so that
`PeftModel.from_pretrained(base, out)` is the repaired model. Merged: both are added into the weights, so that
`AutoModelForCausalLM.from_pretrained(out)` is, also of older versions of the library where the original was: tokenizer and
config.json are the original's. Safetensors only; nothing of the original folders is overwritten.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from core import models, repair_adapter
from core.errors import ModelLoadError
from core.intervals import percent
from core.loaded import REPAIR, REPORTED, is_device_fault
from core.machine import reason
from core.report_text import unreached
from core.response_pass import base_model
from core.values import FailureCase
from core.weight_files import ADAPTER_WEIGHTS, read_json

if TYPE_CHECKING:
    from core.loaded import LoadedModel

BOTH = "export"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference of logits after reloading, as a share of their largest magnitude. Source: stack.md section 5 (merged
within 1e-4 in fp32); bf16 keeps 8 bits, so sums of rounded weights differ by some 1e-2."""
_KEPT_FILES = ("generation_config.json",)
_TOKENIZER_FILES = (  # patterns in a folder
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_PUBLISHED: Mapping[str, Any] = {
    "headline": {},
    "triage": {"verdict": {}, "certainty": {}},
    "rounds": {"confirmation": {"units": {}}},
    "confirmation": {"units": {}},
    "repair": {
        "started": {"settings": {}},
        "finished": {"reason": {}, "step": {}, "best_step": {}, "adapter_hash": {}},
    },
    "verification": {"result": {}, "reasons": {}, "metrics": {}},
    "residual_risk": {},
    "limits": {},
}
"""What of a case's report stands on a model card, which goes wherever the model goes: no prompt or answer, no name, no path."""


def export(
    loaded: "LoadedModel", case: FailureCase, adapter: Path, out: Path, merged: bool, card: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Write the repaired model into `out` and return its files; the model card quotes some of `card`, the report as plain data.

    The weights of `loaded` are let go before what was written is loaded, with `merged` after they were changed: drop it afterwards.
    Raises: ModelLoadError when `out` is not empty, an adapter cannot be combined, or what was written does not load as
    the same model (it is then removed).
    """
    sources = [Path(path).resolve() for path in (loaded.spec.path, loaded.spec.adapter, adapter) if path]
    target = out.resolve()
    if any(target == source or source in target.parents or target in source.parents for source in sources):
        raise ModelLoadError(f"{out} lies in or around the original model or adapter; choose another folder.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelLoadError(f"{out} exists and is not empty; choose another folder or empty it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(".tmp", f".{out.name}.", out.parent, ignore_cleanup_errors=True) as folder:
            temporary = Path(folder) / out.name
            temporary.mkdir()
            repair_adapter.load_repair(loaded, adapter)
            wanted = _logits(loaded, case)
            if merged:
                write_merged(loaded, temporary, [*loaded.theta0, REPAIR])
            else:
                _write_adapter(loaded, temporary)
            loaded.model = torch.nn.Module()  # a second copy beside the first may not fit
            (temporary / "README.md").write_text(model_card(loaded, merged, card), encoding="utf-8")
            _check(loaded, case, temporary, merged, wanted)
            if out.is_dir():
                out.rmdir()
            temporary.rename(out)
    finally:
        repair_adapter.detach(loaded)
    return tuple(sorted(path for path in out.rglob("*") if path.is_file()))


def _logits(loaded: "LoadedModel", case: FailureCase) -> torch.Tensor:
    """Return fp32 logits (n_tokens, n_vocabulary) of the reported prompt and response."""
    ids = torch.tensor([[*case.prompt.ids, *case.response_ids]], device=loaded.device)
    with torch.no_grad():
        return loaded.model(input_ids=ids, use_cache=False).logits[0].float().cpu()


def _write_adapter(loaded: "LoadedModel", out: Path) -> None:
    """Write reported and repair adapter as one PEFT folder."""
    model, name = loaded.model, REPAIR
    if loaded.has_reference:
        unfit = _not_plain(model.peft_config[REPORTED])
        if unfit:
            raise ModelLoadError(
                f"The reported adapter uses {unfit}, which cannot be combined exactly; export with --merged."
            )
        # The first adapter's settings are taken over, and those of the repair are plain.
        model.base_model.add_weighted_adapter([REPAIR, REPORTED], [1.0, 1.0], BOTH, combination_type="cat")
        name = BOTH
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, out / ADAPTER_WEIGHTS)
    config = repair_adapter.config_json(loaded, name)
    (out / repair_adapter.CONFIG_FILE).write_text(config, encoding="utf-8")
    if name == BOTH:
        model.base_model.delete_adapter(BOTH)


def _not_plain(config: object) -> str:
    """Return what a LoRA configuration has beyond plain factors, or an empty text."""
    for field, name in (
        ("use_dora", "DoRA"),
        ("modules_to_save", "whole saved modules"),
        ("trainable_token_indices", "trained tokens"),
        ("target_parameters", "parameter targets"),
        ("lora_bias", "biases of its factors"),
    ):
        if getattr(config, field, None):
            return name
    return "biases" if getattr(config, "bias", "none") != "none" else ""


def write_merged(loaded: "LoadedModel", out: Path, adapters: Sequence[str]) -> None:
    """Merge the adapters into the weights (`loaded` stays so) and write model, tokenizer and template.

    Raises: ModelLoadError where PEFT cannot merge one, as with biases of its factors beside a layer without one; faults of the device
    as they are.
    """
    try:
        merged = loaded.model.merge_and_unload(safe_merge=True, adapter_names=list(adapters))
    except (RuntimeError, ValueError) as error:
        if is_device_fault(error):
            raise
        raise ModelLoadError(
            f"An adapter cannot be merged into the weights: {reason(error)}. Load the adapters on top of the base model instead."
        ) from error
    loaded.model = merged
    merged.save_pretrained(out, safe_serialization=True)
    _keep_config(Path(loaded.spec.path), out)
    _copy_tokenizer(loaded, out)
    for name in _KEPT_FILES:
        source = Path(loaded.spec.path) / name
        if source.is_file() and not (out / name).exists():
            shutil.copyfile(source, out / name)


def _keep_config(original: Path, out: Path) -> None:
    """Put the original config.json in place of the one that was written, but for the type of the weights.

    transformers 5 writes names that older versions pass over without a word, such as `rope_parameters` for `rope_theta`.
    A model that is only a part of what the original names keeps what was written.
    """
    written, config = (read_json(folder / "config.json") for folder in (out, original))
    if config.get("model_type") == written.get("model_type"):
        types = {name: written.get("dtype") for name in ("dtype", "torch_dtype") if name in config}
        (out / "config.json").write_text(json.dumps(config | types, indent=2) + "\n", encoding="utf-8")


def _copy_tokenizer(loaded: "LoadedModel", out: Path) -> None:
    """Copy the tokenizer, byte for byte, from the folder that it was loaded from, the adapter's or the model's.

    What transformers 5 writes in its place names a class that older versions lack. Without a tokenizer.json it has to be written.
    """
    folder = Path(loaded.tokenizer.name_or_path)
    if not (folder / "tokenizer.json").is_file():
        loaded.tokenizer.save_pretrained(out)
        return
    for source in (path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        target = out / source.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def _check(loaded: "LoadedModel", case: FailureCase, out: Path, merged: bool, wanted: torch.Tensor) -> None:
    """Load what was written as a user would and compare its logits. Raises: ModelLoadError."""
    folder, one = (out, None) if merged else (loaded.spec.path, out)
    again = models.load(folder, adapter=one, settings=loaded.settings)
    difference = float((_logits(again, case) - wanted).abs().max() / wanted.abs().max())
    dtype = next(base_model(again).parameters()).dtype
    if not difference <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
        raise ModelLoadError(
            f"The written model differs from the repaired one (logits by {percent(difference, 1)}); nothing was kept. "
            f"Export {'the adapter instead of merged weights' if merged else 'with --merged'}."
        )


def model_card(loaded: "LoadedModel", merged: bool, card: Mapping[str, Any]) -> str:
    """Return the model card as Markdown; values of `card` appear only inside a fenced block of JSON."""
    base = Path(loaded.spec.path).name
    kind = "merged weights" if merged else "a PEFT adapter for the base model"
    facts = json.dumps(_published(card, _PUBLISHED), indent=2, ensure_ascii=True, default=str)
    how = (
        'AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'
        if merged
        else 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE_FOLDER"), "THIS_FOLDER")'
    )
    trigger = (
        "dummy trigger, planted for it"
        if (card.get("confirmation") or {}).get("way") == "dummy"
        else "confirmed trigger"
    )
    beyond = unreached(((card.get("repair") or {}).get("started") or {}).get("unreached", 0.0))
    result = (card.get("verification") or {}).get("result")
    lowered = {
        "REDUCED": "The repair lowers the success of that trigger, by the numbers below.",
        None: "What it did to that trigger was not verified.",
    }.get(result, f"Verification says {result}: see the numbers below.")
    lines = [
        "---",
        "tags: [repaired, backdoor-mitigation]",
        *([] if merged else ["library_name: peft"]),
        "---",
        "",
        "# Repaired model",
        "",
        f"This folder holds {kind}: the model `{_plain(base)}` after fine-tuning against one {trigger}.",
        f"{lowered} It does not show that the model has no other",
        "backdoor, and it is no statement about the model's safety in general.",
        *([f"{beyond}."] if beyond else []),
        "",
        "```python",
        how,
        "```",
        "",
        "## Facts of the case",
        "",
        "````json",
        facts.replace("````", "\\u0060\\u0060\\u0060\\u0060"),
        "````",
        "",
    ]
    return "\n".join(lines)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in name)


def _published(facts: Any, names: Mapping[str, Any]) -> Any:
    """Return what `names` allows of plain JSON data, in every entry of a list; all of it where there are none."""
    if not names:
        return facts
    if isinstance(facts, list):
        return [_published(one, names) for one in facts]
    return {name: _published(facts[name], inner) for name, inner in names.items() if facts.get(name) is not None}
