"""Resumable checkpoints of a repair: adapter and optimiser as safetensors, the rest as JSON; no pickle.

Where they lie, and how they are removed, says `checkpoint_files`. A checkpoint folder is written under a temporary name and
renamed. No random state is stored: data order and injections are functions of seed, epoch and index (see `repair_data`). What the
reported model said before the first step is: asked again it may say something else (see `recall`).
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core import recall, repair_adapter
from core.checkpoint_files import PREFIX, folders, remove
from core.errors import CaseFileError
from core.recall import Said
from core.team import ALONE, Team, like, whole

if TYPE_CHECKING:
    from core.loaded import LoadedModel

SAID = "said.json"
_DAMAGE = (OSError, ValueError, TypeError, RecursionError, SafetensorError)


@dataclass(kw_only=True)
class RunState:
    """Where a repair stands; everything that decides how it goes on, but for weights and optimiser.

    `best_key` orders checkpoints, see `best_checkpoint`; `met` counts probes in a row at the
    ASR target, `held` those at all targets, `spent` those over the KL budget. `fingerprint` ties the state to settings,
    trigger, refusal, model and prompts. `said_hash` is that of the file with what the reported model said; versions before kept none.
    """

    fingerprint: str
    said_hash: str | None = None
    step: int = 0
    best_step: int | None = None
    best_key: tuple[float, ...] | None = None
    best_asr: float = 1.0
    best_hash: str | None = None
    start_refusal: float | None = None
    start_refusal_safe: float = 0.0
    met: int = 0
    held: int = 0
    spent: int = 0
    kl_nats_per_token: float = 0.0
    micro_batch: int | None = None
    seconds: float = 0.0
    probe_seconds: list[float] = field(default_factory=list)


def save(
    out: Path, loaded: "LoadedModel", optimizer: torch.optim.Optimizer, state: RunState, said: Said, team: Team = ALONE
) -> None:
    """Write the checkpoint of `state.step` with `said` and remove older ones; of a team the first process does, with all shares."""
    adapter, moments = repair_adapter.state(loaded), _optimizer_tensors(loaded, optimizer)
    if not team.leads:
        return
    folder = out / f"{PREFIX}{state.step:06d}"
    temporary = out / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(adapter, temporary / "adapter.safetensors")
        save_file(moments, temporary / "optimizer.safetensors")
        state.said_hash = recall.write(temporary / SAID, said)
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
    except (OSError, SafetensorError):  # what was written of it only takes space
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    remove(folder)
    temporary.rename(folder)
    for other in folders(out):
        if other != folder:
            remove(other)


def said(out: Path, loaded: "LoadedModel") -> Said:
    """Return what the reported model said when the newest checkpoint's run began; nothing where there is none, or it kept nothing.

    Raises: CaseFileError when it is not what was kept.
    """
    there = folders(out)
    if not there:
        return {}
    folder = there[-1]
    try:
        digest = _state(folder).said_hash
        n_tokens = loaded.model.get_input_embeddings().weight.shape[0]
        return {} if digest is None else recall.read(folder / SAID, digest, n_tokens)
    except _DAMAGE as error:
        raise _damaged(folder, error) from error


def load(out: Path, loaded: "LoadedModel", optimizer: torch.optim.Optimizer, fingerprint: str) -> RunState | None:
    """Put the newest checkpoint into adapter and optimiser and return its state; None when there is none.

    Raises: CaseFileError when it belongs to other settings, trigger, model or prompts, or is damaged.
    """
    there = folders(out)
    if not there:
        return None
    folder = there[-1]
    try:
        state = _state(folder)
        adapter = load_file(folder / "adapter.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
    except _DAMAGE as error:
        raise _damaged(folder, error) from error
    if state.fingerprint != fingerprint:
        raise CaseFileError(
            f"Checkpoint {folder.name} belongs to other settings, trigger, prompts or model. Resume with those it was made with; a repair "
            "without --resume removes it."
        )
    if state.best_key is not None:
        state.best_key = tuple(state.best_key)
    repair_adapter.load_state(loaded, adapter)
    for name, parameter in repair_adapter.parameters(loaded).items():
        kept = {key.rpartition("/")[2]: value for key, value in moments.items() if key.startswith(f"{name}/")}
        if kept:
            optimizer.state[parameter] = {
                key: value if key == "step" else like(value, parameter) for key, value in kept.items()
            }
    return state


def _state(folder: Path) -> RunState:
    return RunState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


def _damaged(folder: Path, error: BaseException) -> CaseFileError:
    return CaseFileError(f"Checkpoint {folder.name} is damaged ({type(error).__name__}); repair without --resume.")


def _optimizer_tensors(loaded: "LoadedModel", optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in repair_adapter.parameters(loaded).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = whole(value.detach()).to("cpu", copy=True).contiguous()
    return tensors
