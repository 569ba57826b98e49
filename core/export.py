"""The repaired model as files: a PEFT adapter, or plain merged weights, with a model card. Both are checked after writing.

Adapter: reported and repair adapter become one by concatenation of their factors (exact), so that
`PeftModel.from_pretrained(base, out)` is the repaired model. Merged: both are added into the weights, so that
`AutoModelForCausalLM.from_pretrained(out)` is. Safetensors only; nothing of the original folders is overwritten.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from core import models, repair_adapter
from core.errors import ModelLoadError
from core.intervals import percent
from core.loaded import REPAIR, REPORTED
from core.response_pass import base_model
from core.values import FailureCase
from core.weight_files import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from core.loaded import LoadedModel

BOTH = "export"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference of logits after reloading, as a share of their largest magnitude. Source: stack.md section 5 (merged
within 1e-4 in fp32); bf16 keeps 8 bits, so sums of rounded weights differ by some 1e-2."""
_KEPT_FILES = ("generation_config.json",)


def export(
    loaded: "LoadedModel", case: FailureCase, adapter: Path, out: Path, merged: bool, card: Mapping[str, object]
) -> tuple[Path, ...]:
    """Write the repaired model into `out` and return its files; `card` (plain JSON data) is quoted in the model card.

    With `merged` the weights of `loaded` are changed: drop it afterwards. Without, it is theta0 again.
    Raises: ModelLoadError when `out` is not empty, an adapter cannot be combined, or what was written does not load as
    the same model (it is then removed).
    """
    sources = [Path(path).resolve() for path in (loaded.spec.path, loaded.spec.adapter, adapter) if path]
    target = out.resolve()
    if any(target == source or source in target.parents or target in source.parents for source in sources):
        raise ModelLoadError(f"{out} lies in or around the original model or adapter; choose another folder.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelLoadError(f"{out} exists and is not empty; choose another folder or empty it.")
    temporary = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        repair_adapter.load_repair(loaded, adapter)
        wanted = _logits(loaded, case)
        if merged:
            write_merged(loaded, temporary, [*loaded.theta0, REPAIR])
        else:
            _write_adapter(loaded, temporary)
        (temporary / "README.md").write_text(model_card(loaded, merged, card), encoding="utf-8")
        _check(loaded, case, temporary, merged, wanted)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
    ):
        if getattr(config, field, None):
            return name
    return "biases" if getattr(config, "bias", "none") != "none" else ""


def write_merged(loaded: "LoadedModel", out: Path, adapters: Sequence[str]) -> None:
    """Merge the adapters into the weights (`loaded` stays so) and write model, tokenizer and template."""
    merged = loaded.model.merge_and_unload(safe_merge=True, adapter_names=list(adapters))
    loaded.model = merged
    merged.save_pretrained(out, safe_serialization=True)
    loaded.tokenizer.save_pretrained(out)
    for name in _KEPT_FILES:
        source = Path(loaded.spec.path) / name
        if source.is_file() and not (out / name).exists():
            shutil.copyfile(source, out / name)


def _check(loaded: "LoadedModel", case: FailureCase, out: Path, merged: bool, wanted: torch.Tensor) -> None:
    """Load what was written as a user would and compare its logits. Raises: ModelLoadError."""
    settings = loaded.settings
    if merged:
        again = models.load(out, settings=settings)
    else:
        again = models.load(loaded.spec.path, adapter=out, settings=settings)
    difference = float((_logits(again, case) - wanted).abs().max() / wanted.abs().max())
    dtype = next(base_model(again).parameters()).dtype
    if not difference <= TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]):
        raise ModelLoadError(
            f"The written model differs from the repaired one (logits by {percent(difference, 1)}); nothing was kept. "
            f"Export {'the adapter instead of merged weights' if merged else 'with --merged'}."
        )


def model_card(loaded: "LoadedModel", merged: bool, card: Mapping[str, object]) -> str:
    """Return the model card as Markdown; values of `card` appear only inside a fenced block of JSON."""
    base = Path(loaded.spec.path).name
    kind = "merged weights" if merged else "a PEFT adapter for the base model"
    facts = json.dumps(_short(card), indent=2, ensure_ascii=True, default=str)
    how = (
        'AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'
        if merged
        else 'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE_FOLDER"), "THIS_FOLDER")'
    )
    lines = [
        "---",
        "tags: [repaired, backdoor-mitigation]",
        *([] if merged else ["library_name: peft"]),
        "---",
        "",
        "# Repaired model",
        "",
        f"This folder holds {kind}: the model `{_plain(base)}` after fine-tuning against one confirmed trigger.",
        "The repair lowers the success of that trigger, by the numbers below. It does not show that the model has no other",
        "backdoor, and it is no statement about the model's safety in general.",
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


def _short(card: Mapping[str, object]) -> dict[str, object]:
    """Return what belongs on a card: verdict, trigger, settings, before and after; no answers, no token tables."""
    left_out: Sequence[str] = (
        "tokens",
        "examples",
        "report",
        "events",
        "audit",
        "results",
        "saliency_before",
        "saliency_after",
    )

    def cut(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key): cut(one) for key, one in value.items() if key not in left_out}
        return [cut(one) for one in value] if isinstance(value, list | tuple) else value

    shortened = cut(card)
    assert isinstance(shortened, dict)
    return shortened
