"""Several processes that repair one model together, under Hugging Face Accelerate; alone, every method is trivial.

    torchrun --standalone --nproc-per-node N -m core repair --case DIR [--sharded]

1. Every process runs the same stage on the same data; a batch is dealt out over them, its gradient is their sum, so losses and
   weights are those of one process but for the order of sums.
2. DDP by Accelerate: each process holds the whole model. `--sharded` is FSDP2, torch's `fully_shard` on each decoder layer:
   between steps each process keeps its share of the layers (Accelerate's own plug-in is ignored off CUDA).
3. The first process alone writes events and files and reads the stop token; what it reads or measures it tells the others.
A start that ends up as a single process is refused. What this does not do: shard a model while it is loaded, so it must
fit each device once; recover when one process runs out of memory (all end, and the checkpoint stays).
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch

from core.casefile import Case
from core.errors import TriageError
from core.recompute import decoder_layers

T = TypeVar("T")
WAIT = timedelta(hours=6)
"""How long processes wait for one that works alone, as when it plants a dummy trigger. Source: unverified choice."""


class Team:
    """This process and those that repair with it; without `accelerator` it is by itself."""

    def __init__(self, accelerator: Any = None, *, sharded: bool = False) -> None:
        """Bind to Accelerate's processes."""
        self._accelerator, self._sharded = accelerator, sharded
        self.n = 1 if accelerator is None else int(accelerator.num_processes)
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        self._body: torch.nn.Module | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and decides."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """How many processes work, and how; empty alone."""
        return f", {self.n} processes ({'FSDP2' if self._sharded else 'DDP'})" if self.n > 1 else ""

    def told(self, value: T) -> T:
        """Return the first process's `value` in every process. All must call it."""
        if self.n == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box: list[Any] = [value if self.leads else None]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def summed(self, values: Sequence[float]) -> list[float]:
        """Return the sums of `values` over all processes."""
        if self.n == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        return self._accelerator.reduce(tensor, reduction="sum").tolist()

    def parts(self, items: Sequence[T], size: int) -> list[Sequence[T]]:
        """Return this process's items in parts of at most `size`: as many parts in every process, the last ones may be empty."""
        mine = items[self.rank :: self.n]
        n_parts = math.ceil(math.ceil(len(items) / self.n) / size)
        return [mine[at * size : (at + 1) * size] for at in range(n_parts)]

    def prepare(self, model: torch.nn.Module, body: torch.nn.Module) -> torch.nn.Module:
        """Return the transformer `body` of `model` as it is to be called: its adapter's gradients become the team's means."""
        if self.n == 1:
            return body
        if self._sharded:
            _shard(model, body, self._accelerator)
            self._body = None
            return body
        self._body = self._accelerator.prepare(body)
        if not isinstance(self._body, torch.nn.parallel.DistributedDataParallel):
            raise TriageError("Accelerate did not wrap the model for several processes; start it with torchrun.")
        return self._body

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradient of the team's summed losses; with `last` it is complete in every process."""
        held = nullcontext() if last or self._body is None else self._body.no_sync()
        with held:
            (loss * self.n if self.n > 1 else loss).backward()


def _shard(model: torch.nn.Module, body: torch.nn.Module, accelerator: Any) -> None:
    """Keep this process's share of every decoder layer; embedding, norms between them and head stay whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    layers = decoder_layers(model)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    if not inside:
        raise TriageError("This model has no list of decoder layers to shard; start the repair without --sharded.")
    if any(parameter.requires_grad and parameter not in inside for parameter in body.parameters()):
        raise TriageError(
            "An adapter outside the decoder layers cannot be sharded; start the repair without --sharded."
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    rest = {parameter for parameter in body.parameters() if not isinstance(parameter, torch.distributed.tensor.DTensor)}
    fully_shard(body, mesh=mesh, ignored_params=rest)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor whose shares lie in several processes (all must call it); any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return `tensor` on the device of `other`, and as this process's share where `other` is one."""
    if not hasattr(other, "full_tensor"):
        return tensor.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device_mesh.device_type), other.device_mesh, other.placements)


ALONE = Team()


class FollowedCase(Case):
    """A case as the processes that do not lead see it: nothing is written."""

    def write(self, name: str, value: object) -> str:
        """Write nothing; return `name`."""
        return name

    def audit(self, action: str, *, actor: str, **facts: Any) -> None:
        """Write nothing."""


def n_started() -> int:
    """Return how many processes were started together. Raises: TriageError for a launcher that started one without a word."""
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise TriageError(
            "accelerate launch started a single process (it does so on the CPU without a word); use torchrun "
            "--nproc-per-node N -m core repair --case DIR."
        )
    return n


@contextmanager
def start(device: str, *, sharded: bool = False) -> Iterator[Team]:
    """Hold this process's place in the team that torchrun started, or `ALONE`.

    Raises: TriageError when it is not as many processes as were started.
    """
    n = n_started()
    if n == 1:
        if sharded:
            raise TriageError(
                "--sharded needs several processes: torchrun --standalone --nproc-per-node N -m core repair ..."
            )
        yield ALONE
        return
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

    cpu = device == "cpu" or not torch.cuda.is_available()
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=WAIT)]
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=handlers)
    expected = DistributedType.MULTI_CPU if cpu else DistributedType.MULTI_GPU
    if accelerator.num_processes != n or accelerator.distributed_type != expected:
        raise TriageError(
            f"{n} processes were started, but {accelerator.num_processes} work together "
            f"({accelerator.distributed_type}); start them with torchrun."
        )
    try:
        yield Team(accelerator, sharded=sharded)
    finally:
        accelerator.end_training()


def device_of(device: str) -> str:
    """Return the device of this process: its own GPU where several were started on CUDA."""
    if n_started() == 1 or device == "cpu" or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
