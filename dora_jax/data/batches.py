"""Training batches as a pure function of (seed, step): nothing to save, nothing to lose."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from dora_jax.data.encode import EncodedRow
from dora_jax.data.padding import round_up
from dora_jax.training.step import Batch

_LENGTH_MULTIPLE = 8


class ShuffledBatches:
    """Batches of one fixed shape, from a new permutation of the rows each epoch.

    The loss is on the answer and the token that ends it, never on the prompt.

    Args:
        rows: to train on; at least one.
        batch_size: rows a batch. Epochs run into each other: no row is dropped.
        seed: of the order.
        eos_id: the token that ends an answer.
    """

    def __init__(self, rows: Sequence[EncodedRow], batch_size: int, seed: int, eos_id: int):
        self._rows, self._batch_size, self._seed, self._eos_id = rows, batch_size, seed, eos_id
        self.length = padded_length(rows)
        self._labels = max(len(row.answer) for row in rows) + 1

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        count, size = len(self._rows), self._batch_size
        tokens = np.full((size, self.length), self._eos_id, np.int32)
        positions = np.zeros((size, self._labels), np.int32)
        targets = np.zeros((size, self._labels), np.int32)
        weights = np.zeros((size, self._labels), np.float32)
        orders: dict[int, np.ndarray] = {}
        for i in range(size):
            epoch, place = divmod(step * size + i, count)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((self._seed, epoch)).permutation(count)
            row = self._rows[orders[epoch][place]]
            ids = row.prompt + row.answer
            labels = len(row.answer) + 1
            tokens[i, : len(ids)] = ids
            # The token at position p predicts the one after it.
            positions[i, :labels] = np.arange(labels) + len(row.prompt) - 1
            targets[i, :labels] = (*row.answer, self._eos_id)
            weights[i, :labels] = 1
        return Batch(*map(jnp.asarray, (tokens, positions, targets, weights)))


def padded_length(rows: Sequence[EncodedRow]) -> int:
    """Return the length to which these rows are padded: one shape, so one compilation."""
    longest = max(len(row.prompt) + len(row.answer) for row in rows)
    return round_up(longest, _LENGTH_MULTIPLE)
