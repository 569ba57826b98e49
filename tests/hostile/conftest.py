"""A page whose cases, models and tokens are hostile."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import PageProcess
from tests.hostile.corpus import Item, accepted, texts
from tests.tiny import TEMPLATE, byte_level_tokenizer, tiny_model

NAMES = [item for item in texts() if item.id.startswith(("script", "template", "markdown", "terminal", "formula"))]
MODEL = "<img src=x onerror=window.canary=1>${window.canary=1}{{7*7}}"
"""The folder of the model that is opened."""


@pytest.fixture(scope="session")
def shown() -> list[Item]:
    """The texts that intake takes and that are shown together."""
    return accepted(texts())


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path], shown: list[Item]
) -> Iterator[PageProcess]:
    """A running page that offers models with hostile names; `MODEL` has every text of the corpus as a token."""
    process = PageProcess(tmp_path_factory.mktemp("hostile"))
    for name in model_names():
        (process.models / name).mkdir()
        shutil.copy(tiny_folder("llama") / "config.json", process.models / name)
    hostile_model(process.models / MODEL, shown)
    process.start()
    yield process
    process.stop()


def model_names() -> list[str]:
    """Return the texts that can name a folder on this machine."""
    return sorted({item.text for item in NAMES if "/" not in item.text and len(item.text.encode()) < 256} - {MODEL})


def hostile_model(folder: Path, items: list[Item]) -> None:
    """Save a tiny model that has each text as one token, and a template that says hostile things itself."""
    from tokenizers import AddedToken

    tokenizer = byte_level_tokenizer(template="{{ '<script>window.canary=1</script>${window.canary=1}' }}\n" + TEMPLATE)
    tokenizer.add_tokens([AddedToken(item.text, normalized=False, special=False) for item in items])
    model = tiny_model("llama", len(tokenizer))
    model.config.max_position_embeddings = 16_384  # rotary: no weights hang on it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
