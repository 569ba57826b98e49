"""Scores of prompt tokens to groups: what stands out, and what does not.

`two_means` solves 1-D 2-means exactly (the paper's rule: the group with the larger mean is the trigger).
`occlusion_clusters` marks drops by a floor or by 2-means of their square root. `adaptive_clusters` fits Gaussian
mixtures to several methods' scores at once and may answer that nothing stands out.
None of them decides whether there is a trigger: they always suggest, only causal tests decide.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import AttributionError
from core.settings import AttributionSettings
from core.values import Attribution, TokenClusters, read_only

NOT_SCORED, REST, STANDS_OUT = -1, 0, 1
TIE = 1e-12
"""Costs that differ by less than this share of the total are equal, so that rounding never chooses the split."""
MAD_TO_SIGMA = 1.4826022185056018
"""Median absolute deviation to standard deviation of a normal distribution, 1 / Phi^-1(3/4)."""
MEAN_AD_TO_SIGMA = 1.2533141373155003
"""Mean absolute deviation to standard deviation of a normal distribution, sqrt(pi / 2)."""
SMALLEST_MIXTURE = 6
"""Fewer tokens than this are judged by their z-scores alone: a mixture has nothing to fit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoMeans:
    """Labels (n,) 1 in the group with the larger mean, the midpoint between the groups, their means (low, high).

    With fewer than two distinct values: all labels 0, `boundary` None, at most one mean.
    """

    labels: np.ndarray
    boundary: float | None
    centroids: tuple[float, ...]


