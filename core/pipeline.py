"""The whole chain, as stages that read the case, compute, and write their result into the case.

    open -> reproduce -> locate -> triage (test) -> [confirm] -> repair -> verify -> export, report

The worker and the command line both call `run_stage`; the analyst's confirmation needs no model and lives in
`confirmation.py`. A stage function takes a `Run` and returns the headline and the files it wrote.
"""

import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core import (
    cascade,
    causal,
    chat,
    confirmation,
    dummy,
    evidence,
    export,
    jobs,
    labels,
    links,
    locating,
    minimise,
    models,
    proposals,
    repair,
    repair_adapter,
    report,
    report_check,
    rounds,
    sarif,
    serving,
    verification,
)
from core.answers import Answers
from core.attribution import attribute, estimate
from core.budget import Meter
from core.case_view import new_stamp
from core.casefile import Case, from_json, hash_file, to_json, write_atomic
from core.errors import ConfirmationError, RepairDivergedError, TriageError
from core.events import Event, RepairFinished, StageFinished
from core.judge import using
from core.projection import project, umap_is_warm
from core.rounds import FINISHED
from core.session import Progress, Run, Session
from core.settings import AttributionSettings, CausalSettings, RepairSettings, VerificationSettings
from core.values import (
    Attribution,
    FailureCase,
    LocateResult,
    MethodName,
    MinimisedSpan,
    OpenResult,
    Reproduction,
    ResponseToken,
    Rewording,
    ServingFinding,
    Span,
    Target,
    TargetKind,
    TestOutcome,
    TokenRow,
    TriageResult,
    TriggerConfirmation,
    TriggerProposal,
)
from core.verdict import decide

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "captum", "safetensors", "scikit-learn", "numpy")
TRIAGE_METHODS: tuple[tuple[MethodName, TargetKind], ...] = (
    ("paper", "response"),
    ("gradient_norm", "contrast"),
    ("occlusion", "contrast"),
)
"""What causal triage computes; integrated gradients are computed when asked for."""
CANDIDATE_METHODS: tuple[MethodName, ...] = ("occlusion", "integrated_gradients", "gradient_norm", "paper")
"""Attributions that candidates come from, the most trusted first. Source: method.md section 4.1, the table."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run_stage(
    stage: str,
    case: Case,
    session: Session,
    args: Mapping[str, Any] | None = None,
    *,
    emit: Callable[[Event], None],
    progress: Progress,
    asked: Callable[[], jobs.How | None] = lambda: None,
) -> StageFinished:
    """Run one stage and return how it ended; its results are in the case.

    Raises: TriageError for a fault of the user or the input, `Stopped` when asked to end.
    """
    from core import after_repair  # it composes stages of this module

    run = Run(case, session, args or {}, emit, progress, asked)
    begun = time.monotonic()
    with using(session.judge(case)):
        finished = {**STAGES, **after_repair.STAGES}[stage](run)
    return replace(finished, seconds=round(time.monotonic() - begun, 3))


def open_case(run: Run) -> StageFinished:
    """Load the model, render the report, store what the page needs to draw both."""
    run.progress("loading the model", 0, 1)
    loaded, failure = run.loaded, run.failure
    tokenizer = loaded.tokenizer
    parameters = list(loaded.model.parameters())
    refusal = tokenizer(CausalSettings().refusal_template, add_special_tokens=False)["input_ids"]
    occlusion = estimate(loaded, failure, Target(kind="contrast"), refusal_ids=refusal)
    if occlusion is not None:
        sequences, seconds = occlusion.sequences, occlusion.seconds
        run.progress(f"a long prompt: occlusion takes about {seconds:.0f} s, at most {sequences} prompts", 0, 0)
    result = OpenResult(
        prompt=failure.prompt,
        response=tuple(
            ResponseToken(position=i, id=token, text=tokenizer.decode([token]))
            for i, token in enumerate(failure.response_ids)
        ),
        model_name=Path(loaded.spec.path).name
        + (f" + {Path(loaded.spec.adapter).name}" if loaded.spec.adapter else ""),
        architecture=type(getattr(loaded.model, "base_model", loaded.model)).__name__
        if loaded.spec.adapter is None
        else loaded.model.config.architectures[0],
        n_parameters=loaded.n_parameters,
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        device=str(loaded.device),
        context_length=loaded.context_length,
        memory_mb=sum(p.numel() * p.element_size() for p in parameters) / 2**20,
        has_reference=loaded.has_reference or run.case.manifest.reference is not None,
        warnings=(*loaded.warnings, *filter(None, [models.device_warning()])),
        occlusion=occlusion,
    )
    name = run.case.write("results/open.json", result)
    n_user = sum(token.segment == "user" for token in failure.prompt.tokens)
    return StageFinished(stage="open", headline=f"Model loaded, {n_user} prompt tokens to look at", files=(name,))


def reproduce(run: Run) -> StageFinished:
    """Ask the model the reported prompt again."""
    result = _reproduction(run)
    name = run.case.write("results/reproduce.json", result)
    rate = result.failure
    return StageFinished(stage="reproduce", headline=f"Reproduced {rate.k} of {rate.n}", files=(name,))


def locate(run: Run) -> StageFinished:
    """Attribute the reported answer to prompt tokens by one method for one target."""
    target = from_json(Target, dict(run.args.get("target", {})))
    method = run.args.get("method", "gradient_norm")
    _, result, name = _locate(run, method, target)
    n = sum(label == 1 for label in result.labels)
    return StageFinished(
        stage="locate",
        headline=f"{n} token{'s stand' if n != 1 else ' stands'} out" if n else "Nothing stands out",
        files=(name,),
    )


def _locate(run: Run, method: MethodName, target: Target) -> tuple[Attribution, LocateResult, str]:
    """Compute, store and return one attribution with its clusters and picture."""
    name = jobs.locate_file(method, target)
    run.progress(f"attribution: {method.replace('_', ' ')}", 0, 0)
    settings = AttributionSettings()
    attribution, result = locating.locate(
        run.loaded,
        run.failure,
        method,
        target,
        settings,
        refusal_ids=run.contrast_ids if target.kind == "contrast" else None,
        others=_stored(run.case, name),
        progress=run.progress,
    )
    run.case.write(name, result)
    tokens = run.failure.prompt.tokens
    offsets = [[-1 if v is None else v for v in (t.message, t.start, t.end)] for t in tokens]
    key = name.removeprefix("results/locate-").removesuffix(".json")
    run.case.save_attributions({key: attribution}, run.failure.prompt.ids, offsets)
    return attribution, result, name


def _stored(case: Case, except_name: str) -> list[Attribution]:
    """Return the attributions this case already holds, other than `except_name`."""
    profiles = case.load_profiles()
    found = []
    for path in sorted((case.path / "results").glob("locate-*.json")):
        name = f"results/{path.name}"
        result = case.read(name, LocateResult) if name != except_name else None
        if result is not None:
            found.append(replace(_attribution(result), profile=profiles.get(path.stem.removeprefix("locate-"))))
    return found


def _attribution(result: LocateResult) -> Attribution:
    """Return the attribution a stored result was made from, without its profile."""
    return Attribution(
        method=result.method,
        target=result.target,
        scores=np.array(result.scores),
        scored=np.array(result.scored),
        signed=result.signed,
    )


def redraw_pictures(case: Case) -> bool:
    """Draw by UMAP what was drawn by PCA before UMAP was compiled in this process; return whether all is drawn.

    A result without a response profile of its own takes one of the same case, as `locating.locate` does.
    """
    if not umap_is_warm():
        return False
    profiles = case.load_profiles()
    for path in sorted((case.path / "results").glob("locate-*.json")):
        name = f"results/{path.name}"
        result = case.read(name, LocateResult)
        profile = profiles.get(path.stem.removeprefix("locate-"), next(iter(profiles.values()), None))
        if result is None or result.projection != "pca" or profile is None:
            continue
        picture = project(replace(_attribution(result), profile=profile))
        points = tuple((float(x), float(y)) for x, y in picture.coordinates)
        case.write(name, replace(result, positions=picture.positions, coordinates=points, projection=picture.method))
    return True


def triage(run: Run) -> StageFinished:
    """Reproduce, locate, minimise, test and decide; in paper mode locate only."""
    begun, calls = time.monotonic(), run.loaded.model_calls
    mode = run.args.get("mode", "causal")
    if not (run.case.path / "results/open.json").is_file():
        open_case(run)
    settings = CausalSettings()
    located = {m: _locate(run, m, Target(kind=k)) for m, k in TRIAGE_METHODS if mode == "causal" or m == "paper"}  # type: ignore[arg-type]
    result_of = {method: result for method, (_, result, _) in located.items()}
    reproduction: Reproduction | None = None
    served: tuple[ServingFinding, ...] = ()
    found: cascade.Findings | None = None
    layers: dict[str, int] = {}
    if mode == "causal":
        reproduction = _reproduction(run)
        run.case.write("results/reproduce.json", reproduction)
        served = _serving(run)
        answers = run.answers()
        found = cascade_of(run, run.failure, result_of, reproduction, answers, settings)
        asked = answers.asked()
        layers = dict(Counter(judged.layer for _, _, judged in asked).most_common())
        run.case.write(labels.ANSWERS, labels.judged_answers(asked, run.case.manifest.seed))
    result = triage_result(
        run,
        run.failure,
        mode,
        result_of,
        reproduction,
        found,
        seconds=time.monotonic() - begun,
        model_calls=run.loaded.model_calls - calls,
    )
    result = replace(result, serving=served, layers=layers)
    name = run.case.write("triage.json", result)
    texts = [proposal.text for proposal in result.candidates]
    run.case.audit(
        "triage",
        actor="engine",
        mode=mode,
        verdict=result.verdict,
        candidates=texts,
        logic=result.logic,
        dropped=[{"text": p.text, "reasons": p.reasons} for p in result.dropped],
        files=[name],
    )
    headline = result.verdict or f"{len(texts)} candidates, no verdict in paper mode"
    return StageFinished(stage="triage", headline=headline, files=(name,), verdict=result.verdict)


def triage_result(
    run: Run,
    failure: FailureCase,
    mode: Literal["causal", "paper"],
    located: Mapping[MethodName, LocateResult],
    reproduction: Reproduction | None,
    found: cascade.Findings | None,
    *,
    seconds: float,
    model_calls: int,
) -> TriageResult:
    """Return what was found as one value; without findings the candidates of paper mode, and no verdict."""
    kept = found.candidates if found else located["paper"].proposals
    shown = located.get("occlusion" if mode == "causal" else "paper")
    marked = shown.labels if shown else (-1,) * len(failure.prompt.tokens)
    if found is not None and found.decision.verdict == "DISTRIBUTED":
        marked = tuple(min(label, 0) for label in marked)
    return TriageResult(
        mode=mode,
        verdict=found.decision.verdict if found else None,
        certainty=found.decision.certainty if found else "not assessed",
        decided_by=found.decision.decided_by if found else "paper mode marks tokens and decides nothing",
        reproduction=reproduction,
        candidates=kept,
        dropped=found.dropped if found else (),
        tests=found.tests if found else (),
        tokens=_token_rows(failure, located, marked),
        settings={
            "causal": asdict(CausalSettings()),
            "attribution": asdict(AttributionSettings()),
            "seed": run.case.manifest.seed,
        },
        model_calls=model_calls,
        seconds=round(seconds, 3),
        versions=versions(),
        kind=run.kind.name,
        failure=f"{run.kind.words} {run.kind.why}",
        budget=found.budget if found else None,
        logic=found.logic if found else "",
        rewordings=found.rewordings if found else (),
    )


def cascade_of(
    run: Run,
    failure: FailureCase,
    located: Mapping[MethodName, LocateResult],
    reproduction: Reproduction,
    answers: Answers,
    settings: CausalSettings,
) -> cascade.Findings:
    """Return what the causal cascade finds in `failure` among the candidates of every attribution there is."""
    contrast = Target(kind="contrast")
    stored = run.case.read(jobs.locate_file("integrated_gradients", contrast), LocateResult)
    by_method = dict(located)
    if stored is not None and failure is run.failure:
        by_method["integrated_gradients"] = stored
    names = [name for name in CANDIDATE_METHODS if name in by_method]
    union = proposals.union([(name.replace("_", " "), by_method[name].proposals) for name in names])
    given = [
        Rewording(kind=kind, source="analyst", text=str(text))  # type: ignore[arg-type]
        for kind, key in (("paraphrase", "paraphrases"), ("rewrite", "rewrites"))
        for text in run.args.get(key, ())
    ]

    def locate_rest(case: FailureCase) -> Sequence[TriggerProposal]:
        attribution = attribute(run.loaded, case, "occlusion", contrast, refusal_ids=run.contrast_ids)
        clusters = locating.clusters_of(attribution, AttributionSettings())
        return proposals.propose(case, clusters, attribution.scores)

    return cascade.run(
        failure,
        union,
        [at for at, label in enumerate(by_method["occlusion"].labels) if label > 0],
        run.splits.causal,
        reproduction,
        answers,
        locate_rest,
        settings,
        reference=run.session.reference(run.case),
        given=given,
        seed=run.case.manifest.seed,
        progress=run.progress,
    )


def _serving(run: Run) -> tuple[ServingFinding, ...]:
    """Ask the report again with a reference template, without the default system prompt and in bf16."""
    template, seed = run.args.get("reference_template"), run.case.manifest.seed
    return serving.check(
        run.loaded, run.failure, CausalSettings(), template=template, kind=run.kind, seed=seed, progress=run.progress
    )


def _token_rows(
    failure: FailureCase, results: Mapping[MethodName, LocateResult], labels: Sequence[int]
) -> tuple[TokenRow, ...]:
    return tuple(
        TokenRow(
            position=token.position,
            text=token.text,
            message=token.message,
            start=token.start,
            end=token.end,
            segment=token.segment,
            scores={method: result.scores[token.position] for method, result in results.items()},
            cluster=labels[token.position],
        )
        for token in failure.prompt.tokens
    )


def _reproduction(run: Run) -> Reproduction:
    seed = run.case.manifest.seed
    harmful = run.asked_for_refusals
    return causal.reproduce(run.loaded, run.failure, kind=run.kind, harmful=harmful, seed=seed, progress=run.progress)


def _test(run: Run, candidate: TriggerProposal, index: int, answers: Answers) -> tuple[TestOutcome, ...]:
    """Run the counterfactual tests of one candidate on prompts that minimisation did not see."""
    settings = CausalSettings()
    return causal.test_candidate(
        run.loaded,
        run.failure,
        candidate,
        index,
        run.splits.causal,
        settings,
        reference=run.session.reference(run.case),
        seed=run.case.manifest.seed,
        progress=run.progress,
        answers=answers,
    )


def _marked(run: Run, stage: str) -> tuple[TriggerProposal, str]:
    """Return the spans the analyst marked as a candidate, and the name of the question about them."""
    messages = run.failure.report.messages
    spans = confirmation.checked_spans(messages, [from_json(Span, dict(s)) for s in run.args["spans"]])
    if not spans:
        raise ConfirmationError("No text is marked; mark at least one token.")
    positions = chat.spans_to_positions(run.failure.prompt, spans)
    text = " ... ".join(chat.units_of(messages, spans))
    candidate = TriggerProposal(
        spans=spans, text=text, token_positions=positions, score=0.0, reasons=("marked by the analyst",)
    )
    return candidate, jobs.request_key(run.case, stage, {"spans": [to_json(span) for span in spans]})


def test_span(run: Run) -> StageFinished:
    """Run the counterfactual tests on spans the analyst marked."""
    candidate, key = _marked(run, "test")
    tests = _test(run, candidate, 0, run.answers())
    decision = decide(_reproduction(run), tests, 1, CausalSettings())
    data = {"proposal": candidate, "tests": list(tests), "verdict": decision.verdict, "decided_by": decision.decided_by}
    name = run.case.write(f"results/test-{key}.json", data)
    run.case.audit("tested", actor="engine", spans=candidate.text, verdict=decision.verdict, files=[name])
    headline = f"Tested {candidate.text!r}: {decision.verdict}"
    return StageFinished(stage="test", headline=headline, files=(name,), verdict=decision.verdict)


def minimise_span(run: Run) -> StageFinished:
    """Find the smallest part of spans the analyst marked that still changes other requests."""
    candidate, key = _marked(run, "minimise")
    settings = CausalSettings()
    meter = Meter(settings.max_calls, run.loaded)
    found = minimise.search(
        run.failure, [candidate], run.splits.causal, settings, run.answers(), meter, marked=candidate.token_positions
    )
    smallest = found.kept[0] if found.found else None
    result = MinimisedSpan(
        marked=candidate,
        smallest=smallest,
        rate=found.rate,
        whole=found.whole,
        why=" ".join(reason for reason in found.kept[0].reasons if reason not in candidate.reasons),
        logic=found.logic,
        budget=meter.budget(),
    )
    name = run.case.write(f"results/minimise-{key}.json", result)
    text = smallest.text if smallest else None
    run.case.audit("minimised", actor="engine", spans=candidate.text, smallest=text, files=[name])
    headline = f"Minimised {candidate.text!r}: {smallest.text!r}" if smallest else f"{candidate.text!r} is not cut down"
    return StageFinished(stage="minimise", headline=headline, files=(name,))


def confirmed_trigger(run: Run) -> TriggerConfirmation:
    """Return the confirmation that holds. Raises: ConfirmationError."""
    spec, reviewers = run.case.manifest.model, run.case.intake.reviewers
    return confirmation.check(confirmation.stored(run.case), run.failure, spec, reviewers)


def repair_model(run: Run) -> StageFinished:
    """Fine-tune the confirmed trigger away, streaming events; the adapter stays in `repair/`."""
    accepted = confirmed_trigger(run)
    run.progress("checking the evidence", 0, 0)
    evidence.verify(run.case)
    args = dict(run.args)
    resume = bool(args.pop("resume", False))
    settings = settings_from(RepairSettings, args)
    if run.kind.name != "jailbreak" and not settings.holds_trigger:
        raise TriageError(
            f"{run.kind.words} Such a backdoor is repaired by holding safe requests with the trigger to what is said "
            "without it; choose the extended objective and a weight of KL on safe requests with the trigger above 0."
        )
    ending: RepairFinished | None = None
    run.case.audit(
        "repair started",
        actor=accepted.analyst,
        settings=asdict(settings),
        units=accepted.units,
        text_hash=accepted.text_hash,
        model_hash=accepted.model_hash,
        template_hash=accepted.template_hash,
    )
    start, folder = rounds.start(run.case), run.case.path / "repair" / dummy.FOLDER
    if accepted.way == "dummy":
        if run.kind.name != "jailbreak":
            raise TriageError(f"{run.kind.words} A dummy trigger is planted for unsafe answers only.")
        planted = resume and (folder / repair_adapter.WEIGHTS_FILE).is_file()
        start = folder if planted else dummy.plant(
            run.loaded, run.splits.repair, accepted.units, settings, folder, run.progress, start
        )  # fmt: skip
    for event in repair.repair(
        run.loaded,
        run.failure,
        accepted,
        run.splits,
        settings,
        out=run.case.path / "repair",
        stop=run.asked,
        refusal=run.session.team.told(run.refusal),
        resume=resume,
        kind=run.kind,
        wider=_wider(run.case) if accepted.way == "trigger" else (),
        start=start,
        earlier=rounds.earlier(run.case),
        team=run.session.team,
    ):
        run.emit(event)
        if isinstance(event, RepairFinished):
            ending = event
    if ending is not None and ending.reason != "kept":
        shutil.rmtree(folder, ignore_errors=True)
    if ending is None:
        raise RepairDivergedError("The repair ended without a result; see the log and start it again.")
    failed = ending.adapter is None and ending.reason != "discarded"
    names = [] if failed else [run.case.write(FINISHED, ending)]
    run.case.audit(
        "repair ended", actor="engine", reason=ending.reason, step=ending.step, adapter=ending.adapter_hash, files=names
    )
    if failed:
        raise RepairDivergedError(ending.message)
    return StageFinished(stage="repair", headline=ending.message, files=tuple(names))


def _wider(case: Case) -> list[Span]:
    """Return the text of all candidates of the triage, kept or dropped: what the trigger may be beyond the confirmed words."""
    triage = case.read("triage.json", TriageResult)
    found = (*triage.candidates, *triage.dropped) if triage else ()
    return [span for one in found for span in one.spans]


def settings_from(cls: type[RepairSettings], args: Mapping[str, Any]) -> RepairSettings:
    """Return settings with `args` in place of defaults. Raises: TriageError naming what does not fit."""
    unknown = set(args) - set(cls.__dataclass_fields__)
    if unknown:
        raise TriageError(f"There is no repair setting {', '.join(sorted(unknown))}; see core/settings.py.")
    try:
        return from_json(cls, to_json(cls()) | dict(args))
    except (ValueError, TypeError) as error:
        raise TriageError(f"Repair setting refused: {error}.") from error


def repaired_adapter(case: Case) -> tuple[RepairFinished, Path]:
    """Return how the last repair ended and where its adapter is. Raises: TriageError when there is none or it changed."""
    finished = case.read(FINISHED, RepairFinished)
    if finished is None or finished.adapter is None:
        raise TriageError("There is no repaired model yet; run the repair first.")
    adapter = case.path / finished.adapter
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file() or hash_file(weights) != finished.adapter_hash:
        raise TriageError("The repair adapter was changed or removed since the repair; run the repair again.")
    return finished, adapter


def verify(run: Run) -> StageFinished:
    """Measure before and after on prompts that no earlier step saw."""
    _, adapter = repaired_adapter(run.case)
    accepted = confirmed_trigger(run)
    evidence.verify(run.case)
    result = verification.verify(
        run.loaded,
        run.failure,
        accepted,
        run.splits.verification,
        adapter,
        VerificationSettings(),
        seed=run.case.manifest.seed,
        kind=run.kind,
        wider=_wider(run.case),
        looks=rounds.looks(run.case) + 1,
        saliency=lambda: attribute(run.loaded, run.failure, "paper", Target()).scores,
        versions=versions(),
        progress=run.progress,
    )
    name = run.case.write("verification.json", result)
    run.case.audit("verified", actor="engine", result=result.result, looks=result.looks, files=[name])
    return StageFinished(stage="verify", headline=result.reasons[0], files=(name,), result=result.result)


def export_model(run: Run) -> StageFinished:
    """Write the repaired model: an adapter, or with `merged` plain weights."""
    _, adapter = repaired_adapter(run.case)
    evidence.verify(run.case)
    merged = bool(run.args.get("merged", False))
    out = Path(run.args.get("out") or run.case.path / "export" / ("merged" if merged else "adapter"))
    run.progress("writing the repaired model", 0, 0)
    if "out" not in run.args:  # the case's own folder: of an earlier repair, or of an export that was cut short
        shutil.rmtree(out, ignore_errors=True)
    card = report.report_json(run.case)
    files = export.export(run.loaded, run.failure, adapter, out, merged, card)
    if merged:
        run.session.drop()
    run.case.audit(
        "exported", actor="engine", merged=merged, exported={p.name: hash_file(p) for p in files if p.is_file()}
    )
    kind = "Merged model" if merged else "Adapter"
    return StageFinished(stage="export", headline=f"{kind} written to {out}", files=tuple(str(p) for p in files))


def write_report(run: Run) -> StageFinished:
    """Write the case report as HTML, JSON and SARIF with a manifest of the case; with `redact` HTML and JSON without texts."""
    case, redacted = run.case, bool(run.args.get("redact", False))
    links.store(case)
    stamp = new_stamp(case, run.args.get("tlp"), redacted)
    stem = "report-redacted" if redacted else "report"
    write_atomic(case.path / f"{stem}.html", report.render_report(case, stamp))
    names = [f"{stem}.html", case.write(f"{stem}.json", report.report_json(case, stamp))]
    if not redacted:
        names.append(case.write("report.sarif", sarif.sarif(report.shown_view(case, stamp))))
        names.append(report_check.write_manifest(case))
    case.audit("report", actor="engine", tlp=stamp.tlp, redacted=redacted, files=names)
    return StageFinished(stage="report", headline="Report written", files=tuple(names))


STAGES: dict[str, Callable[[Run], StageFinished]] = {
    "open": open_case,
    "reproduce": reproduce,
    "locate": locate,
    "triage": triage,
    "test": test_span,
    "minimise": minimise_span,
    "repair": repair_model,
    "verify": verify,
    "report": write_report,
    "export": export_model,
}
