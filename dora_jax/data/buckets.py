"""Rows of like length together: little padding, for a few shapes instead of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dora_jax.data.batches import LENGTH_MULTIPLE, StepBatches, padded_batch
from dora_jax.data.encode import EncodedRow
from dora_jax.data.order import Recent
from dora_jax.training.step import Batch


def bucket_lengths(counts: Int[np.ndarray, "n"], buckets: int) -> tuple[int, ...]:
    """Return at most so many lengths, ascending, that waste the least when rows are padded to them.

    Exact, by dynamic programming over the distinct lengths (rounded up to a multiple of 8).

    Args:
        counts: tokens of each row.
        buckets: how many lengths, at most; each one is a compilation.
    """
    rounded = -(-np.asarray(counts) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    lengths, rows = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(rows)])  # rows shorter than each length
    # cost[j]: least number of slots for the rows of the first j lengths.
    cost = np.where(np.arange(len(lengths) + 1) == 0, 0.0, np.inf)
    cuts: list[np.ndarray] = []
    for _ in range(min(buckets, len(lengths))):
        # through[i, j]: the lengths i to j - 1 padded to the last of them.
        slots = (before[None, 1:] - before[:-1, None]) * lengths[None, :]
        through = np.where(slots > 0, cost[:-1, None] + slots, np.inf)
        cuts.append(np.concatenate([[0], through.argmin(axis=0)]))
        cost = np.concatenate([[np.inf], through.min(axis=0)])
    chosen, end = [], len(lengths)
    for cut in reversed(cuts):
        chosen.append(int(lengths[end - 1]))
        end = int(cut[end])
    return tuple(chosen[::-1])


def bucketed_plan(
    order: Int[np.ndarray, "n"],
    bucket_of: Int[np.ndarray, "n"],
    batch_size: int,
    seeds: tuple[int, ...],
) -> list[tuple[int, list[int]]]:
    """Return the (bucket, rows) of each batch of an epoch, shuffled.

    What is left of a bucket goes with the next longer one: all batches but one are full.

    Args:
        order: of the rows in the epoch.
        bucket_of: of each row, 0 the shortest.
        batch_size: rows of a batch.
        seeds: of the batches' order.
    """
    longest = int(bucket_of.max())
    plan: list[tuple[int, list[int]]] = []
    left: list[int] = []
    for bucket in range(longest + 1):
        left += [int(i) for i in order[bucket_of[order] == bucket]]
        full = len(left) // batch_size * batch_size
        for start in range(0, full, batch_size):
            plan.append((bucket, left[start : start + batch_size]))
        left = left[full:]
    if left:
        plan.append((longest, left))
    shuffled = np.random.default_rng((*seeds, len(plan))).permutation(len(plan))
    return [plan[i] for i in shuffled]


class BucketedBatches(StepBatches):
    """Batches of rows of like length, each padded to its bucket's length.

    Every row comes once an epoch. What is left of a bucket goes with the next longer one, so all
    batches are full but the last of an epoch, whose empty rows carry no label.

    Args:
        rows: to train on; at least one.
        buckets: number of lengths, see `bucket_lengths`.
        how: the other arguments of `StepBatches`.
        more: likewise, by name.
    """

    def __init__(self, rows: Sequence[EncodedRow], buckets: int, *how: Any, **more: Any):
        super().__init__(rows, *how, **more)
        self.lengths = bucket_lengths(self._tokens, buckets)
        self._bucket = np.searchsorted(self.lengths, self._tokens)
        # Shorter rows may come into a batch of longer ones.
        self._room = [int(self._labels[self._bucket <= n].max()) for n in range(len(self.lengths))]
        self._epoch = Recent(self._plan)
        self.steps_an_epoch = -(-self._order.count // self._batch_size)

    @property
    def slots(self) -> float:
        lengths = [self.lengths[bucket] for bucket, _ in self._epoch(0)]
        return float(self._batch_size * np.mean(lengths))

    @property
    def places_an_epoch(self) -> int:
        return self.steps_an_epoch * self._batch_size

    def _plan(self, epoch: int) -> list[tuple[int, list[int]]]:
        """Return the (bucket, rows) of each batch of an epoch."""
        order = self._order.epoch(epoch)
        return bucketed_plan(order, self._bucket, self._batch_size, (self._seed, epoch))

    def _planned(self, step: int) -> tuple[int, list[int]]:
        epoch, place = divmod(step, self.steps_an_epoch)
        return self._epoch(epoch)[place]

    def held(self, step: int, places: Sequence[int]) -> list[list[int]]:
        _, rows = self._planned(step)
        return [rows[place : place + 1] for place in places]

    def batch(self, step: int) -> Batch:
        bucket, _ = self._planned(step)
        chosen = [[self._rows[i] for i in held] for held in self.held(step, self._share)]
        return self._laid_out(chosen, padded_batch, self.lengths[bucket], self._room[bucket])
