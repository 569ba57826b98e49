"""More training phrases from a small grammar, in which the same nouns occur in harmful and in harmless phrases.

Hand-written phrases alone teach single words ("bank", "child") as signs of a class; the grammar crosses verbs and nouns,
so that only their combination decides. It feeds training only: what resembles a held-out phrase is dropped.
"""

import random
import re
from collections.abc import Sequence

from phrases import NEAR_DUPLICATE, Form, Phrase, PhraseClass, content_words, read_json

_SLOT = re.compile(r"<(\w+)>|\{([^{}]*)\}")
_CATEGORY = {"text message": "post", "leaflet": "advert", "script": "dialogue"}
"""Kinds of text that are answered like another kind."""


def grow(held_out: Sequence[Phrase], n: int, seed: int) -> list[Phrase]:
    """Return about `n` phrases of the grammar, half of them harmful, none a near-duplicate of a held-out phrase."""
    rng = random.Random(seed)
    rules = read_json("grammar.json")
    bags: dict[str, list[frozenset[str]]] = {}
    for phrase in held_out:
        bag = content_words(phrase.text)
        for word in bag:
            bags.setdefault(word, []).append(bag)
    found: dict[str, Phrase] = {}
    for i in range(n):
        kind: PhraseClass = "harmful" if i % 2 else "benign"
        form: Form = "piece" if rng.random() < 0.25 else "action"
        rule = rng.choice(rules[f"{kind}_{form}s"])
        category, template = rule if kind == "benign" else ("", rule)
        text = " ".join(_fill(template, rules["lexicon"], rng).split())
        text = re.sub(r"\ba (?=[aeio])", "an ", text)
        words = content_words(text)
        near = {bag for word in words for bag in bags.get(word, ())}
        if any(len(words & bag) >= NEAR_DUPLICATE * len(words | bag) for bag in near):
            continue
        if category.startswith("{"):
            category = _piece_category(text)
        found[text] = Phrase(text=text, kind=kind, form=form, category=category)
    return list(found.values())


def _fill(template: str, lexicon: dict[str, list[str]], rng: random.Random) -> str:
    """Return `template` with all slots filled, the innermost first."""
    while match := _SLOT.search(template):
        noun, choices = match.groups()
        options = lexicon[noun] if noun else choices.split("|")
        template = template[: match.start()] + rng.choice(options) + template[match.end() :]
    return template


def _piece_category(text: str) -> str:
    """Return the answer category of a piece from the first kind of text it names."""
    kinds = "letter|email|text message|speech|post|article|leaflet|poem|song|slogan|story|advert|review|script|list"
    match = re.search(rf"\b({kinds}|plan|guide|recipe|program|summary|tool|bot)\b", text)
    word = match.group(1) if match else "guide"
    return _CATEGORY.get(word, "program" if word in ("tool", "bot") else word)
