"""A file mapped into memory, read a piece at a time without filling memory with it."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

_DROP = getattr(mmap, "MADV_DONTNEED", None)  # not everywhere
# So much of a file may be in this process's memory.
_KEPT_BYTES = 16 * 2**20


class MappedFile:
    """A file whose bytes are read where they lie.

    Pages that have been read count as this process's memory. Every few megabytes they are given
    back; they stay in the system's cache, and arrays of them stay valid.
    """

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._handed_out = 0

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return a part of the file as a read-only array, without reading it.

        Args:
            offset: of its first byte.
            shape: of the array.
            dtype: of the array.
        """
        count = int(np.prod(shape, dtype=np.int64))
        found = np.frombuffer(self._map, dtype, count, offset).reshape(shape)
        if self._handed_out + found.nbytes > _KEPT_BYTES and _DROP is not None:
            self._map.madvise(_DROP)
            self._handed_out = 0
        self._handed_out += found.nbytes
        return found
