"""Scripts that put no spaces between words, for whatever compares words: there a letter, or two, takes a word's place.

For what looks for the ends of words also Korean, and the signs that belong to words of other scripts.
"""

import re

LETTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Kana, Han: as the inside of a character class."""
HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
"""Korean, which puts spaces between words but its particles onto them."""
SIGNS = (
    "\u0300-\u034e\u0350-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0730-\u074a\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0963\u0966-\u0dff\u1ab0-\u1aff\u1dc0-\u1dff"
    "\u20d0-\u20ff\ufe20-\ufe2f"
)
"""Accents and vowel signs, which stand in words and are no letters to `re`; of India's scripts all characters but the full stops."""
UNSPACED = re.compile(f"[{LETTERS}]+")
WORDS = re.compile(f"[{LETTERS}]|[^\\s{LETTERS}]+")
"""Words between white space, letters of these scripts each by itself."""
