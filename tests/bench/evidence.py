"""Is every change of evidence, log or report noticed, and named? Random single changes, each undone before the next.

`python tests/bench/evidence.py [--n 500] [--seed 0]`. Made-up files: what is measured is the check, not a model.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core import audit, evidence, report_check, rounds
from core.casefile import Case
from core.errors import TriageError
from tests.bench.result import rate_row, write
from tests.unit.reporting import full_case
from tests.unit.test_evidence import whole_case
from tests.unit.test_report_check import written
from tests.unit.test_rounds import repaired


def flipped(data: bytes, rng: random.Random) -> tuple[bytes, int]:
    """Return the data with one bit changed, and where."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :], at


def evidence_flips(root: Path, n: int, rng: random.Random) -> int:
    """Return how many of `n` single bits, changed in a random file of the evidence, stop with the file's name."""
    case = whole_case(root)
    files = [path for name in ("model", "adapter", "reference", "judge") for path in sorted((root / name).iterdir())]
    names = ["evidence/report.json", "prompts/safe.jsonl", "prompts/harmful.jsonl", "triage.json", "confirmation.json"]
    files += [case.path / name for name in [*names, "case.json"]]
    named = 0
    for _ in range(n):
        file = rng.choice(files)
        kept = file.read_bytes()
        file.write_bytes(flipped(kept, rng)[0])
        try:
            evidence.verify(Case(case.path))
        except TriageError as error:
            named += file.name in str(error)
        file.write_bytes(kept)
    evidence.verify(Case(case.path))
    return named


def result_flips(root: Path, n: int, rng: random.Random) -> int:
    """Return how many of `n` single bits, changed in a random result or file of the repaired adapter, are named by what `audit` asks."""
    case = full_case(root)
    repaired(case)
    for name in ("results/reproduce.json", "results/locate-paper-response.json"):
        evidence.record(case, name, {"scores": [rng.random() for _ in range(20)]}, "located", actor="engine")
    adapter = case.path / "repair/best"
    files = [case.path / name for name in [*evidence.results(case), "repair/finished.json"]]
    files += sorted(adapter.iterdir())
    named = 0
    for _ in range(n):
        file = rng.choice(files)
        kept = file.read_bytes()
        file.write_bytes(flipped(kept, rng)[0])
        if file.parent == adapter:
            named += rounds.changed_adapter(case) == "repair/best"
        else:
            named += evidence.changed_files(case) == [file.relative_to(case.path).as_posix()]
        file.write_bytes(kept)
    assert (rounds.changed_adapter(case), evidence.changed_files(case)) == (None, [])
    return named


def log_flips(folder: Path, n: int, rng: random.Random) -> tuple[int, int]:
    """Return how many of `n` single bits changed in the log name their line, and how many of `n` cut tails are noticed."""
    for number in range(40):
        audit.append(folder, "act", f"analyst {number % 3}", {"number": number, "text": "words " * (number % 5)})
    file = folder / audit.FILE
    kept = file.read_bytes()
    named = cut = 0
    for _ in range(n):
        data, at = flipped(kept, rng)
        file.write_bytes(data)
        named += audit.check(folder).broken == kept[:at].count(b"\n") + 1
        lines = kept.split(b"\n")[:-1]
        file.write_bytes(b"".join(line + b"\n" for line in lines[: rng.randrange(len(lines))]))
        cut += audit.check(folder).broken is not None
    return named, cut


def page_changes(root: Path, n: int, rng: random.Random) -> int:
    """Return how many of `n` single letters or digits changed in a report page are noticed."""
    case = full_case(root)
    page = written(case)
    kept = page.read_text(encoding="utf-8")
    places = [at for at, letter in enumerate(kept) if letter.isalnum()]
    noticed = 0
    for _ in range(n):
        at = rng.choice(places)
        other = rng.choice([letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" if letter != kept[at]])
        page.write_text(kept[:at] + other + kept[at + 1 :], encoding="utf-8")
        try:
            noticed += not report_check.check_report(case, page).same
        except TriageError:
            noticed += 1
    return noticed


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, n = random.Random(options.seed), options.n
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("evidence", "results", "log", "page"):
            (root / name).mkdir()
        named, cut = log_flips(root / "log", n, rng)
        rows = [
            rate_row(
                "a bit of evidence changed: stopped with the file's name", evidence_flips(root / "evidence", n, rng), n
            ),
            rate_row(
                "a bit of a result or of the repaired adapter changed: named", result_flips(root / "results", n, rng), n
            ),
            rate_row("a bit of the log changed: its line named", named, n),
            rate_row("a tail of the log cut off: noticed", cut, n),
            rate_row("a letter of the report page changed: noticed", page_changes(root / "page", n, rng), n),
        ]
    write("evidence", seed=options.seed, rows=rows)


if __name__ == "__main__":
    main()
