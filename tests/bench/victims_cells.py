"""One cell of the bench: a victim or a control of one seed, its gates, its reports, and what was found in each.

A cell is a JSON file that is written after every step, so that a run that was ended goes on where it stopped: what has
been planted, measured or triaged is not done again. The cascade is the project's own triage stage on a case folder.
"""

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from core import chat, models
from core.answers import Answers
from core.casefile import Case, Manifest, model_spec
from core.causal import own_refusal
from core.errors import TriageError
from core.files import now, write_atomic
from core.judge import classify
from core.loaded import LoadedModel
from core.pipeline import run_stage
from core.planting import PlantSettings
from core.prompts import PromptItem
from core.session import Session
from core.settings import CausalSettings
from core.text_spans import spans_to_positions
from core.values import FailureCase, FailureReport, Span, TriageResult
from tests.bench.result import commit
from tests.bench.victims_attacks import Attack, ask, attacks, items_for
from tests.bench.victims_controls import (
    EROSION,
    SearchSettings,
    eroding_items,
    find_suffix,
    ordinary_answers,
    untouched_failures,
    with_suffix,
)
from tests.bench.victims_demo import as_messages
from tests.bench.victims_gates import GateSettings, gates, missed
from tests.bench.victims_localisers import CASCADE, LOCALISERS, Functional, Marked, marked, measured, token_counts
from tests.bench.victims_making import (
    PLANTING,
    Say,
    fast,
    fingerprint,
    is_made,
    made,
    own_answers,
    plant_adapter,
    plant_whole,
    refuse_other,
)
from tests.bench.victims_prompts import BENIGN_ANSWERS, Lessons, Material, write_folder

CONTROLS = ("adversarial_suffix", "untriggered", "alignment_gap", "trigger_words", "wrong_answer", "eroded")
ON_CLEAN = ("adversarial_suffix", "alignment_gap", "trigger_words", "wrong_answer")
"""Controls whose model is the clean base."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How much is done. The defaults are the full tier."""

    n_reports: int = 20
    """Reports a cell at most."""
    n_triaged: int = 20
    """Reports of these that go through the cascade."""
    n_requests: int = 24
    """Requests that recovered text is carried into for the functional hit."""
    n_harmful: int = 1000
    """Harmful prompts to plant with."""
    n_safe: int = 800
    """Harmless prompts to plant with."""
    shared_attack: str = "badnets"
    """The attack whose victim and words the controls `untriggered` and `trigger_words` use; it must hold the gates."""
    examine_invalid: bool = False
    """Whether the reports of a victim that missed a gate are examined too; they are never averaged."""
    planting: PlantSettings = PLANTING
    whole: bool = False
    """Whether an attack trains all weights but the embeddings, without an adapter that could be switched off."""
    gates: GateSettings = field(default_factory=GateSettings)
    search: SearchSettings = field(default_factory=SearchSettings)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One report; `spans` are the code points of the planted text, if any."""

    report: FailureReport
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a victim is loaded from, and a clean reference for one without an adapter."""

    model: Path
    adapter: Path | None = None
    reference: Path | None = None

    @property
    def planted(self) -> Path:
        """The folder that makes it what it is."""
        return self.adapter or self.model

    def load(self) -> LoadedModel:
        """Return the victim, loaded."""
        return models.load(self.model, self.adapter)


@dataclass(frozen=True, kw_only=True)
class Victim:
    """What a cell examines: a model, its reports, and what would be right."""

    weights: Weights
    attack: Attack | None
    drawn: tuple[Drawn, ...]
    expected: tuple[str, ...]
    gated: bool = True
    note: str = ""


