"""Deleting text and scoring the answer again: token by token, or block by block in a long prompt.

A long prompt is cut into blocks at messages, paragraphs, lines and words. The blocks whose deletion lowers F most are
halved, round by round, and the tokens of the last ones are deleted one by one: O(k log n) prompts instead of n. Deletions
are real: what follows moves up. Two texts of which either suffices hide each other here as they do token by token, and
so do a supporting and an opposing text in one block.
"""

import time
from collections.abc import Sequence
from math import ceil, log2

import numpy as np
import torch

from core.errors import AttributionError
from core.loaded import is_out_of_memory
from core.progress import Progress
from core.settings import AttributionSettings
from core.target import TargetLogProb
from core.values import Estimate, FailureCase

Block = tuple[int, int]
"""Half-open range of indices into the scored positions."""
MESSAGE, PARAGRAPH, LINE, WORD, INSIDE = 4, 3, 2, 1, 0
"""What a block border falls on, best first."""
GAP = 64
"""Characters of white space before a token that are looked at for line breaks."""


class Deletions:
    """F of the prompt without some of its tokens, in batches; out of memory halves the batch."""

    def __init__(self, function: TargetLogProb, settings: AttributionSettings, progress: Progress | None) -> None:
        """Score the whole prompt."""
        self.function, self.progress = function, progress
        n_prompt = function.prompt.shape[1]
        most = settings.occlusion_batch if function.prompt.is_cuda else settings.occlusion_batch_cpu
        self.batch = max(
            1, min(most, settings.occlusion_tokens // n_prompt, settings.occlusion_logits // function.n_logits)
        )
        self.positions = np.flatnonzero(function.scored)
        if len(self.positions) and n_prompt < 2:
            raise AttributionError("The prompt is a single token, so nothing is left without it: use another method.")
        self.by_blocks = len(self.positions) > settings.hierarchical_above
        self.planned = planned(len(self.positions), settings)
        self.done = 0
        self.part = "occlusion"
        with torch.no_grad():
            self.whole = function.tokens(function.prompt)[0]

    def drops(self, deletions: Sequence[np.ndarray]) -> torch.Tensor:
        """Return how much F falls, (n, n_target), without each of the sets of positions; work goes from left to right."""
        found = torch.zeros(len(deletions), self.function.n_target, device=self.whole.device)
        order = sorted(range(len(deletions)), key=lambda row: (int(deletions[row][0]), row))
        at = 0
        while at < len(order):
            rows = order[at : at + self.batch]
            started = time.perf_counter()
            try:
                with torch.no_grad():
                    without = self.function.without([deletions[row] for row in rows])
            except (RuntimeError, MemoryError) as error:
                if len(rows) == 1 or not is_out_of_memory(error):
                    raise
                self.batch = max(1, len(rows) // 2)
                continue
            found[torch.tensor(rows)] = self.whole[None] - without
            at += len(rows)
            self._report(len(rows), time.perf_counter() - started)
        return found

    def estimate(self, borders: np.ndarray, settings: AttributionSettings) -> Estimate:
        """Return what all of it will take, from one timed batch of deletions spread over the prompt."""
        blocks = first_blocks((0, len(self.positions)), borders, max(self.batch, settings.hierarchical_first))
        chosen = [blocks[round(at)] for at in np.linspace(0, len(blocks) - 1, min(self.batch, len(blocks)))]
        started = time.perf_counter()
        self.drops([self.positions[low:high] for low, high in chosen])
        seconds = (time.perf_counter() - started) / len(chosen) * self.planned
        return Estimate(sequences=self.planned, batches=ceil(self.planned / self.batch), seconds=seconds)

    def _report(self, n: int, seconds: float) -> None:
        if self.by_blocks and self.done == 0:
            self.part = f"occlusion by blocks, about {seconds / n * self.planned:.0f} s"
        self.done += n
        if self.progress is not None:
            self.progress(self.part, self.done, max(self.planned, self.done))


def planned(n_scored: int, settings: AttributionSettings) -> int:
    """Return how many prompts an occlusion scores at most."""
    if n_scored <= settings.hierarchical_above:
        return n_scored
    first, kept, leaf = settings.hierarchical_first, settings.hierarchical_kept, settings.hierarchical_leaf
    # Borders at lines make blocks up to three times as long as others, hence the round more.
    rounds = max(0, ceil(log2(max(1.0, n_scored / first / leaf)))) + 1
    return min(n_scored, settings.hierarchical_limit, first + 2 * kept * rounds + kept * leaf)


def occlude(function: TargetLogProb, settings: AttributionSettings, progress: Progress | None) -> torch.Tensor:
    """Return how much F falls, (n_target, n_prompt), when each scored token is deleted; unscored tokens have 0.

    Above `hierarchical_above` scored tokens only those in the blocks that matter are deleted one by one. Every other
    token has an equal share of what its smallest scored block changes: near 0 where the block does not matter.
    """
    deletions = Deletions(function, settings, progress)
    positions = deletions.positions
    profile = torch.zeros(function.n_target, function.prompt.shape[1], device=function.prompt.device)
    if len(positions) > settings.hierarchical_above:
        by_block = _search(deletions, borders_of(function.case, function.scored), settings)
    else:
        tokens = [(i, i + 1) for i in range(len(positions))]
        by_block = dict(zip(tokens, _score(deletions, tokens), strict=True))
    for (low, high), drop in sorted(by_block.items(), key=lambda item: item[0][0] - item[0][1]):  # the largest first
        profile[:, torch.from_numpy(positions[low:high])] = (drop / (high - low))[:, None]
    return profile


def _score(deletions: Deletions, blocks: Sequence[Block]) -> torch.Tensor:
    return deletions.drops([deletions.positions[low:high] for low, high in blocks])


def _search(deletions: Deletions, borders: np.ndarray, settings: AttributionSettings) -> dict[Block, torch.Tensor]:
    """Return the drop (n_target,) of every block and token that was deleted."""
    found: dict[Block, torch.Tensor] = {}
    whole: Block = (0, len(deletions.positions))

    def score(blocks: Sequence[Block]) -> None:
        room = max(0, settings.hierarchical_limit - len(found))
        wanted = [block for block in blocks if block not in found][:room]
        found.update(zip(wanted, _score(deletions, wanted), strict=True))

    def best(blocks: Sequence[Block]) -> list[Block]:
        support = {block: float(found[block].sum()) for block in blocks if block in found}
        ordered = sorted((b for b in support if support[b] > 0), key=lambda block: (-support[block], block))
        return ordered[: settings.hierarchical_kept]

    level = first_blocks(whole, borders, settings.hierarchical_first)
    score(level)
    level = best(level)
    while any(high - low > settings.hierarchical_leaf for low, high in level):
        halves = {b: halve(b, borders) if b[1] - b[0] > settings.hierarchical_leaf else (b,) for b in level}
        score([part for parts in halves.values() for part in parts])
        if any(part not in found for parts in halves.values() for part in parts):
            return found
        level = best([part for parts in halves.values() for part in parts])
    score([(i, i + 1) for low, high in level for i in range(low, high)])
    return found


def first_blocks(whole: Block, borders: np.ndarray, n: int) -> list[Block]:
    """Return `n` blocks (fewer of a shorter text) that make up `whole`, in order, by halving the longest."""
    blocks = [whole]
    while len(blocks) < n:
        longest = max(blocks, key=lambda block: block[1] - block[0])
        if longest[1] - longest[0] < 2:
            break
        at = blocks.index(longest)
        blocks[at : at + 1] = halve(longest, borders)
    return blocks


def halve(block: Block, borders: np.ndarray) -> tuple[Block, Block]:
    """Return the two parts of a block of at least two tokens: cut at the best border within its middle half."""
    low, high = block
    quarter = max(1, (high - low) // 4)
    middle = (low + high) / 2
    cut = max(
        range(low + quarter, high - quarter + 1), key=lambda place: (borders[place], -abs(place - middle), -place)
    )
    return (low, cut), (cut, high)


def borders_of(case: FailureCase, scored: np.ndarray) -> np.ndarray:
    """Return what the border before each scored token (n_scored,) falls on, `MESSAGE` to `INSIDE`."""
    tokens = [case.prompt.tokens[position] for position in np.flatnonzero(scored)]
    kinds = np.zeros(len(tokens), dtype=int)
    for index, token in enumerate(tokens):
        if index == 0 or token.message != tokens[index - 1].message:
            kinds[index] = MESSAGE
            continue
        message, start = token.message or 0, token.start or 0  # scored tokens have their place in a message
        content = case.report.messages[message].content
        gap = content[max(0, start - GAP) : start]
        gap = gap[len(gap.rstrip()) :]
        if "\n" in gap:
            kinds[index] = PARAGRAPH if gap.count("\n") > 1 else LINE
        elif gap or content[start : start + 1].isspace():
            kinds[index] = WORD
    return kinds
