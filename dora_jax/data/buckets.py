"""Rows of like length together: little padding, for a few shapes instead of one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dora_jax.data.batches import LENGTH_MULTIPLE, Order, Share, padded_batch
from dora_jax.data.encode import EncodedRow
from dora_jax.data.examples import TrainOn
from dora_jax.data.order import Recent, ShuffledOrder
from dora_jax.data.train_rows import label_counts, token_counts, train_rows
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


class BucketedBatches:
    """Batches of rows of like length, each padded to its bucket's length.

    Every row comes once an epoch. What is left of a bucket goes with the next longer one, so all
    batches are full but the last of an epoch, whose empty rows carry no label.

    Args:
        rows: to train on; at least one.
        buckets: number of lengths, see `bucket_lengths`.
        batch_size: rows a batch.
        seed: of the order of rows and batches.
        eos_id: fills the rows.
        train_on: see `train_row`.
        order: of the rows; by default another permutation each epoch.
        share: which of a batch's rows to make.
    """

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        buckets: int,
        batch_size: int,
        seed: int,
        eos_id: int,
        train_on: TrainOn = "answers",
        order: Order | None = None,
        share: Share = Share(),  # noqa: B008 - immutable
    ):
        self._rows = train_rows(rows, eos_id, train_on)
        self._batch_size, self._eos_id, self._seed = batch_size, eos_id, seed
        self._share = share.rows(batch_size)
        self._order = order or ShuffledOrder(len(rows), seed)
        self._counts, labels = token_counts(self._rows), label_counts(self._rows)
        self.lengths = bucket_lengths(self._counts, buckets)
        self._bucket = np.searchsorted(self.lengths, self._counts)
        # Shorter rows may come into a batch of longer ones.
        self._labels = [
            int(labels[self._bucket <= n].max(initial=1)) for n in range(len(self.lengths))
        ]
        self._epoch = Recent(self._plan)
        self.steps_an_epoch = -(-self._order.count // batch_size)

    @property
    def slots(self) -> float:
        """Mean number of tokens a step runs through the model, over the first epoch."""
        lengths = [self.lengths[bucket] for bucket, _ in self._epoch(0)]
        return float(self._batch_size * np.mean(lengths))

    @property
    def efficiency(self) -> float:
        """Share of the slots of the first epoch that hold a token."""
        used = self._counts[self._order.epoch(0)].sum()
        return float(used / (self.slots * self.steps_an_epoch))

    def _plan(self, epoch: int) -> list[tuple[int, list[int]]]:
        """Return the (bucket, rows) of each batch of an epoch."""
        order = self._order.epoch(epoch)
        plan: list[tuple[int, list[int]]] = []
        left: list[int] = []
        for bucket in range(len(self.lengths)):
            left += [int(i) for i in order[self._bucket[order] == bucket]]
            full = len(left) // self._batch_size * self._batch_size
            for start in range(0, full, self._batch_size):
                plan.append((bucket, left[start : start + self._batch_size]))
            left = left[full:]
        if left:
            longest = max(int(self._bucket[i]) for i in left)
            plan.append((longest, left))
        shuffled = np.random.default_rng((self._seed, epoch, len(plan))).permutation(len(plan))
        return [plan[i] for i in shuffled]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_an_epoch)
        bucket, indices = self._epoch(epoch)[place]
        chosen = [self._rows[indices[i]] if i < len(indices) else None for i in self._share]
        return padded_batch(chosen, self.lengths[bucket], self._labels[bucket], self._eos_id)
