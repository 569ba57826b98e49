"""What the numbers depend on, for every result that is kept: this program's source, Python and its libraries."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "captum", "safetensors", "scikit-learn", "numpy")
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("core/*.py", "assets/report/*")


@cache
def program() -> str:
    """Return what tells this version of the program from others: the start of the SHA-256 of its engine and its report's template."""
    whole = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Return the versions of this program, of Python and of the libraries the numbers depend on."""
    found = {"patcher": program(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
