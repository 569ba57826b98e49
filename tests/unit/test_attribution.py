"""Known answers: a linear model, hand-written autograd, real deletion. And nothing about the model changes."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from core.attribution import METHODS, UNSIGNED, attribute, response_profile
from core.errors import AttributionError
from core.loaded import LoadedModel
from core.models import load
from core.settings import AttributionSettings, ModelSettings
from core.values import FailureCase, FailureReport, Message, ModelSpec, PromptToken, RenderedPrompt, Target

SIGNED = [name for name in METHODS if name not in UNSIGNED]
PROMPT, RESPONSE, REFUSAL = [1, 40, 41, 42, 43, 44, 45, 46, 2, 5], [60, 61, 62, 63, 64], [70, 71, 61, 72, 73, 74, 75]
USER = range(2, 8)


def make_case(prompt=PROMPT, response=RESPONSE, user=USER):
    """A case of bare ids: the tokens numbered in `user` are the user's own, the rest is template."""
    tokens = tuple(
        PromptToken(
            position=i,
            id=one,
            text=f"<{one}>",
            segment="user" if i in user else "template",
            message=0 if i in user else None,
            start=i if i in user else None,
            end=i + 1 if i in user else None,
        )
        for i, one in enumerate(prompt)
    )
    report = FailureReport(messages=(Message(role="user", content="x" * 20),), response="yes")
    prompt_value = RenderedPrompt(text="x", tokens=tokens, template_hash="0")
    return FailureCase(report=report, prompt=prompt_value, response_ids=tuple(response))


