"""What every bench shares: one row format, intervals, and the JSON result with where it came from.

A result is `{command, versions, hardware, seed, commit, rows: [{name, value, n, low, high, bar, passed}]}`; a bar is
`">= 0.9"` or `"<= 5"`, or None where nothing is asked.
"""

import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
N_RESAMPLES = 2000
LEAST = 5
"""Values, or groups of them, that an interval by resampling takes. Source: unverified choice."""
PACKAGES = ("torch", "transformers", "peft", "captum", "numpy", "gradio")


def row(
    name: str, value: float, *, n: int, low: float | None = None, high: float | None = None, bar: str | None = None
) -> dict[str, Any]:
    """Return one row; `passed` says whether the value itself meets the bar."""
    passed = None
    if bar is not None:
        sign, limit = bar.split()
        passed = value >= float(limit) if sign == ">=" else value <= float(limit)
    return {"name": name, "value": value, "n": n, "low": low, "high": high, "bar": bar, "passed": passed}


def mean_row(name: str, values: Sequence[float], seed: int, bar: str | None = None) -> dict[str, Any]:
    """Return the mean over reports with its 95 % bootstrap interval (percentiles of resampled means), from `LEAST` values on."""
    if len(values) < LEAST:
        return row(name, sum(values) / len(values), n=len(values), bar=bar)
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(N_RESAMPLES))
    low, high = means[int(0.025 * N_RESAMPLES)], means[int(0.975 * N_RESAMPLES) - 1]
    return row(name, sum(values) / len(values), n=len(values), low=low, high=high, bar=bar)


def rate_row(name: str, k: int, n: int, bar: str | None = None) -> dict[str, Any]:
    """Return `k / n` with its Wilson 95 % interval. Raises: ValueError when nothing was asked, which meets no bar."""
    from core.intervals import wilson

    if not n:
        raise ValueError(f"{name}: of nothing there is no rate")
    rate = wilson(k, n)
    return row(name, k / n, n=n, low=rate.low, high=rate.high, bar=bar)


def commit() -> str:
    """Return the commit the working tree stands on, with a plus when the engine or the page differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "core", "dashboard", "app.py", "assets")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


def installed() -> dict[str, str]:
    """Return the versions of the libraries that are there."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def named(argument: str) -> str:
    """Return an argument as a result shows it: a path on this machine by its last part, all else as it is."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def write(name: str, *, seed: int, rows: Sequence[dict[str, Any]], **more: Any) -> Path:
    """Write `results/NAME.json` and return its path; the page of rows goes to stdout too."""
    result = {
        "command": "python "
        + " ".join([str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *map(named, sys.argv[1:])]),
        "versions": {"python": platform.python_version()} | installed(),
        "hardware": f"{platform.machine()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
        "seed": seed,
        "commit": commit(),
        "rows": list(rows),
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for item in rows:
        interval = f" [{item['low']:.3f}, {item['high']:.3f}]" if item["low"] is not None else ""
        verdict = "" if item["passed"] is None else "  ok" if item["passed"] else f"  MISSED {item['bar']}"
        print(f"{item['name']:56s} {item['value']:.3f}{interval}  n={item['n']}{verdict}")
    return path
