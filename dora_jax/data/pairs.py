"""Batches for models with an encoder: a text to read, and the answer that is written to it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dora_jax.data.batches import padded_batch
from dora_jax.data.buckets import BucketedBatches
from dora_jax.data.encode import EncodedRow
from dora_jax.data.source_rows import lay_out_source
from dora_jax.data.train_rows import TrainRow, train_row
from dora_jax.training.step import Batch


class PairBatches(BucketedBatches):
    """Rows whose sources are of like length, each padded to its bucket's length.

    Answers are padded to the longest that the bucket may hold. Where a row has several targets, one
    of them is drawn each epoch by its weight, as VL-T5 draws VQA's answers. The arguments are those
    of `BucketedBatches`.
    """

    def __init__(self, rows: Sequence[EncodedRow], *how: Any, **more: Any):
        super().__init__(rows, *how, **more)
        self._targets = {
            number: [
                train_row(replace(row, answer=target.ids), self._eos_id) for target in row.targets
            ]
            for number, row in enumerate(rows)
            if len(row.targets) > 1
        }
        self._weights = {
            number: np.array([target.weight for target in rows[number].targets])
            for number in self._targets
        }
        for number, drawn in self._targets.items():
            own = self._bucket[number]
            longest = max(len(row.targets) for row in drawn)
            # Shorter rows may come into a batch of longer ones.
            self._room[own:] = [max(room, longest) for room in self._room[own:]]

    def _row(self, number: int, epoch: int) -> TrainRow:
        """Return what is trained on of a row in an epoch."""
        if number not in self._targets:
            return self._rows[number]
        weights = self._weights[number]
        rng = np.random.default_rng((self._seed, epoch, number))
        drawn = rng.choice(len(weights), p=weights / weights.sum())
        return self._targets[number][int(drawn)]

    @property
    def slots(self) -> float:
        written = np.mean([self._room[bucket] for bucket, _ in self._epoch(0)])
        return super().slots + self._batch_size * float(written)

    @property
    def efficiency(self) -> float:
        used = int(self._tokens.sum() + self._labels.sum())
        return used * self._batch_size / (self.slots * self.places_an_epoch)

    def batch(self, step: int) -> Batch:
        bucket, _ = self._planned(step)
        epoch = step // self.steps_an_epoch
        chosen = [[self._row(i, epoch) for i in held] for held in self.held(step, self._share)]
        return self._laid_out(chosen, _pairs, self.lengths[bucket], self._room[bucket])


def _pairs(places: Sequence[Sequence[TrainRow]], length: int, labels: int, pad_id: int) -> Batch:
    """Return rows whose sources are padded to (B, length), with (B, labels) labels.

    A token is fed for each label: from the start token on, each predicts the next one. An answer
    that was cut has one token more than labels, which predicts nothing and is left out.
    """
    fed = [[row._replace(tokens=row.tokens[: len(row.targets)]) for row in rows] for rows in places]
    read = [rows[0].source.tolist() if rows else [] for rows in places]
    source: Any = lay_out_source(read, length)
    return padded_batch(fed, labels, labels, pad_id)._replace(source=source)
