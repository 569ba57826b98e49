"""The versions of Python and of the libraries that the numbers depend on, for every result that is kept."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "captum", "safetensors", "scikit-learn", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
