"""How the words of a trigger work together, in plain words, from what was counted of sets of them: AND, OR, k of n.

What this does not do: ask the model (minimise.py counts).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

Words = frozenset[int]
"""A set of words, as indices into those that may belong to a trigger."""


@dataclass(frozen=True)
class Counts:
    """How many of `n` requests each set of words changes, and at most changes where it was given up early; `need` is enough."""

    hits: Mapping[Words, int]
    most: Mapping[Words, int]
    n: int
    need: int


def logic_of(found: Words, names: Sequence[str], counts: Counts) -> str:
    """Return how the words of `found` work: alone, together, or any so many of several; `names` are those of all words."""
    size, n = len(found), counts.n
    need = min(counts.need, counts.hits[found])
    same = [words for words, hits in counts.hits.items() if len(words) == size and hits >= need]
    pool = sorted(frozenset[int]().union(*same))
    listed = ", ".join(names[one] for one in pool)
    if len(same) > 1 and len(same) == comb(len(pool), size):
        return f"OR: any one of {listed}." if size == 1 else f"{size} of {len(pool)}: any {size} of {listed}."
    if len(same) > 1:
        sets = [" and ".join(names[at] for at in sorted(one)) for one in same]
        return f"OR: {'; or '.join(sets)}."
    if size == 1:
        return f"One word: {listed} works by itself."
    fewer = [words for words in counts.most if words < found]
    if any(counts.hits[words] >= need for words in fewer):  # larger than need be, to hold on other requests
        return f"AND: {listed} suffice together."
    less = ""
    if all(found - {one} in counts.most for one in found):
        if all(counts.most[words] == counts.hits[words] for words in fewer):
            less = f"; fewer of them change at most {max(counts.hits[words] for words in fewer)} of {n} other requests"
        elif counts.hits[found] >= counts.need:  # what was given up could not reach that
            less = f"; fewer of them change less than {counts.need} of {n} other requests"
    others = frozenset(range(len(names))) - found
    if all((found - {one}) | {other} in counts.most for one in found for other in others):
        return f"AND: {listed} are needed together{less}."
    return f"AND: {listed} suffice together{less}; not every other word was tried in their place."
