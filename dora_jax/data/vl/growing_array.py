"""An array on disk that grows part by part, and is whole after any interruption.

A part is written and flushed first, and then a line of the journal: how many rows each image of it
has, and its checksum. What the journal does not prove is cut off when the array is opened again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.data.vl.feature_files import checked
from dora_jax.errors import DoraError


class GrowingArray:
    """Rows of one width, of one image after another; a context that closes its files.

    Args:
        path: of the raw array.
        journal: of what proves its parts.
        dtype: of the numbers.

    Attributes:
        counts: rows of each image that is in it.
        size: the width; None before the first image.

    Raises:
        DoraError: when the file system refuses.
    """

    def __init__(self, path: Path, journal: Path, dtype: str):
        self._dtype = np.dtype(dtype)
        self._whole = hashlib.sha256()
        self.counts: list[int] = []
        self.size: int | None = None
        self._folder = path.parent
        length, told = 0, 0
        with self._refusals():
            self._file = open(path, "a+b")  # noqa: SIM115 - closed with the context
            self._journal = open(journal, "a+b")  # noqa: SIM115
            for line, content, entry in self._proven():
                length, told = length + len(content), told + len(line)
                self._add(content, entry)
            self._file.truncate(length)
            self._journal.truncate(told)

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._journal.close()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say in the user's words what the file system refuses."""
        try:
            yield
        except OSError as error:
            raise DoraError(
                f"{self._folder}: could not be written ({error}); free some space, or choose "
                "another folder for features. What is made is kept"
            ) from error

    @property
    def sha256(self) -> str:
        """The digest of all that is in the array."""
        return self._whole.hexdigest()

    def _proven(self) -> Iterator[tuple[bytes, bytes, dict[str, Any]]]:
        """Yield (line, content, entry) of each part, up to the first that is not whole."""
        self._file.seek(0)
        self._journal.seek(0)
        for line in self._journal:
            try:
                entry = json.loads(line)
                row = int(entry["size"]) * self._dtype.itemsize
                content = self._file.read(sum(entry["counts"]) * row)
                is_whole = hashlib.sha256(content).hexdigest() == entry["sha256"]
            except (ValueError, TypeError, KeyError):  # a line that was cut, or another's
                return
            if not is_whole or not line.endswith(b"\n"):
                return
            yield line, content, entry

    def _add(self, content: bytes, entry: Mapping[str, Any]) -> None:
        self._whole.update(content)
        self.counts += entry["counts"]
        self.size = entry["size"]

    def append(self, part: Mapping[str, np.ndarray]) -> None:
        """Write the features of some images, and then that they are there.

        Args:
            part: features (K, F) by name.

        Raises:
            DoraError: naming the image, for another width than the first one's, or numbers that
                are not finite, or not in this type; or when the file system refuses.
        """
        rows = []
        for name, given in part.items():
            features = checked(np.asarray(given), self.size, f"what was made of {name!r}")
            self.size = features.shape[1]
            with np.errstate(over="ignore"):  # said below, by name
                kept = features.astype(self._dtype)
            if not np.isfinite(kept).all():
                raise DoraError(
                    f"what was made of {name!r} has {np.abs(features).max():g}, more than "
                    f"{self._dtype} can hold: keep features as float32"
                )
            rows.append(kept)
        content = np.concatenate(rows).tobytes()
        entry = {
            "counts": [len(own) for own in rows],
            "size": self.size,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        line = json.dumps(entry).encode() + b"\n"
        with self._refusals():
            for file, what in ((self._file, content), (self._journal, line)):
                file.write(what)
                file.flush()
                os.fsync(file.fileno())
        self._add(content, entry)
