"""The two commands on odd machines: an old Python, no venv, a broken environment; and where Chromium is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="this system has no make")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The Makefile beside an app that says so, without requirements."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "tests/requirements.txt"):
        (tmp_path / name).write_text("# none\n", encoding="utf-8")
    (tmp_path / "app.py").write_text("print('the page is up')\n", encoding="utf-8")
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in `folder`, as from a fresh shell."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTHON", "TORCH_"))}
    command = ["make", f"PYTHON={sys.executable}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def script(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@needs_make
@pytest.mark.slow
def test_run_makes_the_environment_once_and_again_when_it_must(copy: Path) -> None:
    """Installed at first, not again, again after a change, rebuilt when its Python is gone."""
    first = make(copy, "run")
    assert "the page is up" in first.stdout, first.stderr
    assert "Making the virtual environment" in first.stdout
    assert "Installing" not in make(copy, "run").stdout
    (copy / "requirements.txt").write_text("# changed\n", encoding="utf-8")
    changed = make(copy, "run").stdout
    assert "Installing" in changed
    assert "Making" not in changed
    (copy / ".venv/bin/python").unlink()
    rebuilt = make(copy, "run").stdout
    assert "Making" in rebuilt
    assert "the page is up" in rebuilt


@needs_make
def test_torch_is_installed_first_from_the_index_that_is_named(copy: Path) -> None:
    """Its pinned version alone, with no network here: a stand-in for the environment's Python notes what it is asked."""
    (copy / "requirements.txt").write_text("torch==9.9.9\nother==1\n", encoding="utf-8")
    (copy / ".venv/bin").mkdir(parents=True)
    script(copy / ".venv/bin/python", f'[ "$1" = -c ] && exec {sys.executable} "$@"; echo "$*" >> asked')

    def asked(*arguments: str) -> list[str]:
        (copy / "asked").unlink(missing_ok=True)
        assert make(copy, *arguments, "run").returncode == 0
        return [line.split("--quiet ")[-1] for line in (copy / "asked").read_text(encoding="utf-8").splitlines()]

    named = "TORCH_INDEX=https://index.example/cpu"
    assert asked(named) == ["--index-url https://index.example/cpu torch==9.9.9", "-r requirements.txt", "app.py"]
    assert asked(named) == ["app.py"]
    assert asked() == ["-r requirements.txt", "app.py"]  # another choice is another environment


@needs_make
@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ('[ "$1" = -V ] && echo Python 3.9.2; exit 1', "Python 3.9.2 is too old: 3.11 or newer is needed"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "comes without venv"),
        (None, "There is no ./python here"),
    ],
    ids=["old", "no venv", "missing"],
)
def test_an_unfit_python_is_one_sentence(copy: Path, python: str | None, expected: str) -> None:
    """Said plainly, and nothing is made."""
    if python is not None:
        script(copy / "python", python)
    result = make(copy, "PYTHON=./python", "run")
    assert result.returncode != 0
    assert expected in result.stderr
    assert not (copy / ".venv").exists()


def chromium(named: str) -> subprocess.CompletedProcess[str]:
    """Ask for the Chromium that $CHROMIUM names."""
    command = [sys.executable, "tests/find_chromium.py"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"CHROMIUM": named})


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_the_named_chromium_is_taken_or_refused(tmp_path: Path) -> None:
    """$CHROMIUM goes before everything; one that does not start is an error, not a reason to take another."""
    good = script(tmp_path / "good", "exit 0")
    assert chromium(str(good)).stdout.strip() == str(good)
    for bad in (script(tmp_path / "bad", "exit 3"), tmp_path / "nowhere"):
        result = chromium(str(bad))
        assert (result.returncode, result.stdout) == (1, "")
        assert "does not start" in result.stderr
