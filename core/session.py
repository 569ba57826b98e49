"""What a process that runs stages holds: the models in memory, and one stage at work on one case."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from core import causal, chat, evidence, intake, jobs, models
from core.answers import Answers, instead
from core.casefile import Case
from core.events import Event
from core.judge import Judge, Judgement
from core.judge_model import JudgeModel
from core.kinds import FailureKind, kind_of
from core.loaded import LoadedModel
from core.progress import Progress
from core.prompts import PromptItem, Splits
from core.settings import CausalSettings, ModelSettings
from core.team import ALONE, Team
from core.values import FailureCase

REFUSAL = "results/refusal.json"


class Session:
    """The models a process holds: one patient (and one clean reference) at a time, kept from stage to stage."""

    def __init__(self, device: str = "auto", team: Team = ALONE) -> None:
        """Hold nothing yet; `team` are the processes that work on the same stage."""
        self.team = team
        self.settings = ModelSettings(device=device)
        self._patient: LoadedModel | None = None
        self._reference: LoadedModel | None = None
        self._judge: JudgeModel | None = None
        self._judge_files: Mapping[str, str] = {}

    @property
    def device_name(self) -> str:
        """The device that will be used, e.g. `cpu` or `cuda:0`."""
        return str(models.resolve_device(self.settings.device))

    def patient(self, case: Case) -> LoadedModel:
        """Return the case's model, loaded at first use and then the one of intake, which a stage keeps for the next case
        only where that has the same files. Raises: ModelLoadError, CaseFileError.
        """
        spec = case.manifest.model
        if self._patient is None or self._patient.spec != spec:
            self.drop()
            evidence.verify(case, before="triage.json")  # a stage checks for itself what it builds on
            loaded = models.load(spec.path, spec.adapter, self.settings, spec=spec)
            evidence.verify_folders(case, "model", "adapter")  # nor were they changed while they were read
            self._patient = loaded
        return self._patient

    def reference(self, case: Case) -> LoadedModel | None:
        """Return the clean reference model given at intake, or None (the adapter switched off may then serve)."""
        spec = case.manifest.reference
        if spec is None:
            return None
        if self._reference is None or self._reference.spec != spec:
            loaded = models.load(spec.path, spec.adapter, self.settings, spec=spec)
            evidence.verify_folders(case, "reference")
            self._reference = loaded
        return self._reference

    def judge(self, case: Case) -> Judge | None:
        """Return the judge given at intake, loaded when it is first asked, or None for the rules.

        It raises ModelLoadError, or CaseFileError when its files changed after intake.
        """
        return None if case.manifest.judge is None else lambda text: self._asked_judge(case, text)

    def _asked_judge(self, case: Case, text: str) -> Judgement:
        folder, files = Path(str(case.manifest.judge)), case.manifest.judge_files
        if self._judge is None or (self._judge.folder, self._judge_files) != (folder, files):
            judge = JudgeModel(folder, self.settings.device)
            evidence.verify_folders(case, "judge")
            self._judge, self._judge_files = judge, files
        return self._judge(text)

    def n_sequences(self, case: Case) -> int:
        """Return how many sequences the case's patient and reference have scored or generated; one that is not loaded yet, none."""
        held = ((self._patient, case.manifest.model), (self._reference, case.manifest.reference))
        return sum(one.model_calls for one, spec in held if one is not None and one.spec == spec)

    def drop(self) -> None:
        """Let the models go."""
        self._patient = None
        self.drop_reference()

    def drop_reference(self) -> None:
        """Let the reference go: what trains the patient needs its room."""
        self._reference = None


@dataclass
class Run:
    """One stage at work on one case."""

    case: Case
    session: Session
    args: Mapping[str, Any]
    emit: Callable[[Event], None]
    progress: Progress
    asked: Callable[[], jobs.How | None]

    @property
    def loaded(self) -> LoadedModel:
        """The patient model."""
        return self.session.patient(self.case)

    @cached_property
    def failure(self) -> FailureCase:
        """The report bound to the tokenizer, checked against the context length."""
        bound = chat.bind(self.loaded.tokenizer, self.case.report)
        intake.check_length(bound, self.loaded.context_length, self.session.settings.max_new_tokens)
        return bound

    @cached_property
    def splits(self) -> Splits:
        """The case's prompt splits."""
        return self.case.splits()

    @property
    def asked_for_refusals(self) -> tuple[PromptItem, ...]:
        """Harmful requests that the model's own refusals are found with: those of minimisation."""
        return self.splits.causal.harmful[: CausalSettings().n_minimise]

    @cached_property
    def refusal(self) -> str:
        """The model's own commonest refusal, found once a case: what a repair trains towards, so an act holds its hash.

        One that no act knows, of an older version or of a writer that was killed, is found anew.
        Raises: EvidenceError when it was changed since.
        """
        if REFUSAL in evidence.recorded_files(self.case):
            evidence.unchanged(self.case, REFUSAL)
            return str((self.case.read(REFUSAL, dict) or {})["text"])
        text = causal.own_refusal(self.loaded, self.asked_for_refusals, progress=self.progress)
        self.case.write(REFUSAL, {"text": text})
        self.case.audit("own refusal", actor="engine", files=[REFUSAL])
        return text

    @cached_property
    def kind(self) -> FailureKind:
        """What counts as the failure; of an answer no more is read for it than the context leaves beside the report."""
        kind = kind_of(self.failure)
        return replace(kind, n_marked=min(kind.n_marked, self.loaded.room(len(self.failure.prompt.tokens))))

    @cached_property
    def contrast_ids(self) -> list[int]:
        """Token ids of the answer that the reported one is contrasted with.

        The model's own refusal; for a failure that is no unsafe answer the right answer (see `answers.instead`) and its
        end, so that an answer which only goes on too long has a contrast too.
        """
        tokenizer = self.loaded.tokenizer
        if self.kind.name == "jailbreak":
            return chat.continuation_ids(tokenizer, self.failure.prompt, self.refusal)
        right = instead(self.answers(), self.failure) or self.refusal
        return [*chat.continuation_ids(tokenizer, self.failure.prompt, right), *self.loaded.end_ids]

    def answers(self) -> Answers:
        """Return the answers of the patient, none asked yet, judged by the kind of failure."""
        tokens = CausalSettings().judge_tokens
        return Answers(self.loaded, tokens, self.progress, kind=self.kind, harmful=self.asked_for_refusals)