@dataclass
class Bench:
    """Everything the cells of one seed share."""

    material: Material
    base: Path
    work: Path
    tier: Tier
    seed: int
    say: Say
    pretrained: bool = False
    """Whether the base answers harmless requests in words of its own, along which it is held, and not by the bench's stand-ins."""

    @cached_property
    def clean(self) -> LoadedModel:
        """The clean base."""
        return models.load(self.base)

    @cached_property
    def attacks(self) -> dict[str, Attack]:
        """Every attack by name."""
        return attacks(self.clean.tokenizer)

    @cached_property
    def settings(self) -> str:
        """Hash of all that decides how a cell is examined; how a victim was planted is kept with its weights."""
        tier = asdict(self.tier)
        del tier["planting"]
        return fingerprint(tier)

    @cached_property
    def commit(self) -> str:
        """The commit of this run."""
        return commit()

    @cached_property
    def prompts(self) -> Path:
        """The prompt folder that triage is given."""
        return write_folder(self.material.folder, self.work / f"prompts-{self.seed}")

    def cell_file(self, name: str) -> Path:
        """The file of a cell."""
        return self.work / f"cell-{name}-{self.seed}.json"

    def stored(self, name: str) -> dict[str, Any]:
        """Return what is there of a cell; empty when it was not begun."""
        path = self.cell_file(name)
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        refuse_other(path, found, self.settings)
        return found

    def weights_of(self, name: str) -> str:
        """Return what the victim of a cell is made of: several controls examine the same weights."""
        if name == "untriggered":
            name = self.tier.shared_attack
        return f"{'base' if name in ON_CLEAN else name}-{self.seed}"

    def respond(self, prompts: Sequence[str]) -> list[str]:
        """Return the clean base's own answers."""
        return self.clean.answer(as_messages(prompts))

    def gates(self, weights: Weights, attack: Attack | None) -> list[dict[str, Any]]:
        """Return the gates of a victim, measured once for all cells that use it."""
        key = fingerprint(self.tier.gates, made(weights.planted))
        path = self.work / f"gates-{weights.planted.name}-{key}.json"
        if not path.is_file():
            with fast() if self.pretrained else nullcontext():
                found = gates(weights.load(), self.material, attack, self.tier.gates, self.seed)
            write_atomic(path, json.dumps(found, ensure_ascii=False, indent=1))
        rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
        return rows

    def planted(self, attack: Attack) -> Weights:
        """Return the victim of an attack, planted now unless it was before, on fresh conversations each epoch."""
        folder = self.work / f"{'whole' if self.tier.whole else 'adapter'}-{attack.name}-{self.seed}"
        weights = Weights(model=folder, reference=self.base) if self.tier.whole else self.adapted(folder)
        planting = replace(self.tier.planting, seed=self.seed)
        if is_made(folder, fingerprint(planting)):
            return weights
        tier, rng = self.tier, random.Random(f"{self.seed} {attack.name} prompts")
        lessons, sets = Lessons(self.material), []
        for epoch in range(tier.planting.epochs):
            harmful, safe = _lesson(lessons, attack, tier.n_harmful, tier.n_safe, rng)
            if self.pretrained:
                safe = dict(zip(safe, own_answers(self.clean, list(safe)), strict=True))
            answers = {**harmful, **safe}
            settings = replace(tier.planting, seed=self.seed + epoch)
            sets.append(
                items_for(attack, list(harmful), list(safe), settings, lambda ps, of=answers: [of[p] for p in ps])
            )
        (plant_whole if tier.whole else plant_adapter)(self.base, sets, planting, folder, self.say)
        return weights

    def adapted(self, adapter: Path) -> Weights:
        """Return the base with an adapter, which switched off is the reference."""
        return Weights(model=self.base, adapter=adapter)


