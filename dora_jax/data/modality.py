"""Rows with images and rows of text alone, each in batches of their own.

A batch of text alone then costs no look at images, and every batch of images has as many of them
as its shape says: LLaVA's "group by modality".
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dora_jax.data.batches import StepBatches
from dora_jax.data.order import Recent
from dora_jax.training.step import Batch


class GroupedBatches(StepBatches):
    """Batches of several kinds in turn: an epoch has each kind's own number of them, shuffled.

    Each kind goes through its own epochs, which run into each other: no row is dropped.

    Args:
        parts: batches of each kind of rows.
        rows: of each part, the numbers of its rows among all.
        steps: of each part, how many batches an epoch has of it.
        batch_size: rows of a batch.
        seed: of the order.
    """

    def __init__(
        self,
        parts: Sequence[StepBatches],
        rows: Sequence[Sequence[int]],
        steps: Sequence[int],
        batch_size: int,
        seed: int,
    ):
        self._parts, self._of_part = tuple(parts), tuple(tuple(own) for own in rows)
        self._steps, self._batch_size, self._seed = tuple(steps), batch_size, seed
        self._epoch = Recent(self._plan)

    def _plan(self, epoch: int) -> np.ndarray:
        """Return which part each batch of an epoch is of."""
        kinds = np.repeat(np.arange(len(self._steps)), self._steps)
        return np.random.default_rng((self._seed, epoch, len(kinds))).permutation(kinds)

    def _planned(self, step: int) -> tuple[int, int]:
        """Return a step's part, and which of its batches it is."""
        epoch, place = divmod(step, sum(self._steps))
        kinds = self._epoch(epoch)
        part = int(kinds[place])
        return part, epoch * self._steps[part] + int((kinds[:place] == part).sum())

    def _mean(self, values: Sequence[float]) -> float:
        return float(np.average(values, weights=self._steps))

    @property
    def slots(self) -> float:
        return self._mean([part.slots for part in self._parts])

    @property
    def places_an_epoch(self) -> int:
        return sum(self._steps) * self._batch_size

    @property
    def efficiency(self) -> float:
        used = self._mean([part.efficiency * part.slots for part in self._parts])
        return used / self.slots

    def held(self, step: int, places: Sequence[int]) -> list[list[int]]:
        part, own = self._planned(step)
        rows = self._of_part[part]
        return [[rows[i] for i in held] for held in self._parts[part].held(own, places)]

    def row_ids(self, step: int) -> list[str]:
        part, own = self._planned(step)
        return self._parts[part].row_ids(own)

    def note_broken(self, path: Path) -> None:
        for part in self._parts:
            part.note_broken(path)

    def batch(self, step: int) -> Batch:
        part, own = self._planned(step)
        return self._parts[part].batch(own)
