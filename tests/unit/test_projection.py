"""The picture is of the scored tokens, repeatable, and never fails on few or equal points."""

import numpy as np
import pytest

from core.errors import AttributionError
from core.projection import project, warm_umap
from core.values import Attribution, Target


def attribution(n, rows=6, scored=None, seed=0):
    profile = np.random.default_rng(seed).normal(size=(rows, n)).astype(np.float32) if rows else None
    scores = np.arange(n, dtype=np.float32) / 2 if profile is None else profile.sum(0)
    scored = np.ones(n, bool) if scored is None else np.asarray(scored, bool)
    return Attribution(method="occlusion", target=Target(), scores=scores, scored=scored, signed=True, profile=profile)


@pytest.mark.parametrize(("n", "rows"), [(0, 6), (1, 6), (3, 6), (20, 0), (20, 1)])
def test_few_tokens_or_no_profile_are_drawn_by_position_and_score(n, rows):
    one = attribution(n, rows)
    projection = project(one)
    assert projection.method == "position"
    assert projection.coordinates.tolist() == [[float(i), float(one.scores[i])] for i in range(n)]


def test_unscored_tokens_are_not_drawn():
    assert project(attribution(6, scored=[0, 1, 1, 0, 1, 1])).positions == (1, 2, 4, 5)


def test_pca_keeps_distances_of_points_that_lie_in_a_plane():
    one = attribution(9, rows=2)
    projection = project(one)
    assert projection.method == "pca"

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    drawn, true = distances(projection.coordinates), distances(one.profile.T.astype(float))
    np.testing.assert_allclose(drawn / drawn.max(), true / true.max(), atol=1e-6)  # float32 profile
    assert projection.coordinates[:, 0].std() >= projection.coordinates[:, 1].std()


def test_pca_signs_are_stable():
    one = attribution(6, rows=2)
    one.profile[0], one.profile[1] = [0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 0, 0]
    assert (np.diff(project(one).coordinates[:, 0]) > 0).all()
    one.profile[0] *= -1
    assert (np.diff(project(one).coordinates[:, 0]) < 0).all()


def test_umap_is_not_used_when_it_is_not_allowed():
    assert project(attribution(30), allow_umap=False).method == "pca"


def test_equal_points_are_drawn():
    one = attribution(8)
    one.profile[:] = 1.0
    assert np.isfinite(project(one).coordinates).all()


def test_a_profile_that_is_not_finite_is_refused():
    one = attribution(8)
    one.profile[0, 0] = np.nan
    with pytest.raises(AttributionError, match="not finite"):
        project(one)


@pytest.mark.slow
def test_umap_is_repeatable_keeps_groups_apart_and_survives_equal_points():
    warm_umap().join()
    one = attribution(24)
    one.profile[:, 12:] += 20
    first, second = project(one, seed=3), project(one, seed=3)
    assert first.method == "umap"
    assert first.coordinates.tolist() == second.coordinates.tolist()
    left, right = first.coordinates[:12], first.coordinates[12:]
    between = np.linalg.norm(left.mean(0) - right.mean(0))
    assert between > 2 * max(np.linalg.norm(side - side.mean(0), axis=1).max() for side in (left, right))
    one.profile[:] = 0
    assert np.isfinite(project(one).coordinates).all()
