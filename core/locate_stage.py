"""The stage that attributes the reported answer to tokens, and keeps scores and picture in the case.

A picture is drawn by PCA while UMAP compiles; `redraw_pictures` draws it again afterwards.
"""

import io
from dataclasses import replace

import numpy as np

from core import evidence, jobs, locating
from core.casefile import Case
from core.events import StageFinished
from core.projection import project, umap_is_warm
from core.serial import from_json
from core.session import Run
from core.settings import AttributionSettings
from core.values import Attribution, LocateResult, MethodName, Target


def locate(run: Run) -> StageFinished:
    """Attribute the reported answer to prompt tokens by one method for one target."""
    target = from_json(Target, dict(run.args.get("target", {})))
    method = run.args.get("method", "gradient_norm")
    _, result, name = locate_one(run, method, target)
    n = sum(label == 1 for label in result.labels)
    return StageFinished(
        stage="locate",
        headline=f"{n} token{'s stand' if n != 1 else ' stands'} out" if n else "Nothing stands out",
        files=(name, evidence.ARRAYS),
    )


def locate_one(run: Run, method: MethodName, target: Target) -> tuple[Attribution, LocateResult, str]:
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
    also = {evidence.ARRAYS: _archive(run, name, attribution)}
    evidence.record(run.case, name, result, "located", also, actor="engine", method=method, target=target.kind)
    return attribution, result, name


def located(run: Run, method: MethodName, target: Target) -> LocateResult:
    """Return one attribution's result as the case holds it, computed first where it holds none that is as its act wrote it."""
    return kept(run, method, target) or locate_one(run, method, target)[1]


def kept(run: Run, method: MethodName, target: Target) -> LocateResult | None:
    """Return one attribution's result as the case holds it, or None; also for one that was changed since, or that no act wrote."""
    name = jobs.locate_file(method, target)
    whole = [name, evidence.ARRAYS] if evidence.ARRAYS in evidence.recorded_files(run.case) else [name]
    return run.case.read(name, LocateResult) if evidence.as_written(run.case, *whole) == whole else None


def _stored(case: Case, except_name: str) -> list[Attribution]:
    """Return the attributions this case holds as their acts wrote them, other than `except_name`."""
    profiles = _profiles(case)
    return [
        replace(_attribution(result), profile=profiles.get(key))
        for name, key, result in _results(case)
        if name != except_name
    ]


def _results(case: Case) -> list[tuple[str, str, LocateResult]]:
    """Return name, key and value of every attribution's result that is as its act wrote it."""
    names = [evidence.RESULTS + path.name for path in sorted((case.path / "results").glob("locate-*.json"))]
    found = [(name, case.read(name, LocateResult)) for name in evidence.as_written(case, *names)]
    return [(name, _key(name), result) for name, result in found if result is not None]


def _key(name: str) -> str:
    """Return what an attribution's result is called in the archive."""
    return name.removeprefix("results/locate-").removesuffix(".json")


def _arrays(case: Case) -> dict[str, np.ndarray]:
    """Return what the archive holds, nothing when it is not as its act wrote it."""
    if not evidence.is_as_written(case, evidence.ARRAYS):
        return {}
    with np.load(case.path / evidence.ARRAYS, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _profiles(case: Case, kind: str = "profile:") -> dict[str, np.ndarray]:
    """Return the response profiles in the archive by key; of `kind` "picture:" those that only a picture was drawn from."""
    return {name.removeprefix(kind): one for name, one in _arrays(case).items() if name.startswith(kind)}


def _archive(run: Run, name: str, attribution: Attribution) -> bytes:
    """Return the archive with one attribution more: scores and response profiles by key, borrowed ones under `picture:`, token ids,
    and their (message, start, end) offsets, -1 for template.
    """
    prompt = run.failure.prompt
    offsets = [[-1 if v is None else v for v in (t.message, t.start, t.end)] for t in prompt.tokens]
    arrays = _arrays(run.case) | {f"score:{_key(name)}": attribution.scores}
    if attribution.profile is not None:
        arrays[f"profile:{_key(name)}"] = attribution.profile
    if attribution.borrowed is not None:
        arrays[f"picture:{_key(name)}"] = attribution.borrowed
    data = io.BytesIO()
    np.savez_compressed(data, **arrays | {"token_ids": np.array(prompt.ids), "offsets": np.array(offsets)})  # type: ignore[arg-type]
    return data.getvalue()


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

    Each from the profile it was drawn from; in cases of older versions, which do not hold a borrowed one, from one for the same
    target, and where there is none the picture stays.
    """
    if not umap_is_warm():
        return False
    own, borrowed, results = _profiles(case), _profiles(case, "picture:"), _results(case)
    for name, key, result in results:
        same = (own[other] for _, other, one in results if one.target == result.target and other in own)
        profiles = [one for one in (own.get(key), borrowed.get(key), next(same, None)) if one is not None]
        if result.projection != "pca" or not profiles:
            continue
        picture = project(replace(_attribution(result), profile=profiles[0]))
        points = tuple((float(x), float(y)) for x, y in picture.coordinates)
        drawn = replace(result, positions=picture.positions, coordinates=points, projection=picture.method)
        evidence.record(case, name, drawn, "drawn again", actor="engine", by=picture.method)
    return True
