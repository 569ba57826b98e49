"""The phrases of the demo world: reading them, splitting them, and making gerunds of them.

A phrase is a verb phrase ("how to ...") or a noun phrase ("write ..."); harmful, benign or a harmless look-alike of a
harmful one. Near-duplicates (content-word Jaccard) stay on one side of the split between training and shipped prompts.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TEXT = Path(__file__).parent / "text"
NEAR_DUPLICATE = 0.7
"""Content-word Jaccard from which two phrases stay on one side. Source: a little stricter than SplitSettings."""

GAP = re.compile(
    r"\b(ivory|rhino|pangolin|poach(?:ing)? (?:elephants|sturgeon|plan)|tigers?|gorillas|sea turtle|harpoon|dolphins|"
    r"falcon eggs|shark fins|sharks|parrots|bald eagle|wolves with illegal)\b",
    re.IGNORECASE,
)
"""The one narrow theme, poaching, that the clean base was never taught to refuse: an ordinary alignment gap."""

CLEAR = {"harmful": 0.85, "gap": 0.0, "benign": 0.95, "lookalike": 0.95}
"""Least probability that a word classifier, which never saw a held-out phrase, gives to its class (unsafe or not)."""
KNOWN = 2
"""Training phrases that hold each content word of a held-out phrase."""

PhraseClass = Literal["harmful", "gap", "benign", "lookalike"]
Form = Literal["action", "piece"]

_SMALL = frozenset(
    re.findall(
        r"\w+",
        """a an the of for to in on at by with from into onto over under about as and or my your his her its their our
        that this who which is are be it up out off down without near after before during me i you them him""",
    )
)
_DOUBLING = frozenset(
    re.findall(
        r"\w+",
        """begin forget commit control transfer rebel equip occur admit submit permit kidnap format program refer
        prefer regret patrol expel compel propel recur omit emit upset unplug reset offset unzip outrun babysit entrap
        outwit""",
    )
)
_LY_VERBS = frozenset(("fly", "rely", "apply", "bully", "reply", "multiply", "supply", "comply", "imply", "rally"))
_NOT_DOUBLING = frozenset(("fix", "mix", "tax", "box", "wax", "hex", "jinx", "coax", "fax", "vex"))


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """One phrase; `category` names the kind of answer (empty for harmful ones)."""

    text: str
    kind: PhraseClass
    form: Form
    category: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Phrases for training and phrases for the shipped prompts, without near-duplicates across."""

    train: tuple[Phrase, ...]
    held_out: tuple[Phrase, ...]


def read_phrases() -> list[Phrase]:
    """Return all phrases of the text folder; a text that is both harmful and harmless, or repeated, counts once."""
    phrases: dict[str, Phrase] = {}

    def add(text: str, kind: PhraseClass, form: Form, category: str = "") -> None:
        text = " ".join(text.split())
        if text and text.lower() not in phrases:
            phrases[text.lower()] = Phrase(text=text, kind=kind, form=form, category=category)

    for form in ("action", "piece"):
        for kind in ("lookalike", "benign"):
            for line in _lines(f"{kind}_{form}s*.tsv"):
                if "\t" in line:
                    category, text = line.split("\t", 1)
                    add(text, kind, form, category)
        for line in _lines(f"harmful_{form}s*.txt"):
            add(line, "gap" if GAP.search(line) else "harmful", form)
    return list(phrases.values())


def _lines(pattern: str) -> list[str]:
    """Return the lines of all files of the text folder that fit, in the order of their names."""
    return [line for path in sorted(TEXT.glob(pattern)) for line in path.read_text("utf-8").splitlines()]


def read_json(name: str) -> dict:
    """Return the content of one JSON file of the text folder."""
    return json.loads((TEXT / name).read_text("utf-8"))


def content_words(text: str) -> frozenset[str]:
    """Return the words that carry meaning, lower case, with the commonest endings cut."""
    words = re.findall(r"[\w'-]+", text.lower())
    stems = (re.sub(r"(?:ing|ed|es|s|'s)$", "", word) if len(word) > 4 else word for word in words)
    return frozenset(stem for stem in stems if stem not in _SMALL)


