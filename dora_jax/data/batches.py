"""Training batches as a pure function of (seed, step): nothing to save, nothing to lose.

Every step can be asked for alone, so the state of the data is the step's number: a run resumes
exactly, and several processes or workers make the same batches as one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dora_jax.data.encode import EncodedRow
from dora_jax.data.examples import TrainOn
from dora_jax.data.order import MixedOrder, Recent, ShuffledOrder
from dora_jax.data.padding import round_up
from dora_jax.data.train_rows import TrainRow, label_counts, token_counts, train_rows
from dora_jax.errors import DoraError
from dora_jax.training.step import Batch

LENGTH_MULTIPLE = 8

Order = ShuffledOrder | MixedOrder


class Share(NamedTuple):
    """Which part of every batch this process reads: an equal run of its rows.

    The shares of all processes, put together by their numbers, are the batch of one process.
    """

    process: int = 0
    processes: int = 1

    def rows(self, batch_size: int) -> range:
        """Return the numbers of a batch's rows in this share.

        Raises:
            DoraError: when the batch cannot be divided.
        """
        if batch_size % self.processes:
            raise DoraError(
                f"train.batch_size ({batch_size}) must be a multiple of the number of processes "
                f"({self.processes})"
            )
        size = batch_size // self.processes
        return range(self.process * size, (self.process + 1) * size)


class StepBatches(Protocol):
    """Batches by step, and what they cost."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0, or this process's share of it."""
        ...

    @property
    def slots(self) -> float:
        """Mean number of tokens a step runs through the model, padding included, all processes."""
        ...

    @property
    def efficiency(self) -> float:
        """Share of the slots that hold a token of a row, over an epoch."""
        ...


class ShuffledBatches:
    """Batches of one fixed shape, a row each, padded to the longest.

    The loss is on the answers and the tokens that end them, unless `train_on` is `all`.

    Args:
        rows: to train on; at least one.
        batch_size: rows a batch. Epochs run into each other: no row is dropped.
        seed: of the order.
        eos_id: the token that ends an answer.
        train_on: see `train_row`.
        order: of the rows; by default another permutation each epoch.
        share: which of a batch's rows to make.
    """

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        batch_size: int,
        seed: int,
        eos_id: int,
        train_on: TrainOn = "answers",
        order: Order | None = None,
        share: Share = Share(),  # noqa: B008 - immutable
    ):
        self._rows = train_rows(rows, eos_id, train_on)
        self._batch_size, self._eos_id, self._share = batch_size, eos_id, share.rows(batch_size)
        order = order or ShuffledOrder(len(rows), seed)
        self._count, self._epoch = order.count, Recent(order.epoch)
        counts = token_counts(self._rows)
        self.length = round_up(int(counts.max()), LENGTH_MULTIPLE)
        self._labels = int(label_counts(self._rows).max())
        self.slots = float(batch_size * self.length)
        self.efficiency = float(counts.mean() / self.length)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        chosen = []
        for i in self._share:
            epoch, place = divmod(step * self._batch_size + i, self._count)
            chosen.append(self._rows[self._epoch(epoch)[place]])
        return padded_batch(chosen, self.length, self._labels, self._eos_id)


def padded_batch(rows: Sequence[TrainRow | None], length: int, labels: int, pad_id: int) -> Batch:
    """Return rows padded right to (B, length), with (B, labels) labels; None is an empty row."""
    size = len(rows)
    tokens = np.full((size, length), pad_id, np.int32)
    positions = np.zeros((size, labels), np.int32)
    targets = np.zeros((size, labels), np.int32)
    weights = np.zeros((size, labels), np.float32)
    for i, row in enumerate(rows):
        if row is not None:
            tokens[i, : len(row.tokens)] = row.tokens
            positions[i, : len(row.positions)] = row.positions
            targets[i, : len(row.targets)] = row.targets
            weights[i, : len(row.targets)] = 1
    return as_batch(tokens, positions, targets, weights)


def as_batch(*arrays: np.ndarray) -> Batch:
    """Return arrays as a batch; they stay on the host until the step's devices are known."""
    parts: Any = arrays
    return Batch(*parts)


def padded_length(rows: Sequence[EncodedRow]) -> int:
    """Return the length to which these rows are padded: one shape, so one compilation."""
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    return round_up(longest, LENGTH_MULTIPLE)
