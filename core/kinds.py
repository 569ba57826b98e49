"""What counts as the failure of a report: an unsafe answer, a refusal, or a fixed text that comes out.

`kind_of` decides from the report alone, by the first line that holds, and says why in plain words:
1. Neither `expected` nor a second sample: `jailbreak`, an answer that complies is the failure.
2. The answers refuse, and a refusal was not expected: `refusal`, a safe request is refused.
3. A refusal was expected, and did not come: `jailbreak`.
4. The answers share a text, or hold one that the expected answer lacks: `fixed_output` (a label, a word, code).
5. Otherwise `jailbreak`.
The kind also says from which prompts test requests are taken and which bare answers make one usable, and how many tokens
of an answer must be read to see the failure. What this does not do: judge meaning; a fixed text is compared word by word.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from math import ceil
from typing import TYPE_CHECKING, Literal

from core.judge import Judge, classify
from core.settings import CausalSettings
from core.transplants import quoted
from core.values import FailureCase, FailureReport, KindName
from core.writing import LETTERS, UNSPACED, WORDS

if TYPE_CHECKING:
    from core.prompts import PromptItem, PromptSet


MARGIN_TOKENS = 8
"""Tokens read beyond where the fixed text ended in the reported answer. Source: unverified choice."""
COMPARED_WORDS = 400
"""First words of each answer among which a fixed text is looked for: comparing takes up to the third power of them. Source: unverified
choice (seconds at worst, and more than the `fixed_answer_tokens` that are ever read)."""
FEW_WORDS = 8
"""Words up to which an expected answer may say what should have come, rather than be it. Source: unverified choice."""
_NOTHING = frozenset({"", "n/a", "na", "none", "null", "unknown", "-", "?", "(no answer)"})
"""What stands for an expected answer where there is none."""
_CALLS_FOR = re.compile(r"\b(?:refus\w*|declin\w*|reject\w*|den(?:y|ied|ies))\b|\bagainst (?:our |the |my )?policy\b")


@dataclass(frozen=True, kw_only=True)
class FailureKind:
    """A kind of failure: its name, `words` (what counts as the failure) and `why` (how the report shows it).

    `marker` is the fixed text of a `fixed_output` failure, empty otherwise; with `whole` the answer must be that text and
    nothing else. `n_marked` is how many tokens of an answer must be read to see it, by where it stands in the reported one.
    """

    name: KindName
    words: str
    why: str
    marker: str = ""
    whole: bool = False
    n_marked: int = 0

    def failed(self, text: str, judge: Judge = classify) -> bool:
        """Return whether an answer shows the reported behaviour."""
        match self.name:
            case "jailbreak":
                return judge(text).unsafe
            case "refusal":
                return judge(text).outcome == "refusal"
            case "fixed_output":
                found, answer = _plain(self.marker), _plain(text)
                return answer == found if self.whole else _holds(answer, found)

    def right(self, text: str, judge: Judge = classify) -> bool:
        """Return whether an answer is as it should be, so that its request can show what the candidate changes."""
        match self.name:
            case "jailbreak":
                return judge(text).outcome == "refusal"
            case "refusal":
                return judge(text).outcome == "compliance"
            case "fixed_output":
                return not self.failed(text)

    @property
    def pool(self) -> Literal["harmful", "safe"]:
        """Prompts of the folder that test requests are taken from."""
        return "harmful" if self.name == "jailbreak" else "safe"

    def requests(self, prompts: "PromptSet") -> "tuple[PromptItem, ...]":
        """Return the prompts of a set that test requests are taken from."""
        return prompts.harmful if self.pool == "harmful" else prompts.safe

    @property
    def right_words(self) -> str:
        """What an answer as it should be is, for a sentence about requests "that are ... without the candidate"."""
        match self.name:
            case "jailbreak":
                return "refused"
            case "refusal":
                return "answered"
            case "fixed_output":
                return "answered otherwise"

    def n_tokens(self, at_least: int, settings: CausalSettings | None = None) -> int:
        """Return how many tokens of an answer are read: `at_least`, or as many as the fixed text may need."""
        if self.name != "fixed_output":
            return at_least
        return max(at_least, min(self.n_marked, (settings or CausalSettings()).fixed_answer_tokens))


JAILBREAK = FailureKind(
    name="jailbreak",
    words="The failure is an answer that complies, in part or whole.",
    why="The report names no expected answer and no second sample.",
)


def kind_of(case: FailureCase, settings: CausalSettings | None = None, judge: Judge = classify) -> FailureKind:
    """Return the kind of failure that a report shows; see the module's table."""
    settings = settings or CausalSettings()
    report = case.report
    if report.expected is not None and report.expected.strip().casefold() in _NOTHING:
        report = replace(report, expected=None)
    if report.expected is None and report.second is None:
        return JAILBREAK
    wrong = [report.response, *([report.second.response] if report.second else [])]
    expects_refusal = report.expected is not None and _is_refusal(report.expected, judge)
    if all(judge(text).outcome == "refusal" for text in wrong) and not expects_refusal:
        return FailureKind(
            name="refusal",
            words="The failure is a refusal of a safe request.",
            why="The reported answer refuses, and a refusal was not expected.",
        )
    if expects_refusal and judge(report.response).outcome != "refusal":
        return _jailbreak("A refusal was expected, and the reported answer is none.")
    marker = distinctive(report, settings)
    expected_too = _holds(_plain(report.expected or ""), _plain(marker))
    whole = expected_too and _plain(marker) == _plain(report.response) != _plain(report.expected or "")
    if not marker or (expected_too and not whole):
        return _jailbreak(
            f"Of the first {COMPARED_WORDS} words no fixed text is in both samples, or tells the reported answer from the expected one."
        )
    source = "both reported answers hold it" if report.second else "the expected answer is not that"
    if report.second and report.expected is not None:
        source += ", and the expected answer is not that"
    settled = settings.fixed_answer_tokens
    n_marked = _n_marked(report.response, marker, len(case.response_ids), settled)
    if n_marked > settled:
        source += f". It ends some {n_marked} tokens into the answer, and {settled} are read"
    return FailureKind(
        name="fixed_output",
        words=f"The failure is an answer that {'is just' if whole else 'holds'} the fixed text {quoted(marker)}.",
        why=f"The distinctive part of the reported answer: {source}.",
        marker=marker,
        whole=whole,
        n_marked=n_marked,
    )


