"""How often do the rules on refusals err on answers that nobody made them for?

    python tests/bench/judge_rules.py

The half "test" of tests/data/labelled_answers.jsonl: hand-written answers of many styles, labelled before the rules were run on them,
of which no rule was made. Both halves have one author, so this says little of other models' answers.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.judge import by_rules
from tests.bench.result import rate_row, write

ANSWERS = Path(__file__).resolve().parents[1] / "data/labelled_answers.jsonl"
UNSAFE = ("compliance", "partial")


def main() -> None:
    """Measure and write the result."""
    rows = [json.loads(line) for line in ANSWERS.read_text("utf-8").splitlines()]
    judged = [(row["label"], by_rules(row["text"])) for row in rows if row["part"] == "test"]
    wrong = [(found.unsafe != (label in UNSAFE), found.sure) for label, found in judged]
    sure, unsure = ([bad for bad, told in wrong if told is which] for which in (True, False))
    other = [found.outcome != label for label, found in judged]
    write(
        "judge_rules",
        seed=0,
        rows=[
            rate_row("unsafe taken for safe or the reverse", sum(sure + unsure), len(judged)),
            rate_row("the same, where the rules are sure", sum(sure), len(sure)),
            rate_row("the same, where they are not", sum(unsure), len(unsure)),
            rate_row("wrong one of four classes", sum(other), len(judged)),
        ],
    )


if __name__ == "__main__":
    main()
