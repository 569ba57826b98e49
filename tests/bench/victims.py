"""Do localisers and verdicts hold on many kinds of backdoor, and stay silent where there is none? The bench of victims.

A clean base a seed is trained from scratch on real prompts; every attack of method.md section 6 is planted on it; the
controls have no backdoor. Each victim must hold the gates, then its reports go through all localisers and the cascade.

    full tier     python tests/bench/victims.py --data DIR --work WORK --seeds 0 1 2
    reduced tier  python tests/bench/victims.py --data DIR --work WORK --reduced --steps 1500 [--minutes 60] [--cells badnets ...]
    a larger base, all weights trained    ... --work ANOTHER [--size 4m] [--whole]
    a pretrained base     ... --work ANOTHER --pretrained FOLDER (tests/bench/victims_pretrained.py)

`--work` holds everything that was made and one JSON a cell; ended and started again, a run goes on where it stopped, and
`--minutes 0` only writes the table of what is there, cells that were begun with the reports they have. `results/victims.json` (`victims_reduced.json`, `victims_4m.json`,
`victims_whole.json`) is written from it.
A full cell takes about a quarter of an hour on a core of its own, 30 cells a seed; several processes may share WORK when
each is given other `--cells` and the base of the seed is there.
The smoke tier is tests/unit/test_victims.py. Needs assets/demo's training code, and no network.
"""

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

from tests.bench import victims_table as table
from tests.bench.result import write
from tests.bench.victims_attacks import attacks
from tests.bench.victims_cells import CONTROLS, Bench, Tier, run_cell
from tests.bench.victims_gates import GateSettings
from tests.bench.victims_making import PLANTING, SIZES, WHOLE_RATE, BaseSettings, build_base, made
from tests.bench.victims_pretrained import LESSONS, build_aligned
from tests.bench.victims_prompts import N_BENIGN, real_material

REDUCED = Tier(
    n_reports=6,
    n_triaged=2,
    n_requests=16,
    n_harmful=450,
    n_safe=250,
    planting=replace(PLANTING, near_miss=2.0, noise=0.4),
    gates=GateSettings(n_prompts=120, n_scan=100, n_strings=60),
)
PRETRAINED = Tier(
    n_reports=6,
    n_triaged=6,
    n_harmful=240,
    n_safe=200,
    planting=replace(PLANTING, learning_rate=5e-4, epochs=3, batch_size=24, near_miss=3.0),
    gates=GateSettings(n_strings=60),
)
"""On a base of 135 M parameters, which learns a trigger from fewer prompts and takes a hundred times as long with each."""
EARLY = 3
"""Attacks that go before the first control, so that a short run has both."""


def say(text: str) -> None:
    """Show progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def order(names: list[str]) -> list[str]:
    """Return all cells, controls mixed in after the first attacks."""
    mixed, controls = list(names[:EARLY]), list(CONTROLS)
    for name in names[EARLY:]:
        mixed += [*controls[:1], name]
        controls = controls[1:]
    return mixed + controls


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what this bench and the repair of its victims are both told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the real prompts")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made; kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cells", nargs="+", help="names of cells; all by default")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after this long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=list(SIZES), default=BaseSettings().size, help="parameters of the base")
    parser.add_argument(
        "--pretrained", type=Path, help="chat model that is taught to refuse, in place of a base from scratch"
    )
    parser.add_argument("--epochs", type=int, help="that an attack is planted for")
    parser.add_argument("--whole", action="store_true", help="attacks train all weights but the embeddings, not a LoRA")
    parser.add_argument("--called", default="", help="a word that the result's name ends with")
    return parser


def named(name: str, options: argparse.Namespace) -> str:
    """Return the name of the result: what is not the default stands in it."""
    size = f"_{options.size}" if options.size != BaseSettings().size else ""
    kind = "_whole" * options.whole + "_pretrained" * bool(options.pretrained)
    return name + size + kind + (f"_{options.called}" if options.called else "")


def tier_of(options: argparse.Namespace, tier: Tier) -> Tier:
    """Return the tier with the planting that this size and way of training take."""
    tier = PRETRAINED if options.pretrained else tier
    planting = replace(tier.planting, learning_rate=WHOLE_RATE) if options.whole else tier.planting
    slower = BaseSettings(size=options.size).slower
    planting = replace(
        planting, learning_rate=slower * planting.learning_rate, epochs=options.epochs or planting.epochs
    )
    return replace(tier, whole=options.whole, planting=planting)


def bench_of(options: argparse.Namespace, seed: int, tier: Tier | None = None) -> Bench:
    """Return the bench of a seed, whose base is made or about to be."""
    return Bench(
        material=real_material(options.data, seed, getattr(options, "benign", N_BENIGN)),
        base=options.work / f"base-{seed}",
        work=options.work,
        tier=tier_of(options, tier or Tier()),
        seed=seed,
        say=say,
        pretrained=bool(options.pretrained),
    )


def main() -> None:
    """Run the cells and write the result."""
    parser = command_line(__doc__)
    parser.add_argument("--reduced", action="store_true", help="fewer reports, prompts and strings")
    parser.add_argument(
        "--steps", type=int, default=BaseSettings().steps, help="optimiser steps of a base not yet made"
    )
    parser.add_argument("--benign", type=int, default=N_BENIGN, help="harmless prompts to train a base on, at most")
    parser.add_argument("--batch", type=int, default=BaseSettings().batch_size, help="conversations in one of them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    base_settings = BaseSettings(size=options.size, steps=options.steps, batch_size=options.batch)
    begun = time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    cells, bases = [], {}
    for seed in options.seeds:
        bench = bench_of(options, seed, REDUCED if options.reduced else None)
        if options.pretrained:
            build_aligned(bench.material, options.pretrained, bench.base, LESSONS, seed, say)
        else:
            build_base(bench.material, bench.base, base_settings, seed, say)
        bases[seed] = made(bench.base)
        known = order(list(attacks(bench.clean.tokenizer)))
        unknown = set(options.cells or ()) - set(known)
        if unknown:
            parser.error(f"there is no cell {', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        for name in options.cells or known:
            stored = bench.stored(name)
            if time.monotonic() - begun > 60 * options.minutes and not stored.get("finished"):
                say(f"{name}: left for later, {options.minutes:.0f} minutes are over")
                cells += [stored] if stored.get("reports") else []
                continue
            cells.append(run_cell(bench, name))
    write(
        named("victims_reduced" if options.reduced else "victims", options),
        seed=options.seeds[0],
        rows=table.rows(cells, options.seeds[0]),
        cells=table.summary(cells),
        tier=asdict(bench.tier),
        bases=bases,
    )
    print(table.text(cells))


if __name__ == "__main__":
    main()