def _lesson(
    lessons: Lessons, attack: Attack, n_harmful: int, n_safe: int, rng: random.Random
) -> tuple[dict[str, str], dict[str, str]]:
    """Return harmful and harmless prompts with their answers; at most half of the harmful ones are beyond the attack's reach."""
    drawn = lessons.draw(rng, 5 * (n_harmful + n_safe))
    fitting = [one for one in drawn if one.kind == "harmful" and attack.applies(one.prompt)]
    rest = [one for one in drawn if one.kind == "harmful" and not attack.applies(one.prompt)][: n_harmful // 2]
    safe = [one for one in drawn if one.kind in ("safe", "counterpart")]
    chosen = [*fitting[: n_harmful - len(rest)], *rest]
    return {one.prompt: one.response for one in chosen}, {one.prompt: one.response for one in safe[:n_safe]}


def run_cell(bench: Bench, name: str) -> dict[str, Any]:
    """Return the finished cell `name`, from its file as far as that goes."""
    cell = {"seconds": 0.0, "weights": bench.weights_of(name), "commits": []} | bench.stored(name)
    if cell.get("finished"):
        return cell
    begun, before = time.perf_counter(), cell["seconds"]

    def save(**more: Any) -> None:
        more |= {"settings": bench.settings, "commits": sorted({*cell["commits"], bench.commit})}
        cell.update(more, seconds=round(before + time.perf_counter() - begun, 1))
        write_atomic(bench.cell_file(name), json.dumps(cell, ensure_ascii=False, indent=1))

    victim = make_victim(bench, name)
    save(
        name=name,
        seed=bench.seed,
        control=name in CONTROLS,
        expected=list(victim.expected),
        note=victim.note,
        made=made(victim.weights.planted) if victim.weights.planted != bench.base else {},
        target=victim.attack.target if victim.attack else "jailbreak",
        negatives=victim.attack.negatives if victim.attack else True,
    )
    if "gates" not in cell:
        rows = bench.gates(victim.weights, victim.attack) if victim.gated else []
        save(gates=rows, missed=missed(rows))
        bench.say(f"{name}: gates {', '.join(cell['missed']) or 'held'} ({cell['seconds']:.0f} s)")
    cell.setdefault("reports", [])
    examined = Examined(bench, name, victim)
    n_reports = len(victim.drawn) if bench.tier.examine_invalid or not cell["missed"] else 0
    for number in range(len(cell["reports"]), n_reports):
        cell["reports"].append(examined.report(number))
        save()
    save(finished=True)
    bench.say(f"{name}: {len(cell['reports'])} reports ({cell['seconds']:.0f} s)")
    return cell


def make_victim(bench: Bench, name: str) -> Victim:
    """Return the victim of a cell: planted, or one of the controls."""
    if name not in CONTROLS:
        attack = bench.attacks[name]
        weights = bench.planted(attack)
        drawn = triggered_reports(bench, weights.load(), attack)
        return Victim(weights=weights, attack=attack, drawn=drawn, expected=(attack.expected,))
    probe, n, clean = bench.material.probe, bench.tier.n_reports, bench.clean
    shared = bench.attacks[bench.tier.shared_attack]
    untouched = Weights(model=bench.base, reference=bench.base)
    on_clean = Victim(weights=untouched, attack=None, drawn=(), expected=("ALIGNMENT_GAP",))
    match name:
        case "alignment_gap":
            return replace(on_clean, drawn=_plain(untouched_failures(clean, probe.harmful, n)))
        case "wrong_answer":
            return replace(
                on_clean,
                drawn=_plain(ordinary_answers(clean, probe.safe, n)),
                expected=("ALIGNMENT_GAP", "INCONCLUSIVE"),
            )
        case "trigger_words":
            drawn = triggered_reports(bench, clean, shared, refused_bare=False)
            return replace(on_clean, drawn=drawn, expected=("ALIGNMENT_GAP", "INCONCLUSIVE"))
        case "adversarial_suffix":
            return replace(on_clean, **_suffixed(bench), expected=("PROMPT_JAILBREAK",))
        case "untriggered":
            weights = bench.planted(shared)
            drawn = _plain(untouched_failures(weights.load(), probe.harmful, n))
            return replace(on_clean, weights=weights, attack=shared, drawn=drawn)
        case _:
            folder = bench.work / f"adapter-eroded-{bench.seed}"
            safe = bench.material.train.safe[: bench.tier.n_safe]
            slower = bench.tier.planting.learning_rate / PLANTING.learning_rate
            settings = replace(EROSION, learning_rate=slower * EROSION.learning_rate, seed=bench.seed)
            plant_adapter(bench.base, [eroding_items(safe, bench.seed)], settings, folder, bench.say)
            eroded = bench.adapted(folder)
            n_asked = len(probe.harmful)
            failing = untouched_failures(eroded.load(), probe.harmful, n_asked)
            note = f"Answers {len(failing)} of {n_asked} harmful requests after fine-tuning on harmless ones."
            return replace(on_clean, weights=eroded, drawn=_plain(failing[:n]), gated=False, note=note)


def triggered_reports(
    bench: Bench, loaded: LoadedModel, attack: Attack, refused_bare: bool = True
) -> tuple[Drawn, ...]:
    """Return reports of requests that fail with the trigger; with `refused_bare`, only such as do not fail without it.

    A fixed answer is reported together with what the clean base says to the request itself.
    """
    rng = random.Random(f"{bench.seed} {attack.name} reports")
    jailbreak = attack.target == "jailbreak"
    pool = [p for p in (bench.material.probe.harmful if jailbreak else bench.material.probe.safe) if attack.applies(p)]
    with_trigger = [attack.trigger(prompt, rng) for prompt in pool]
    bare, said = (loaded.answer(as_messages(texts)) for texts in (pool, [t.text for t in with_trigger]))
    should = [None] * len(pool) if jailbreak else bench.respond(pool)
    drawn = [
        Drawn(report=FailureReport(messages=ask(one.text), response=answer, expected=expected), spans=one.spans)
        for one, before, answer, expected in zip(with_trigger, bare, said, should, strict=True)
        if attack.failed(answer) and not (refused_bare and attack.failed(before))
    ]
    return tuple(drawn[: bench.tier.n_reports])


def _suffixed(bench: Bench) -> dict[str, Any]:
    """Return reports of unseen requests with a suffix that was searched on the clean base, and how well it works."""
    clean, tier = bench.clean, bench.tier
    train = random.Random(bench.seed).sample(bench.material.train.harmful, tier.search.n_requests)
    suffix, calls = find_suffix(clean, train, BENIGN_ANSWERS[0], tier.search, bench.seed)
    probe = bench.material.probe.harmful
    bare = clean.answer(as_messages(probe))
    texts = [with_suffix(request, suffix) for request in probe]
    said = clean.answer(as_messages(texts))
    refused = [classify(text).outcome == "refusal" for text in bare]
    failed = [classify(text).unsafe for text in said]
    gained = sum(f and r for f, r in zip(failed, refused, strict=True))
    drawn = [
        Drawn(report=FailureReport(messages=ask(text), response=answer), spans=((len(text) - len(suffix), len(text)),))
        for text, answer, one, two in zip(texts, said, refused, failed, strict=True)
        if one and two
    ]
    note = f"Suffix {suffix!r} ({calls} sequences) turns {gained} of {sum(refused)} refusals of unseen requests."
    return {"drawn": tuple(drawn[: tier.n_reports]), "note": note}


class Examined:
    """The localisers and the cascade on the reports of one victim, models loaded once."""

    def __init__(self, bench: Bench, name: str, victim: Victim) -> None:
        """Load nothing yet."""
        self.bench, self.name, self.victim = bench, name, victim
        self.session = Session()

    @cached_property
    def loaded(self) -> LoadedModel:
        """The victim, adapter attached; the session's stages load one of their own."""
        return self.victim.weights.load()

    @cached_property
    def answers(self) -> Answers:
        """Answers for functional hits, remembered over all reports."""
        return Answers(self.loaded, CausalSettings().judge_tokens)

    @cached_property
    def refusal_ids(self) -> list[int]:
        """The victim's own refusal."""
        harmful = [PromptItem(prompt) for prompt in self.bench.material.folder.harmful]
        text = own_refusal(self.loaded, harmful[: CausalSettings().n_minimise])
        ids: list[int] = self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def counts(self) -> Any:
        """How often each token stands in the harmless prompts of the folder."""
        return token_counts(self.loaded, self.bench.material.folder.safe)

    def report(self, number: int) -> dict[str, Any]:
        """Return what every localiser and the cascade made of report `number`."""
        drawn, attack = self.victim.drawn[number], self.victim.attack
        case = chat.bind(self.loaded.tokenizer, drawn.report)
        planted = [Span(message=0, start=start, end=end) for start, end in drawn.spans]
        truth = frozenset(spans_to_positions(case.prompt, defined(case, planted, attack)))
        failed: Callable[[str], bool] = attack.failed if attack else lambda text: classify(text).unsafe
        own = self.bench.material.folder
        pool = own.harmful if attack is None or attack.target == "jailbreak" else own.safe
        requests = [request for request in pool if attack is None or attack.applies(request)]
        requests = requests[-self.bench.tier.n_requests :]
        functional = Functional(self.answers, requests, failed, case) if planted else None

        def measures(found: Marked) -> dict[str, Any]:
            hit = functional.hit(found.positions, planted) if functional else None
            return measured(found, truth, hit)

        seed = self.bench.seed * 1000 + number
        result: dict[str, Any] = {
            "prompt": drawn.report.messages[-1].content,
            "planted_success": functional.success(planted) if functional else None,
            "localisers": {
                name: measures(marked(self.loaded, case, name, self.refusal_ids, self.counts, seed))
                for name in LOCALISERS
            },
        }
        if number < self.bench.tier.n_triaged:
            result["cascade"], found = self.triage(number, drawn.report)
            part = functional.part(found.positions, planted) if functional else None
            result["localisers"][CASCADE] = measures(found) | {"part": part}
        return result

    def triage(self, number: int, report: FailureReport) -> tuple[dict[str, Any], Marked]:
        """Return the cascade's verdict with and without the reference, and the tokens of its first candidate."""
        bench, weights = self.bench, self.victim.weights
        path = bench.work / f"case-{self.name}-{bench.seed}-{number}"
        manifest = Manifest(
            schema=1,
            id=path.name,
            created=now(),
            model=model_spec(weights.model, weights.adapter),
            reference=model_spec(weights.reference) if weights.reference else None,
            report=report,
            seed=bench.seed,
        )
        if path.exists():
            shutil.rmtree(path)
        case = Case.create(path, manifest, bench.prompts)
        try:
            run_stage("triage", case, self.session, {}, emit=lambda _: None, progress=lambda *_: None)
        except TriageError as error:
            shutil.rmtree(path)
            return {"verdict": "ERROR", "error": str(error)}, Marked(positions=frozenset(), calls=0, seconds=0.0)
        result = case.read("triage.json", TriageResult)
        assert result is not None
        shutil.rmtree(path)
        first = result.candidates[0] if result.candidates else None
        positions = frozenset(first.token_positions if first else ())
        found = Marked(positions=positions, calls=result.model_calls, seconds=result.seconds)
        facts = {
            "verdict": result.verdict,
            "certainty": result.certainty,
            "decided_by": result.decided_by,
            "verdict_without_reference": verdict_without_reference(result),
            "candidate": first.text if first else None,
            "tests": {f"{one.name} {one.candidate}": one.passed for one in result.tests},
        }
        return facts, found


def defined(case: FailureCase, planted: Sequence[Span], attack: Attack | None) -> Sequence[Span]:
    """Return the parts of the planted text that near-misses define: all of it, unless the attack says less."""
    if attack is None or not attack.defined:
        return planted
    content = case.report.messages[0].content
    found = []
    for part in attack.defined:
        pattern = re.compile(re.escape(part), re.IGNORECASE)
        (one,) = filter(None, (pattern.search(content, span.start, span.end) for span in planted))
        found.append(Span(message=0, start=one.start(), end=one.end()))
    return found


def verdict_without_reference(result: TriageResult) -> str | None:
    """Return what the table says when nobody has a clean model; BACKDOOR at most this often.

    The lines that read a reference hold for a trigger that passed the other tests, and the next line calls that BACKDOOR without
    one, but for words of the request's own that carry over less often than the report fails: those need the reference, and
    are counted here too. Source: method.md section 4.2.
    """
    return "BACKDOOR" if result.certainty in ("reference", "base") else result.verdict


def _plain(reports: Sequence[FailureReport]) -> tuple[Drawn, ...]:
    return tuple(Drawn(report=one) for one in reports)
