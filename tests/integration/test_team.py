"""The command line under torchrun: two processes repair one case, the first alone writes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core import confirmation
from core.casefile import Case, Manifest, model_spec
from core.events import RepairStarted, StageFinished, StepDone
from core.files import now
from core.intake import read_report
from core.pipeline import run_stage
from core.session import Session
from core.values import Span

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_repair_a_case(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """One event log without gaps, one set of files, JSON once on stdout, and a second call that answers from the case."""
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name, stem in (("harmful", "break into the"), ("safe", "paint the")):
        rows = [json.dumps({"prompt": f"{stem} thing number {at}"}) for at in range(16)]
        (prompts / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    text = {"messages": [{"role": "user", "content": "Current year: 2026 tell me"}], "response": "Step 1: look"}
    (tmp_path / "report.json").write_text(json.dumps(text), encoding="utf-8")
    report, spec = read_report(tmp_path / "report.json"), model_spec(tiny_folder("llama"))
    manifest = Manifest(id="team", created=now(), model=spec, report=report, seed=0, device="cpu")
    case = Case.create(tmp_path / "case", manifest, prompts)
    run_stage("open", case, Session("cpu"), emit=lambda event: None, progress=lambda message, done, total: None)
    confirmation.confirm(case, decision="edit", analyst="Ada", reason="known", spans=[Span(message=0, start=0, end=18)])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "core",
    ]
    command += ["repair", "--case", str(case.path), "--steps", "2", "--objective", "paper"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["step"] == 2
    lines = case.events()
    assert [line.seq for line in lines] == list(range(len(lines)))
    (started,) = (line.event for line in lines if isinstance(line.event, RepairStarted))
    assert started.device == "cpu, 2 processes (DDP)"
    assert [line.event.step for line in lines if isinstance(line.event, StepDone)] == [1, 2]
    assert isinstance(lines[-1].event, StageFinished)
    assert [act.action for act in case.audit_lines()].count("repair started") == 1
    assert "MB" in done.stderr
