"""Scikit-learn's 1,797 handwritten digits, 8 x 8 pixels each, in three disjoint splits."""

import functools

import numpy as np

from dora_jax.data.scenes.scene import Split, split_of
from dora_jax.errors import DoraError

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise DoraError("scenes need scikit-learn: pip install 'dora-jax[scenes]'") from error

_FULL = 12  # of at most 16: thin strokes are to be seen against any ground


@functools.cache
def images() -> np.ndarray:
    """Return how much ink there is: float32 (1797, 8, 8), from 0 to 1."""
    return np.minimum(load_digits().images.astype(np.float32) / _FULL, 1)


@functools.cache
def instances(split: Split) -> tuple[tuple[int, ...], ...]:
    """Return the indices of a split's handwritten ones, for each digit from 0 to 9."""
    values = load_digits().target
    splits = np.array([split_of(image.tobytes()) for image in images()])
    return tuple(
        tuple(np.flatnonzero((values == digit) & (splits == split)).tolist()) for digit in range(10)
    )
