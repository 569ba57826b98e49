"""Scripts that put no spaces between words, for whatever compares words: there a letter, or two, takes a word's place."""

import re

LETTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Kana, Han: as the inside of a character class."""
UNSPACED = re.compile(f"[{LETTERS}]+")
WORDS = re.compile(f"[{LETTERS}]|[^\\s{LETTERS}]+")
"""Words between white space, letters of these scripts each by itself."""
