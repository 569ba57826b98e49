"""What tests cost, and a limit on it: sequences are counted by the models, a test asks before it spends.

The limit is on sequences, so a run is the same on a fast and a slow machine. What this does not do: stop a test half way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from core.loaded import LoadedModel
from core.values import Budget

SPENT = "Not run: the budget of sequences is spent."
"""The note of a test that the budget left no room for."""


class Meter:
    """Counts what the given models do from now on; `allows` refuses what would go over `limit` sequences."""

    def __init__(self, limit: int, *models: LoadedModel) -> None:
        """Start at nought."""
        self.limit = limit
        self.n_refused = 0
        self._left = 0
        self._models = tuple({id(one): one for one in models}.values())
        self._begun = self._counts()

    @property
    def spent(self) -> bool:
        """Whether something was refused."""
        return self.n_refused > 0

    @property
    def sequences(self) -> int:
        """Sequences generated or scored so far."""
        return self._since()[0]

    def allows(self, n: int) -> bool:
        """Return whether `n` more sequences are within the limit; once they are not, the budget counts as spent."""
        allowed = self.sequences + n <= self.limit - self._left
        self.n_refused += not allowed
        return allowed

    @contextmanager
    def leaving(self, n: int) -> Iterator[None]:
        """Within the block, leave `n` sequences to what comes after it."""
        before, self._left = self._left, n
        try:
            yield
        finally:
            self._left = before

    def budget(self) -> Budget:
        """Return the counts as a value."""
        sequences, batches, passes = self._since()
        return Budget(sequences=sequences, batches=batches, passes=passes, limit=self.limit, spent=self.spent)

    def _counts(self) -> tuple[int, ...]:
        counts = [(one.model_calls, one.batches, one.passes) for one in self._models]
        return tuple(map(sum, zip(*counts, strict=True)))

    def _since(self) -> tuple[int, ...]:
        return tuple(now - begun for now, begun in zip(self._counts(), self._begun, strict=True))