def two_means(values: np.ndarray) -> TwoMeans:
    """Return the exact 2-means of `values` (n,): least sum of squares over all splits of the sorted values.

    Equal values are never parted. Of equally good splits the one with the smaller upper group is taken.

    Raises: AttributionError when a value is not finite.
    Source: Patcher, arXiv 2606.02995 (K = 2, larger centroid); solved by sorting and prefix sums, not by iteration.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    _require_finite(values)
    n = values.size
    distinct = np.unique(values)
    if distinct.size < 2:
        return TwoMeans(labels=read_only(np.zeros(n, int)), boundary=None, centroids=tuple(distinct.tolist()))
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    scaled = ordered / np.abs(ordered).max()  # no overflow in the differences and squares below
    scaled = (scaled - scaled[0]) / (scaled[-1] - scaled[0])
    n_low = np.arange(1, n)
    n_high = n - n_low
    sums = np.cumsum(scaled)
    mean_low = sums[:-1] / n_low
    mean_high = (sums[-1] - sums[:-1]) / n_high
    # Least squares within the groups is the same as most squares between them.
    between = n_low * n_high / n * (mean_high - mean_low) ** 2
    between[ordered[1:] == ordered[:-1]] = -np.inf
    split = int(np.flatnonzero(between >= between.max() * (1 - TIE))[-1]) + 1
    labels = np.zeros(n, int)
    labels[order[split:]] = STANDS_OUT
    low, high = float(ordered[:split].mean()), float(ordered[split:].mean())
    boundary = float(ordered[split - 1] + (ordered[split] - ordered[split - 1]) / 2)
    return TwoMeans(labels=read_only(labels), boundary=boundary, centroids=(low, high))


def paper_clusters(attribution: Attribution) -> TokenClusters:
    """Return the 2-means of the scored tokens' scores.

    Of signed scores only support counts: negative ones enter as 0, else one strong opponent would make all other
    tokens the upper group.

    Raises: AttributionError when a score is not finite.
    """
    result = two_means(_support(attribution))
    return _clusters("two_means", attribution.scored, result.labels, result.boundary)


def occlusion_clusters(attribution: Attribution, settings: AttributionSettings | None = None) -> TokenClusters:
    """Return which scored tokens' drops stand out, by `settings.occlusion_rule`; possibly none.

    `floor`: at least `occlusion_floor` of the largest drop; `sqrt`: upper group of the exact 2-means of the square
    root; `either`, `both`: union, intersection. Always at least `occlusion_minimum_nats`.

    Raises: AttributionError when a drop is not finite.
    Source: method.md section 4.1; tests/bench/LOG.md, localisation.
    """
    settings = settings or AttributionSettings()
    drops = _support(attribution)
    _require_finite(drops)
    floor = settings.occlusion_floor * drops.max(initial=0.0)
    root = two_means(np.sqrt(drops))
    root_boundary = root.boundary**2 if root.boundary is not None else None
    by_floor, by_root = drops >= floor, root.labels == STANDS_OUT
    chosen, boundary = {
        "floor": (by_floor, floor),
        "sqrt": (by_root, root_boundary),
        "either": (by_floor | by_root, floor if root_boundary is None else min(floor, root_boundary)),
        "both": (by_floor & by_root, floor if root_boundary is None else max(floor, root_boundary)),
    }[settings.occlusion_rule]
    chosen = chosen & (drops > 0) & (drops >= settings.occlusion_minimum_nats)
    if boundary is not None:
        boundary = max(float(boundary), settings.occlusion_minimum_nats)
    used: dict[str, float | int | str] = {
        "floor": settings.occlusion_floor,
        "minimum_nats": settings.occlusion_minimum_nats,
    }
    return _clusters(f"occlusion_{settings.occlusion_rule}", attribution.scored, chosen.astype(int), boundary, used)


def adaptive_clusters(
    attributions: Sequence[Attribution], settings: AttributionSettings | None = None, seed: int = 0
) -> TokenClusters:
    """Return the group that stands out over several methods' scores of the same prompt, or none.

    Features of a token: the robust z-score (compressed by asinh) of its score by each method and, where the method
    has a profile, of its largest effect on any one response token. Gaussian mixtures of 1 to `adaptive_components`
    components are compared by BIC (scikit-learn); the one with the largest mean z may stand out. A single token makes
    no component, so tokens beyond a wide gap in the mean z stand out too. In both cases each must itself reach
    `adaptive_z`, and together they may be at most `adaptive_share` of the tokens. On synthetic heavy-tailed scores
    without a trigger this still marks something in about one prompt of four: a suggestion, never a proof.

    Raises: AttributionError when a score is not finite, or the attributions are of different prompts.
    """
    settings = settings or AttributionSettings()
    if not attributions:
        raise AttributionError("Adaptive clusters need at least one attribution: run a method first.")
    scored = attributions[0].scored
    if any(not np.array_equal(other.scored, scored) for other in attributions):
        raise AttributionError("The attributions belong to different prompts: run the methods again on one case.")
    evidence = np.mean([_robust_z(a.scores[scored]) for a in attributions], axis=0)
    used: dict[str, float | int | str] = {"z": settings.adaptive_z, "methods": len(attributions)}
    n = evidence.size
    if n < 2 or evidence.max() < settings.adaptive_z:
        return _clusters("adaptive", scored, np.zeros(n, int), None, used)
    strong = _beyond_gap(evidence, settings)
    if n >= SMALLEST_MIXTURE:
        members, used["components"] = _top_component(_features(attributions), evidence, settings, seed)
        strong |= members & (evidence >= settings.adaptive_z)
    if strong.mean() > settings.adaptive_share:
        strong[:] = False
    return _clusters("adaptive", scored, strong.astype(int), None, used)


def _top_component(
    features: np.ndarray, evidence: np.ndarray, settings: AttributionSettings, seed: int
) -> tuple[np.ndarray, int]:
    """Return which tokens (n,) belong to the component with the most evidence, and how many components BIC chose."""
    from sklearn.mixture import GaussianMixture  # lazily: 2 s of import

    best, best_bic = None, np.inf
    for k in range(1, min(settings.adaptive_components, len(features) - 1) + 1):
        # reg_covar is scaled to features of order 1, so that repeated tokens make no component of zero width.
        mixture = GaussianMixture(k, covariance_type="diag", n_init=3, reg_covar=1e-2, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer distinct points than components: BIC then prefers fewer
            bic = mixture.fit(features).bic(features)
        if bic < best_bic:
            best, best_bic = mixture, bic
    assert best is not None
    if best.n_components == 1:
        return np.zeros(len(features), bool), 1
    labels = best.predict(features)
    top = max(set(labels.tolist()), key=lambda label: evidence[labels == label].mean())
    if evidence[labels == top].mean() < settings.adaptive_z:
        return np.zeros(len(features), bool), int(best.n_components)
    return labels == top, int(best.n_components)


def _beyond_gap(evidence: np.ndarray, settings: AttributionSettings) -> np.ndarray:
    """Return which tokens (n,) lie above the widest gap in asinh(evidence), if it is `adaptive_gap` wide; else none."""
    compressed = np.arcsinh(evidence)
    ordered = np.sort(compressed)[::-1]
    n_high = int(np.argmax(ordered[:-1] - ordered[1:])) + 1
    wide = ordered[n_high - 1] - ordered[n_high] >= settings.adaptive_gap
    if not wide or ordered[n_high - 1] < np.arcsinh(settings.adaptive_z):
        return np.zeros(evidence.size, bool)
    return compressed >= ordered[n_high - 1]


def _features(attributions: Sequence[Attribution]) -> np.ndarray:
    """Return the feature table (n_scored, n_features) of `adaptive_clusters`."""
    columns = []
    for attribution in attributions:
        columns.append(_robust_z(attribution.scores[attribution.scored]))
        if attribution.profile is not None and attribution.profile.shape[0] > 1:
            columns.append(_robust_z(attribution.profile[:, attribution.scored].max(axis=0)))
    return np.arcsinh(np.stack(columns, axis=1))


def _robust_z(values: np.ndarray) -> np.ndarray:
    """Return (values - median) / robust sigma; zeros when all values are equal.

    Raises: AttributionError when a value is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    _require_finite(values)
    if values.size == 0:
        return values
    deviation = values - np.median(values)
    sigma = MAD_TO_SIGMA * np.median(np.abs(deviation))
    if sigma == 0:  # more than half of the values are equal
        sigma = MEAN_AD_TO_SIGMA * np.abs(deviation).mean()
    return deviation / sigma if sigma > 0 else np.zeros_like(deviation)


def _support(attribution: Attribution) -> np.ndarray:
    """Return the scored tokens' scores, negative ones as 0."""
    scores = np.asarray(attribution.scores, dtype=np.float64)[attribution.scored]
    _require_finite(scores)
    return np.maximum(scores, 0.0)


def _clusters(
    method: str,
    scored: np.ndarray,
    labels: np.ndarray,
    boundary: float | None,
    settings: dict[str, float | int | str] | None = None,
) -> TokenClusters:
    full = np.full(scored.shape, NOT_SCORED, dtype=int)
    full[scored] = labels
    return TokenClusters(method=method, labels=read_only(full), boundary=boundary, settings=settings or {})


def _require_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        raise AttributionError(
            f"{n_bad} of {values.size} scores are not finite: run the attribution again in float32, "
            "or check the model's weights."
        )
