"""Print the path of the Chromium that the browser tests drive; `--install` gets one where there is none.

Looked for in this order: $CHROMIUM, the PATH, the usual places, Playwright's own download; then, with `--install`,
`apt-get` (only when already root on a Debian-like system, never sudo) and `playwright install chromium`. When nothing
helps, one sentence says what to do, and the browser tests fail with it: a silent skip would hide a broken page.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "~/Applications/Chromium.app/Contents/MacOS/Chromium",
    "~/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
)
REMEDY = "install Chromium or Google Chrome, or set CHROMIUM to the program's path"


def works(path: str) -> bool:
    """Return whether the program starts; on Windows only whether it exists (`--version` opens a window there)."""
    if sys.platform == "win32":
        return Path(path).is_file()
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def playwrights_own() -> str:
    """Return where Playwright keeps (or would keep) its own Chromium."""
    program = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()


def find() -> str | None:
    """Return the path of a Chromium that starts, or None."""
    candidates = [shutil.which(name) for name in NAMES] + [str(Path(place).expanduser()) for place in PLACES]
    return next((path for path in (*candidates, playwrights_own()) if path and works(path)), None)


def install() -> None:
    """Try to get a Chromium; what the tools say goes to stderr."""
    commands = []
    if sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
        commands += [
            [*apt, "update"],
            [*apt, "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
        ]
    for command in commands:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, stdout=sys.stderr, env=environment, check=False)
    if find() is None:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], stdout=sys.stderr, check=False)


def main() -> int:
    """Print the path to stdout and return 0, or print one sentence to stderr and return 1."""
    named = os.environ.get("CHROMIUM")
    if named:
        if works(shutil.which(named) or named):
            print(shutil.which(named) or named)
            return 0
        print(f"CHROMIUM names {named}, which does not start; {REMEDY}.", file=sys.stderr)
        return 1
    path = find()
    if path is None and "--install" in sys.argv[1:]:
        install()
        path = find()
    if path is None:
        print(f"No Chromium found, so the browser tests will fail; {REMEDY}.", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
