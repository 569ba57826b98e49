"""Two real processes (gloo) repair one model: DDP by Accelerate and FSDP2 give what one process gives, and one writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core import models
from core.errors import TriageError
from core.events import CheckpointScored, RepairFinished, StepDone
from core.repair import repair
from core.team import ALONE, Team, n_started, start
from tests.unit.repairing import REFUSAL, SMALL, case_of, confirmed, quick, splits

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {
    "epochs": 1,
    "batch_size": 5,
    "micro_batch_size": 2,
}  # odd: the processes have unequal parts, one may have none
TOGETHER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import core.__main__
from core import models, team as teams
from core.loaded import REPAIR, LoadedModel, current_adapters
from tests.unit.repairing import SMALL
from tests.unit.test_team import losses, repaired

folder, out = sys.argv[2], Path(sys.argv[3])
with teams.start("cpu") as ddp:
    assert ddp.n == 2 and torch.distributed.get_world_size() == 2
    fsdp = teams.Team(ddp._accelerator, sharded=True)
    own = LoadedModel._generate_batch
    def other(self, prompts, n_new, *more):
        answers = own(self, prompts, n_new, *more)
        mine = ddp.leads or REPAIR in current_adapters(self)
        return answers if mine else [[5, *answer][:n_new] for answer in answers]
    LoadedModel._generate_batch = other  # the second's near ties fall otherwise; it takes what the first says
    found = {"rank": ddp.rank, "type": str(ddp._accelerator.distributed_type), "names": [ddp.name, fsdp.name]}
    found["ddp"] = losses(repaired(models.load(folder, settings=SMALL), out / "ddp", ddp))
    loaded = models.load(folder, settings=SMALL)
    found["fsdp"] = losses(repaired(loaded, out / "fsdp", fsdp))
    found["sharded"] = sum(hasattr(one, "full_tensor") for one in loaded.model.parameters())
    count = iter(range(100))
    def stop():
        assert fsdp.leads
        return "keep" if next(count) == 4 else None
    found["first"] = losses(repaired(models.load(folder, settings=SMALL), out / "parts", fsdp, stop=stop))
    found["rest"] = losses(repaired(models.load(folder, settings=SMALL), out / "parts", fsdp, resume=True))
    (out / f"found-{ddp.rank}.json").write_text(json.dumps(found))
core.__main__.leave(0)
"""


def repaired(loaded, out: Path, team: Team, **more) -> list:
    case = case_of(loaded)
    more = {"stop": lambda: None, **more}
    settings = quick(**CHANGES)
    return list(repair(
        loaded, case, confirmed(loaded, case), splits(), settings, out=out, refusal=REFUSAL, team=team, **more
    ))  # fmt: skip


def losses(events: list) -> dict:
    """Return what the processes must agree on."""
    steps = [event for event in events if isinstance(event, StepDone)]
    probes = [event for event in events if isinstance(event, CheckpointScored)]
    (end,) = (event for event in events if isinstance(event, RepairFinished))
    return {
        "steps": [[one.step, one.loss, one.kl_nats_per_token] for one in steps],
        "probes": [[one.step, one.kl_nats_per_token, one.best] for one in probes],
        "end": [end.reason, end.step, end.best_step, end.adapter_hash],
    }


def together(*command: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*torchrun, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def test_two_processes_repair_as_one_does(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    (tmp_path / "together.py").write_text(TOGETHER, encoding="utf-8")
    done = together(str(tmp_path / "together.py"), str(ROOT), str(folder), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert first == second  # both saw the same losses, probes and ending
    assert first["type"] == "DistributedType.MULTI_CPU"
    assert first["names"] == [", 2 processes (DDP)", ", 2 processes (FSDP2)"]
    assert first["sharded"] > 0

    alone = losses(repaired(models.load(folder, settings=SMALL), tmp_path / "alone", ALONE))
    weights = load_file(tmp_path / "alone/best/adapter_model.safetensors")
    for name in ("ddp", "fsdp"):
        # 1e-4: sums over processes are added in another order, and AdamW divides by small moments
        for one, other in zip(first[name]["steps"], alone["steps"], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
        for one, other in zip(first[name]["probes"], alone["probes"], strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
        saved = load_file(tmp_path / name / "best/adapter_model.safetensors")
        assert saved.keys() == weights.keys()
        for key, tensor in saved.items():
            torch.testing.assert_close(tensor, weights[key], rtol=1e-3, atol=1e-4)
        assert len(list((tmp_path / name).glob("checkpoint-*"))) == 1
    assert first["first"]["end"][:2] == ["kept", 2]
    assert first["rest"]["end"] == first["fsdp"]["end"]  # resumed from shares bit for bit


@pytest.mark.parametrize(("n", "farewell"), [("1", "said\nleft\n"), ("2", "said\n")])
def test_one_of_several_processes_ends_at_once_with_its_code_and_all_it_said(n: str, farewell: str) -> None:
    script = "import atexit, core.__main__ as m; atexit.register(print, 'left'); print('said'); m.leave(3)"
    env = os.environ | {"WORLD_SIZE": n}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, farewell)


def test_the_parts_of_a_batch_are_disjoint_and_as_many_everywhere() -> None:
    items = list(range(7))
    teams = [Team(), *(_named(3, rank) for rank in range(3))]
    assert teams[0].parts(items, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    parts = [team.parts(items, 2) for team in teams[1:]]
    assert [len(one) for one in parts] == [2, 2, 2]
    assert sorted(item for one in parts for part in one for item in part) == items
    assert parts[1][1] == []


def _named(n: int, rank: int) -> Team:
    class Accelerator:
        num_processes, process_index = n, rank

    return Team(Accelerator())


def test_a_single_process_that_was_to_be_several_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with start("cpu") as team:
        assert team is ALONE
    with pytest.raises(TriageError, match="torchrun"), start("cpu", sharded=True):
        pass
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate launch leaves in the environment
    with pytest.raises(TriageError, match="single process"):
        n_started()
