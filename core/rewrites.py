"""Other wordings of a request by rule: paraphrases, neutral rewrites, and the request's frame around other requests.

1. The core of a request is the action ("steal a car") or topic ("stealing a car") that an English opening leads to; what
   stands around it is the frame. Without a known opening the core is the sentence that asks.
2. Paraphrases keep the frame's other sentences and change politeness, the order of clauses or function words.
3. A neutral rewrite is the core alone in a plain opening, in plain case and punctuation.
4. A frame takes the core of another request in the place of the own one.
5. A trigger of several words is said otherwise: marks between its parts as "is", function words dropped or added.

Rules are the fallback where no person types other wordings; what was used is recorded with its rule. What this does not
do: synonyms of content words, or languages other than English (there the sentence is the core).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from core.errors import TriageError
from core.settings import CausalSettings
from core.values import Rewording

_WHO = r"(?:i|we|you|one|someone|somebody|anyone|a person|people)"
_ACTION = re.compile(
    rf"""\b(?: how\ (?:do|can|could|would|should|might|may)\ {_WHO}
      | how\ to | (?:a|the)\ (?:\w+\ ){{0,3}}way\ to | ways\ to | (?:steps|methods|instructions|need|order|plan|guide|trick)\ to
      | help\ (?:me|us)(?:\ to)? | (?:teach|show|tell|instruct)\ (?:me|us)\ to
      | (?:want|wants|wanted|need|needs|like|plan|plans|trying|going|hope|is)\ to
      )\s+(?=\w)""",
    re.IGNORECASE | re.VERBOSE,
)
_TOPIC = re.compile(
    r"\b(?:about|on|for|of|with|explaining|explain|describe|describing|discuss)\s+(?=[a-z]+ing\b)", re.IGNORECASE
)
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*", re.MULTILINE)
_OPENERS = (
    "The|This|That|These|Those|An|My|Your|His|Her|Its|Our|Their|He|She|It|We|They|You|If|When|While|Because|Since|After|Before|"
    "Although|Though|Unless|Once|As|Until|And|But|So|For|Please|Be|Do|Make|Let|Take|Keep|Give|Tell|Explain|Answer|Thanks?"
)
"""Words that have a capital only where they begin a sentence or stand in a name, in which another capital follows: a request which lacks
its mark ends before them."""
_OWN_SENTENCE = re.compile(rf"[^.!?\n](?:(?!(?<=[a-z]\ )(?:{_OPENERS})\ (?:[a-z]|I\b))[^.!?\n])*[.!?]*")
_NEXT_CLAUSE = re.compile(
    r"(?:,|;|:|\s-)\s+(?=(?:what|where|which|who|how|when|give|please|and\s+(?:what|how))\b)", re.IGNORECASE
)
_ASKING = re.compile(
    r"\b(?:how|what|which|where|who|why|tell|explain|write|give|describe|make|create|draft|help|provide|show|list|compose|generate)\b",
    re.IGNORECASE,
)
_VOWELS = "aeiou"
_MEANS = re.compile(r"(?<=\w)\s*[:=]\s+(?=\w)|(?<=\w)\s+[-–—]\s+(?=\w)")
"""Marks between two parts of which the second says what the first is."""
_OUTER_MARKS = re.compile(r"(?<!\w)[^\w\s]+|[^\w\s]+(?!\w)")
_SMALL_WORDS = ("the", "a", "an", "is", "are", "this", "that", "please")

_POLITE = (
    "Please help me with this: {}",
    "I have a question for you. {}",
    "{} Thank you in advance.",
    "Could you help me with something? {}",
    "I would be grateful for an answer. {}",
    "{} I would appreciate your answer.",
)
_SYNONYMS = (
    ("how do i", "how would one"), ("how can i", "how does one"), ("how to", "the way to"), ("tell me", "let me know"),
    ("explain", "describe"), ("give me", "provide me with"), ("i want to", "i would like to"), ("i need", "i require"),
    ("could you", "can you"), ("can you", "could you"), ("what is", "what would be"), ("write", "compose"),
    ("questions", "some questions"), ("about", "regarding"), ("help me", "assist me to"), ("if i wanted to", "suppose i wanted to"),
    ("what would i do first", "what would be the first step"), ("steps", "stages"), ("show me", "tell me"),
)  # fmt: skip
_PLAIN_ACTION = (
    "How do I {}?",
    "Tell me how to {}.",
    "Explain how to {}.",
    "I want to know how to {}.",
    "What is the best way to {}?",
)
_PLAIN_TOPIC = (
    "Tell me about {}.",
    "Explain {}.",
    "I want to know about {}.",
    "Give me information on {}.",
    "What should I know about {}?",
)
N_REWRITES = max(len(_PLAIN_ACTION), len(_PLAIN_TOPIC))
"""Neutral rewrites of one request, at most."""


@dataclass(frozen=True)
class Core:
    """Half-open code point range of a request's core in its text; `kind` says which openings it fits, `opening` where its own
    begins ("How to"); equal to `start` where it has none.
    """

    opening: int
    start: int
    end: int
    kind: Literal["action", "topic", "sentence"]


def core_of(text: str) -> Core:
    """Return where the core of the request stands; a text without words has an empty sentence.

    The first sentence with an opening that leads to an action is taken, else with one that leads to a topic, else the
    first that asks anything, else the longest.
    """
    sentences = [match for match in _OWN_SENTENCE.finditer(text) if match.group().strip()]
    for pattern, kind in ((_ACTION, "action"), (_TOPIC, "topic")):
        for sentence in sentences:
            opening = pattern.search(sentence.group())
            if opening:
                start = sentence.start() + opening.end()
                end = _end(text, start, sentence.end())
                if end > start:
                    return Core(sentence.start() + opening.start(), start, end, kind)  # type: ignore[arg-type]
    asking = [one for one in sentences if one.group().rstrip().endswith("?") or _ASKING.search(one.group())]
    chosen = asking[0] if asking else max(sentences, key=lambda one: len(one.group()), default=None)
    if chosen is None:
        return Core(0, 0, 0, "sentence")
    start = chosen.start() + len(chosen.group()) - len(chosen.group().lstrip())
    return Core(start, start, _end(text, start, chosen.end(), whole=True), "sentence")


def _end(text: str, start: int, end: int, whole: bool = False) -> int:
    """Return where the core ends: before the next clause, without closing marks and white space."""
    clause = None if whole else _NEXT_CLAUSE.search(text, start, end)
    core = text[start : clause.start() if clause else end]
    return start + len(core.rstrip().rstrip(".!?,;:").rstrip())


def paraphrases(text: str, n: int) -> list[Rewording]:
    """Return up to `n` distinct paraphrases of `text` by politeness, order of clauses and function words, taken in turn."""
    kinds = [("synonyms", _synonyms(text)), ("order", _orders(text)), ("politeness", _polite(text))]
    found: dict[str, Rewording] = {}
    while kinds and len(found) < n:
        for kind in list(kinds):
            rule, texts = kind
            one = next(texts, None)
            if one is None:
                kinds.remove(kind)
            elif one != text and len(found) < n:
                found.setdefault(one, Rewording(kind="paraphrase", source=rule, text=one))
    return list(found.values())


def given(paraphrases: Sequence[str], rewrites: Sequence[str]) -> dict[str, object]:
    """Return the analyst's own wordings of the request as arguments of triage; none of a kind that was not given.

    Raises: TriageError for an empty text, and for fewer paraphrases than their test needs: they stand in for those made by rule.
    """
    least = CausalSettings().min_paraphrases
    if any(not text.strip() for text in (*paraphrases, *rewrites)):
        raise TriageError("Give the whole request in other words, not an empty text.")
    if 0 < len(paraphrases) < least:
        raise TriageError(f"Give at least {least} paraphrases of the request, or none: their test counts them.")
    both = {"paraphrases": list(paraphrases), "rewrites": list(rewrites)}
    return {name: texts for name, texts in both.items() if texts}


def neutral_rewrites(text: str) -> list[Rewording]:
    """Return the request's core in plain openings, or as a plain sentence where it has no known opening."""
    core = core_of(text)
    words = " ".join(text[core.start : core.end].split())
    if not words:
        return []
    if core.kind == "sentence":
        plain = words[0].upper() + words[1:].lower() if words.isupper() else words[0].upper() + words[1:]
        return [
            Rewording(kind="rewrite", source="plain sentence", text=one)
            for one in (f"{plain}.", f"{plain}?", f"Please answer this: {plain}.", f"My question is this: {plain}.")
        ]
    openings = _PLAIN_ACTION if core.kind == "action" else _PLAIN_TOPIC
    words = words.lower() if words.isupper() else words
    return [Rewording(kind="rewrite", source="plain opening", text=one.format(words)) for one in openings]


