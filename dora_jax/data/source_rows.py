"""What an encoder reads, as arrays of a batch."""

from collections.abc import Sequence

import numpy as np

from dora_jax.models.source import Source, Visual

_ANY_TOKEN = 0  # of padding


def lay_out_source(
    texts: Sequence[Sequence[int]], width: int, visual: Visual | None = None
) -> Source:
    """Return texts padded right to (B, width), with what is seen beside them.

    Args:
        texts: token ids of each row; none is longer than `width`.
        width: tokens of a row.
        visual: of the rows, see `stack_features`; None where no row has any.
    """
    tokens = np.full((len(texts), width), _ANY_TOKEN, np.int32)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)] = ids
    # What only fills a batch up has no text, and yet attention wants something to look at.
    lengths = np.array([max(1, len(ids)) for ids in texts])
    return Source(tokens, np.arange(width) < lengths[:, None], visual)
