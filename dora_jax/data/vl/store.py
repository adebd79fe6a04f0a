"""Features by the path that they are kept at, whatever they are kept in."""

import functools
from pathlib import Path

from dora_jax.data.vl.feature_cache import INDEX, CachedFeatures
from dora_jax.data.vl.feature_files import Features, H5Features, NumpyFeatures
from dora_jax.errors import DoraError


@functools.lru_cache
def open_features(path: Path) -> Features:
    """Return the features at a path: a folder of the cache, HDF5, or a folder of NumPy files.

    Raises:
        DoraError: when there is nothing, or nothing of these.
    """
    if (path / INDEX).is_file():
        return CachedFeatures(path)
    if path.is_file() or (path.is_dir() and next(path.glob("*.h5"), None)):
        return H5Features(path)
    if path.is_dir() and not any(next(path.rglob(f"*.{kind}"), None) for kind in ("npz", "npy")):
        raise DoraError(
            f"{path}: holds no features: neither an {INDEX} of the cache, nor .h5, .npz or .npy "
            "files"
        )
    return NumpyFeatures(path)
