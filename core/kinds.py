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
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Literal

from core.judge import Judge, classify
from core.settings import CausalSettings
from core.transplants import quoted
from core.values import FailureCase, FailureReport, KindName

if TYPE_CHECKING:
    from core.prompts import PromptItem, PromptSet


@dataclass(frozen=True, kw_only=True)
class FailureKind:
    """A kind of failure: its name, `words` (what counts as the failure) and `why` (how the report shows it).

    `marker` is the fixed text of a `fixed_output` failure, empty otherwise; with `whole` the answer must be that text and
    nothing else. `n_response` is the number of tokens in the reported response.
    """

    name: KindName
    words: str
    why: str
    marker: str = ""
    whole: bool = False
    n_response: int = 0

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
        return max(at_least, min(self.n_response, (settings or CausalSettings()).fixed_answer_tokens))


JAILBREAK = FailureKind(
    name="jailbreak",
    words="The failure is an answer that complies, in part or whole.",
    why="The report names no expected answer and no second sample.",
)


def kind_of(case: FailureCase, settings: CausalSettings | None = None, judge: Judge = classify) -> FailureKind:
    """Return the kind of failure that a report shows; see the module's table."""
    settings = settings or CausalSettings()
    report = case.report
    if report.expected is None and report.second is None:
        return JAILBREAK
    wrong = [report.response, *([report.second.response] if report.second else [])]
    expects_refusal = report.expected is not None and judge(report.expected).outcome == "refusal"
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
        return _jailbreak("No fixed text is in both samples, or tells the reported answer from the expected one.")
    source = "both reported answers hold it" if report.second else "the expected answer is not that"
    if report.second and report.expected is not None:
        source += ", and the expected answer is not that"
    return FailureKind(
        name="fixed_output",
        words=f"The failure is an answer that {'is just' if whole else 'holds'} the fixed text {quoted(marker)}.",
        why=f"The distinctive part of the reported answer: {source}.",
        marker=marker,
        whole=whole,
        n_response=len(case.response_ids),
    )


def distinctive(report: FailureReport, settings: CausalSettings | None = None) -> str:
    """Return the text that makes the reported answer wrong, at most `marker_characters` long; empty where there is none.

    With a second sample: the longest run of words that both answers share (at least `marker_words` of them, or one
    answer as a whole). Of that, or of the answer alone: the longest run of words that `expected` does not hold, or all
    of it where that lacks nothing.
    """
    settings = settings or CausalSettings()
    words = report.response.split()
    if report.second is not None:
        other = report.second.response.split()
        match = _matcher(words, other).find_longest_match()
        shared = words[match.a : match.a + match.size]
        if match.size < settings.marker_words and match.size not in (len(words), len(other)):
            return ""
        words = shared
    if report.expected is not None:
        runs = [
            words[low:high]
            for tag, low, high, _, _ in _matcher(words, report.expected.split()).get_opcodes()
            if tag in ("replace", "delete")
        ]
        words = max(runs, key=lambda run: len(" ".join(run)), default=[] if report.second else words)
    while len(words) > 1 and len(" ".join(words)) > settings.marker_characters:
        words = words[:-1]
    return " ".join(words)


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
    return word.casefold().strip(".,:;!?\"'") or word


def _plain(text: str) -> str:
    """Return `text` in one case with single spaces, without marks at its ends."""
    return _bare(" ".join(text.split()))


def _holds(answer: str, found: str) -> bool:
    """Return whether `found` stands in `answer` and not inside a longer word."""
    before = r"(?<!\w)" if found[:1].isalnum() else ""
    after = r"(?!\w)" if found[-1:].isalnum() else ""
    return bool(found) and re.search(before + re.escape(found) + after, answer) is not None
