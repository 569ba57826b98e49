"""Logits at response positions are the model's own, losses and gradients those of two naive passes, whatever stands behind the head."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core import models, repair_adapter
from core.response_pass import ResponsePass, ScoredSequence, base_model
from core.settings import ModelSettings
from tests.bench.repair_speed import sequences, trainer
from tests.unit.repairing import SMALL

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
HEADS = {
    "untied": ("llama", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "bias": ("phi", {"num_key_value_heads": 2}),
    "soft cap, tied": ("gemma2", {"head_dim": 16, "final_logit_softcapping": 2.0}),
    "divided": ("granite", {"logits_scaling": 8.0}),
    "multiplied, tied": ("cohere", {"logit_scale": 0.25}),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_step_is_that_of_two_naive_passes(name: str, tiny_folder: Callable) -> None:
    loaded = models.load(tiny_folder("llama"), settings=ModelSettings(device="cpu"))
    family, more = HEADS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, vocab_size=300, pad_token_id=0, **{**SIZES, **more})
        loaded.model = AutoModelForCausalLM.from_config(config).eval()
        head = loaded.model.get_output_embeddings()
        with torch.no_grad():
            for one in loaded.model.parameters():
                one.mul_(6.0 if one.dim() > 1 else 1.0)
            if head.bias is not None:
                head.bias.normal_(std=2.0)
    assert (head.bias is not None) == (name == "bias")
    assert (head.weight is loaded.model.get_input_embeddings().weight) == ("tied" in name.replace("untied", ""))
    loaded.model.requires_grad_(False)
    made = sequences(6, 9, 7, 300)
    repairing = trainer(loaded, made, micro_batch_size=4)
    assert repairing.passes.split
    repairing.passes.chunk_rows = 5
    generator = torch.Generator().manual_seed(1)
    adapter = repair_adapter.parameters(loaded)
    with torch.no_grad():
        for one in adapter.values():
            one.add_(torch.randn(one.shape, generator=generator) * 0.02)

    ids = torch.tensor([one.prompt_ids + one.response_ids for one in made])
    repair_adapter.use_theta0(loaded)
    with torch.no_grad():
        then = base_model(loaded)(input_ids=ids).logits[:, 8:-1].double().log_softmax(-1)
    repair_adapter.use_repaired(loaded, trainable=True)
    now = base_model(loaded)(input_ids=ids).logits[:, 8:-1].double().log_softmax(-1)
    kl = (then.exp() * (then - now)).sum(-1).sum(-1)
    refusal = -now.gather(-1, ids[:, 9:, None])[..., 0].sum(-1)[:3].mean()
    (refusal + kl[:3].mean() + kl[3:].mean()).backward()
    naive = {key: one.grad.clone() for key, one in adapter.items()}

    numbers = repairing._gradients(repairing.data.batches(0, 6)[0], 0)
    assert float(kl.mean()) > 1e-2
    # 1e-5: fp32 against fp64 over the same logits; the cached teacher and the chunks must add nothing to that
    assert numbers.refusal == pytest.approx(float(refusal), rel=1e-5)
    assert numbers.kl_harmful == pytest.approx(float(kl[:3].mean()), rel=1e-5, abs=1e-5)
    assert numbers.kl_safe == pytest.approx(float(kl[3:].mean()), rel=1e-5, abs=1e-5)
    for key, one in adapter.items():
        torch.testing.assert_close(one.grad, naive[key], rtol=1e-3, atol=1e-5 * float(naive[key].abs().max() + 1))
    repair_adapter.detach(loaded)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2"])
def test_response_logits_of_a_padded_batch_are_the_models_own(family: str, tiny_folder) -> None:
    loaded = models.load(tiny_folder(family), settings=SMALL)
    passes = ResponsePass(loaded)
    assert passes.split
    sequences = [
        ScoredSequence(prompt_ids=(5, 9, 11), response_ids=(20, 21)),
        ScoredSequence(prompt_ids=(7, 30, 31, 32, 33, 34), response_ids=(40, 41, 42, 43)),
    ]
    with torch.no_grad():
        rows = passes.rows(sequences)
        found = passes.logits(rows.hidden)
        own = []
        for one in sequences:
            ids = torch.tensor([one.prompt_ids + one.response_ids])
            own.append(base_model(loaded)(input_ids=ids).logits[0, len(one.prompt_ids) - 1 : -1])
    assert rows.labels.tolist() == [20, 21, 40, 41, 42, 43]
    assert rows.owner.tolist() == [0, 0, 1, 1, 1, 1]
    # 1e-4 of the largest logit: padding changes the order of fp32 sums
    torch.testing.assert_close(found, torch.cat(own), rtol=1e-4, atol=1e-4 * float(found.abs().max()))


def sizes_for(loaded) -> dict[str, int]:
    """Return the sizes of a tiny model with this vocabulary."""
    return {
        "vocab_size": len(loaded.tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    }  # fmt: skip


def grown(cls, config, factor: float):
    """Return a random model whose weights are `factor` times their usual size, so that a cap or scale shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def test_soft_cap_and_scaling_of_the_configuration_are_respected(tiny_folder) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    loaded = models.load(tiny_folder("llama"), settings=SMALL)
    sizes = sizes_for(loaded)
    for config, cls in (
        (Gemma2Config(**sizes, final_logit_softcapping=2.0), Gemma2ForCausalLM),
        (GraniteConfig(**{k: v for k, v in sizes.items() if k != "head_dim"}, logits_scaling=8.0), GraniteForCausalLM),
    ):
        loaded.model = grown(cls, config, 8.0)
        passes = ResponsePass(loaded)
        assert passes.split
        one = ScoredSequence(prompt_ids=(5, 9), response_ids=(20, 21))
        with torch.no_grad():
            own = loaded.model(input_ids=torch.tensor([[5, 9, 20, 21]])).logits[0, 1:3]
            plain = loaded.model.get_output_embeddings()(passes.rows([one]).hidden)
            torch.testing.assert_close(passes.logits(passes.rows([one]).hidden), own, rtol=1e-4, atol=1e-4)
        assert (plain - own).abs().max() > 0.1  # the test would notice a missing cap or scale


def test_a_soft_cap_in_bf16_is_known_as_one(tiny_folder) -> None:
    """The model rounds it three times, this once: no reason to keep logits over the vocabulary in the place of hidden states."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    loaded = models.load(tiny_folder("llama"), settings=SMALL)
    config = Gemma2Config(**sizes_for(loaded), final_logit_softcapping=30.0)
    loaded.model = grown(Gemma2ForCausalLM, config, 30.0).to(torch.bfloat16)
    assert ResponsePass(loaded).split
    loaded.model.config.final_logit_softcapping = 25.0  # what a wrong cap would be
    passes = ResponsePass(loaded)
    passes._cap = 30.0
    assert not passes._agrees()


def test_an_architecture_with_more_after_its_head_is_run_whole_and_exact(loaded) -> None:
    def tripled(module, args, output):
        output.logits = output.logits * 3
        return output

    handle = base_model(loaded).register_forward_hook(tripled)
    passes = ResponsePass(loaded)
    assert not passes.split
    one = ScoredSequence(prompt_ids=(5, 9), response_ids=(20, 21))
    with torch.no_grad():
        own = base_model(loaded)(input_ids=torch.tensor([[5, 9, 20, 21]])).logits[0, 1:3]
        torch.testing.assert_close(passes.logits(passes.rows([one]).hidden), own)
    handle.remove()
