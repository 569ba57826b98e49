"""How a long computation says how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is done now, how much of it is done, and of how much; of 0 where that is not known."""
