"""The index of a cache of features: which rows of its array are whose, each field checked."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object

Dtype = Literal["float16", "float32"]


class FeatureIndex(NamedTuple):
    """What an index says.

    Attributes:
        made_by: what the features depend on, see `MadeBy.record`.
        places: of each image the first of its rows, and how many there are.
        size: F of each.
        rows: of all images.
        dtype: of the numbers.
        sha256: of the array's bytes.
    """

    made_by: dict[str, Any]
    places: dict[str, tuple[int, int]]
    size: int
    rows: int
    dtype: np.dtype[Any]
    sha256: str


def read_index(path: Path, way_out: str) -> FeatureIndex:
    """Read an index.

    Args:
        path: the file.
        way_out: what the user can do; ends the message.

    Raises:
        DoraError: naming the file and the field that is not as it must be: rows of one image follow
            those of another, from the first on.
    """
    given = read_json_object(path, way_out)
    fields: list[Any] = [given.get(name) for name in ("made_by", "places", "size", "sha256")]
    made_by, places, size, sha256 = fields
    dtype = made_by.get("dtype") if isinstance(made_by, dict) else None
    for name, found, holds, what in (
        ("made_by", made_by, isinstance(made_by, dict), "an object"),
        ("made_by.dtype", dtype, dtype in get_args(Dtype), " or ".join(get_args(Dtype))),
        ("size", size, _is_count(size), "a whole number, from 1"),
        ("sha256", sha256, _is_digest(sha256), "64 hexadecimal digits"),
        ("places", places, isinstance(places, dict) and places != {}, "an object, not empty"),
    ):
        if not holds:
            raise DoraError(f"{path}: {name!r} must be {what}; got {found!r:.80}; {way_out}")
    rows, placed = 0, {}
    for name, place in places.items():
        match place:
            case [int() as start, int() as count] if start == rows and _is_count(count):
                placed[name] = (start, count)
                rows += count
            case _:
                raise DoraError(
                    f"{path}: 'places' of {name!r} must be its first row, {rows}, and how many "
                    f"there are, from 1; got {place!r:.80}; {way_out}"
                )
    return FeatureIndex(made_by, placed, size, rows, np.dtype(dtype), sha256)


def _is_count(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found >= 1


def _is_digest(found: Any) -> bool:
    return isinstance(found, str) and re.fullmatch("[0-9a-f]{64}", found) is not None