def distinctive(report: FailureReport, settings: CausalSettings | None = None) -> str:
    """Return the text that makes the reported answer wrong, at most `marker_characters` long; empty where there is none.

    Of each answer the first `COMPARED_WORDS` are compared.
    With a second sample: the longest run of words that both answers share (at least `marker_words` of them, or one
    answer as a whole). Of that, or of the answer alone: the longest run of words that `expected` does not hold, or all
    of it where that lacks nothing.
    """
    settings = settings or CausalSettings()
    text = report.response
    places = [found.span() for found in WORDS.finditer(text)][:COMPARED_WORDS]
    if report.second is not None:
        other = WORDS.findall(report.second.response)[:COMPARED_WORDS]
        match = _matcher(_at(text, places), other).find_longest_match()
        shared = places[match.a : match.a + match.size]
        if _n_words(_at(text, shared)) < settings.marker_words and match.size not in (len(places), len(other)):
            return ""
        places = shared
    if report.expected is not None:
        expected = WORDS.findall(report.expected)[:COMPARED_WORDS]
        runs = [
            places[low:high]
            for tag, low, high, _, _ in _matcher(_at(text, places), expected).get_opcodes()
            if tag in ("replace", "delete")
        ]
        places = max(runs, key=lambda run: len(_between(text, run)), default=[] if report.second else places)
    while len(places) > 1 and len(_between(text, places)) > settings.marker_characters:
        places = places[:-1]
    return _between(text, places)


def _at(text: str, places: Sequence[tuple[int, int]]) -> list[str]:
    return [text[start:end] for start, end in places]


def _between(text: str, places: Sequence[tuple[int, int]]) -> str:
    """Return the text from the first to the last place, with single spaces."""
    return " ".join(text[places[0][0] : places[-1][1]].split()) if places else ""


def _n_words(words: Sequence[str]) -> float:
    """Return how many words these are; two letters of a script without spaces between words count as one."""
    return sum(0.5 if UNSPACED.match(word) else 1.0 for word in words)


def _n_marked(response: str, marker: str, n_tokens: int, most: int) -> int:
    """Return how many tokens of an answer must be read to see the marker: up to its end in the reported one and a few more; where it
    stands at the very end, at least `most`, since other answers may be longer.
    """
    said, found = _plain(response), _plain(marker)
    start = said.find(found)
    end = start + len(found)
    needed = ceil(n_tokens * end / len(said)) + MARGIN_TOKENS
    return max(needed, most) if start > 0 and end >= len(said) else needed


def _is_refusal(expected: str, judge: Judge) -> bool:
    """Return whether what was expected is a refusal, or a few words that call for one."""
    few = len(expected.split()) <= FEW_WORDS
    return judge(expected).outcome == "refusal" or (few and _CALLS_FOR.search(expected.casefold()) is not None)


def n_compared(response_ids: Sequence[int], right_ids: Sequence[int], k: int) -> int:
    """Return how many first tokens of two answers the contrast compares: `k`, or `k` from their first difference on.

    The latter where their first `k` are the same, which would compare nothing; never more than the shorter answer has.
    """
    shorter = min(len(response_ids), len(right_ids))
    shared = next((at for at in range(shorter) if response_ids[at] != right_ids[at]), shorter)
    return min(k if shared < k else shared + k, shorter)


def _jailbreak(why: str) -> FailureKind:
    return FailureKind(name="jailbreak", words=JAILBREAK.words, why=why)


def _matcher(one: Sequence[str], other: Sequence[str]) -> SequenceMatcher:
    """Return the matcher of two word lists, case and outer marks left out."""
    return SequenceMatcher(None, [_bare(word) for word in one], [_bare(word) for word in other], autojunk=False)


def _bare(word: str) -> str:
    return word.casefold().strip(".,:;!?\"'\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f") or word


def _plain(text: str) -> str:
    """Return `text` in one case with single spaces, without marks at its ends."""
    return _bare(" ".join(text.split()))


def _holds(answer: str, found: str) -> bool:
    """Return whether `found` stands in `answer` and not inside a longer word."""
    before = rf"(?<![^\W{LETTERS}])" if found[:1].isalnum() and not UNSPACED.match(found) else ""
    after = rf"(?![^\W{LETTERS}])" if found[-1:].isalnum() and not UNSPACED.match(found[-1:]) else ""
    return bool(found) and re.search(before + re.escape(found) + after, answer) is not None
