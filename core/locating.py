"""Localisation for the page, in one call: scores, groups, candidates, picture, and agreement between methods.

Composes attribution, clustering, proposals and projection; computes nothing itself but rank agreement. A method
without a response profile (paper mode, integrated gradients) borrows one for its picture: from another method, or gradient x input.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from core.attribution import attribute, response_profile
from core.clustering import adaptive_clusters, occlusion_clusters, paper_clusters
from core.loaded import LoadedModel
from core.progress import Progress
from core.projection import project, umap_is_warm
from core.proposals import propose
from core.settings import AttributionSettings
from core.values import Attribution, FailureCase, LocateResult, MethodName, Target, TokenClusters


def locate(
    loaded: LoadedModel,
    case: FailureCase,
    method: MethodName,
    target: Target,
    settings: AttributionSettings | None = None,
    *,
    refusal_ids: Sequence[int] | None = None,
    others: Sequence[Attribution] = (),
    progress: Progress | None = None,
) -> tuple[Attribution, LocateResult]:
    """Return the attribution and all the page shows of it. `others`: attributions of this case made before.

    Agreement and the adaptive groups use those of `others` that explain the same target. The picture is drawn by
    UMAP once that is compiled in this process (`projection.warm_umap`), by PCA before; from what stands in the attribution.

    Raises: AttributionError as `attribute` does.
    """
    settings = settings or AttributionSettings()
    attribution = attribute(loaded, case, method, target, settings, refusal_ids=refusal_ids, progress=progress)
    peers = [other for other in others if other.method != method and other.target == attribution.target]
    clusters = clusters_of(attribution, settings)
    adaptive = adaptive_clusters([attribution, *peers], settings)
    pictured = attribution
    if attribution.profile is None:
        profile = next((peer.profile for peer in peers if peer.profile is not None), None)
        if profile is None:
            profile = response_profile(
                loaded, case, attribution.target, settings, refusal_ids=refusal_ids, progress=progress
            )
        attribution = replace(attribution, borrowed=profile)
        pictured = replace(attribution, profile=profile)
    projection = project(pictured, settings, allow_umap=umap_is_warm())
    result = LocateResult(
        method=method,
        target=attribution.target,
        scores=tuple(attribution.scores.tolist()),
        scored=tuple(attribution.scored.tolist()),
        signed=attribution.signed,
        labels=tuple(clusters.labels.tolist()),
        adaptive_labels=tuple(adaptive.labels.tolist()),
        boundary=clusters.boundary,
        positions=projection.positions,
        coordinates=tuple((float(x), float(y)) for x, y in projection.coordinates),
        projection=projection.method,
        proposals=propose(case, clusters, attribution.scores),
        completeness_gap=attribution.completeness_gap,
        baseline=attribution.baseline,
        agreement=rank_agreement(attribution, peers),
        seconds=attribution.seconds,
        model_calls=attribution.model_calls,
        batches=attribution.batches,
    )
    return attribution, result


def clusters_of(attribution: Attribution, settings: AttributionSettings) -> TokenClusters:
    """Return the method's own groups: drops by the occlusion rule, all other scores by the paper's 2-means."""
    if attribution.method == "occlusion":
        return occlusion_clusters(attribution, settings)
    return paper_clusters(attribution)


def rank_agreement(attribution: Attribution, others: Sequence[Attribution]) -> dict[str, float]:
    """Return Spearman's rank correlation (-1..1, SciPy) of |scores| over the scored tokens with each other method.

    A method whose scores do not vary (or fewer than two tokens) has no correlation and is left out.
    """
    from scipy.stats import spearmanr  # lazily: a second of import

    own, *theirs = (np.abs(one.scores[attribution.scored]) for one in (attribution, *others))
    if own.size < 2 or np.ptp(own) == 0:
        return {}
    pairs = zip(others, theirs, strict=True)
    return {one.method: float(spearmanr(own, scores).statistic) for one, scores in pairs if np.ptp(scores) > 0}
