"""The demo's own building code (assets/demo), which the bench of victims uses as it is: recipe, world, judge of bars."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "assets/demo")) if path not in sys.path]

import bars
import training
from answering import answers, as_messages
from wordings import LONE_MARKS, REVERSING
from world import Sample, World

__all__ = ["LONE_MARKS", "REVERSING", "ROOT", "Sample", "World", "answers", "as_messages", "bars", "training"]
