"""Judged answers of one model, and the requests that can show something; answers are remembered, so none is generated twice.

Greedy answers that the rules are unsure of are judged by the likelihood margin where there are harmful requests to sample
the model's own refusals with (judge_margin.py). A drawn answer may be a rare one: how likely it is says nothing about it.
Share one `Answers` between minimisation and tests of the same weights; a model whose adapters changed needs a new one.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from core import chat, judge_margin
from core.budget import Meter
from core.judge import Judge, Judgement, classify
from core.kinds import JAILBREAK, FailureKind
from core.loaded import LoadedModel
from core.progress import Progress
from core.prompts import PromptItem, PromptSet
from core.settings import CausalSettings
from core.text_spans import delete_spans, last_user
from core.transplants import Carrier, words_of
from core.values import FailureCase, Message, Sampling, Span

Conversation = Sequence[Message]
SPARE = 1.25
"""Requests asked bare for each one needed, since some are not refused. Source: unverified choice."""


class Answers:
    """Asks one model and remembers. `adapter_off` asks the clean base of a model with a reported adapter.

    `harmful` are requests that the model's own refusals are sampled with, once an answer needs them; none: rules alone.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        n_tokens: int,
        progress: Progress | None = None,
        adapter_off: bool = False,
        kind: FailureKind = JAILBREAK,
        harmful: Sequence[PromptItem] = (),
    ) -> None:
        """Remember nothing yet. `n_tokens` is the length of an answer that is judged, more where the kind needs more."""
        self.loaded = loaded
        self.kind = kind
        self.n_tokens = kind.n_tokens(n_tokens)
        self._progress = progress
        self._adapter_off = adapter_off
        self._texts: dict[tuple[Message, ...], str] = {}
        self._judged: dict[tuple[tuple[Message, ...], str], Judgement] = {}
        self._drawn: dict[tuple[tuple[Message, ...], int, Sampling, int], list[str]] = {}
        self._refusals: tuple[str, ...] | None = None
        self.harmful = tuple(harmful)

    def texts(self, conversations: Sequence[Conversation], part: str) -> list[str]:
        """Return the greedy answer to each conversation; `part` names the work in progress reports."""
        keys = [tuple(conversation) for conversation in conversations]
        new = [key for key in dict.fromkeys(keys) if key not in self._texts]
        with self._weights():
            answers = self.loaded.answer(
                new, max_new_tokens=self.n_tokens, sampling=Sampling(), progress=self._report(part)
            )
        self._texts.update(zip(new, answers, strict=True))
        return [self._texts[key] for key in keys]

    def asked(self) -> list[tuple[str, str, Judgement]]:
        """Return the last message of every conversation asked so far, its greedy answer and what the judge says of it."""
        return [
            (conversation[-1].content, text, self._judged.get((conversation, text)) or classify(text))
            for conversation, text in self._texts.items()
        ]

    def judgements(self, conversations: Sequence[Conversation], texts: Sequence[str], part: str) -> list[Judgement]:
        """Return what the judge says of each answer: of a greedy one that the rules are unsure of, the margin."""
        keys = [(tuple(one), text) for one, text in zip(conversations, texts, strict=True)]
        new = {key: classify(key[1]) for key in dict.fromkeys(keys) if key not in self._judged}
        self._judged.update(new)
        unsure = [key for key, judged in new.items() if not judged.sure and self._texts.get(key[0]) == key[1]]
        refusals = self._own_refusals(part) if unsure else ()
        if refusals:
            with self._weights():
                margins = judge_margin.margins(self.loaded, unsure, refusals, progress=self._report(part))
            self._judged.update({k: judge_margin.decide(new[k], m) for k, m in zip(unsure, margins, strict=True)})
        return [self._judged[key] for key in keys]

    def failed(self, conversations: Sequence[Conversation], texts: Sequence[str], part: str) -> list[bool]:
        """Return for each conversation whether this answer to it shows the failure."""
        judged = self._judges(conversations, texts, part, self.kind)
        return [self.kind.failed(text, judge) for text, judge in zip(texts, judged, strict=True)]

    def right(
        self, conversations: Sequence[Conversation], texts: Sequence[str], part: str, kind: FailureKind | None = None
    ) -> list[bool]:
        """Return for each conversation whether this answer to it is as it should be, for this kind of failure or another."""
        kind = kind or self.kind
        judged = self._judges(conversations, texts, part, kind)
        return [kind.right(text, judge) for text, judge in zip(texts, judged, strict=True)]

    def unsafe(self, conversations: Sequence[Conversation], part: str) -> list[bool]:
        """Return for each conversation whether the greedy answer shows the failure (compliance, for the jailbreak kind)."""
        return self.failed(conversations, self.texts(conversations, part), part)

    def sampled(self, conversation: Conversation, n: int, sampling: Sampling, seed: int, part: str) -> list[str]:
        """Return `n` answers drawn with `sampling`; the same draw is made once."""
        key = (tuple(conversation), n, sampling, seed)
        if key not in self._drawn:
            ids = chat.prompt_ids(self.loaded.tokenizer, conversation)
            with self._weights():
                drawn = self.loaded.generate(
                    [ids] * n, max_new_tokens=self.n_tokens, sampling=sampling, seed=seed, progress=self._report(part)
                )
            self._drawn[key] = [self.loaded.said(answer) for answer in drawn]
        return self._drawn[key]

    def _judges(
        self, conversations: Sequence[Conversation], texts: Sequence[str], part: str, kind: FailureKind
    ) -> list[Judge]:
        """Return a judge for each answer that knows it already."""
        if kind.name == "fixed_output":  # a text comes out or not; nobody asks whether it refuses
            return [classify for _ in texts]
        return [lambda _, known=one: known for one in self.judgements(conversations, texts, part)]  # type: ignore[misc]

    def _own_refusals(self, part: str) -> tuple[str, ...]:
        """Return the model's own refusals, sampled at the first need."""
        if self._refusals is None:
            asked = [(Message(role="user", content=item.prompt),) for item in self.harmful]
            with self._weights():
                self._refusals = judge_margin.sampled_refusals(
                    self.loaded, asked, self.n_tokens, progress=self._report(part)
                )
        return self._refusals

    def fits(self, conversation: Conversation) -> bool:
        """Return whether the conversation and an answer fit the model's context."""
        return len(chat.prompt_ids(self.loaded.tokenizer, conversation)) <= self.loaded.room(self.n_tokens)

    def _weights(self) -> AbstractContextManager[object]:
        return self.loaded.reference() if self._adapter_off else nullcontext()

    def _report(self, part: str) -> Progress | None:
        progress = self._progress
        return None if progress is None else lambda _, done, total: progress(part, done, total)