class LinearModel(nn.Module):
    """log P(token 0) = -8 + w . (sum of all embeddings so far): linear, so every method has a known answer."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(100, 6)
        self.embedding.weight.data = torch.randn(100, 6, generator=generator) * 0.3
        self.w = nn.Parameter(torch.randn(6, generator=generator))
        self.config = PreTrainedConfig(eos_token_id=2, hidden_size=2, num_hidden_layers=1)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, inputs_embeds, use_cache=False, logits_to_keep=0):
        logprob = -8 + (inputs_embeds @ self.w).cumsum(1)
        return SimpleNamespace(logits=torch.stack([logprob, (-logprob.exp()).log1p()], -1)[:, -logits_to_keep:])


@pytest.fixture
def linear():
    return LoadedModel(
        spec=ModelSpec(path="linear"),
        model=LinearModel().eval().requires_grad_(False),
        tokenizer=None,
        device=torch.device("cpu"),
        settings=ModelSettings(),
        context_length=None,
    )


def test_every_method_is_exact_on_a_linear_model(linear):
    case = make_case(response=[0, 0, 0])
    embeddings, w = linear.model.embedding(torch.tensor(PROMPT)), linear.model.w
    by_token = 3 * (embeddings @ w).numpy()  # three response tokens, each with the same dependence
    scored = np.isin(np.arange(len(PROMPT)), list(USER))
    norm = 3 * float(w.norm())
    result = {name: attribute(linear, case, name, Target()) for name in METHODS}
    np.testing.assert_allclose(result["paper"].scores, norm, rtol=1e-5)
    np.testing.assert_allclose(result["gradient_norm"].scores, norm, rtol=1e-5)
    np.testing.assert_allclose(result["gradient_x_input"].scores, by_token, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["occlusion"].scores, np.where(scored, by_token, 0), rtol=1e-4, atol=1e-5)
    assert result["paper"].scored.tolist() == scored.tolist()


@pytest.mark.parametrize("baseline", ["mean", "zeros", "eos"])
def test_integrated_gradients_are_w_times_x_minus_b_and_complete_on_a_linear_model(linear, baseline):
    case = make_case(response=[0, 0, 0])
    weight, w = linear.model.embedding.weight, linear.model.w
    b = {"mean": weight.mean(0), "zeros": torch.zeros(6), "eos": weight[2]}[baseline]
    linear.tokenizer = SimpleNamespace(eos_token_id=2)
    result = attribute(
        linear, case, "integrated_gradients", Target(), AttributionSettings(ig_baseline=baseline, ig_steps=8)
    )
    expected = 3 * ((weight[torch.tensor(PROMPT)] - b) @ w).numpy()
    expected[[i for i in range(len(PROMPT)) if i not in USER]] = 0  # the template stays as it is on the path
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-5)
    assert result.completeness_gap < 1e-4
    assert result.baseline == baseline


def test_paper_mode_is_the_hand_written_gradient_of_the_summed_loss(tiny_loaded):
    model = tiny_loaded.model
    embeddings = model.get_input_embeddings()(torch.tensor([PROMPT + RESPONSE])).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings).logits[0, len(PROMPT) - 1 : -1]
    nn.functional.cross_entropy(logits, torch.tensor(RESPONSE), reduction="sum").backward()
    expected = embeddings.grad[0, : len(PROMPT)].norm(dim=-1)
    result = attribute(tiny_loaded, make_case(), "paper", Target(kind="first_k", k=1))
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4)  # float32, other order of sums
    assert result.target == Target(kind="response")  # always the whole response
    assert result.profile is None
    assert not result.signed


def test_paper_mode_costs_one_forward_and_one_backward_and_only_response_logits(tiny_loaded):
    passes = []

    def count(module, args, output):
        passes.append(("forward", output.logits.shape[1]))
        output.logits.register_hook(lambda gradient: passes.append(("backward", gradient.shape[1])))

    tiny_loaded.model.register_forward_hook(count)
    result = attribute(tiny_loaded, make_case(), "paper", Target())
    assert passes == [("forward", len(RESPONSE)), ("backward", len(RESPONSE))]
    assert result.model_calls == tiny_loaded.model_calls == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["response", "contrast"])
def test_forward_passes_are_counted_as_they_are(tiny_loaded, method, kind):
    seen = []
    tiny_loaded.model.register_forward_hook(lambda *_: seen.append(1))
    refusal = REFUSAL if kind == "contrast" else None
    attribute(tiny_loaded, make_case(), method, Target(kind=kind), refusal_ids=refusal)
    assert tiny_loaded.passes == len(seen) >= 1
    tiny_loaded.generate([PROMPT, PROMPT[:4]], max_new_tokens=3)
    tiny_loaded.logprobs([PROMPT], [RESPONSE])
    assert tiny_loaded.passes == len(seen)


def test_only_explained_positions_go_through_the_head(tiny_loaded):
    shapes = []
    tiny_loaded.model.register_forward_hook(lambda module, args, output: shapes.append(output.logits.shape[1]))
    attribute(tiny_loaded, make_case(), "occlusion", Target(kind="tokens", positions=(3, 4)))
    attribute(tiny_loaded, make_case(), "occlusion", Target(kind="first_k", k=2))
    assert max(shapes) == 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
def test_occlusion_is_deleting_each_token_and_scoring_again(tiny_folder, family):
    loaded = load(tiny_folder(family))
    settings = AttributionSettings(occlusion_batch_cpu=4)  # not a divisor of six
    result = attribute(loaded, make_case(), "occlusion", Target(), settings)
    (whole,) = loaded.logprobs([PROMPT], [RESPONSE])
    for i in range(len(PROMPT)):
        (without,) = loaded.logprobs([PROMPT[:i] + PROMPT[i + 1 :]], [RESPONSE])
        expected = whole - without if i in USER else np.zeros(len(RESPONSE))
        np.testing.assert_allclose(result.profile[:, i], expected, atol=2e-4)  # float32 log-probabilities near -10
    assert np.abs(result.scores).max() > 1e-2  # deletion matters to this model, so the comparison says something


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_runs_on_every_family(tiny_folder, family, method):
    result = attribute(
        load(tiny_folder(family)),
        make_case(),
        method,
        Target(kind="contrast", k=3),
        AttributionSettings(ig_steps=8),
        refusal_ids=REFUSAL,
    )
    assert result.scores.shape == result.scored.shape == (len(PROMPT),)
    assert np.abs(result.scores).max() > 0
    assert not result.scores.flags.writeable


@pytest.mark.parametrize("method", ["gradient_norm", "gradient_x_input", "occlusion"])
@pytest.mark.parametrize(
    "target",
    [Target(), Target(kind="first_k", k=2), Target(kind="tokens", positions=(1, 4)), Target(kind="contrast", k=4)],
)
def test_profiles_sum_to_the_total(tiny_loaded, method, target):
    result = attribute(tiny_loaded, make_case(), method, target, refusal_ids=REFUSAL)
    n_target = {"response": 5, "first_k": 2, "tokens": 2, "contrast": 4}[target.kind]
    assert result.profile.shape == (n_target, len(PROMPT))
    scale = np.abs(result.profile).sum(0).max()
    np.testing.assert_allclose(result.profile.sum(0) / scale, result.scores / scale, atol=1e-5)


@pytest.mark.parametrize("method", SIGNED)
def test_the_contrast_is_the_difference_of_its_two_answers(tiny_loaded, method):
    def scores(response, target):
        return attribute(tiny_loaded, make_case(response=response), method, target, refusal_ids=REFUSAL).scores

    k = 4
    difference = scores(RESPONSE, Target(kind="first_k", k=k)) - scores(REFUSAL, Target(kind="first_k", k=k))
    contrast = scores(RESPONSE, Target(kind="contrast", k=k))
    np.testing.assert_allclose(contrast, difference, atol=1e-5 * np.abs(difference).max() + 1e-4)


def test_the_contrast_cuts_both_answers_to_the_shorter_one(tiny_loaded):
    long, short = (
        attribute(tiny_loaded, make_case(), "occlusion", Target(kind="contrast", k=k), refusal_ids=REFUSAL[:3])
        for k in (12, 3)
    )
    assert long.profile.shape[0] == 3
    np.testing.assert_array_equal(long.scores, short.scores)


def test_chosen_tokens_are_the_rows_of_the_whole_profile(tiny_loaded):
    whole = attribute(tiny_loaded, make_case(), "gradient_x_input", Target())
    chosen = attribute(tiny_loaded, make_case(), "gradient_x_input", Target(kind="tokens", positions=(3, 1, 3)))
    scale = np.abs(whole.profile).max()
    np.testing.assert_allclose(chosen.profile / scale, whole.profile[[1, 3]] / scale, atol=1e-5)


def test_the_completeness_gap_is_measured_against_the_model_itself(tiny_loaded):
    eos = tiny_loaded.eos_ids[0]
    settings = AttributionSettings(ig_baseline="eos", ig_steps=8)
    result = attribute(tiny_loaded, make_case(), "integrated_gradients", Target(), settings)
    blank = [eos if i in USER else one for i, one in enumerate(PROMPT)]
    here, there = (float(one.sum()) for one in tiny_loaded.logprobs([PROMPT, blank], [RESPONSE, RESPONSE]))
    expected = abs(result.scores.sum() - (here - there)) / abs(here - there)
    assert result.completeness_gap == pytest.approx(expected, rel=1e-2, abs=1e-4)
    more = AttributionSettings(ig_baseline="eos", ig_steps=256)
    finer = attribute(tiny_loaded, make_case(), "integrated_gradients", Target(), more)
    assert finer.completeness_gap < 0.05 + result.completeness_gap / 4  # more points, smaller gap


def test_a_long_answer_has_no_gradient_profile_but_the_same_scores(tiny_loaded):
    few = AttributionSettings(profile_tokens=4)
    result = attribute(tiny_loaded, make_case(), "gradient_x_input", Target(), few)
    assert result.profile is None
    full = attribute(tiny_loaded, make_case(), "gradient_x_input", Target())
    np.testing.assert_array_equal(result.scores, full.scores)
    picture = response_profile(tiny_loaded, make_case(), Target(), few)  # the first rows only
    np.testing.assert_allclose(picture, full.profile[:4], atol=1e-5 * np.abs(full.profile).max())


@pytest.mark.parametrize("method", list(METHODS))
def test_nothing_about_the_model_is_changed(tiny_loaded, method):
    model = tiny_loaded.model
    trained = dict(model.named_parameters())["model.layers.0.self_attn.q_proj.weight"].requires_grad_()
    trained.grad = torch.ones_like(trained)
    model.model.layers[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attribute(tiny_loaded, make_case(), method, Target(), AttributionSettings(ig_steps=8))
    with pytest.raises(AttributionError):
        attribute(tiny_loaded, make_case(), method, Target(kind="tokens", positions=(9,))) if method != "paper" else (
            attribute(tiny_loaded, make_case(response=[]), method, Target())
        )
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert bool((trained.grad == 1).all())
    assert not model.training
    assert model.model.layers[1].training
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_work_where_the_caller_has_switched_them_off(tiny_loaded):
    expected = attribute(tiny_loaded, make_case(), "paper", Target()).scores
    with torch.no_grad():
        np.testing.assert_array_equal(attribute(tiny_loaded, make_case(), "paper", Target()).scores, expected)


def test_half_precision_models_give_float32_scores(tiny_loaded):
    exact = attribute(tiny_loaded, make_case(), "paper", Target()).scores
    tiny_loaded.model.to(torch.bfloat16)
    result = attribute(tiny_loaded, make_case(), "paper", Target())
    assert result.scores.dtype == np.float32
    assert np.corrcoef(result.scores, exact)[0, 1] > 0.9  # bfloat16 has 8 bits


def test_out_of_memory_halves_the_occlusion_batch(tiny_loaded):
    expected = attribute(tiny_loaded, make_case(), "occlusion", Target()).scores

    def small_device(module, args, kwargs):
        if kwargs["inputs_embeds"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    tiny_loaded.model.register_forward_pre_hook(small_device, with_kwargs=True)
    np.testing.assert_allclose(attribute(tiny_loaded, make_case(), "occlusion", Target()).scores, expected, atol=1e-4)


def test_out_of_memory_without_a_way_out_is_one_sentence(tiny_loaded):
    def full_device(module, args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    tiny_loaded.model.register_forward_pre_hook(full_device, with_kwargs=True)
    for method in ("paper", "occlusion"):
        with pytest.raises(AttributionError, match="ran out of memory on 10 prompt and 5 response tokens"):
            attribute(tiny_loaded, make_case(), method, Target())


@pytest.mark.parametrize("method", list(METHODS))
def test_weights_that_are_not_finite_are_an_error(tiny_loaded, method):
    tiny_loaded.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(AttributionError, match="not finite"):
        attribute(tiny_loaded, make_case(), method, Target(), AttributionSettings(ig_steps=8))


@pytest.mark.parametrize(
    ("target", "case", "words"),
    [
        (Target(kind="tokens", positions=(0, 5)), make_case(), "choose from 0 to 4"),
        (Target(kind="tokens", positions=(-1,)), make_case(), "choose from 0 to 4"),
        (Target(kind="tokens"), make_case(), "choose from 0 to 4"),
        (Target(kind="first_k", k=0), make_case(), "k is 0"),
        (Target(kind="contrast"), make_case(), "needs a refusal"),
        (Target(), make_case(response=[]), "no response"),
        (Target(), make_case(prompt=[]), "no response"),
        (Target(), make_case(prompt=[7] * 1020), "the model reads 1024"),
        (Target(), make_case(prompt=[7], user=[0]), "single token"),
    ],
)
def test_what_cannot_be_explained_is_one_sentence(tiny_loaded, target, case, words):
    with pytest.raises(AttributionError, match=words) as caught:
        attribute(tiny_loaded, case, "occlusion", target)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_refused(tiny_loaded):
    with pytest.raises(AttributionError, match="choose one of paper"):
        attribute(tiny_loaded, make_case(), "lime", Target())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("user", [[], [3]])
def test_no_or_one_user_token_is_no_error(tiny_loaded, method, user):
    result = attribute(tiny_loaded, make_case(user=user), method, Target(), AttributionSettings(ig_steps=8))
    assert int(result.scored.sum()) == len(user)


def test_progress_reaches_its_total(tiny_loaded):
    seen = []
    for method in ("integrated_gradients", "occlusion", "gradient_x_input"):
        attribute(tiny_loaded, make_case(), method, Target(), progress=lambda *one: seen.append(one))
    ends = {stage: (done, total) for stage, done, total in seen}
    assert ends == {"integrated gradients": (32, 32), "occlusion": (6, 6), "response profile": (5, 5)}


def test_paper_mode_needs_neither_captum_nor_scikit_learn(tiny_folder):
    program = f"""
