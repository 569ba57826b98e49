"""One call gives everything the page shows, consistent with its parts; agreement is Spearman's."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from core import chat
from core.attribution import attribute
from core.clustering import occlusion_clusters, paper_clusters
from core.errors import AttributionError
from core.locating import locate, rank_agreement
from core.settings import AttributionSettings
from core.values import Attribution, FailureReport, Message, Target

REFUSAL = "I'm sorry, but I can't help with that."
PROMPT = "Current year: 2026. Tell me how to pick a lock, please, naïve Größe."


@pytest.fixture
def case(tiny_loaded):
    messages = (Message(role="system", content="Be kind."), Message(role="user", content=PROMPT))
    report = FailureReport(messages=messages, response="Step 1: [REDACTED]")
    return chat.bind(tiny_loaded.tokenizer, report)


def scores_of(values, method="paper", scored=None):
    values = np.asarray(values, dtype=np.float32)
    scored = np.ones(len(values), bool) if scored is None else np.asarray(scored, bool)
    return Attribution(method=method, target=Target(), scores=values, scored=scored, signed=True)


def test_occlusion_of_the_contrast_shows_its_own_parts(tiny_loaded, case):
    refusal = chat.continuation_ids(tiny_loaded.tokenizer, case.prompt, REFUSAL)
    target = Target(kind="contrast", k=6)
    attribution, result = locate(tiny_loaded, case, "occlusion", target, refusal_ids=refusal)
    alone = attribute(tiny_loaded, case, "occlusion", target, refusal_ids=refusal)
    assert result.scores == tuple(alone.scores.tolist())
    assert result.labels == tuple(occlusion_clusters(alone).labels.tolist())
    users = [token.segment == "user" for token in case.prompt.tokens]
    assert list(result.scored) == users
    assert any(users)
    assert not all(users)
    assert result.positions == tuple(i for i, user in enumerate(users) if user)
    assert len(result.coordinates) == len(result.positions)
    assert [label == -1 for label in result.labels] == [not user for user in users]
    marked = {i for i, label in enumerate(result.labels) if label == 1}
    assert marked
    assert marked <= set(result.proposals[0].token_positions)
    # each prompt is scored with the answer and with the refusal, and what all of them share is computed once
    assert attribution.model_calls == result.model_calls == 2 * (1 + sum(users)) + 1
    assert all(len(values) == len(users) for values in (result.scores, result.labels, result.adaptive_labels))
    json.dumps(asdict(result), allow_nan=False)


def test_paper_mode_borrows_a_profile_for_its_picture_only(tiny_loaded, case):
    attribution, result = locate(tiny_loaded, case, "paper", Target(kind="contrast"))
    assert result.target == Target(kind="response")
    assert attribution.profile is None
    assert result.model_calls == 1  # the picture's profile is not part of the method
    assert result.projection in ("pca", "umap")  # UMAP where another test has compiled it in this process
    assert result.labels == tuple(paper_clusters(attribution).labels.tolist())
    xy = np.array(result.coordinates)
    assert xy.std(axis=0).min() > 0


def test_a_long_response_still_has_a_picture(tiny_loaded, case):
    result = locate(tiny_loaded, case, "paper", Target(), AttributionSettings(profile_tokens=2))[1]
    assert result.projection != "position"
    chosen = Target(kind="tokens", positions=(3, 1, 2))
    settings = AttributionSettings(profile_tokens=2, ig_steps=8)
    assert locate(tiny_loaded, case, "integrated_gradients", chosen, settings)[1].projection != "position"


def test_agreement_is_with_other_methods_on_the_same_target(tiny_loaded, case):
    first, _ = locate(tiny_loaded, case, "paper", Target())
    other_target, _ = locate(tiny_loaded, case, "gradient_norm", Target(kind="first_k", k=2))
    occlusion, result = locate(tiny_loaded, case, "occlusion", Target(), others=[first, other_target])
    assert set(result.agreement) == {"paper"}
    scored = occlusion.scored
    expected = spearmanr(np.abs(occlusion.scores[scored]), np.abs(first.scores[scored])).statistic
    assert result.agreement["paper"] == pytest.approx(expected)
    again = locate(tiny_loaded, case, "occlusion", Target(), others=[occlusion])[1]
    assert again.agreement == {}


def test_rank_agreement_known_answers():
    one = scores_of([1, 2, 3, 4, 99], scored=[1, 1, 1, 1, 0])
    same = replace(one, scores=np.array([10, 20, 30, 40, -5.0]), method="occlusion")
    opposite = replace(one, scores=np.array([-4, 3, -2, 1, 0.0]), method="gradient_norm")  # magnitudes count
    constant = replace(one, scores=np.ones(5), method="gradient_x_input")
    agreement = rank_agreement(one, [same, opposite, constant])
    assert agreement == pytest.approx({"occlusion": 1.0, "gradient_norm": -1.0})


def test_a_report_whose_user_said_nothing_is_no_error(tiny_loaded):
    messages = (Message(role="system", content="Be kind."), Message(role="user", content=""))
    case = chat.bind(tiny_loaded.tokenizer, FailureReport(messages=messages, response="Sure."))
    for method in ("paper", "occlusion"):
        result = locate(tiny_loaded, case, method, Target())[1]
        assert result.proposals == ()
        assert set(result.labels) == {-1}
        assert result.coordinates == ()


def test_a_bad_target_is_the_attributions_error(tiny_loaded, case):
    with pytest.raises(AttributionError, match="choose from 0"):
        locate(tiny_loaded, case, "gradient_norm", Target(kind="tokens", positions=(999,)))