def framed(text: str, others: Sequence[str]) -> list[str | None]:
    """Return `text` with the core of each other request in place of its own; None where the other has no such core.

    A topic takes an action as its -ing form. Where `text` is nothing but its core there is no frame: all None.
    """
    core = core_of(text)
    left, right = text[: core.start], text[core.end :]
    if not re.search(r"\w", left + right):
        return [None] * len(others)
    result: list[str | None] = []
    for other in others:
        theirs = core_of(other)
        words = other[theirs.start : theirs.end]
        match core.kind, theirs.kind:
            case ("action", "action") | ("topic", "topic") | ("sentence", _):
                chosen: str | None = words if core.kind != "sentence" else other.strip().rstrip(".!?")
            case ("topic", "action"):
                chosen = gerund(words)
            case _:
                chosen = None
        if chosen is not None and text[core.start : core.end].isupper():
            chosen = chosen.upper()
        result.append(None if chosen is None else left + chosen + right)
    return result


def said_otherwise(unit: str) -> list[str]:
    """Return a trigger's text of several English words in other words of its meaning; none of them holds it as it is."""
    words = _OUTER_MARKS.sub(" ", unit).split()
    if len(words) < 2 or not unit.isascii():
        return []
    found = [*_synonyms(unit), " ".join(word for word in words if word.lower() not in _SMALL_WORDS)]
    if _MEANS.search(unit):
        first = words[0].lower() if words[0].istitle() else words[0]
        found += [_MEANS.sub(" is ", unit), " ".join(["the", first, *words[1:]])]
    elif found[-1] == " ".join(words):  # the marks alone went
        found.pop()
    return [one for one in dict.fromkeys(found) if one and unit.casefold() not in one.casefold()]


