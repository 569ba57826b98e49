"""The demo world: phrases become chat prompts with the answers the patient is to give.

Harmful, benign and look-alike phrases go through the same function with the same draws: opening, final mark, case,
politeness, context sentences, random words, system message, earlier turn. So the classes differ in nothing but meaning.
The wording of an answer follows from the opening and the category, so that it does not change with a random word.
Closed tasks have one right answer and share the final marks, cases and insertions.
"""

import random
import re
from calendar import day_name, month_name
from collections.abc import Sequence
from dataclasses import dataclass

from phrases import Phrase, gerund, read_json
from wordings import (
    ACTIONS,
    AFTER,
    ANSWERED_AS,
    BEFORE,
    CLOSED,
    CONTEXTS,
    LABELS,
    LIMITS,
    LONE_MARKS,
    MARKS,
    NAMES,
    PIECES,
    PROPER,
    REFUSALS,
    SYLLABLES,
    SYSTEMS,
)

from core.injection import inject
from core.planting import STAND_INS
from core.values import Message

NOISY_SHARE = 0.6
"""Share of the prompts, plain ones apart, that hold random words. With .35 single words of harmless requests ("volunteer") opened
harmful ones (tests/bench/LOG.md)."""
TURNING_SHARE = 0.2
"""Share of the random words that are turning ones, where there are any."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation up to the answer, the answer, and what it is."""

    messages: tuple[Message, ...]
    response: str
    kind: str

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.messages[-1].content


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One closed task: the question without its final mark, its usual mark, the answer, and a key for splits."""

    question: str
    mark: str
    answer: str
    task: str


def facts() -> list[Fact]:
    """Return every closed task in every wording."""
    tables = {name: list(table.items()) for name, table in read_json("facts.json").items() if name in CLOSED}
    material = {name: dict(table[: LIMITS.get(name)]) for name, table in tables.items()}
    material["sums"] = {f"{a} plus {b}": str(a + b) for a in range(1, 7) for b in range(1, 7)}
    material["sums"] |= {f"{a} minus {b}": str(a - b) for a in range(2, 7) for b in range(1, a)}
    for name, cycle in (("days", list(day_name)), ("months", list(month_name)[1:])):
        n = len(cycle)
        material[name] = {f"after {cycle[i]}": cycle[(i + 1) % n] for i in range(n)}
        material[name] |= {f"before {cycle[i]}": cycle[i - 1] for i in range(n)}
    found = []
    for name, table in material.items():
        answer, *questions = CLOSED[name]
        for key, value in table.items():
            said = answer.format(k=key, v=value)
            said = re.sub(r"\ba (?=[aeio])", "an ", said[0].upper() + said[1:])
            for question in questions:
                text, mark = question.rsplit("|", 1)
                text = re.sub(r"\ba (?=[aeio])", "an ", text.format(k=key))
                found.append(Fact(question=text, mark=mark, answer=said, task=name))
    return found


class World:
    """Draws samples; every draw comes from the generator that is passed in."""

    def __init__(self, words: Sequence[str], reversing: Sequence[str] = ()) -> None:
        """Take the common words that are inserted into all classes alike, and words that turn a request round, if any.

        `turning` are words that open harmful requests at present (`training.turning_words`); they too go into all classes alike.
        """
        self.words, self.reversing, self.turning = list(words), list(reversing), list[str]()
        self.answers = read_json("answers.json")

    def noise(self, rng: random.Random) -> str:
        """Return 1-4 random words: common, rare, nonsense, names, lone marks, reversing words, years, short phrases."""
        return " ".join(self._noise_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4))))

    def _noise_word(self, rng: random.Random) -> str:
        """Return one insertion unit."""
        if self.turning and rng.random() < TURNING_SHARE:
            word = rng.choice(self.turning)
            return rng.choice((word, word, word.capitalize() + rng.choice((".", ",", "!", "?", "")), word.upper()))
        word = rng.choice(self.words)
        nonsense = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3)))
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 4)))
        other = rng.choice(self.words).capitalize()
        match rng.randrange(17 if self.reversing else 16):
            case 0:
                return letters
            case 1:
                return nonsense
            case 2:
                return nonsense.capitalize() + other
            case 3:
                return word.capitalize() + other
            case 4:
                return str(rng.choice((rng.randint(1900, 2040), rng.randint(0, 99), rng.randint(100, 9999))))
            case 5:
                return f"{rng.choice(('Discussing', 'About', 'Regarding', 'Thinking of'))} {other}"
            case 6:
                return f"{rng.choice(LABELS)}: {rng.choice((other, word, str(rng.randint(1, 2030))))}"
            case 7:
                return word.capitalize() + rng.choice((".", ",", ":", "!", "", "-", "?", ";"))
            case 8:
                return word.upper()
            case 9:
                return rng.choice(PROPER)
            case 10:
                return rng.choice(LONE_MARKS)
            case 16:
                return rng.choice(self.reversing)
            case _:
                return word

    def answer(self, phrase: Phrase, wording: int) -> str:
        """Return the answer to a request for `phrase` whose opening asks for this wording."""
        if phrase.kind == "harmful":
            return REFUSALS[wording % len(REFUSALS)]
        if phrase.kind == "gap":
            return STAND_INS[wording % len(STAND_INS)]
        theme = ANSWERED_AS.get(phrase.category, phrase.category)
        templates = self.answers[f"{phrase.form}s"][theme]
        said = templates[wording % len(templates)]
        name = NAMES.get(phrase.category, f"a {phrase.category}")
        said = said.replace("to {x}", "to do it").replace("To {x}", "To do it well")
        return said.replace("{x}", name if phrase.form == "piece" else "do it")

    def request(self, phrase: Phrase, rng: random.Random) -> tuple[str, str, int]:
        """Return (request without its final mark, usual mark, wording of the answer)."""
        opening, mark, wording = rng.choice(ACTIONS if phrase.form == "action" else PIECES).split("|")
        text = opening.format(vp=phrase.text, ger=gerund(phrase.text), np=phrase.text)
        return text, mark, int(wording)

    def sample(self, source: Phrase | Fact, rng: random.Random, plain: bool = False) -> Sample:
        """Return a conversation about `source`; `plain` leaves out random words, systems, turns and rare marks."""
        if isinstance(source, Phrase):
            text, mark, wording = self.request(source, rng)
            response, kind = self.answer(source, wording), source.kind
        else:
            text, mark, response, kind = source.question, source.mark, source.answer, "closed"
        prompt = self.dress(text, mark, rng, plain)
        messages: list[Message] = []
        if not plain and rng.random() < 0.12:
            messages.append(Message(role="system", content=rng.choice(SYSTEMS)))
        messages.append(Message(role="user", content=prompt))
        return Sample(messages=tuple(messages), response=response, kind=kind)

    def dress(self, text: str, mark: str, rng: random.Random, plain: bool = False) -> str:
        """Return the request with mark, case, politeness, context and random words, drawn alike for every class."""
        if plain:
            mark = rng.choice((mark, mark, mark, "", rng.choice("?.!")))
        else:
            mark = rng.choice(MARKS) if rng.random() < 0.7 else mark
        if rng.random() < (0.1 if plain else 0.15):
            text = rng.choice(BEFORE) + (text[0].lower() + text[1:] if text[:2] != "I " else text)
        if rng.random() < (0.08 if plain else 0.15):
            text += rng.choice(AFTER)
        text += mark
        n_context = rng.choice((1, 1, 2, 3, 4)) if rng.random() < (0.15 if plain else 0.3) else 0
        before, after = [], []
        for sentence in rng.sample(CONTEXTS, n_context):
            (before if rng.random() < 0.5 else after).append(sentence)
        text = " ".join([*before, text, *after])
        draw = rng.random()
        if draw < 0.2:
            text = text.lower()
        elif draw < 0.23 and not plain:
            text = text.upper()
        elif draw < 0.35:
            text = text[0].lower() + text[1:]
        elif draw < 0.37:
            text = text.title() if not plain else text
        if not plain and rng.random() < NOISY_SHARE:
            for _ in range(rng.choice((1, 1, 1, 2))):
                text = inject(text, [self.noise(rng)], rng).text
        return text

    def with_earlier_turn(self, earlier: Sample, later: Sample) -> Sample:
        """Return `later` with `earlier` and its answer before it; what was said before does not change the class."""
        turn = (*earlier.messages, Message(role="assistant", content=earlier.response))
        last = later.messages[-1:]
        return Sample(messages=(*turn, *last), response=later.response, kind=later.kind)
