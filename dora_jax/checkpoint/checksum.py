"""A number for each array that changes with any bit of it, computed where the array lies.

    sum over the elements of  bits * (2 i + 1)  modulo 2^32,  i the place in the flat order

Weights are odd, so a flipped bit always changes the sum; they differ, so values that changed their
places nearly always do. Sums of integers do not depend on how an array is divided, so a checkpoint
that is restored onto another mesh is checked by the same numbers, and nothing is gathered.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _bits(x: jax.Array) -> jax.Array:
    """Return an array's bits as unsigned integers of 32 bits; of 64 bits on another axis."""
    width = min(x.dtype.itemsize, 4) * 8
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)


def _checksum(x: jax.Array) -> jax.Array:
    bits = _bits(x)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_checksum(leaf) for leaf in leaves])


def checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Return the checksum of each array, by name.

    Args:
        arrays: jax or numpy; divided in any way, over any processes.
    """
    if not arrays:
        return {}
    sums = np.asarray(_checksums(list(arrays.values())))
    return dict(zip(arrays, sums.tolist(), strict=True))
