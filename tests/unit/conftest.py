"""Fixtures of more than one module of this folder: tiny models to be changed, each test its own."""

import shutil
from pathlib import Path

import pytest

from tests.tiny import Folder


@pytest.fixture
def copied(tiny_folder: Folder, tmp_path: Path) -> Path:
    """Return a copy of the tiny Llama's folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


@pytest.fixture
def loaded(tiny_folder: Folder):
    """Return a freshly loaded tiny Llama with the small settings of the tests of repair."""
    from core import models
    from tests.unit.repairing import SMALL

    return models.load(tiny_folder("llama"), settings=SMALL)
