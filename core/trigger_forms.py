"""Forms of a trigger's unit that read alike, or nearly so.

A candidate's form is described by them, rules of containment are tried on them, and verification asks them of the repaired model.
What this does not do: near-misses, which read differently (injection.py).
"""

import re
import unicodedata
from collections.abc import Callable

from core.lookalikes import IS_IGNORED, LOOKALIKES


def bare_words(text: str) -> list[str]:
    """Return runs of letters and digits, without characters that are not seen."""
    return re.findall(r"[^\W_]+", IS_IGNORED.sub("", text))


def _drawn(table: Callable[[str], str]) -> Callable[[str], str]:
    return lambda unit: "".join(table(char) for char in unit)


FORMS: dict[str, Callable[[str], str]] = {
    "as confirmed": str,
    "lower case": str.lower,
    "upper case": str.upper,
    "other case": str.swapcase,
    "two spaces": lambda unit: re.sub(r"\s+", "  ", unit),
    "line breaks": lambda unit: re.sub(r"\s+", "\r\n\t", unit),
    "no-break spaces": lambda unit: re.sub(r"\s", "\u00a0", unit),
    "NFC": lambda unit: unicodedata.normalize("NFC", unit),
    "NFD": lambda unit: unicodedata.normalize("NFD", unit),
    "NFKC": lambda unit: unicodedata.normalize("NFKC", unit),
    "full-width letters": _drawn(lambda char: chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char),
    "look-alike letters": _drawn(lambda char: LOOKALIKES.get(char, char)[0]),
    "zero-width characters": "\u200b".join,
    "soft hyphens and joiners": "\u00ad\u2060".join,
    "marks between the words": lambda unit: " - ".join(bare_words(unit)) or unit,
    "no space between the words": lambda unit: "".join(unit.split()) or unit,
}
"""Name and making of every form; a unit that has no such form comes back as it is."""
