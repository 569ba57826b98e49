"""Where the files lie that come with the project: the demo cases, the prompt sets, what the page and the report look like."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"
DEMO = ASSETS / "demo"
PROMPTS = ASSETS / "prompts"
