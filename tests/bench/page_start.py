"""How long from `python app.py` to the first page? Median of fresh processes, files already in the disk cache.

`python tests/bench/page_start.py [--n 5]`
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.result import ROOT, row, write

PATIENCE_SECONDS = 120


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def once(cases: str) -> float:
    """Return the seconds until the page answered."""
    port = free_port()
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    begun = time.monotonic()
    page = subprocess.Popen(
        [sys.executable, "app.py", "--cases", cases],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.monotonic() - begun < PATIENCE_SECONDS:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    if answer.status == 200:
                        return time.monotonic() - begun
            except OSError:
                time.sleep(0.05)
        sys.exit("the page did not answer")
    finally:
        page.terminate()
        page.wait()


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cases:
        times = [once(cases) for _ in range(options.n)]
    median = statistics.median(times)
    write(
        "page_start",
        seed=0,
        rows=[row("seconds to the first page", median, n=len(times), low=min(times), high=max(times), bar="<= 8")],
    )


if __name__ == "__main__":
    main()
