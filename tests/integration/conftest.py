"""What the tests of commands share: a command in this process, and a small prompt folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.__main__ import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function: arguments -> (exit code, stdout, stderr), in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out = capfd.readouterr()
        return code, out.out, out.err

    return call


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A small prompt folder."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    nouns = ["door", "window", "lock", "safe", "gate", "fence", "roof", "wall", "cart", "boat", "lamp", "chair"]
    for name, stem in (("harmful", "break into the"), ("safe", "paint the")):
        rows = [json.dumps({"prompt": f"{stem} {noun}"}) for noun in nouns]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder
