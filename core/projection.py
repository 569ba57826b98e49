"""A 2-D picture of the scored tokens: tokens that act alike on the response lie close together.

A token's features are its column of the profile (its effect on each explained response token), scaled to unit
spread. UMAP draws 10 tokens or more, PCA fewer (and all, until UMAP is compiled), position and score where there is
no profile. People read the picture; no later stage does.
"""

import threading

import numpy as np

from core.errors import AttributionError
from core.settings import AttributionSettings
from core.values import Attribution, Projection, read_only

SMALLEST_PCA = 4
"""Fewer points than this are drawn by position and score. Source: stack.md section 3 (UMAP fails below 4)."""
UMAP_NEIGHBOURS = 15
"""UMAP's own default for `n_neighbors`."""

_umap_lock = threading.Lock()  # numba's fallback threading layer cannot be entered twice
_warm = threading.Event()
_warm_thread: threading.Thread | None = None


def project(
    attribution: Attribution,
    settings: AttributionSettings | None = None,
    seed: int = 0,
    allow_umap: bool = True,
) -> Projection:
    """Return 2-D coordinates of the scored tokens, the same for the same seed.

    `allow_umap` False draws by PCA: the first UMAP in a process compiles for 12-15 s (see `umap_is_warm`).

    Raises: AttributionError when the profile is not finite.
    """
    settings = settings or AttributionSettings()
    positions = tuple(int(i) for i in np.flatnonzero(attribution.scored))
    scores = attribution.scores[attribution.scored]
    by_position = np.stack([np.array(positions, dtype=float), scores], axis=1) if positions else np.zeros((0, 2))
    profile = attribution.profile
    if profile is None or profile.shape[0] < 2 or len(positions) < SMALLEST_PCA:
        return Projection(positions=positions, coordinates=read_only(by_position), method="position")
    points = np.asarray(profile, dtype=np.float64)[:, attribution.scored].T
    if not np.isfinite(points).all():
        raise AttributionError("The response profile is not finite: run the attribution again in float32.")
    spread = points.std()
    points = (points - points.mean(axis=0)) / (spread if spread > 0 else 1.0)
    if allow_umap and len(positions) >= settings.umap_minimum:
        return Projection(positions=positions, coordinates=read_only(_umap(points, seed)), method="umap")
    return Projection(positions=positions, coordinates=read_only(_pca(points)), method="pca")


def warm_umap() -> threading.Thread:
    """Return the background thread that imports and compiles UMAP (about 15 s, once in a process)."""
    global _warm_thread
    if _warm_thread is None:
        _warm_thread = threading.Thread(target=_compile_umap, name="warm-umap", daemon=True)
        _warm_thread.start()
    return _warm_thread


def umap_is_warm() -> bool:
    """Return whether UMAP has drawn once in this process, so that the next picture takes well under a second."""
    return _warm.is_set()


def _compile_umap() -> None:
    _umap(np.random.default_rng(0).normal(size=(16, 4)), seed=0)


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    with _umap_lock:
        import umap  # lazily: 3 s of import, then compilation

        neighbours = min(UMAP_NEIGHBOURS, len(points) - 1)
        # n_jobs=1 is what a seed implies; said here, or UMAP warns.
        drawing = umap.UMAP(n_neighbors=neighbours, n_jobs=1, random_state=seed)
        coordinates = drawing.fit_transform(points)
        _warm.set()
    return np.asarray(coordinates, dtype=np.float64)


def _pca(points: np.ndarray) -> np.ndarray:
    """Return the two leading principal components; the largest loading of each is positive, so signs are stable."""
    left, singular, right = np.linalg.svd(points, full_matrices=False)
    coordinates = left[:, :2] * singular[:2]
    largest = np.abs(right[:2]).argmax(axis=1)
    signs = np.where(right[np.arange(2), largest] < 0, -1.0, 1.0)
    return coordinates * signs
