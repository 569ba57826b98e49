"""The case folder: the one record of a case, and the only thing the page and the worker share.

Results are JSON files written to a temporary name and moved into place; events are one line each with a running number
and only the process that holds `worker.lock` writes them; acts are chained in `audit.jsonl` (audit.py).
Evidence (the report as it came, the prompt copy, the model's hashes) is written once, at creation, and never again; it is
compared in evidence.py. `relocated.json` says where a model lies on this machine when the case was copied. Cases of schema
1 (no copy of the report file, no chain) are read as they are and upgraded in memory. No weights are kept here and no torch
is imported: the page reads cases too.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from core import audit as chain
from core.errors import CaseFileError, EvidenceError, ModelLoadError
from core.event_log import current_events, read_events
from core.events import Line
from core.files import dump, hash_file, refuse_links, write_atomic
from core.prompts import Splits, copy_folder, read_folder, split
from core.serial import from_json, to_json
from core.values import FailureReport, ModelSpec
from core.weight_files import READ_SUFFIXES, check_files

T = TypeVar("T")
SCHEMA = 2
SOURCE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
RELOCATED = "relocated.json"
PLACES = ("model", "adapter", "reference", "judge")
"""Folders outside the case that its evidence lies in."""


def hash_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every weight, configuration, tokenizer and template file, by relative name, sorted.

    Raises: ModelLoadError when the folder does not exist, or holds what `check_files` refuses, before anything is read.
    """
    if not folder.is_dir():
        raise ModelLoadError(f"Model folder {folder} does not exist; give the folder that holds config.json.")
    check_files(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in READ_SUFFIXES)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def model_spec(model: Path, adapter: Path | None = None) -> ModelSpec:
    """Return the spec of a model folder and its adapter, with hashes. Raises: ModelLoadError."""
    return ModelSpec(
        path=str(model.resolve()),
        adapter=str(adapter.resolve()) if adapter else None,
        files=hash_folder(model),
        adapter_files=hash_folder(adapter) if adapter else {},
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A report file as it came in: its name, its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """What a case knows of the file its report came in: name and SHA-256 as given, and the copy in the case.

    `kept` holds the same bytes; of a file of many reports it holds the one report.
    """

    name: str
    sha256: str
    kept: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`case.json`: what the case is about; never rewritten after creation.

    `template` is the SHA-256 of the chat template's text at intake, None where the files hold none. `reviewers` is the
    number of different names a confirmation needs before repair: 1, or 2.
    """

    schema: int = SCHEMA
    id: str
    created: str
    model: ModelSpec
    report: FailureReport
    seed: int
    reference: ModelSpec | None = None
    judge: str | None = None
    judge_files: dict[str, str] = field(default_factory=dict)
    device: str = "auto"
    prompt_files: dict[str, str] = field(default_factory=dict)
    report_file: SourceFile | None = None
    evidence: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    reviewers: int = 1


def moved_manifest(manifest: Manifest, folders: Mapping[str, str]) -> Manifest:
    """Return the manifest with folders (of `PLACES`) in other places; hashes stay."""
    model = replace(
        manifest.model,
        path=folders.get("model", manifest.model.path),
        adapter=folders.get("adapter", manifest.model.adapter) if manifest.model.adapter else None,
    )
    reference = manifest.reference
    if reference is not None:
        reference = replace(reference, path=folders.get("reference", reference.path))
    judge = folders.get("judge", manifest.judge) if manifest.judge else None
    return replace(manifest, model=model, reference=reference, judge=judge)


def template_digest(spec: ModelSpec) -> str | None:
    """Return the SHA-256 of the chat template in the model's files (the adapter's where it brings a tokenizer), or None.

    The files are read, nothing is rendered; what is not understood gives None, since their own hashes hold all.
    """
    adapter = Path(spec.adapter) if spec.adapter else None
    folder = adapter if adapter and (adapter / "tokenizer.json").is_file() else Path(spec.path)
    try:
        if (folder / "chat_template.jinja").is_file():
            text: object = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        else:
            text = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(text, str) or not text:
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _keep(folder: Path, source: Source | None, report: FailureReport) -> SourceFile:
    """Copy the report's file into the case, or write the report where there is no file of its own."""
    if source is None:
        text = json.dumps(to_json(report), ensure_ascii=True, indent=1)
        source = Source(name="", data=text.encode("ascii"))
    suffix = Path(source.name).suffix.lower() or ".json"
    kept = "evidence/report" + (suffix if suffix in SOURCE_SUFFIXES else ".txt")
    write_atomic(folder / kept, source.data)
    name = source.name.encode("utf-8", "replace").decode("utf-8")  # a file's name may be no Unicode at all
    return SourceFile(name=name, sha256=hashlib.sha256(source.data).hexdigest(), kept=kept)


