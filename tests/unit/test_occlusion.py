"""Long prompts: blocks first, then tokens; the same tokens as one by one, for a fraction of the passes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from core import chat
from core.attribution import attribute, estimate
from core.loaded import LoadedModel
from core.models import load
from core.occlusion import INSIDE, LINE, MESSAGE, PARAGRAPH, WORD, borders_of, first_blocks, halve, planned
from core.settings import AttributionSettings, ModelSettings
from core.target import TargetLogProb
from core.values import FailureReport, Message, ModelSpec, Target
from tests.tiny import byte_level_tokenizer
from tests.unit.test_attribution import REFUSAL, RESPONSE, make_case

SMALL = AttributionSettings(hierarchical_above=16, hierarchical_first=8, hierarchical_kept=3, hierarchical_leaf=4)
CONTRAST = Target(kind="contrast", k=4)


class Planted(nn.Module):
    """log P(token 0) = -8 + the sum of a weight of each token: ids 90.. weigh much, and only if `together` all are there."""

    def __init__(self, together: int = 0):
        super().__init__()
        self.embedding = nn.Embedding(100, 2)
        weights = torch.full((100,), 1e-4)
        weights[10:20] = torch.linspace(-2e-3, 3e-3, 10)
        weights[90:] = 0.0 if together else 1.0
        self.embedding.weight.data = torch.stack([weights, (torch.arange(100) >= 90).float()], -1)
        self.together = together
        self.config = SimpleNamespace(eos_token_id=2)
        self.n_sequences = self.n_batches = 0

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, inputs_embeds, use_cache=False, logits_to_keep=0, attention_mask=None, position_ids=None):
        self.n_sequences += len(inputs_embeds)
        self.n_batches += 1
        if attention_mask is not None:
            inputs_embeds = inputs_embeds * attention_mask[..., None]
        weight, count = inputs_embeds.cumsum(1).unbind(-1)
        logprob = -8 + weight + (4.0 * (count >= self.together - 0.5) if self.together else 0.0)
        logits = torch.stack([logprob, (-logprob.exp()).log1p()], -1)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:] if logits_to_keep else logits)


def planted(together: int = 0) -> LoadedModel:
    """Return the model with known weights."""
    return LoadedModel(
        spec=ModelSpec(path="planted"),
        model=Planted(together).eval().requires_grad_(False),
        tokenizer=None,
        device=torch.device("cpu"),
        settings=ModelSettings(),
        context_length=None,
    )


def long_case(n: int, trigger: dict[int, int], seed: int = 0):
    """Return a case of `n` user tokens between template tokens, with trigger ids at the given user positions."""
    draw = np.random.default_rng(seed)
    ids = [int(one) for one in draw.integers(10, 60, n)]
    for place, one in trigger.items():
        ids[place] = one
    return make_case([1, *ids, 2, 5], [0, 0, 0], range(1, n + 1))


@pytest.mark.parametrize("n", [600, 4096, 8192])
@pytest.mark.parametrize("together", [0, 4])
def test_the_same_tokens_stand_out_as_one_by_one_with_few_passes(n: int, together: int) -> None:
    """A phrase, and the words of a composite that works only whole, in prompts of up to 8k tokens."""
    places = {n // 3: 90, n // 3 + 1: 91, n // 2: 92, n - 7: 93}
    case, loaded = long_case(n, places), planted(together)
    settings = AttributionSettings()
    result = attribute(loaded, case, "occlusion", Target(), settings)
    top = np.argsort(-result.scores)[:4]
    assert sorted(top - 1) == sorted(places)
    np.testing.assert_allclose(result.scores[top], 12.0 if together else 3.0, rtol=1e-2)
    assert result.scores[[i for i in range(n + 3) if i not in top]].max() < 0.1 * result.scores[top].min()
    limit = 32 + 2 * 8 * (np.ceil(np.log2(n / 256)) + 1) + 64
    assert result.model_calls == loaded.model.n_sequences <= limit + 2
    assert result.batches == loaded.model.n_batches <= result.model_calls
    assert result.model_calls < n / 2


def test_unvisited_tokens_have_the_share_of_their_block() -> None:
    """On a linear model shares add up to the whole, however few tokens were deleted by themselves."""
    case, loaded = long_case(2000, {700: 90, 701: 91}), planted()
    profile = attribute(loaded, case, "occlusion", Target()).profile
    full = attribute(loaded, case, "occlusion", Target(), AttributionSettings(hierarchical_above=5000))
    assert full.model_calls == 2002  # and one for keys and values, which this model has not
    assert full.batches == 2 + 2000 // 8  # 16,384 tokens hold 8 prompts of 2,003
    np.testing.assert_allclose(profile.sum(), full.profile.sum(), rtol=1e-3)
    np.testing.assert_allclose(profile[:, 701:703], full.profile[:, 701:703], rtol=1e-3)
    assert len(np.unique(profile[0])) < 200


def test_nothing_that_supports_the_answer_ends_the_search() -> None:
    """No block has support: no token is deleted by itself."""
    loaded = planted()
    loaded.model.embedding.weight.data[:, 0] = -1e-3
    result = attribute(loaded, long_case(1000, {}), "occlusion", Target())
    assert result.model_calls == 2 + AttributionSettings().hierarchical_first  # the prompt, its keys and values, blocks
    assert result.scores.max() <= 0


def test_the_limit_holds() -> None:
    """Prompts scored never pass the setting; the rest has shares."""
    case, loaded = long_case(3000, {1000: 90}), planted()
    result = attribute(loaded, case, "occlusion", Target(), AttributionSettings(hierarchical_limit=50))
    assert result.model_calls == 52
    assert int(result.scores.argmax()) - 1 in range(700, 1300)
    assert planned(3000, AttributionSettings(hierarchical_limit=50)) == 50
    assert planned(512, AttributionSettings()) == 512


def test_a_long_answer_over_a_large_vocabulary_takes_small_batches(tiny_loaded) -> None:
    case, sizes = long_case(20, {}), []
    tiny_loaded.model.register_forward_hook(lambda _, __, out: sizes.append(out.logits.numel()))
    plain = attribute(tiny_loaded, case, "occlusion", Target())
    most = max(sizes)
    sizes.clear()
    few = attribute(tiny_loaded, case, "occlusion", Target(), AttributionSettings(occlusion_logits=most // 4))
    assert max(sizes) <= most // 4
    np.testing.assert_allclose(few.scores, plain.scores, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
@pytest.mark.parametrize(
    "target", [Target(), Target(kind="tokens", positions=(2, 3)), Target(kind="first_k", k=1), CONTRAST]
)
def test_prompts_without_a_block_are_scored_as_they_are(tiny_folder, family: str, target: Target) -> None:
    """Other lengths in one batch, keys and values reused or not: the log-probability of the shorter prompt itself."""
    loaded = load(tiny_folder(family))
    user = range(3, 37)
    prompt = [1, *range(40, 76), 2, 5]
    function = TargetLogProb(loaded, make_case(prompt, RESPONSE, user), target, REFUSAL)
    deletions = [np.arange(low, high) for low, high in ((5, 30), (9, 10), (30, 36), (36, 37))]
    shorter = [[one for i, one in enumerate(prompt) if i not in gone] for gone in deletions]
    k = {"response": 5, "tokens": 5, "first_k": 1, "contrast": 4}[target.kind]
    expected = np.stack(loaded.logprobs(shorter, [RESPONSE[:k]] * 4))
    if target.kind == "contrast":
        expected = expected - np.stack(loaded.logprobs(shorter, [REFUSAL[:k]] * 4))
    if target.kind == "tokens":
        expected = expected[:, 2:4]
    with torch.no_grad():
        for cache in ((None,), None):  # a model without keys and values, then this one
            function._cache = cache
            for rows in ([0, 1, 2, 3], [1], [3, 2]):
                found = function.without([deletions[row] for row in rows])
                np.testing.assert_allclose(found, expected[rows], atol=3e-4)  # float32 log-probabilities near -10
    assert function._cache is not None
    assert function._cache[0] is not None


def test_blocks_of_a_real_model_lead_to_its_strongest_tokens(tiny_loaded) -> None:
    """Same drop where a token was deleted by itself, with the contrast and reused keys and values."""
    prompt = [1, *np.random.default_rng(3).integers(10, 400, 120).tolist(), 2, 5]
    case = make_case(prompt, RESPONSE, range(1, 121))
    full = attribute(tiny_loaded, case, "occlusion", CONTRAST, refusal_ids=REFUSAL)
    blocks = attribute(tiny_loaded, case, "occlusion", CONTRAST, SMALL, refusal_ids=REFUSAL)
    alone = [i for i in range(1, 121) if abs(blocks.scores[i] - full.scores[i]) < 1e-3]
    assert len(alone) >= 3
    assert blocks.model_calls < full.model_calls / 2
    everything = AttributionSettings(
        hierarchical_above=16, hierarchical_first=8, hierarchical_kept=200, hierarchical_leaf=4
    )
    exact = attribute(tiny_loaded, case, "occlusion", CONTRAST, everything, refusal_ids=REFUSAL)
    same = np.abs(exact.scores - full.scores) < 1e-3
    assert same[np.argmax(full.scores)]


def test_borders_are_messages_paragraphs_lines_and_words() -> None:
    """Read from the raw text, whatever the tokens are."""
    tokenizer = byte_level_tokenizer()
    messages = (
        Message(role="user", content="one two\nthree\n\nfour"),
        Message(role="assistant", content="yes"),
        Message(role="user", content="five six"),
    )
    case = chat.bind(tokenizer, FailureReport(messages=messages, response="no"))
    scored = np.array([token.segment == "user" for token in case.prompt.tokens])
    tokens = [token for token in case.prompt.tokens if token.segment == "user"]
    kinds = dict(zip(((t.message, t.start) for t in tokens), borders_of(case, scored).tolist(), strict=True))
    assert kinds[0, 0] == kinds[2, 0] == MESSAGE
    assert (kinds[0, 8], kinds[0, 15]) == (LINE, PARAGRAPH)
    assert {kinds[0, start] for start in (3, 4) if (0, start) in kinds} == {WORD} | ({INSIDE} & set())
    assert INSIDE in kinds.values()


def test_a_block_is_cut_at_the_best_border_near_its_middle() -> None:
    """Paragraph before line before word; in the middle half only; any two tokens can be parted."""
    borders = np.zeros(40, dtype=int)
    assert halve((0, 40), borders) == ((0, 20), (20, 40))
    borders[[2, 13, 22]] = [PARAGRAPH, LINE, WORD]
    assert halve((0, 40), borders) == ((0, 13), (13, 40))
    assert [halve((5, 5 + n), borders)[0][1] for n in (2, 3)] == [6, 6]
    blocks = first_blocks((0, 40), borders, 7)
    assert len(blocks) == 7
    assert [low for low, _ in blocks[1:]] == [high for _, high in blocks[:-1]]
    assert first_blocks((0, 3), borders, 7) == [(0, 1), (1, 2), (2, 3)]


def test_the_estimate_is_said_before_and_holds_roughly(tiny_loaded) -> None:
    """The bound on prompts holds, the time is of the right order, and the progress names it."""
    prompt = [1, *np.random.default_rng(5).integers(10, 400, 900).tolist(), 2, 5]
    case = make_case(prompt, RESPONSE, range(1, 901))
    short = make_case([1, 7, 8, 2, 5], RESPONSE, range(1, 3))
    assert estimate(tiny_loaded, short, CONTRAST, refusal_ids=REFUSAL) is None
    expected = estimate(tiny_loaded, case, CONTRAST, refusal_ids=REFUSAL)
    assert expected is not None
    said = []
    result = attribute(
        tiny_loaded, case, "occlusion", CONTRAST, refusal_ids=REFUSAL, progress=lambda *args: said.append(args)
    )
    assert result.model_calls <= 2 * (expected.sequences + 1)  # two answers for each prompt
    assert expected.batches >= expected.sequences / 32
    assert result.seconds / 20 < expected.seconds < result.seconds * 20 + 5
    assert said[0][0].startswith("occlusion by blocks, about ")
    assert all(done <= total for _, done, total in said)
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)
