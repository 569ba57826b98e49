"""2-means is exact, nothing is marked without a reason, bad numbers are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from core.clustering import adaptive_clusters, occlusion_clusters, paper_clusters, two_means
from core.errors import AttributionError
from core.settings import AttributionSettings
from core.values import Attribution, Target


def attribution(scores, scored=None, method="occlusion", signed=True, profile=None):
    scores = np.asarray(scores, dtype=np.float32)
    scored = np.ones(len(scores), bool) if scored is None else np.asarray(scored, bool)
    return Attribution(method=method, target=Target(), scores=scores, scored=scored, signed=signed, profile=profile)


def cost(values, labels):
    return sum(((values[labels == k] - values[labels == k].mean()) ** 2).sum() for k in set(labels.tolist()))


@given(st.lists(st.integers(-50, 50).map(lambda i: i / 4), min_size=2, max_size=9))
def test_two_means_is_the_best_of_all_assignments(values):
    values = np.array(values)
    result = two_means(values)
    assignments = [np.array([(code >> i) & 1 for i in range(len(values))]) for code in range(2 ** len(values))]
    best = min(cost(values, labels) for labels in assignments)  # splits of any kind, not only of the sorted values
    # 1e-9: sums of at most nine squares below 625, in float64.
    assert cost(values, result.labels) <= best + 1e-9
    if len(set(values.tolist())) > 1:
        assert values[result.labels == 1].min() > result.boundary > values[result.labels == 0].max()
        assert result.centroids == pytest.approx((values[result.labels == 0].mean(), values[result.labels == 1].mean()))


@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=30), st.randoms())
def test_two_means_ignores_order_and_never_parts_equal_values(values, random):
    values = values + values[: len(values) // 2]
    order = list(range(len(values)))
    random.shuffle(order)
    labels, shuffled = two_means(np.array(values)).labels, two_means(np.array(values)[order]).labels
    assert labels[order].tolist() == shuffled.tolist()
    by_value = {}
    for value, label in zip(values, labels.tolist(), strict=True):
        assert by_value.setdefault(value, label) == label


def test_two_means_of_equal_splits_takes_the_smaller_upper_group():
    assert two_means(np.array([0.0, 1.0, 2.0])).labels.tolist() == [0, 0, 1]
    assert two_means(np.array([0.1, 0.2, 0.3]) * 1e-3).labels.tolist() == [0, 0, 1]


def test_two_means_agrees_with_scikit_learn_on_separate_groups():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 40), rng.normal(9, 1, 5)])
    fitted = KMeans(2, n_init=20, random_state=0).fit(values[:, None])
    upper = fitted.labels_ == fitted.cluster_centers_[:, 0].argmax()
    assert two_means(values).labels.tolist() == upper.astype(int).tolist()


@pytest.mark.parametrize("values", [[], [3.0], [2.5, 2.5, 2.5], [0.0, -0.0]])
def test_two_means_of_fewer_than_two_values_marks_nothing(values):
    result = two_means(np.array(values))
    assert result.labels.tolist() == [0] * len(values)
    assert result.boundary is None
    assert len(result.centroids) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(AttributionError, match="1 of 3 scores are not finite"):
        two_means(np.array([0.0, bad, 1.0]))
    for function in (paper_clusters, occlusion_clusters, lambda a: adaptive_clusters([a])):
        with pytest.raises(AttributionError, match="not finite"):
            function(attribution([0.0, bad, 1.0]))


def test_unscored_tokens_are_never_labelled_nor_counted():
    clusters = paper_clusters(attribution([99, 1, 1, 5, 99], [0, 1, 1, 1, 0]))
    assert clusters.labels.tolist() == [-1, 0, 0, 1, -1]
    assert clusters.boundary == 3.0


def test_a_strong_opponent_does_not_make_all_others_stand_out():
    assert paper_clusters(attribution([-40, 0, 1, 9, 8])).labels.tolist() == [0, 0, 0, 1, 1]


def test_the_floor_marks_drops_from_a_tenth_of_the_largest():
    clusters = occlusion_clusters(attribution([10, 1.0, 0.99, -5, 4]), AttributionSettings(occlusion_rule="floor"))
    assert clusters.labels.tolist() == [1, 1, 0, 0, 1]
    assert clusters.boundary == pytest.approx(1.0)


def test_occlusion_rules_are_root_union_and_intersection():
    # Roots 4, 2, 1, 0: 2-means parts 4 from the rest (2.25 + ... is worse); the floor keeps 16 and 4.
    # Roots 10, 3 (20 times), 0 (20 times): 2-means parts the noughts from the rest; the floor keeps 100 alone.
    def marked(scores, rule):
        return occlusion_clusters(attribution(scores), AttributionSettings(occlusion_rule=rule)).labels.sum()

    assert AttributionSettings().occlusion_rule == "sqrt"
    for scores, wanted in (
        ([16, 4, 1, 0], {"floor": 2, "sqrt": 1, "either": 2, "both": 1}),
        ([100] + [9] * 20 + [0] * 20, {"floor": 1, "sqrt": 21, "either": 21, "both": 1}),
    ):
        assert {rule: marked(scores, rule) for rule in wanted} == wanted


@pytest.mark.parametrize("scores", [[], [0, 0, 0], [-1, -2], [0.05, 0.01, 0.0], [0.04]])
def test_drops_that_change_nothing_mark_nothing(scores):
    for rule in ("floor", "sqrt", "either", "both"):
        clusters = occlusion_clusters(attribution(scores), AttributionSettings(occlusion_rule=rule))
        assert not (clusters.labels == 1).any()


def planted(seed, n=40, size=4, factor=10.0):
    """Three methods that see the same few tokens, each with noise of its own and its own scale."""
    rng = np.random.default_rng(seed)
    made = []
    for scale in (1.0, 30.0, 0.01):
        scores = np.abs(rng.normal(size=n))
        scores[10 : 10 + size] = factor * rng.uniform(0.8, 1.2, size)
        made.append(attribution(scores * scale))
    return made


def test_adaptive_clusters_find_what_three_methods_see():
    exact = sum(
        np.flatnonzero(adaptive_clusters(planted(seed)).labels == 1).tolist() == [10, 11, 12, 13] for seed in range(20)
    )
    assert exact >= 18  # seeded; a mixture may part the planted tokens now and then


def test_adaptive_clusters_say_that_nothing_stands_out():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(20):
        attributions = [attribution(np.abs(rng.normal(size=40))) for _ in range(3)]
        alarms += bool((adaptive_clusters(attributions).labels == 1).any())
    assert alarms <= 1  # half-normal noise of three independent methods rarely agrees on one token


@pytest.mark.parametrize("n", [4, 40])
def test_a_single_token_far_above_all_others_stands_out(n):
    scores = np.random.default_rng(4).uniform(1, 2, n)
    scores[2] = 60
    assert np.flatnonzero(adaptive_clusters([attribution(scores)]).labels == 1).tolist() == [2]


def test_most_of_a_text_does_not_stand_out():
    rng = np.random.default_rng(5)
    scores = np.concatenate([rng.uniform(0, 1, 24), rng.uniform(20, 22, 16)])
    assert (adaptive_clusters([attribution(scores)]).labels == 1).sum() == 16
    strict = AttributionSettings(adaptive_share=0.3)
    assert not (adaptive_clusters([attribution(scores)], strict).labels == 1).any()


def test_heavy_tailed_scores_without_a_group_seldom_raise_an_alarm():
    rng = np.random.default_rng(6)
    tails = [np.exp(rng.normal(size=40)) for _ in range(20)]
    z_rule = [np.median(tail) + 3.5 * 1.4826 * np.median(np.abs(tail - np.median(tail))) for tail in tails]
    naive = sum(bool(tail.max() > limit) for tail, limit in zip(tails, z_rule, strict=True))
    ours = sum(bool((adaptive_clusters([attribution(tail)]).labels == 1).any()) for tail in tails)
    assert naive >= 15  # a bare z rule cries wolf on nearly all of them
    assert ours <= 6  # seeded: 5 of 20


def test_adaptive_clusters_use_the_profile_and_stay_deterministic():
    rng = np.random.default_rng(2)
    profile = rng.normal(size=(8, 40)).astype(np.float32) * 0.1
    profile[:, 5] += 3
    one = attribution(profile.sum(0), profile=profile)
    first, second = adaptive_clusters([one]), adaptive_clusters([one])
    assert np.flatnonzero(first.labels == 1).tolist() == [5]
    assert first.labels.tolist() == second.labels.tolist()


@pytest.mark.parametrize("scores", [[], [5.0], [1.0, 1.0, 1.0], [0.0] * 30, [0.0, 9.0]])
def test_adaptive_clusters_of_trivial_scores_mark_nothing(scores):
    assert not (adaptive_clusters([attribution(scores)]).labels == 1).any()


def test_adaptive_clusters_refuse_other_prompts_and_none():
    with pytest.raises(AttributionError, match="different prompts"):
        adaptive_clusters([attribution([1, 2]), attribution([1, 2, 3])])
    with pytest.raises(AttributionError, match="at least one"):
        adaptive_clusters([])
