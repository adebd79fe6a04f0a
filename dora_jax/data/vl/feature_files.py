"""Features of images and clips in the files that they are published in: HDF5, and NumPy's own.

Whatever gives features by name is a `Features`: these files, and the cache of `feature_cache`.
"""

import itertools
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dora_jax.errors import DoraError

_WAY_OUT = "write the file as docs/vl_data.md has it"
_EXTRA = "pip install 'dora-jax[features]'"
_FIELD = "features"
_ENDINGS = (".npz", ".npy")


class Seen(NamedTuple):
    """What there is of one image or clip.

    Attributes:
        features: (K, F), cells of a grid row by row, regions or frames in order.
        boxes: (K, 4) where each one lies, (left, right, top, bottom) as shares of the image; None
            where that is not known.
    """

    features: np.ndarray
    boxes: np.ndarray | None = None


class Features(Protocol):
    """Features by the name of an image or clip; `path` is where they are."""

    @property
    def path(self) -> Path: ...

    def stamp(self, name: str) -> int | None:
        """Return a number that tells other features of a name apart, mostly; None without any."""
        ...

    def get(self, name: str) -> Seen:
        """Return what there is of one.

        Raises:
            DoraError: naming where it was looked for, and the name, when there is nothing.
        """


class H5Features:
    """Features in HDF5: one file, or a folder with a file `{name}.h5` an image.

    Either way an image is a dataset `{name}` (K, F), or a group of `{name}/features` and, for
    regions, `{name}/boxes` (K, 4) as (left, top, right, bottom): in pixels beside `{name}/img_w`
    and `{name}/img_h`, as VL-T5's files have them, or else shares of the image. Features of a grid
    may also be (height, width, F). Files are opened when they are needed, in each process.

    Args:
        path: the file or folder.
        size: F that the model takes; None takes any.

    Raises:
        DoraError: when there is no such path, or h5py is missing.
    """

    def __init__(self, path: str | Path, size: int | None = None):
        self.path, self._size = Path(path), size
        self._file: Any = None
        if not self.path.exists():
            raise DoraError(f"{self.path}: there is no such file or folder of features")
        _h5py()

    def __getstate__(self) -> dict[str, Any]:
        # An open file stays with its process.
        return {**vars(self), "_file": None}

    def stamp(self, name: str) -> int | None:
        """Return the size of the file that an image is in; None where it is in none."""
        if self.path.is_dir():
            path = self.path / f"{name}.h5"
            return path.stat().st_size if path.is_file() else None
        if self._file is None:
            self._file = _opened(self.path)
        return self.path.stat().st_size if name in self._file else None

    def get(self, name: str) -> Seen:
        """Return an image's features, and its boxes if it has them.

        Raises:
            DoraError: naming the file and the image, when it is missing, broken or of another
                width.
        """
        if self.path.is_dir():
            path = self.path / f"{name}.h5"
            if not path.is_file():
                raise DoraError(f"{self.path}: has no file {name}.h5")
            with _opened(path) as file:
                return self._read(file, name, path)
        if self._file is None:
            self._file = _opened(self.path)
        return self._read(self._file, name, self.path)

    def _read(self, file: Any, name: str, path: Path) -> Seen:
        if name not in file:
            raise DoraError(f"{path}: has no features of {name!r} (it has {_first(file)})")
        where, entry = f"{path}, {name!r}", file[name]
        try:
            if not _is_group(entry):
                return Seen(checked(_numbers(entry, where), self._size, where))
            if _FIELD not in entry:
                raise DoraError(f"{where}: has no {_FIELD!r} (it has {_first(entry)})")
            features = checked(_field(entry, _FIELD, where), self._size, where)
            boxes = _shares(entry, len(features), where) if "boxes" in entry else None
        except OSError as error:
            raise DoraError(f"{where}: cannot be read ({error}); fetch the file again") from error
        return Seen(features, boxes)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DoraError(f"HDF5 files need h5py: {_EXTRA}") from error
    return h5py


def _opened(path: Path) -> Any:
    try:
        return _h5py().File(path, "r")
    except OSError as error:
        raise DoraError(f"{path}: is no HDF5 file that can be read ({error})") from error


def _is_group(entry: Any) -> bool:
    return hasattr(entry, "keys")


def _field(entry: Any, name: str, where: str) -> np.ndarray:
    """Return the numbers of a dataset in an image's group."""
    return _numbers(entry[name], f"{where}, {name!r}")


