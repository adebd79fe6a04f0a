"""One safetensors file: read by rows where it lies, written tensor by tensor.

The library checks a file that is read. It hands out copies of whole tensors and writes from a dict
of them all, which is more memory than a large model leaves; the format is a JSON header in front of
the values.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  # registers "bfloat16" with numpy
import numpy as np
import safetensors

from dora_jax.checkpoint.mapped import MappedFile
from dora_jax.errors import DoraError

# By the format's names.
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<Q")  # of the header, in front of it
_METADATA = "__metadata__"


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: by the format's name, such as `BF16`.
        shape: of the whole.
        offset: of its first byte in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsFile:
    """An open file.

    Attributes:
        tensors: what it holds, by name.

    Raises:
        DoraError: when it is damaged, or cut off.
    """

    def __init__(self, path: Path):
        try:
            with safetensors.safe_open(path, framework="numpy"):
                pass  # it compares the header with the file's length
            with open(path, "rb") as file:
                (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                header = json.loads(file.read(length))
            self._file = MappedFile(path)
        except (safetensors.SafetensorError, OSError, ValueError, struct.error) as error:
            size = path.stat().st_size
            raise DoraError(
                f"{path}: damaged, or cut off after {size} bytes ({error}). Download the folder "
                "again, or take another one."
            ) from error
        start = _LENGTH.size + length
        self.tensors = {
            name: Stored(
                entry["dtype"], tuple(entry["shape"]), start + int(entry["data_offsets"][0])
            )
            for name, entry in header.items()
            if name != _METADATA
        }

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return a part of a tensor along its first axis, read-only; its dtype is in `DTYPES`."""
        stored = self.tensors[name]
        dtype = np.dtype(DTYPES[stored.dtype])
        row_bytes = int(np.prod(stored.shape[1:], dtype=np.int64)) * dtype.itemsize
        shape = (stop - start, *stored.shape[1:])
        return self._file.array(stored.offset + start * row_bytes, shape, dtype)


def refuse_pickle(path: Path) -> None:
    """Check that a file is no pickle of torch's, and not missing where there is one in its place.

    Raises:
        DoraError: when it is (`.bin`); says how to convert it.
    """
    pickled, wanted = path.with_suffix(".bin"), path.with_suffix(".safetensors")
    if path == pickled or (pickled.is_file() and not path.is_file()):
        raise DoraError(
            f"{pickled}: is pickled, and unpickling may run code; convert it once, where torch is: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{pickled}', map_location='cpu', weights_only=True), "
            f"'{wanted}')\""
        )


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: np.dtype,
    value: Callable[[str], np.ndarray],
) -> None:
    """Write a file; never more than one tensor is asked for at a time.

    Args:
        path: the file.
        shapes: of the tensors, by name.
        dtype: of all of them: float32, bfloat16 or float16.
        value: returns a tensor of that dtype and shape by its name.

    Raises:
        OSError: when the file system refuses.
    """
    # transformers refuses files without this.
    header: dict[str, object] = {_METADATA: {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype.name],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(_LENGTH.pack(len(text)))
        file.write(text)
        for name in shapes:
            # As bytes: bfloat16 is no type of Python's buffers.
            file.write(np.ascontiguousarray(value(name)).reshape(-1).view(np.uint8).data)