def as_stored(value: object) -> bytes:
    """Return a value as a file of a case holds it; bytes as they are."""
    return value if isinstance(value, bytes) else dump(to_json(value)).encode("utf-8")


class Case:
    """A case folder that exists. Reading is safe from any process at any time."""

    def __init__(self, path: Path | str) -> None:
        """Open an existing case. Raises: CaseFileError, also for one with links in it."""
        self.path = Path(path)
        source = self.path / "case.json"
        if not source.is_file():
            raise CaseFileError(f"{self.path} is not a case folder (no case.json); run `triage` first.")
        refuse_links(self.path)
        try:
            text = source.read_bytes()
            data = json.loads(text.decode("utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise CaseFileError(f"{source} cannot be read ({error}); restore it or start a new case.") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise CaseFileError(
                f"{source} has another schema version than 1 to {SCHEMA}; open it with the version that wrote it."
            )
        if schema == 1 and ("evidence" in data or (self.path / "evidence").exists()):
            raise CaseFileError(
                f"{source} says schema 1, which had no copy of the report's file, and the case has one; restore {source.name}."
            )
        self.schema: int = schema
        self.read_as = hashlib.sha256(text).hexdigest()
        """SHA-256 of `case.json` as it was when this was read from it."""
        self.intake = replace(from_json(Manifest, data), schema=SCHEMA)

    @property
    def manifest(self) -> Manifest:
        """`case.json`, with the folders where they lie on this machine."""
        moved = self.read(RELOCATED, dict)
        return (
            moved_manifest(self.intake, {name: str(moved[name]) for name in PLACES if name in moved})
            if moved
            else self.intake
        )

    @classmethod
    def create(cls, path: Path | str, manifest: Manifest, prompts: Path, source: Source | None = None) -> "Case":
        """Create the case, or open it when it holds the same report and model. `source` is the file the report came in.

        A new folder is there whole or not at all; one that is there empty is written in place, and removed when that fails.
        Raises: CaseFileError when the folder holds another case or other files; PromptFolderError.
        """
        path = Path(path)
        if (path / "case.json").is_file():
            case = cls(path)
            old, new = case.intake, manifest
            if (old.model.files, old.model.adapter_files, old.report) != (
                new.model.files,
                new.model.adapter_files,
                new.report,
            ):
                raise CaseFileError(f"{path} already holds another report or model; choose a new --case folder.")
            return case
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CaseFileError(f"{path} exists and is not a case folder; choose a new or empty --case folder.")
        if manifest.id.encode("utf-8", "ignore").decode() != manifest.id:
            raise CaseFileError("The case's name is no Unicode text; choose another --case folder.")
        read_folder(prompts)  # refuse a bad prompt folder before anything is written
        made = path if path.is_dir() else path.with_name(f".new-{uuid.uuid4().hex[:8]}")
        try:
            cls._fill(made, manifest, prompts, source)
            if made != path:
                made.rename(path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return cls(path)

    @classmethod
    def _fill(cls, path: Path, manifest: Manifest, prompts: Path, source: Source | None) -> None:
        """Write a new case into `path`."""
        for name in ("requests", "control", "results", "repair", "evidence"):
            (path / name).mkdir(parents=True, exist_ok=True)
        copy_folder(prompts, path / "prompts")
        files = {p.name: hash_file(p) for p in sorted((path / "prompts").glob("*.jsonl"))}
        kept = _keep(path, source, manifest.report)
        manifest = replace(
            manifest,
            schema=SCHEMA,
            prompt_files=files,
            report_file=kept,
            evidence={kept.kept: hash_file(path / kept.kept)},
            template=template_digest(manifest.model),
        )
        write_atomic(path / "case.json", dump(to_json(manifest)))
        case = cls(path)
        case.audit(
            "created",
            actor="intake",
            report=kept,
            model=manifest.model.files,
            adapter=manifest.model.adapter_files,
            reference=manifest.reference.files if manifest.reference else {},
            judge=manifest.judge_files,
            template=manifest.template,
            files=["case.json", kept.kept, *(f"prompts/{name}" for name in files)],
        )

    @property
    def report(self) -> FailureReport:
        """The failure report, as it came in."""
        return self.intake.report

    def splits(self) -> Splits:
        """Return the four disjoint prompt splits of this case's own copy.

        Raises: EvidenceError naming the first file that was changed, removed or added.
        """
        known = self.intake.prompt_files
        found = {path.name: hash_file(path) for path in (self.path / "prompts").glob("[!.]*.jsonl")} if known else {}
        for name in sorted(known.keys() | found.keys()):
            if known.get(name) != found.get(name):
                what = "changed" if name in known and name in found else "added" if name in found else "removed"
                raise EvidenceError(f"prompts/{name} was {what} after intake; restore the folder or start a new case.")
        return split(read_folder(self.path / "prompts"), seed=self.intake.seed)

    # values -----------------------------------------------------------------------------------------------------------

    def read(self, name: str, cls: type[T]) -> T | None:
        """Return the stored value, or None when there is none. Raises: CaseFileError when it is damaged."""
        path = self.path / name
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, RecursionError, ValueError) as error:
            raise CaseFileError(f"{name} of the case is damaged ({error}); run the step again.") from error
        return from_json(cls, data)

    def write(self, name: str, value: object) -> str:
        """Store `value` under `name`, atomically, `as_stored`; return `name`."""
        write_atomic(self.path / name, as_stored(value))
        return name

    # events -----------------------------------------------------------------------------------------------------------

    def events(self) -> tuple[Line, ...]:
        """Return all events, oldest first; an unterminated last line is ignored. Raises: CaseFileError for a damaged line."""
        return read_events(self.path)

    def current_events(self) -> tuple[Line, ...]:
        """Return the events that say where the case stands, without what is over. Raises: CaseFileError as `events`."""
        return current_events(self.path)

    def n_events(self) -> int:
        """Return how many events there are. Raises: CaseFileError as `events`."""
        lines = self.current_events()
        return lines[-1].seq + 1 if lines else 0

    # acts -------------------------------------------------------------------------------------------------------------

    def audit(self, action: str, *, actor: str, **facts: Any) -> None:
        """Append one act to `audit.jsonl`. `files` among the facts: names in the case whose hash is stored with the act."""
        names = facts.pop("files", ())
        if not isinstance(names, dict):
            names = {name: hash_file(self.path / name) for name in names}
        chain.append(self.path, action, actor, to_json(facts | ({"files": names} if names else {})))

    def acts(self) -> Iterator[chain.AuditLine]:
        """Yield every act, oldest first. Raises: CaseFileError when a line cannot be read."""
        return chain.lines(self.path)

    def audit_lines(self) -> list[chain.AuditLine]:
        """Return every act, oldest first. Raises: CaseFileError when a line cannot be read."""
        return list(self.acts())
