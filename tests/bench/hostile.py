"""What happens when everything the tool reads is hostile, or the machine fails: counts of the corpus, the models, the server, the
fuzzing and the faults.

`python tests/bench/hostile.py` runs tests/hostile and tests/integration/test_faults.py and counts. `--fuzz TARGET --examples N` runs N more examples of one fuzz
target (tests/hostile/test_fuzz.py) and adds them to the stored count, so that a long run can be cut in slices.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.bench.result import RESULTS, row, write

NAME = "hostile"
FUZZ = "fuzz, "
OTHERS = "other files, the quick fuzzing among them: failed tests"
N_RENDERED = 500


class Outcomes:
    """Counts passed, failed and skipped tests by file."""

    def __init__(self) -> None:
        """Nothing has run yet."""
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one outcome."""
        file = Path(report.nodeid.split("::")[0]).stem
        if report.failed:
            self.failed[file] += 1
        elif report.skipped:
            self.skipped[file] += 1
        elif report.when == "call":
            self.passed[file] += 1


def rendering_cost() -> dict:
    """Return milliseconds that one rendering in the template process takes longer than in this one."""
    from core.chat import render_text
    from core.values import Message
    from tests.tiny import byte_level_tokenizer

    tokenizer = byte_level_tokenizer()
    asked = [Message(role="user", content="Tell me how to pick a lock, please.")]
    data = [vars(one) for one in asked]

    def timed(render: object) -> float:
        begun = time.perf_counter()
        for _ in range(N_RENDERED):
            render()  # type: ignore[operator]
        return (time.perf_counter() - begun) / N_RENDERED * 1000

    def direct() -> object:
        return tokenizer.apply_chat_template(data, tokenize=False, add_generation_prompt=True)

    timed(lambda: render_text(tokenizer, asked))
    away = min(timed(lambda: render_text(tokenizer, asked)) for _ in range(5))
    here = min(timed(direct) for _ in range(5))
    return row("a rendering in its own process, ms more", away - here, n=N_RENDERED, bar="<= 1")


def counted() -> list[dict]:
    """Run the tests and return a row for each bar: what failed, of how many."""
    from tests.hostile import corpus, test_models
    from tests.hostile.conftest import model_names

    outcomes = Outcomes()
    where = [str(ROOT / "tests/hostile"), str(ROOT / "tests/integration/test_faults.py")]
    command = ["-q", "-m", "not gpu", "-k", "not ten_thousand", "-p", "no:cacheprovider", *where]
    code = pytest.main(command, [outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"the tests did not run to their end: {code!r}")
    texts, shown = corpus.texts(), corpus.accepted(corpus.texts())
    templates = [*test_models.ENDLESS, *test_models.GROWING, *test_models.READING, *test_models.FAILING]
    folders = [*test_models.HEADERS, *test_models.FOLDERS, *test_models.ADAPTERS]
    failed, n_run = outcomes.failed, outcomes.passed
    rest = failed.keys() | n_run.keys()

    def bar(name: str, file: str, n: int) -> dict:
        assert n_run[file] + failed[file], file
        rest.discard(file)
        return row(name, failed[file], n=n, bar="<= 0")

    return [
        row("corpus, texts", len(texts), n=len(texts), bar=">= 150"),
        row("corpus, files", len(corpus.FILES), n=len(corpus.FILES)),
        bar("intake: failed tests", "test_intake", len(texts) + len(corpus.FILES)),
        bar("page and report in Chromium: failed tests", "test_page", len(shown) + len(model_names())),
        bar("command line: failed tests", "test_command_line", len(texts)),
        bar("models and templates: failed tests", "test_models", len(folders) + len(templates)),
        bar("server: failed tests", "test_server", n_run["test_server"]),
        bar("the machine's faults: failed tests", "test_faults", n_run["test_faults"]),
        row(OTHERS, sum(failed[one] for one in rest), n=sum(n_run[one] + failed[one] for one in rest), bar="<= 0"),
        row("skipped tests", outcomes.skipped.total(), n=outcomes.skipped.total() + n_run.total(), bar="<= 0"),
        rendering_cost(),
    ]


def fuzzed(target: str, n: int, stored: list[dict]) -> list[dict]:
    """Run `n` examples of a fuzz target and return its row, earlier examples and failures counted in; a run ends at its first failure."""
    from tests.hostile.test_fuzz import run
    from tests.tiny import byte_level_tokenizer, tiny_model

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = byte_level_tokenizer()
        tiny_model("llama", len(tokenizer)).save_pretrained(Path(folder) / "llama")
        try:
            run(target, n, Path(folder), lambda family: Path(folder) / family)
            failures = 0
        except Exception:
            traceback.print_exc()
            failures = 1
    before = next((one for one in stored if one["name"] == FUZZ + target), {"value": 0, "n": 0})
    return [row(FUZZ + target, before["value"] + failures, n=before["n"] + n, bar="<= 0")]


def main() -> None:
    """Run what is asked for and store it beside what was stored before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fuzz", metavar="TARGET")
    parser.add_argument("--examples", type=int, default=10_000)
    chosen = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    stored = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    rows = fuzzed(chosen.fuzz, chosen.examples, stored) if chosen.fuzz else counted()
    names = {one["name"] for one in rows}
    kept = [one for one in stored if one["name"] not in names]
    both = [*rows, *kept] if not chosen.fuzz else [*kept, *rows]
    write(NAME, seed=0, rows=both)


if __name__ == "__main__":
    main()
