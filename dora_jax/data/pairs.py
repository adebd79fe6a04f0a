"""Batches for models with an encoder: a text to read, and the answer that is written to it."""

from collections.abc import Sequence
from typing import Any

from dora_jax.data.batches import padded_batch
from dora_jax.data.buckets import BucketedBatches
from dora_jax.data.source_rows import lay_out_source
from dora_jax.data.train_rows import TrainRow
from dora_jax.training.step import Batch


class PairBatches(BucketedBatches):
    """Rows whose sources are of like length, each padded to its bucket's length.

    Answers are padded to the longest that the bucket may hold. The arguments are those of
    `BucketedBatches`.
    """

    @property
    def slots(self) -> float:
        return super().slots + self._batch_size * float(max(self._room))

    def batch(self, step: int) -> Batch:
        bucket, _ = self._planned(step)
        chosen = [[self._rows[i] for i in held] for held in self.held(step, self._share)]
        return self._laid_out(chosen, _pairs, self.lengths[bucket], self._room[bucket])


def _pairs(places: Sequence[Sequence[TrainRow]], length: int, labels: int, pad_id: int) -> Batch:
    """Return rows whose sources are padded to (B, length), with (B, labels) labels.

    A token is fed for each label: from the start token on, each predicts the next one. An answer
    that was cut has one token more than labels, which predicts nothing and is left out.
    """
    fed = [[row._replace(tokens=row.tokens[: len(row.targets)]) for row in rows] for rows in places]
    source: Any = lay_out_source([rows[0].source if rows else () for rows in places], length)
    return padded_batch(fed, labels, labels, pad_id)._replace(source=source)
