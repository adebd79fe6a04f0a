"""The order of the rows: a pure function of seed and epoch, shuffled, or mixed by weights."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

T = TypeVar("T")


class Recent(Generic[T]):
    """A function of the epoch that keeps what it returned last.

    Threads may ask at once: at worst one makes again what another one made. May be sent to other
    processes, as a cache of functools may not.

    Args:
        make: what an epoch gives; the same each time.
    """

    def __init__(self, make: Callable[[int], T]):
        self._make = make
        self._made: dict[int, T] = {}

    def __call__(self, epoch: int) -> T:
        """Return what an epoch gives."""
        if epoch in (made := self._made):
            return made[epoch]
        found = self._make(epoch)
        # A batch may reach over the end of an epoch, and be made beside the one before it.
        self._made = dict([*made.items()][-1:]) | {epoch: found}
        return found


class ShuffledOrder:
    """A new permutation of all rows each epoch.

    Args:
        count: number of rows, at least one.
        seed: of the permutations.
    """

    def __init__(self, count: int, seed: int):
        self.count, self._seed = count, seed

    def epoch(self, epoch: int) -> Int[np.ndarray, "count"]:
        """Return the rows of an epoch, counted from 0, in the order they are trained on."""
        return np.random.default_rng((self._seed, epoch)).permutation(self.count)


class MixedOrder:
    """Several sources by weight: every epoch holds each source's share, to the row.

    An epoch is as many draws as there are rows. A source goes through a permutation of its own
    rows, and then another one: none of them is seen a second time before all are seen once, and a
    small source with a large weight is repeated more often.

    Args:
        sources: which source each row is of, 0 to S - 1; each has one.
        weights: of the S sources, positive; their sum does not matter.
        seed: of all permutations.
    """

    def __init__(self, sources: Sequence[int], weights: Sequence[float], seed: int):
        of_row = np.asarray(sources)
        self._rows = [np.flatnonzero(of_row == n) for n in range(len(weights))]
        self.count, self._seed = len(of_row), seed
        self.shares = shares(weights, self.count)

    def epoch(self, epoch: int) -> Int[np.ndarray, "count"]:
        """Return the rows of an epoch, counted from 0, in the order they are trained on."""
        drawn = np.concatenate([self._drawn(n, epoch) for n in range(len(self._rows))])
        return drawn[np.random.default_rng((self._seed, epoch)).permutation(self.count)]

    def _drawn(self, source: int, epoch: int) -> np.ndarray:
        """Return the rows that an epoch takes of a source: where the last one stopped."""
        rows, share = self._rows[source], self.shares[source]
        places = np.arange(epoch * share, (epoch + 1) * share)
        found = np.empty(share, np.int64)
        for round_ in np.unique(places // len(rows)):
            order = np.random.default_rng((self._seed, source, int(round_))).permutation(len(rows))
            now = places // len(rows) == round_
            found[now] = rows[order[places[now] % len(rows)]]
        return found


def shares(weights: Sequence[float], count: int) -> tuple[int, ...]:
    """Divide a count by weights: whole numbers that add up, by the largest remainders."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * count
    whole = np.floor(exact).astype(int)
    rest = count - int(whole.sum())
    whole[np.argsort(-(exact - whole), kind="stable")[:rest]] += 1
    return tuple(int(n) for n in whole)
