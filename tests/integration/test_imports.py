"""The import boundary: each process loads only what it may, checked in fresh interpreters."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "captum", "sklearn", "umap", "numba", "scipy", "accelerate")
DRAWING = ("gradio", "plotly", "dashboard")

ENGINE_EXTRAS = ("captum", "sklearn", "umap", "scipy", "cattrs", "pandas", "numba", *DRAWING)

pytestmark = pytest.mark.slow


def modules(folder: str) -> list[str]:
    """Return the dotted names of all modules under `folder`; `__main__` runs things and is left out."""
    files = sorted((ROOT / folder).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.stem != "__main__"]
    return [name.removesuffix(".__init__") for name in names]


def run(program: str) -> str:
    """Return what `program` prints in a fresh interpreter; its traceback is the failure."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(names: list[str], watched: tuple[str, ...]) -> set[str]:
    """Return which of the `watched` top-level packages are loaded once all of `names` are imported."""
    imports = "\n".join(f"import {name}" for name in names)
    program = f"import sys\n{imports}\nprint(*{{m.split('.')[0] for m in sys.modules}} & set({watched!r}))"
    return set(run(program).split())


def blocked(names: tuple[str, ...], program: str) -> str:
    """Return what `program` prints where importing any of `names` fails."""
    head = "import sys\n" + "\n".join(f"sys.modules[{name!r}] = None" for name in names)
    return run(f"{head}\n{program}")


def test_the_engine_neither_draws_nor_starts_anything() -> None:
    """Importing every engine module loads no drawing library, prints nothing, and seeds and starts nothing."""
    imports = "\n".join(f"import {name}" for name in modules("core"))
    program = (
        f"import logging, random, sys\nbefore = random.getstate()\n{imports}\nimport torch\n"
        "assert random.getstate() == before\nassert not logging.getLogger().handlers\n"
        "assert not torch.cuda.is_initialized()\n"
        f"drawing = {{m.split('.')[0] for m in sys.modules}} & set({DRAWING!r})\nassert not drawing, drawing"
    )
    assert run(program) == ""


def test_the_page_loads_no_torch() -> None:
    """Importing every page module, and what the page asks of the engine, loads no weights' library."""
    shared = ["core.values", "core.events", "core.errors", "core.settings", "core.intervals", "core.judge"]
    shared += ["core.casefile", "core.jobs", "core.confirmation", "core.prompts", "core.intake", "core.report"]
    page = modules("dashboard") + (["app"] if (ROOT / "app.py").exists() else [])
    assert loaded_after(shared + page, HEAVY) == set()


def test_repair_and_paper_mode_need_four_libraries() -> None:
    """Repair and paper-mode attribution import with torch, transformers, peft, safetensors and numpy alone."""
    names = "import core.repair, core.attribution, core.clustering, core.models\n"
    assert "paper" in blocked(ENGINE_EXTRAS, names + "print(*core.attribution.METHODS)")


def test_a_blocked_library_is_noticed() -> None:
    """The block itself works: what needs a blocked library fails."""
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        blocked(("captum",), "import captum.attr")


def test_only_one_place_loads_models() -> None:
    """`from_pretrained` stands in core/models.py, and where adapters are attached; nowhere with remote code allowed."""
    for file in [*(ROOT / "core").glob("*.py"), *(ROOT / "dashboard").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) == "False", file.name
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained" and file.name != "models.py":
                assert ast.unparse(node.value).endswith(("PeftModel", "PeftConfig", "LoraConfig")), (
                    f"{file.name}: {ast.unparse(node)}"
                )
