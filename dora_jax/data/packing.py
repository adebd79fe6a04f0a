"""Several sequences a row: no padding to pay for, and no attention from one to another.

Rows are packed by first-fit in the epoch's shuffled order, so that what is packed together changes
from epoch to epoch. Best fit, and longest first, fill rows hardly better (by 0.6 points at most,
see docs/data.md), and longest first would put the same lengths together each time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dora_jax.data.batches import LENGTH_MULTIPLE, StepBatches, as_batch
from dora_jax.data.encode import EncodedRow
from dora_jax.data.order import Recent
from dora_jax.data.padding import round_up
from dora_jax.data.train_rows import TrainRow, image_counts
from dora_jax.models.attention import PADDING
from dora_jax.training.step import Batch

# Sequences that are packed among themselves: bounds the time, which grows with their square.
WINDOW = 1 << 14
# Room for labels over their mean number, so that rows with more than the mean fill up too.
_LABEL_ROOM = 1.25


def first_fit(
    sizes: Int[np.ndarray, "n k"], capacity: Sequence[int], window: int = WINDOW
) -> list[list[int]]:
    """Put each item into the first bin that has room for it, opening bins as needed.

    Args:
        sizes: (N, K) sizes of each item, in K measures at once.
        capacity: (K,) of a bin; no item is larger.
        window: items whose bins are closed before the next ones come.

    Returns:
        For each bin the items in it, ascending; bins in the order they were opened.
    """
    bins: list[list[int]] = []
    for start in range(0, len(sizes), window):
        bins += _first_fit(sizes[start : start + window], capacity, start)
    return bins


def _first_fit(sizes: np.ndarray, capacity: Sequence[int], start: int) -> list[list[int]]:
    count, least = len(sizes), sizes.min(axis=0)
    free = np.tile(np.asarray(capacity, sizes.dtype), (count, 1)).T.copy()  # (K, bins)
    bins: list[list[int]] = []
    first = 0  # bins before it have no room for any item
    for number, size in enumerate(sizes):
        here = slice(first, len(bins) + 1)  # one that is empty is among them
        fits = free[0, here] >= size[0]
        for measure in range(1, len(size)):
            fits &= free[measure, here] >= size[measure]
        chosen = first + int(fits.argmax())
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(start + number)
        free[:, chosen] -= size
        while first < len(bins) and (free[:, first] < least).any():
            first += 1
    return bins


def label_room(tokens: np.ndarray, labels: np.ndarray, length: int) -> int:
    """Return how many labels a packed row has room for.

    The head runs at labelled positions alone; room for a label at every position would undo that
    where answers are short. So a row is full when its labels are, too.
    """
    usual = int(np.ceil(_LABEL_ROOM * length * labels.sum() / tokens.sum()))
    return min(length, round_up(max(usual, int(labels.max())), LENGTH_MULTIPLE))


def image_room(tokens: np.ndarray, images: np.ndarray, length: int) -> int:
    """Return how many images a packed row has room for: every place is looked at, used or not."""
    usual = int(np.ceil(length * images.sum() / tokens.sum()))
    return max(usual, int(images.max()))


class PackedBatches(StepBatches):
    """Batches of one fixed shape whose rows hold as many sequences as fit.

    Epochs run into each other: no row is dropped.

    Args:
        rows: to train on; at least one, none longer than `length`.
        length: tokens of a packed row.
        how: the other arguments of `StepBatches`; the batch's rows are packed ones.
        more: likewise, by name.
    """

    def __init__(self, rows: Sequence[EncodedRow], length: int, *how: Any, **more: Any):
        super().__init__(rows, *how, **more)
        # No longer than all of them together: a small set needs no wide rows.
        self.length = min(length, round_up(int(self._tokens.sum()), LENGTH_MULTIPLE))
        self.labels = label_room(self._tokens, self._labels, self.length)
        sizes, capacity = [self._tokens, self._labels], [self.length, self.labels]
        if self._most_images:
            images = image_counts(self._rows)
            self._most_images = image_room(self._tokens, images, self.length)
            sizes, capacity = [*sizes, images], [*capacity, self._most_images]
        self._sizes, self._capacity = np.stack(sizes, axis=1), capacity
        self._epoch = Recent(self.plan)
        # The first packed row of each epoch, counted through all epochs.
        self._starts: tuple[int, ...] = (0,)

    @property
    def slots(self) -> float:
        return float(self._batch_size * self.length)

    @property
    def places_an_epoch(self) -> int:
        return len(self._epoch(0))

    def plan(self, epoch: int) -> list[list[int]]:
        """Return which rows each packed row of an epoch holds; from lengths alone, so cheap."""
        order = self._order.epoch(epoch)
        bins = first_fit(self._sizes[order], self._capacity)
        return [[int(order[i]) for i in items] for items in bins]

    def _packed_row(self, number: int) -> list[int]:
        """Return the rows in a packed row, counted through all epochs."""
        starts = self._starts
        while starts[-1] <= number:
            starts = (*starts, starts[-1] + len(self._epoch(len(starts) - 1)))
        # Two threads may both have come so far: what they found is the same.
        self._starts = max(starts, self._starts, key=len)
        epoch = int(np.searchsorted(starts, number, side="right")) - 1
        return self._epoch(epoch)[number - starts[epoch]]

    def held(self, step: int, places: Sequence[int]) -> list[list[int]]:
        return [self._packed_row(step * self._batch_size + place) for place in places]

    def batch(self, step: int) -> Batch:
        packed = [[self._rows[i] for i in held] for held in self.held(step, self._share)]
        return self._laid_out(packed, packed_batch, self.length, self.labels)


def packed_batch(
    packed: Sequence[Sequence[TrainRow]], length: int, labels: int, pad_id: int
) -> Batch:
    """Return packed rows (B, length), with (B, labels) labels, positions and segments from 1."""
    size = len(packed)
    tokens = np.full((size, length), pad_id, np.int32)
    positions = np.zeros((size, length), np.int32)
    segments = np.full((size, length), PADDING, np.int32)
    at_label = np.zeros((size, labels), np.int32)
    targets = np.zeros((size, labels), np.int32)
    weights = np.zeros((size, labels), np.float32)
    for i, rows in enumerate(packed):
        token, label = 0, 0
        for segment, row in enumerate(rows, 1):
            end, last = token + len(row.tokens), label + len(row.targets)
            tokens[i, token:end] = row.tokens
            positions[i, token:end] = np.arange(end - token)
            segments[i, token:end] = segment
            at_label[i, label:last] = row.positions + token
            targets[i, label:last] = row.targets
            weights[i, label:last] = 1
            token, label = end, last
    return as_batch(tokens, at_label, targets, weights, positions, segments)
