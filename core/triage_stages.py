"""The stages from a report to its verdict: open, reproduce, triage.

The second opinion asks the same of the repaired model, so the cascade and its result are functions of their own.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from core import cascade, causal, evidence, jobs, labels, locating, models, proposals, serving
from core.answers import Answers
from core.attribution import attribute, estimate
from core.events import StageFinished
from core.locate_stage import kept, located
from core.session import Run
from core.settings import AttributionSettings, CausalSettings
from core.values import (
    FailureCase,
    LocateResult,
    MethodName,
    OpenResult,
    Reproduction,
    ResponseToken,
    Rewording,
    ServingFinding,
    Target,
    TargetKind,
    TokenRow,
    TriageResult,
    TriggerProposal,
)
from core.versions import versions

OPENED, REPRODUCED = "results/open.json", "results/reproduce.json"
TRIAGE_METHODS: tuple[tuple[MethodName, TargetKind], ...] = (
    ("paper", "response"),
    ("gradient_norm", "contrast"),
    ("occlusion", "contrast"),
)
"""What causal triage computes; integrated gradients are computed when asked for."""
CANDIDATE_METHODS: tuple[MethodName, ...] = ("occlusion", "integrated_gradients", "gradient_norm", "paper")
"""Attributions that candidates come from, the most trusted first. Source: method.md section 4.1, the table."""


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
    name = evidence.record(run.case, OPENED, result, "opened", actor="engine", model=result.model_name)
    n_user = sum(token.segment == "user" for token in failure.prompt.tokens)
    return StageFinished(stage="open", headline=f"Model loaded, {n_user} prompt tokens to look at", files=(name,))


def reproduce(run: Run) -> StageFinished:
    """Ask the model the reported prompt again."""
    rate = _reproduced(run).failure
    return StageFinished(stage="reproduce", headline=f"Reproduced {rate.k} of {rate.n}", files=(REPRODUCED,))


def _reproduced(run: Run) -> Reproduction:
    """Return what `reproduction_of` measures, kept in the case."""
    result = reproduction_of(run)
    counts = {"failed": result.failure.k, "n": result.failure.n}
    evidence.record(run.case, REPRODUCED, result, "reproduced", actor="engine", **counts)
    return result


def reproduction_of(run: Run) -> Reproduction:
    """Return how often the model fails on the report itself."""
    return causal.reproduce(
        run.loaded,
        run.failure,
        kind=run.kind,
        harmful=run.asked_for_refusals,
        reference=run.session.reference(run.case),
        seed=run.case.manifest.seed,
        progress=run.progress,
    )


def triage(run: Run) -> StageFinished:
    """Reproduce, locate, minimise, test and decide; in paper mode locate only."""
    begun, calls = time.monotonic(), run.session.n_sequences(run.case)
    mode = run.args.get("mode", "causal")
    if not evidence.is_as_written(run.case, OPENED):
        open_case(run)
    settings = CausalSettings()
    targets = {m: Target(kind=k) for m, k in TRIAGE_METHODS if mode == "causal" or m == "paper"}  # type: ignore[arg-type]
    result_of = {method: located(run, method, target) for method, target in targets.items()}
    files = [OPENED, evidence.ARRAYS, *(jobs.locate_file(method, target) for method, target in targets.items())]
    reproduction: Reproduction | None = None
    served: tuple[ServingFinding, ...] = ()
    found: cascade.Findings | None = None
    layers: dict[str, int] = {}
    if mode == "causal":
        reproduction = _reproduced(run)
        served = _serving(run)
        answers = run.answers()
        found = cascade_of(run, run.failure, result_of, reproduction, answers, settings)
        asked = answers.asked()
        layers = dict(Counter(judged.layer for _, _, judged in asked).most_common())
        judged = labels.judged_answers(asked, run.case.manifest.seed)
        evidence.record(run.case, labels.ANSWERS, judged, "answers kept", actor="engine", asked=len(asked))
        files += [REPRODUCED, labels.ANSWERS]
    result = triage_result(
        run,
        run.failure,
        mode,
        result_of,
        reproduction,
        found,
        seconds=time.monotonic() - begun,
        model_calls=run.session.n_sequences(run.case) - calls,
    )
    result = replace(result, serving=served, layers=layers)
    texts = [proposal.text for proposal in result.candidates]
    name = evidence.record(
        run.case,
        "triage.json",
        result,
        "triage",
        actor="engine",
        mode=mode,
        verdict=result.verdict,
        candidates=texts,
        logic=result.logic,
        dropped=result.told_dropped(),
    )
    headline = result.verdict or f"{len(texts)} candidates, no verdict in paper mode"
    for one in result.owed_to_serving:
        headline = f"{one.told}; {headline}"
    return StageFinished(stage="triage", headline=headline, files=(name, *files), verdict=result.verdict)


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
    candidates = found.candidates if found else located["paper"].proposals
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
        candidates=candidates,
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
        candidate=(found.decision.candidate if found else None) or 0,
        rewordings=found.rewordings if found else (),
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
    by_method = dict(located)
    if failure is run.failure and (gradients := kept(run, "integrated_gradients", contrast)):
        by_method["integrated_gradients"] = gradients
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
