"""Take the README's screenshots from the real page on the demo case: `python -m tests.browser.screenshots`.

Writes `assets/screenshots/<step>.png` (light) and `<step>-dark.png`, each below 300 kB, with fewer colours where it must be.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests import find_chromium
from tests.browser.conftest import PageProcess
from tests.browser.test_journey import walk
from tests.conftest import ARGUMENTS

TARGET = Path(__file__).resolve().parents[2] / "assets" / "screenshots"
LIMIT_BYTES = 300_000
STEPS = ("case", "reproduce", "locate", "confirm", "repair", "verify")
SIZE = {"width": 1280, "height": 900}


def take(page, name: str) -> None:
    """Save one compressed screenshot of what is in view."""
    page.mouse.move(0, 0)  # nothing is pointed at
    page.wait_for_timeout(1500)  # figures settle
    path = TARGET / f"{name}.png"
    page.screenshot(path=path)
    whole = Image.open(path).convert("RGB")
    whole.save(path, optimize=True)
    for colours in (256, 64, 16):
        if path.stat().st_size <= LIMIT_BYTES:
            return
        whole.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> int:
    """Drive the demo case once in light, then show every step again in dark."""
    TARGET.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    server = PageProcess(folder)
    server.start()
    try:
        with sync_playwright() as tools:
            browser = tools.chromium.launch(executable_path=find_chromium.find(), args=ARGUMENTS)
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.set_default_timeout(300_000)
            page.goto(server.url)
            page.wait_for_selector("#demo-trigger-in-the-middle")
            page.wait_for_selector("#case-summary .pt-headline")
            walk(page, lambda step: step == "case" or take(page, step))
            address = page.url
            page.click("#step-case-button")
            take(page, "case")
            page.goto("about:blank")  # gives the case back, so that the next browser may write it
            dark = browser.new_page(viewport=SIZE, color_scheme="dark")
            dark.set_default_timeout(300_000)
            dark.goto(address)
            dark.wait_for_selector("#verify-story .pt-note")
            for step in STEPS:
                dark.click(f"#step-{step}-button")
                take(dark, f"{step}-dark")
            browser.close()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
