"""LoRA in few kernels gives PEFT's own losses and gradients."""

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from core import models, repair_adapter
from core.low_rank import FewKernels
from core.settings import RepairSettings

RANK = RepairSettings(lora_rank=4, lora_alpha=6)
IDS = torch.randint(10, 200, (3, 11), generator=torch.Generator().manual_seed(0))


def trained(loaded) -> list[torch.nn.Parameter]:
    """Attach a repair adapter that changes something, and return its parameters."""
    repair_adapter.attach(loaded, RANK)
    repair_adapter.use_repaired(loaded, trainable=True)
    found = list(repair_adapter.parameters(loaded).values())
    torch.manual_seed(1)
    with torch.no_grad():
        for one in found:
            one.add_(0.1 * torch.randn_like(one))
    return found


def gradients(loaded, parameters) -> tuple[torch.Tensor, ...]:
    """Return the model's output on fixed tokens and the gradients of a sum of it."""
    out = loaded.model(input_ids=IDS, use_cache=False).logits
    out = out if out.dtype == torch.float64 else out.float()
    return out.detach(), *torch.autograd.grad((out * out.detach().cos()).sum(), parameters)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "mixtral", "gemma2"])
@pytest.mark.parametrize("reported", [False, True])
def test_output_and_gradients_are_pefts(tiny_folder, family: str, reported: bool) -> None:
    loaded = models.load(tiny_folder(family))
    if reported:
        from peft import get_peft_model

        config = LoraConfig(r=2, init_lora_weights="gaussian", target_modules=repair_adapter.linear_targets(loaded))
        loaded.model = get_peft_model(loaded.model, config, adapter_name="reported").eval().requires_grad_(False)
    parameters = trained(loaded)
    exact = family != "mixtral"  # its experts' product is not there in double precision
    if exact:
        loaded.model.double()
    expected = gradients(loaded, parameters)
    few = FewKernels(loaded.model)
    plain = [module for module in loaded.model.modules() if isinstance(module, LoraLayer)]
    with few.on():
        assert sum("forward" in module.__dict__ for module in plain) > len(plain) // 2
        found = gradients(loaded, parameters)
    assert not any("forward" in module.__dict__ for module in plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-10 if exact else 1e-3)


def test_the_copies_follow_the_weights(tiny_loaded) -> None:
    parameters = trained(tiny_loaded)
    few = FewKernels(tiny_loaded.model)
    for _ in range(2):
        expected, *_ = gradients(tiny_loaded, parameters)
        with few.on():
            found, *_ = gradients(tiny_loaded, parameters)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            parameters[0].add_(1.0)


def test_half_precision_keeps_gradients_of_the_adapters_own_precision(tiny_loaded) -> None:
    parameters = trained(tiny_loaded)
    expected = gradients(tiny_loaded, parameters)
    base = [one for name, one in tiny_loaded.model.named_parameters() if "lora_" not in name]
    for one in base:
        one.data = one.data.bfloat16()
    with FewKernels(tiny_loaded.model).on():
        found = gradients(tiny_loaded, parameters)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.dtype == torch.float32
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99


def test_a_layer_with_dropout_in_training_runs_as_peft_has_it(tiny_loaded) -> None:
    trained(tiny_loaded)
    tiny_loaded.model.train()
    layers = [module for module in tiny_loaded.model.modules() if isinstance(module, LoraLayer)]
    layers[0].lora_dropout["repair"] = torch.nn.Dropout(0.5)
    with FewKernels(tiny_loaded.model).on():
        assert "forward" not in layers[0].__dict__
        assert "forward" in layers[1].__dict__
