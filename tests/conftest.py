"""Fixtures: tiny random models (tests/tiny.py), saved once a session; one Chromium."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402  the environment above must be set first
from hypothesis import settings  # noqa: E402

from tests import find_chromium  # noqa: E402
from tests.tiny import byte_level_tokenizer, tiny_model  # noqa: E402

# a slow machine is no failure, and all draw alike
settings.register_profile("any machine", deadline=None, derandomize=True)
settings.load_profile("any machine")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """One Chromium for the session; a missing one is a failure, since a silent skip would hide a broken page."""
    from playwright import sync_api

    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or find_chromium.find()
    assert path, "No Chromium found: install it or set CHROMIUM."
    with sync_api.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=path, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: family -> folder of a saved tiny random model with a byte-level tokenizer and template."""
    made: dict[str, Path] = {}

    def make(family: str = "llama") -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("tiny") / family
            tokenizer = byte_level_tokenizer()
            tiny_model(family, len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture(scope="session")
def tiny_adapter(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a LoRA adapter for the tiny Llama, with weights that change its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter") / "reported"
    base = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_loaded(tiny_folder: Callable[[str], Path]):
    """Return a freshly loaded tiny Llama."""
    from core.models import load

    return load(tiny_folder("llama"))
