"""How many of 200 kills at random points of all stages lose, corrupt or misreport anything?

    python tests/bench/kills.py --log FILE --seconds 500      a slice: what the log holds already is not run again
    python tests/bench/kills.py --log FILE                    all 200, or those that are left

Kill number n is the same in every run: stage and moment follow from seed and number, the moment as a share of the time that
the stage takes. Ends early after `--seconds`; `--first` and `--last` choose numbers.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import killing
from tests.bench import result
from tests.tiny import byte_level_tokenizer, tiny_model

N_KILLS = 200
"""Kills of the long tier."""


def logged(log: Path) -> list[dict]:
    """Return the trials that a log holds; none when there is no such file."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def rows(trials: list[dict]) -> list[dict]:
    """Return the result's rows."""
    n = len(trials)
    failed = [trial for trial in trials if trial["problems"]]
    lost = [trial for trial in failed if any("seen" in text or "gaps" in text for text in trial["problems"])]
    return [
        result.row("kills", n, n=n, bar=f">= {N_KILLS}"),
        result.row("kills with any problem", len(failed), n=n, bar="<= 0"),
        result.row("kills that lost an event", len(lost), n=n, bar="<= 0"),
        result.row("slowest honest status, s", max(trial["status_seconds"] for trial in trials), n=n, bar="<= 15"),
        result.row("kills in the middle of a request", sum(not t["ended_before"] for t in trials), n=n),
        result.row(
            "kills at a write", sum(t["died_at_write"] for t in trials), n=sum(t["at_write"] > 0 for t in trials)
        ),
        *(
            result.row(f"kills in {stage}", count, n=n)
            for stage, count in sorted(Counter(t["stage"] for t in trials).items())
        ),
    ]


def main() -> int:
    """Run a slice, then write the result of everything in the log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=N_KILLS)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = byte_level_tokenizer()
        tiny_model("llama", len(tokenizer)).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        prepared = killing.prepare(folder / "model", folder / "work")
        for number in sorted(
            set(range(options.first, options.last)) - {trial["number"] for trial in logged(options.log)}
        ):
            if time.monotonic() - begun > options.seconds:
                break
            trial = killing.run_trial(prepared, number, folder / "work", options.seed)
            with open(options.log, "a", encoding="utf-8") as log:
                log.write(json.dumps(killing.as_row(trial)) + "\n")
            print(trial, flush=True)
    trials = list({trial["number"]: trial for trial in logged(options.log)}.values())
    problems = [trial for trial in trials if trial["problems"]]
    result.write("kills", seed=options.seed, rows=rows(trials), asked=N_KILLS, ran=len(trials), problems=problems)
    return 0


if __name__ == "__main__":
    sys.exit(main())
