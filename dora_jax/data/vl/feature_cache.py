"""Features that a frozen network makes once, kept in a folder and mapped into memory.

A folder is named by a digest of what made it: the maker, the inputs, their names, the type of the
numbers. Another maker or other inputs are another folder, so nothing old is taken for new.

    {digest}/features.bin     (N, F), the rows of all images, one behind another
    {digest}/journal.jsonl    while it is made: of each part its rows and checksum
    {digest}/index.json       written last, in one step: without it nothing is read

What was interrupted goes on behind the last part that its checksum proves whole. What is finished
is read once when it is opened, and compared with the checksum of all of it.
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.analysis.atomic import write_text
from dora_jax.data.vl.feature_files import Seen
from dora_jax.data.vl.feature_index import Dtype, read_index
from dora_jax.data.vl.growing_array import GrowingArray
from dora_jax.errors import DoraError

Make = Callable[[Sequence[str]], Sequence[np.ndarray]]
ARRAY, JOURNAL, INDEX = "features.bin", "journal.jsonl", "index.json"
_VERSION = 1


@dataclass(frozen=True)
class MadeBy:
    """What features depend on; all of it as JSON holds it.

    Attributes:
        maker: the network, its weights' digest among it: see `TowerFeatures.identity`.
        inputs: what it was shown, such as a family's settings and seed, or a file's digest.
        dtype: of the numbers that are kept.
    """

    maker: Mapping[str, Any]
    inputs: Mapping[str, Any]
    dtype: Dtype = "float16"

    def record(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what the digest is of."""
        listed = hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()
        return {"version": _VERSION, **vars(self), "names_sha256": listed}


class CachedFeatures:
    """A finished cache, read only, of which only what is asked for comes into memory.

    Args:
        folder: named by its digest, or a link to such a one.
        is_proven: whether all of it was compared with the checksum already; else it is now.

    Raises:
        DoraError: when it is not finished, its files do not go together, or a bit changed.
    """

    def __init__(self, folder: str | Path, is_proven: bool = False):
        self.folder = Path(folder)
        self._again = f"delete {self.folder} to have it made again"
        index = read_index(self.folder / INDEX, self._again)
        self.made_by, self._places, self._sha256 = index.made_by, index.places, index.sha256
        self._path = self.folder / ARRAY
        needed = index.rows * index.size * index.dtype.itemsize
        try:
            held = self._path.stat().st_size
            if held != needed:
                raise DoraError(
                    f"{self._path}: holds {held:,} bytes, and its index says {needed:,}; "
                    f"{self._again}"
                )
            shape = (index.rows, index.size)
            self._rows = np.memmap(self._path, index.dtype, "r", shape=shape)
        except OSError as error:
            raise DoraError(f"{self._path}: cannot be mapped ({error}); {self._again}") from error
        if not is_proven:
            self.verify()

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapped again by another process, rather than copied to it.
        return CachedFeatures, (self.folder, True)

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder

    def stamp(self, name: str) -> int | None:
        """Return a number of the whole, by its checksum; None for an image not among them."""
        return int(self._sha256[:12], 16) if name in self._places else None

    @property
    def names(self) -> tuple[str, ...]:
        """All images, in the order that they were made in."""
        return tuple(self._places)

    def get(self, name: str) -> Seen:
        """Return an image's features (K, F), a view of the file.

        Raises:
            DoraError: naming the folder and the image, when it is not among them.
        """
        if name not in self._places:
            raise DoraError(f"{self.folder}: has no features of {name!r}")
        start, count = self._places[name]
        return Seen(self._rows[start : start + count])

    def verify(self) -> None:
        """Read everything, and compare with the checksums, as when it was opened.

        Raises:
            DoraError: when a bit changed, of the features or of what made them.
        """
        digest = _digest(self.made_by)
        if digest != self.folder.resolve().name:
            raise DoraError(
                f"{self.folder / INDEX}: is of a cache called {digest}: give its folder that name "
                f"again (a link to it may have any), or {self._again}"
            )
        if MadeBy({}, {}).record(self.names)["names_sha256"] != self.made_by.get("names_sha256"):
            raise DoraError(
                f"{self.folder / INDEX}: 'places' does not name what it was made of; {self._again}"
            )
        try:
            with open(self._path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DoraError(f"{self._path}: cannot be read ({error}); {self._again}") from error
        if found != self._sha256:
            raise DoraError(f"{self._path}: is not what it was; {self._again}")


def cached_features(
    root: str | Path, made_by: MadeBy, names: Sequence[str], make: Make, part: int = 256
) -> CachedFeatures:
    """Return the features of images, from the cache, or made now and kept.

    Of several processes one makes them, and the others wait.

    Args:
        root: the folder of all caches.
        made_by: what they depend on besides the names.
        names: of the images or clips, each once.
        make: of some names to the features (K, F) of each, F alike.
        part: how many are made at a time; at most so much is lost by an interruption.

    Raises:
        DoraError: for names that are empty or double, features of different widths or that the
            numbers' type cannot hold, or a folder that cannot be written.
    """
    if not names or len(set(names)) != len(names):
        raise DoraError(f"names of features must be given once each; got {len(names)}")
    record = made_by.record(names)
    folder = Path(root) / _digest(record)
    if (folder / INDEX).exists():
        return CachedFeatures(folder)
    with _locked(folder):
        if not (folder / INDEX).exists():
            _fill(folder, record, names, make, part)
    return CachedFeatures(folder)


def _digest(record: Mapping[str, Any]) -> str:
    try:
        told = json.dumps(record, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DoraError(f"what makes features must be told as JSON ({error})") from None
    return hashlib.sha256(told.encode()).hexdigest()[:24]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")  # noqa: SIM115 - closed below
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise DoraError(
            f"{folder}: cannot be written or locked ({error}); choose another folder for features"
        ) from error
    with lock:
        yield


def _fill(
    folder: Path, record: dict[str, Any], names: Sequence[str], make: Make, part: int
) -> None:
    """Make what is missing, part by part, and write the index when all is there."""
    with GrowingArray(folder / ARRAY, folder / JOURNAL, record["dtype"]) as array:
        while (done := len(array.counts)) < len(names):
            chosen = names[done : done + part]
            made = make(chosen)
            if len(made) != len(chosen):
                raise DoraError(f"{len(made)} features were made of {len(chosen)} images")
            array.append(dict(zip(chosen, made, strict=True)))
        counts, size, sha256 = array.counts, array.size, array.sha256
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    places = dict(zip(names, zip(starts, counts, strict=True), strict=True))
    index = {"made_by": record, "size": size, "sha256": sha256, "places": places}
    write_text(folder / INDEX, json.dumps(index))
    with contextlib.suppress(OSError):  # of no use now, and of no harm
        (folder / JOURNAL).unlink()
