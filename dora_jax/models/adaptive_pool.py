"""Adaptive pooling: any number of features in a row or a square to a given one.

Window i of n over a length of s is from floor(i s / n) to ceil((i + 1) s / n), as torch has it.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Pooling = Literal["mean", "max"]


class Windows(NamedTuple):
    """What is pooled to what, W features at most to each of N.

    Attributes:
        at: (N, W) which features.
        is_in: (N, W) False where a window is narrower.
    """

    at: np.ndarray
    is_in: np.ndarray


def row_windows(size: int, to: int) -> Windows:
    """Return the windows over a row of `size` features that become `to`."""
    number = np.arange(to)
    start, end = number * size // to, -(-(number + 1) * size // to)
    index = start[:, None] + np.arange((end - start).max())
    return Windows(np.minimum(index, size - 1), index < end[:, None])


def square_windows(side: int, to: int) -> Windows:
    """Return those over a square of `side` by `side` features, row by row, that becomes `to`'s."""
    index, is_in = row_windows(side, to)
    both = index[:, None, :, None] * side + index[None, :, None, :]
    is_both = is_in[:, None, :, None] & is_in[None, :, None, :]
    return Windows(both.reshape(to * to, -1), is_both.reshape(to * to, -1))


def pool(
    features: Float[Array, "*b k f"], is_real: Bool[Array, "*b k"], windows: Windows, how: Pooling
) -> tuple[Float[Array, "*b n f"], Bool[Array, "*b n"]]:
    """Return the pooled features, and which of them are of real ones; the others are zeros.

    Args:
        features: in the order that the windows were made for.
        is_real: False for what is left out of all windows.
        windows: over them.
        how: `mean`, or `max` of each feature.
    """
    parts = jnp.take(features, windows.at, axis=-2)
    counts = jnp.take(is_real, windows.at, axis=-1) & windows.is_in
    is_any, counted = jnp.any(counts, axis=-1), counts[..., None]
    if how == "mean":
        total = jnp.sum(jnp.where(counted, parts, 0), axis=-2)
        pooled = total / jnp.maximum(jnp.sum(counts, axis=-1), 1)[..., None].astype(total.dtype)
    else:
        pooled = jnp.max(jnp.where(counted, parts, -jnp.inf), axis=-2)
    return jnp.where(is_any[..., None], pooled, 0).astype(features.dtype), is_any
