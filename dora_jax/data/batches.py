"""Training batches as a pure function of (seed, step): nothing to save, nothing to lose.

Every step can be asked for alone, so the state of the data is the step's number: a run resumes
exactly, and several processes or workers make the same batches as one.
"""

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dora_jax.data.batch_images import OpensImages
from dora_jax.data.encode import EncodedRow
from dora_jax.data.examples import TrainOn
from dora_jax.data.order import MixedOrder, Recent, ShuffledOrder
from dora_jax.data.padding import round_up
from dora_jax.data.train_rows import (
    TrainRow,
    image_counts,
    label_counts,
    token_counts,
    train_rows,
)
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


class StepBatches(abc.ABC):
    """Batches by step, where their rows come from, and what they cost.

    The loss is on the answers and the tokens that end them, unless `train_on` is `all`.

    Args:
        rows: to train on; at least one.
        batch_size: rows a batch, all processes together.
        seed: of the order.
        eos_id: the token that ends an answer.
        train_on: see `train_row`.
        order: of the rows; by default another permutation each epoch.
        share: which of a batch's rows to make.
        images: how the rows' images are opened; None where rows have none.
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
        images: OpensImages | None = None,
    ):
        self._rows = train_rows(rows, eos_id, train_on)
        self._ids = [row.where or f"row {n} to train on" for n, row in enumerate(rows, 1)]
        self._tokens, self._labels = token_counts(self._rows), label_counts(self._rows)
        self._images = images
        # Images of a row of a batch.
        self._most_images = int(image_counts(self._rows).max())
        self._batch_size, self._eos_id, self._seed = batch_size, eos_id, seed
        self._share = share.rows(batch_size)
        self._order = order or ShuffledOrder(len(rows), seed)

    @abc.abstractmethod
    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0, or this process's share of it."""

    def note_broken(self, path: Path) -> None:
        """Name in a file the images that cannot be read from now on, each once."""
        if self._images is not None:
            self._images.note_broken(path)

    def _laid_out(
        self, places: Sequence[Sequence[TrainRow]], lay_out: Callable[..., Batch], *how: int
    ) -> Batch:
        """Return a batch of sequences, with the images that they have."""
        if not self._most_images:
            return lay_out(places, *how, self._eos_id)
        assert self._images is not None, "rows are encoded for a model that sees their images"
        places, opened = self._images.open(places, self._most_images)
        seen: Any = opened
        batch = lay_out(places, *how, self._eos_id)
        if batch.source is not None:
            return batch._replace(source=batch.source._replace(visual=seen))
        return batch._replace(images=seen)

    @abc.abstractmethod
    def held(self, step: int, places: Sequence[int]) -> list[list[int]]:
        """Return which rows are held by these places, from 0, of a step's whole batch."""

    @property
    @abc.abstractmethod
    def slots(self) -> float:
        """Mean number of tokens a step runs through the model, padding included, all processes."""

    @property
    @abc.abstractmethod
    def places_an_epoch(self) -> int:
        """How many rows of batches hold all rows once; of the first epoch, where they differ."""

    @property
    def efficiency(self) -> float:
        """Share of the slots of the first epoch that hold a token of a row."""
        used = self._tokens[self._order.epoch(0)].sum()
        return float(used * self._batch_size / (self.slots * self.places_an_epoch))

    def row_ids(self, step: int) -> list[str]:
        """Return file and line of each row in a step's batch, of all processes, in its order."""
        held = self.held(step, range(self._batch_size))
        return [self._ids[i] for rows in held for i in rows]


class ShuffledBatches(StepBatches):
    """Batches of one fixed shape, a row each, padded to the longest.

    Epochs run into each other: no row is dropped. The arguments are those of `StepBatches`.
    """

    def __init__(self, rows: Sequence[EncodedRow], *how: Any, **more: Any):
        super().__init__(rows, *how, **more)
        self._epoch = Recent(self._order.epoch)
        self.length = round_up(int(self._tokens.max()), LENGTH_MULTIPLE)

    @property
    def slots(self) -> float:
        return float(self._batch_size * self.length)

    @property
    def places_an_epoch(self) -> int:
        return self._order.count

    def held(self, step: int, places: Sequence[int]) -> list[list[int]]:
        numbers = (divmod(step * self._batch_size + place, self._order.count) for place in places)
        return [[int(self._epoch(epoch)[place])] for epoch, place in numbers]

    def batch(self, step: int) -> Batch:
        chosen = [[self._rows[i] for i in held] for held in self.held(step, self._share)]
        return self._laid_out(chosen, padded_batch, self.length, int(self._labels.max()))


def padded_batch(
    places: Sequence[Sequence[TrainRow]], length: int, labels: int, pad_id: int
) -> Batch:
    """Return rows padded right to (B, length), with (B, labels) labels.

    Args:
        places: of each row of the batch its one sequence, or none.
        length: tokens of a row.
        labels: of a row.
        pad_id: the token of padding.
    """
    size = len(places)
    tokens = np.full((size, length), pad_id, np.int32)
    positions = np.zeros((size, labels), np.int32)
    targets = np.zeros((size, labels), np.int32)
    weights = np.zeros((size, labels), np.float32)
    for i, rows in enumerate(places):
        for row in rows:
            tokens[i, : len(row.tokens)] = row.tokens
            positions[i, : len(row.positions)] = row.positions
            targets[i, : len(row.targets)] = row.targets
            weights[i, : len(row.targets)] = 1
    return as_batch(tokens, positions, targets, weights)


def as_batch(*arrays: np.ndarray) -> Batch:
    """Return arrays as a batch; they stay on the host until the step's devices are known."""
    parts: Any = arrays
    return Batch(*parts)
