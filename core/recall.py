"""What the reported model said while a repair was prepared, kept so that one that is resumed starts from the same.

A greedy answer hangs on near ties, and those on batch size, device, driver and threads: asked again, the model may say another
token. Within `kept` each greedy answer is noted by prompt and limit; one that is noted is not asked for again. In a team all ask,
so that their passes stay in step, and all take what the first was told. A checkpoint holds the notes (`checkpoints`).
What this does not do: note sampled answers, or scores.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.team import Team

if TYPE_CHECKING:
    from core.loaded import LoadedModel

Said = dict[tuple[int, tuple[int, ...]], tuple[int, ...]]
"""Answers by the most tokens they may have and their prompt, all as token ids."""
MAX_BYTES = 500_000_000
"""A larger file is not read. Source: unverified choice (some 80 million tokens; the default settings write less than a million)."""


@dataclass(frozen=True)
class Recall:
    """The answers in `said`, to which new ones are added; of two answers to one prompt the first counts."""

    said: Said
    team: Team

    def answers(
        self, prompts: Sequence[Sequence[int]], limit: int, ask: Callable[[], list[list[int]]]
    ) -> list[list[int]]:
        """Return an answer to each prompt; all are asked for by `ask` where one is missing."""
        keys = [(limit, tuple(map(int, ids))) for ids in prompts]
        if any(key not in self.said for key in keys):
            for key, answer in zip(keys, self.team.told(ask()), strict=True):
                self.said.setdefault(key, tuple(map(int, answer)))
        return [list(self.said[key]) for key in keys]


@contextmanager
def kept(loaded: "LoadedModel", said: Said, team: Team) -> Iterator[Said]:
    """Let `loaded`, which must stay the model as reported meanwhile, answer from `said` and note there what it says."""
    loaded.recall = Recall(said, team)
    try:
        yield said
    finally:
        loaded.recall = None


def write(path: Path, said: Said) -> str:
    """Write `said` and return the SHA-256 of the file. Raises: OSError."""
    data = json.dumps([[limit, prompt, answer] for (limit, prompt), answer in said.items()]).encode()
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read(path: Path, digest: str, n_tokens: int) -> Said:
    """Return what `write` wrote for a vocabulary of `n_tokens`. Raises: OSError; TypeError, ValueError or RecursionError for any other
    file.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_BYTES:,} bytes")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} is not what was written")
    said: Said = {}
    for limit, prompt, answer in json.loads(data):
        ids = (*prompt, *answer)
        if type(limit) is not int or len(answer) > limit or not all(type(i) is int and 0 <= i < n_tokens for i in ids):
            raise ValueError(f"{path.name} holds no answers of this model")
        said[limit, tuple(prompt)] = tuple(answer)
    return said