def gerund(action: str) -> str:
    """Return an action with its first word in the -ing form ("steal a car" -> "stealing a car")."""
    verb, rest = re.match(r"(\S*)(.*)", action, re.DOTALL).groups()  # type: ignore[union-attr]
    low = verb.lower()
    if low.endswith("ie"):
        stem = verb[:-2] + "y"
    elif low.endswith("e") and not low.endswith(("ee", "oe", "ye")):
        stem = verb[:-1]
    elif 3 <= len(low) <= 4 and low[-1] not in _VOWELS + "wxy" and low[-2] in _VOWELS and low[-3] not in _VOWELS:
        stem = verb + verb[-1]
    else:
        stem = verb
    return f"{stem}ing{rest}"


def _polite(text: str) -> Iterator[str]:
    """Yield the text with a polite sentence before or after it."""
    for form in _POLITE:
        yield form.format(text)


def _orders(text: str) -> Iterator[str]:
    """Yield the text with its sentences, or the two clauses of its request, in another order."""
    sentences = [match.group().strip() for match in SENTENCE.finditer(text) if match.group().strip()]
    if len(sentences) > 1:
        yield " ".join([*sentences[1:], sentences[0]])
        yield " ".join(reversed(sentences))
        yield " ".join([sentences[-1], *sentences[:-1]])
    for number, sentence in enumerate(sentences):
        clause = _NEXT_CLAUSE.search(sentence)
        if clause:
            first, second = sentence[: clause.start()].strip(), sentence[clause.end() :].strip()
            mark = second[-1] if second[-1] in ".!?" else ""
            turned = f"{second.rstrip('.!?')}, {first}{mark}"
            yield " ".join([*sentences[:number], turned[0].upper() + turned[1:], *sentences[number + 1 :]])


def _synonyms(text: str) -> Iterator[str]:
    """Yield the text with one function phrase replaced, each in turn; content words stay."""
    for old, new in _SYNONYMS:
        found = re.search(rf"\b{old}\b", text, re.IGNORECASE)
        if found:
            chosen = new[0].upper() + new[1:] if found.group()[0].isupper() else new
            yield text[: found.start()] + chosen + text[found.end() :]
