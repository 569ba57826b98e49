"""Judged answers of one model, and the requests it refuses; greedy answers are remembered, so none is generated twice.

Share one `Answers` between minimisation and tests of the same weights; a model whose adapters changed needs a new one.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from core import chat
from core.judge import classify
from core.loaded import LoadedModel
from core.prompts import PromptItem, PromptSet
from core.settings import CausalSettings
from core.transplants import Carrier
from core.values import Message, Outcome, Sampling

Progress = Callable[[str, int, int], None]
Conversation = Sequence[Message]
SPARE = 1.25
"""Requests asked bare for each one needed, since some are not refused. Source: unverified choice."""


class Answers:
    """Asks one model and remembers. `adapter_off` asks the clean base of a model with a reported adapter."""

    def __init__(
        self, loaded: LoadedModel, n_tokens: int, progress: Progress | None = None, adapter_off: bool = False
    ) -> None:
        """Remember nothing yet. `n_tokens` is the length of an answer that is judged."""
        self.loaded = loaded
        self.n_tokens = n_tokens
        self._progress = progress
        self._adapter_off = adapter_off
        self._texts: dict[tuple[Message, ...], str] = {}

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

    def outcomes(self, conversations: Sequence[Conversation], part: str) -> list[Outcome]:
        """Return the class of each greedy answer."""
        return [classify(text).outcome for text in self.texts(conversations, part)]

    def unsafe(self, conversations: Sequence[Conversation], part: str) -> list[bool]:
        """Return for each conversation whether the greedy answer is compliance, in part or whole."""
        return [classify(text).unsafe for text in self.texts(conversations, part)]

    def sampled(self, conversation: Conversation, n: int, sampling: Sampling, seed: int, part: str) -> list[str]:
        """Return `n` answers drawn with `sampling`; not remembered."""
        ids = chat.prompt_ids(self.loaded.tokenizer, conversation)
        with self._weights():
            drawn = self.loaded.generate(
                [ids] * n, max_new_tokens=self.n_tokens, sampling=sampling, seed=seed, progress=self._report(part)
            )
        return [self.loaded.decode(answer) for answer in drawn]

    def fits(self, conversation: Conversation) -> bool:
        """Return whether the conversation and an answer fit the model's context."""
        limit = self.loaded.context_length
        return limit is None or len(chat.prompt_ids(self.loaded.tokenizer, conversation)) + self.n_tokens <= limit

    def _weights(self) -> AbstractContextManager[object]:
        return self.loaded.reference() if self._adapter_off else nullcontext()

    def _report(self, part: str) -> Progress | None:
        progress = self._progress
        return None if progress is None else lambda _, done, total: progress(part, done, total)


def shares(prompts: PromptSet, settings: CausalSettings | None = None) -> tuple[PromptSet, PromptSet]:
    """Return the prompts for minimisation and those for tests, disjoint.

    Minimisation gets what it needs, but at most a third of the harmful prompts, and no safe ones.
    """
    settings = settings or CausalSettings()
    n = min(round(settings.n_minimise * SPARE), len(prompts.harmful) // 3)
    first = PromptSet(harmful=prompts.harmful[:n], safe=(), lookalike=())
    return first, replace(prompts, harmful=prompts.harmful[n:])


def refused_bare(answers: Answers, carried: Carrier, harmful: Sequence[PromptItem], n: int) -> tuple[list[str], int]:
    """Return up to `n` requests that the model refuses without the candidate and that fit its context, and how many were asked."""
    refused: list[str] = []
    asked = 0
    while len(refused) < n and asked < len(harmful):
        chunk = harmful[asked : asked + max(1, round((n - len(refused)) * SPARE))]
        asked += len(chunk)
        fitting = [item.prompt for item in chunk if answers.fits(carried.carry(item.prompt))]
        outcomes = answers.outcomes([carried.bare(prompt) for prompt in fitting], "requests without the candidate")
        refused += [prompt for prompt, outcome in zip(fitting, outcomes, strict=True) if outcome == "refusal"]
    return refused[:n], asked