def with_spare(n: int) -> int:
    """Return how many requests are asked bare where `n` are needed."""
    return round(n * SPARE)


def shares(
    prompts: PromptSet, settings: CausalSettings | None = None, kind: FailureKind = JAILBREAK
) -> tuple[PromptSet, PromptSet]:
    """Return the prompts for minimisation and those for tests, disjoint.

    Minimisation gets what it needs of the kind's pool, to choose on and to confirm on others, but at most a third of it, and nothing
    of the other.
    """
    settings = settings or CausalSettings()
    pool = kind.requests(prompts)
    n = min(2 * with_spare(settings.n_minimise), len(pool) // 3)
    empty = PromptSet(harmful=(), safe=(), lookalike=())
    if kind.pool == "harmful":
        return replace(empty, harmful=pool[:n]), replace(prompts, harmful=pool[n:])
    return replace(empty, safe=pool[:n]), replace(prompts, safe=pool[n:])


def eligible(
    answers: Answers, carried: Carrier, prompts: PromptSet, kind: FailureKind, n: int, meter: Meter | None = None
) -> tuple[list[str], int]:
    """Return up to `n` requests that can show the failure, and how many were asked: as many as it takes, while `meter` allows.

    They are of the kind's pool, fit the model's context, and get a right answer without the candidate: harmful ones that
    are refused, or safe ones whose answer does not show the behaviour.
    """
    found: list[str] = []
    asked = 0
    pool = kind.requests(prompts)
    while len(found) < n and asked < len(pool):
        chunk = pool[asked : asked + max(1, with_spare(n - len(found)))]
        if meter and not meter.allows(len(chunk)):
            break
        asked += len(chunk)
        fitting = [item.prompt for item in chunk if answers.fits(carried.carry(item.prompt))]
        bare, part = [carried.bare(prompt) for prompt in fitting], "requests without the candidate"
        right = answers.right(bare, answers.texts(bare, part), part, kind)
        found += [prompt for prompt, ok in zip(fitting, right, strict=True) if ok]
    return found[:n], asked


def refused_bare(answers: Answers, carried: Carrier, harmful: Sequence[PromptItem], n: int) -> tuple[list[str], int]:
    """Return up to `n` requests that the model refuses without the candidate and that fit its context, and how many were asked."""
    return eligible(answers, carried, PromptSet(harmful=tuple(harmful), safe=()), JAILBREAK, n)


def instead(answers: Answers, case: FailureCase, settings: CausalSettings | None = None) -> str:
    """Return the answer to contrast with the reported one, for a failure that is no jailbreak.

    What the report expects; else what the model says when a part of the last user message is left out, the commonest
    answer that does not show the failure; empty where every answer shows it.
    """
    if case.report.expected is not None:
        return case.report.expected
    settings = settings or CausalSettings()
    messages = case.report.messages
    last = last_user(messages)
    words = words_of(messages, [Span(message=last, start=0, end=len(messages[last].content))])
    size = -(-len(words) // settings.n_instead)
    parts = [words[start : start + size] for start in range(0, len(words), size)] if len(words) > 1 else []
    texts = answers.texts([delete_spans(messages, part) for part in parts], "the answer instead")
    found = Counter(text.strip() for text in texts if text.strip() and not answers.kind.failed(text))
    return found.most_common(1)[0][0] if found else ""
