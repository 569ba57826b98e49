"""Which case a browser looks at, and which folders it may name. Ids and choices only: the truth is the case folder.

Every path that a browser sends is a name, looked up under one of the roots; nothing outside them is ever opened.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from core.casefile import Case, Manifest, Source, model_spec
from core.errors import CaseFileError, ModelLoadError, ReportError
from core.files import dump, now
from core.intake import file_bytes, read_report
from core.serial import to_json
from core.shipped import DEMO, PROMPTS
from core.values import FailureReport

LOG = logging.getLogger(__name__)
CASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
MAX_LISTED = 200
"""Cases and model folders that a list shows. Source: unverified choice."""
MODEL_DEPTH = 3
"""Levels under the models folder that are searched. Source: unverified choice (`owner/name/revision`)."""


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The folders the page may touch: cases, models a browser may name, the demo, the prompt sets."""

    cases: Path
    models: Path
    demo: Path = DEMO
    prompts: Path = PROMPTS


@dataclass(frozen=True, kw_only=True)
class DemoCase:
    """One shipped case; paths are relative to the demo folder."""

    id: str
    title: str
    model: str
    adapter: str | None
    report: str


def find_case(roots: Roots, case_id: str | None) -> Case:
    """Return the case in the folder of that name, whatever its `case.json` calls itself: that text is evidence.

    Raises: CaseFileError when the name is not a plain one or there is no such case.
    """
    if not case_id or not CASE_ID.fullmatch(case_id):
        raise CaseFileError("This is not a case id; choose a case from the list.")
    path = roots.cases / case_id
    if path.resolve().parent != roots.cases.resolve() or not (path / "case.json").is_file():
        raise CaseFileError(f"There is no case {case_id} here; choose one from the list or start a new one.")
    return Case(path)


def list_cases(roots: Roots) -> list[str]:
    """Return the ids of the cases, newest first."""
    if not roots.cases.is_dir():
        return []
    found = [path.parent for path in roots.cases.glob("*/case.json") if CASE_ID.fullmatch(path.parent.name)]
    found.sort(key=lambda path: (path / "case.json").stat().st_mtime, reverse=True)
    return [path.name for path in found[:MAX_LISTED]]


def _folders_with(root: Path, marker: str) -> Iterator[str]:
    for depth in range(MODEL_DEPTH + 1):
        for path in sorted(root.glob("/".join(["*"] * depth + [marker]))):
            name = str(path.parent.relative_to(root))
            if name.encode("utf-8", "ignore").decode() == name:  # a name that is no UTF-8 cannot be sent to a browser
                yield name


def list_models(roots: Roots) -> list[str]:
    """Return the model folders a browser may name, relative to the models root."""
    return list(_folders_with(roots.models, "config.json"))[:MAX_LISTED]


def list_adapters(roots: Roots) -> list[str]:
    """Return the adapter folders a browser may name, relative to the models root."""
    return list(_folders_with(roots.models, "adapter_config.json"))[:MAX_LISTED]


def named_folder(roots: Roots, name: str, what: str) -> Path:
    """Return the folder `name` under the models root. Raises: ModelLoadError when it leads out of it or is missing."""
    root = roots.models.resolve()
    if not name.strip():
        raise ModelLoadError(
            f"No {what} folder is chosen; choose one from the list, or put one under {root} or start the page with --models."
        )
    try:
        path = (root / name.strip()).resolve()
        present = path.is_dir()
    except (OSError, ValueError) as error:  # too long, or with a NUL
        raise ModelLoadError(f"No {what} folder can have this name; choose one from the list.") from error
    if root != path and root not in path.parents:
        raise ModelLoadError(f"The {what} folder must lie under {root}; start the page with --models to allow another.")
    if not present:
        raise ModelLoadError(f"There is no {what} folder {name.strip()} under {root}; choose one from the list.")
    return path


def demo_cases(roots: Roots) -> list[DemoCase]:
    """Return the shipped cases that are complete on this disk, in order."""
    index = roots.demo / "cases.json"
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))
    cases = [
        DemoCase(id=e["id"], title=e["title"], model=e["model"], adapter=e.get("adapter"), report=e["report"])
        for e in entries
    ]
    return [case for case in cases if (roots.demo / case.model).is_dir() and (roots.demo / case.report).is_file()]


def create_demo(roots: Roots, demo_id: str) -> Case:
    """Create a new case from a shipped one. Raises: CaseFileError, ModelLoadError, ReportError."""
    for demo in demo_cases(roots):
        if demo.id == demo_id:
            adapter = roots.demo / demo.adapter if demo.adapter else None
            file = roots.demo / demo.report
            source = Source(name=file.name, data=file_bytes(file))
            report = read_report(source.data, source.name)
            return create_case(roots, demo.id, report, roots.demo / demo.model, adapter, source)
    raise CaseFileError("There is no such demo case; build the demo model first (see README).")


def create_case(
    roots: Roots,
    name: str,
    report: FailureReport,
    model: Path,
    adapter: Path | None,
    source: Source | None = None,
    reviewers: int = 1,
) -> Case:
    """Create a case named after `name` and the time; `source` is the file the report came in.

    Raises: CaseFileError, ModelLoadError, PromptFolderError.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:48] or "case"
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    case_id = next(c for c in _numbered(f"{stem}-{stamp}") if not (roots.cases / c).exists())
    spec = model_spec(model, adapter)
    manifest = Manifest(id=case_id, created=now(), model=spec, report=report, seed=0, reviewers=reviewers)
    roots.cases.mkdir(parents=True, exist_ok=True)
    return Case.create(roots.cases / case_id, manifest, roots.prompts, source)


def _numbered(stem: str) -> Iterator[str]:
    yield stem
    for number in range(2, 1000):
        yield f"{stem}-{number}"
    raise CaseFileError("Too many cases of this name were started in this second; wait a moment and try again.")


def read_intake(pasted: str | None, upload: str | None) -> FailureReport:
    """Return the report that was uploaded, else the one that was pasted. Raises: ReportError."""
    if upload:
        return read_report(Path(upload))
    if not pasted or not pasted.strip():
        raise ReportError('The report is empty; paste {"messages": [...], "response": "..."} or choose a file.')
    return read_report(pasted)


def intake_source(pasted: str, upload: str | None) -> Source:
    """Return the bytes the report came in: the uploaded file where the text is still its own, else the text."""
    if upload:
        file = Path(upload)
        try:
            source = Source(name=file.name, data=file_bytes(file))
            if dump(to_json(read_report(source.data, source.name))) == pasted:
                return source
        except ReportError:
            LOG.warning("an uploaded report is gone or cannot be read; the text of the page is kept instead")
    return Source(name="", data=pasted.encode("utf-8", "surrogatepass"))