def _numbers(entry: Any, where: str) -> np.ndarray:
    """Return a dataset's numbers.

    Raises:
        DoraError: for a group, or a dataset of texts or of nothing.
    """
    if _is_group(entry):
        raise DoraError(
            f"{where}: must be a dataset of numbers, and is a group of {_first(entry)}; {_WAY_OUT}"
        )
    found = np.asarray(entry[()])
    if found.dtype.kind not in "iuf":
        what = "is empty" if entry.shape is None else f"is of type {entry.dtype}"
        raise DoraError(f"{where}: must be a dataset of numbers, and {what}; {_WAY_OUT}")
    return found


def _pixels(entry: Any, name: str, where: str) -> float:
    """Return an image's width or height."""
    found = _field(entry, name, where)
    if found.size != 1 or not 0 < found.item() < math.inf:
        raise DoraError(
            f"{where}: {name!r} must be one number of pixels, more than 0; got "
            f"{found.tolist()!r:.80}; {_WAY_OUT}"
        )
    return float(found.item())


def _first(entries: Any) -> str:
    """Return the first names of a file or a group, of which there may be many."""
    shown = list(itertools.islice(entries, 3))
    return ", ".join(map(repr, shown)) + (", ..." if len(entries) > len(shown) else "") or "none"


def _shares(entry: Any, count: int, where: str) -> np.ndarray:
    """Return boxes (left, right, top, bottom) as shares of the image."""
    boxes = _field(entry, "boxes", where).astype(np.float32)
    if boxes.shape != (count, 4):
        raise DoraError(f"{where}: its boxes have shape {boxes.shape}, and its features {count}")
    if "img_w" in entry and "img_h" in entry:
        width, height = (_pixels(entry, name, where) for name in ("img_w", "img_h"))
        boxes = np.divide(boxes, [width, height, width, height], dtype=np.float32)
    # A little over 1 is rounding; boxes in pixels are far off.
    if not (boxes.min(initial=0) >= -0.01 and boxes.max(initial=0) <= 1.01):
        raise DoraError(
            f"{where}: its boxes must lie in the image: from 0 to 1, or in pixels with 'img_w' and "
            f"'img_h' beside them; they are from {boxes.min():g} to {boxes.max():g}"
        )
    left, top, right, bottom = boxes.T
    if (turned := (left > right) | (top > bottom)).any():
        number = int(turned.argmax())
        raise DoraError(
            f"{where}: its boxes must be (left, top, right, bottom); number {number + 1} is "
            f"{boxes[number].tolist()}, and ends before it begins; {_WAY_OUT}"
        )
    return np.stack([left, right, top, bottom], axis=-1)


class NumpyFeatures:
    """Features of clips in a folder, `{name}.npz` with an array `features`, or `{name}.npy`.

    As the VALUE benchmark publishes them, a row for each second and a half. Files with Python
    objects in them are refused.

    Args:
        path: the folder.
        size: F that the model takes; None takes any.

    Raises:
        DoraError: when there is no such folder.
    """

    def __init__(self, path: str | Path, size: int | None = None):
        self.path, self._size = Path(path), size
        if not self.path.is_dir():
            raise DoraError(f"{self.path}: there is no such folder of features")

    def stamp(self, name: str) -> int | None:
        """Return the size of a clip's file; None where it has none."""
        path = self._file(name)
        return None if path is None else path.stat().st_size

    def _file(self, name: str) -> Path | None:
        paths = (self.path / f"{name}{ending}" for ending in _ENDINGS)
        return next((path for path in paths if path.is_file()), None)

    def get(self, name: str) -> Seen:
        """Return a clip's features.

        Raises:
            DoraError: naming the file, when it is missing, broken or of another width.
        """
        path = self._file(name)
        if path is None:
            raise DoraError(f"{self.path}: has no file {name}.npz, and no {name}.npy")
        try:
            found = np.load(path, allow_pickle=False)
            if path.suffix == ".npz":
                with found:
                    if _FIELD not in found:
                        raise DoraError(f"{path}: has no array {_FIELD!r}, but {_first(found)}")
                    found = found[_FIELD]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DoraError(f"{path}: cannot be read ({error}); fetch it again") from error
        return Seen(checked(found, self._size, str(path)))


def checked(features: np.ndarray, size: int | None, where: str) -> np.ndarray:
    """Return features as (K, F); a grid (height, width, F) row by row.

    Raises:
        DoraError: for another shape, naming both, or numbers that are not finite.
    """
    found = features.reshape(-1, features.shape[-1]) if features.ndim == 3 else features
    if found.ndim != 2 or not len(found) or (size is not None and found.shape[1] != size):
        expected = "size" if size is None else size
        raise DoraError(
            f"{where}: its features have shape {features.shape}; the model takes (any number, "
            f"{expected})"
        )
    if not np.issubdtype(found.dtype, np.floating) or not np.isfinite(found).all():
        raise DoraError(f"{where}: its features must be finite floating-point numbers")
    return found