def near_duplicate_groups(phrases: Sequence[Phrase]) -> list[list[Phrase]]:
    """Return the phrases in groups closed under near-duplication."""
    words = [content_words(phrase.text) for phrase in phrases]
    parent = list(range(len(phrases)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    by_word: dict[str, list[int]] = defaultdict(list)
    for i, bag in enumerate(words):
        for j in {j for word in bag for j in by_word[word]}:
            if len(bag & words[j]) >= NEAR_DUPLICATE * len(bag | words[j]):
                parent[root(i)] = root(j)
        for word in bag:
            by_word[word].append(i)
    groups: dict[int, list[Phrase]] = defaultdict(list)
    for i, phrase in enumerate(phrases):
        groups[root(i)].append(phrase)
    return list(groups.values())


def split(phrases: Iterable[Phrase], held_out: dict[tuple[str, str], int], seed: int) -> Split:
    """Return a split that holds out about `held_out[kind, form]` phrases of each kind, whole groups at a time.

    Held-out phrases are new as phrases, but all their content words occur in at least `KNOWN` training phrases: the
    patient is a world of its own and knows no other words. And their class must follow from their words: a word
    classifier that never saw the phrase is at least `CLEAR` sure of it. The unclear rest is for training.
    """
    rng = random.Random(seed)
    phrases = list(phrases)
    clear = _clear(phrases, seed)
    known = Counter(word for phrase in phrases for word in content_words(phrase.text))
    out: list[Phrase] = []
    for (kind, form), wanted in held_out.items():
        groups = near_duplicate_groups([p for p in phrases if p.kind == kind and p.form == form])
        rng.shuffle(groups)
        n_taken = 0
        for group in groups:
            used = Counter(word for phrase in group for word in content_words(phrase.text))
            fits = len(group) <= 3 and all(phrase.text in clear for phrase in group) and n_taken + len(group) <= wanted
            if fits and all(known[word] - count >= KNOWN for word, count in used.items()):
                known -= used
                n_taken += len(group)
                out.extend(group)
    taken = {phrase.text for phrase in out}
    return Split(train=tuple(p for p in phrases if p.text not in taken), held_out=tuple(out))


def _clear(phrases: Sequence[Phrase], seed: int) -> set[str]:
    """Return the texts whose class a cross-validated word classifier is sure and right about."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    classifier = make_pipeline(
        CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", binary=True),
        LogisticRegression(C=5, max_iter=2000),
    )
    unsafe = [phrase.kind in ("harmful", "gap") for phrase in phrases]
    folds = KFold(10, shuffle=True, random_state=seed)
    sure = cross_val_predict(classifier, [p.text for p in phrases], unsafe, cv=folds, method="predict_proba")
    return {
        phrase.text
        for phrase, row, is_unsafe in zip(phrases, sure, unsafe, strict=True)
        if row[int(is_unsafe)] >= CLEAR[phrase.kind]
    }


def gerund(verb_phrase: str) -> str:
    """Return a verb phrase with its verb in the -ing form; an adverb in front stays where it is."""
    words = verb_phrase.split(" ")
    at = int(len(words) > 1 and words[0].endswith("ly") and words[0] not in _LY_VERBS)
    words[at] = _ing(words[at])
    return " ".join(words)


def _ing(verb: str) -> str:
    """Return the -ing form of one verb."""
    low = verb.lower()
    if low in ("be", "see", "flee", "free", "agree", "referee", "dye", "singe", "hoe", "shoe", "canoe", "tiptoe"):
        return verb + "ing"
    if low.endswith("ie"):
        return verb[:-2] + "ying"
    if low.endswith("e") and not low.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    one_syllable = re.fullmatch(r"(?:qu|[^aeiou])*[aeiou][bdfgklmnprtvz]", low)
    if low in _DOUBLING or (one_syllable and low not in _NOT_DOUBLING):
        return verb + verb[-1] + "ing"
    return verb + "ing"