import sys
for name in ("captum", "sklearn", "umap", "scipy", "cattrs"):
    sys.modules[name] = None
from core.attribution import attribute
from core.models import load
from core.values import FailureCase, FailureReport, PromptToken, RenderedPrompt, Target
tokens = tuple(PromptToken(position=i, id=40 + i, text="x", segment="user", message=0, start=i, end=i + 1) for i in range(4))
case = FailureCase(report=FailureReport(messages=(), response="y"),
                   prompt=RenderedPrompt(text="", tokens=tokens, template_hash=""), response_ids=(7, 8))
print(len(attribute(load({str(tiny_folder("llama"))!r}), case, "paper", Target()).scores))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
def test_a_long_prompt_keeps_the_inputs_of_the_layers_alone_and_changes_nothing(tiny_folder, family):
    loaded = load(tiny_folder(family))
    case = make_case([1, *np.random.default_rng(0).integers(10, 400, 500).tolist(), 2, 5])
    kept = {}
    for activations_mb in (8192, 0):
        saved = {}

        def pack(tensor, saved=saved):
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = attribute(
                loaded, case, "paper", Target(), AttributionSettings(activations_mb=activations_mb)
            ).scores
        kept[activations_mb] = (scores, sum(saved.values()))
    np.testing.assert_array_equal(kept[0][0], kept[8192][0])
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    assert kept[0][1] - weights < 0.5 * (kept[8192][1] - weights)
    assert all("forward" not in module.__dict__ for module in loaded.model.modules())


@pytest.mark.parametrize("activations_mb", [8192, 0])
def test_a_model_whose_layers_lie_in_several_places_is_localised_as_a_whole_one(tiny_folder, tmp_path, activations_mb):
    """Accelerate's hooks, as with layers on several GPUs: here one layer is read from disk for each pass."""
    from accelerate import dispatch_model

    loaded, settings = load(tiny_folder("llama")), AttributionSettings(ig_steps=8, activations_mb=activations_mb)
    case, contrast = make_case(), Target(kind="contrast", k=4)
    methods = ("paper", "gradient_norm", "integrated_gradients", "occlusion")

    def scores():
        return [
            attribute(loaded, case, method, contrast, settings, refusal_ids=[20, 21, 22, 23]).scores
            for method in methods
        ]

    whole = scores()
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    loaded.model = dispatch_model(loaded.model, places, main_device="cpu", offload_dir=tmp_path)
    assert loaded.model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    for one, other in zip(scores(), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
