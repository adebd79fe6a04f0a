"""The parameter tree, filled piece by piece from a file, on the host or on the devices.

Whatever the file's format, it gives rows of a tensor; they are cast and turned into their place in
one array (or in one device's part of it) at a time. So neither the host nor a device holds more
than its part and a piece of a few megabytes.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from dora_jax.checkpoint.names import Tensor, names_in_file, shorten
from dora_jax.errors import DoraError

_log = logging.getLogger(__name__)

# No piece that is read is larger, counted as float32. Smaller ones stay in a core's cache while
# they are turned.
PIECE_BYTES = 2**20
# XLA takes arrays of this alignment without copying them.
_ALIGNMENT = 64

# Returns rows `start` to `stop` of a tensor, by its row of the table and its name in the file;
# (rows, in) in the file's layout, or (rows,) of a vector; any float type.
ReadRows = Callable[[Tensor, str, int, int], np.ndarray]
# Says where an array of our tree goes, by its path and shape; or one answer for all of them.
Shardings = jax.sharding.Sharding | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an array, not filled, that a CPU device takes without a copy (`jax.device_put`)."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(tuple(shape))


def _is_finite(values: np.ndarray) -> bool:
    if values.dtype.name == "bfloat16":  # no fast path in numpy
        exponent = np.uint16(0x7F80)
        return not ((values.view(np.uint16) & exponent) == exponent).any()
    return bool(np.isfinite(values).all())


class _Assembly:
    """The loading of one model."""

    def __init__(self, dtype: np.dtype, rows: ReadRows):
        self.dtype = dtype
        self.rows = rows
        self.not_finite: dict[str, None] = {}

    def fill(self, tensor: Tensor, names: Sequence[str], index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of an array of our tree.

        Args:
            tensor: its row of the table.
            names: in the file, of the whole array.
            index: the part: one slice, with both ends, for each axis.
        """
        out = aligned_empty([part.stop - part.start for part in index], self.dtype)
        layers = out if tensor.is_stacked else out[None]
        inner = index
        if tensor.is_stacked:
            names, inner = names[index[0]], index[1:]
        # As files have it, rows first.
        rows, *columns = (inner[axis] for axis in tensor.order)
        for name, layer in zip(names, layers, strict=True):
            target = tensor.to_file(layer)
            row_bytes = 4 * int(np.prod(tensor.file_shape[1:]))
            step = max(1, PIECE_BYTES // row_bytes)
            for start in range(rows.start, rows.stop, step):
                stop = min(start + step, rows.stop)
                piece = self.rows(tensor, name, start, stop)[(slice(None), *columns)]
                with np.errstate(over="ignore"):  # the warning says it
                    piece = piece.astype(self.dtype, copy=False)
                if not _is_finite(piece):
                    self.not_finite[name] = None
                target[start - rows.start : stop - rows.start] = piece
        return out

    def place(
        self, tensor: Tensor, names: Sequence[str], shape: tuple[int, ...], sharding: Any
    ) -> jax.Array:
        """Return an array of our tree on its devices; each part is read and sent by itself."""
        devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            axes = zip(index, shape, strict=True)
            ends = tuple(axis.indices(size)[:2] for axis, size in axes)
            devices_of.setdefault(ends, []).append(device)
        parts = []
        for ends, devices in devices_of.items():
            filled = self.fill(tensor, names, tuple(slice(*axis) for axis in ends))
            for device in devices:
                on_device = jax.sharding.SingleDeviceSharding(
                    device, memory_kind=sharding.memory_kind
                )
                parts.append(jax.device_put(filled, on_device))
            # Before the next part takes the host's memory, this one's must be free.
            jax.block_until_ready(parts)
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def build_params(
    table: Sequence[Tensor],
    kind: str,
    dtype: np.dtype,
    rows: ReadRows,
    where: Path,
    sharding: Shardings | None = None,
) -> dict[str, Any]:
    """Fill our tree from a file.

    Weights that are NaN or infinite are named in one warning.

    Args:
        table: the model's tensors.
        kind: `hf` or `gguf`: whose names `rows` gets.
        dtype: of the arrays returned.
        rows: reads the file.
        where: the file, named in messages.
        sharding: where the arrays go; None returns numpy arrays.

    Returns:
        A nested dict of numpy arrays, or of jax arrays of which each device holds its part.

    Raises:
        DoraError: when an array cannot be divided as asked.
    """
    assembly = _Assembly(dtype, rows)
    flat: dict[str, Any] = {}
    for tensor in table:
        names, shape = names_in_file(tensor, getattr(tensor, kind)), tensor.whole_shape
        if sharding is None:
            whole = tuple(slice(0, size) for size in shape)
            flat[tensor.path] = assembly.fill(tensor, names, whole)
            continue
        own = sharding(tensor.path, shape) if callable(sharding) else sharding
        try:
            own.shard_shape(shape)
        except ValueError as error:
            raise DoraError(
                f"{tensor.path} of shape {shape} cannot be divided as asked ({error}); choose "
                "another sharding for it"
            ) from error
        flat[tensor.path] = assembly.place(tensor, names, shape, own)
    if assembly.not_finite:
        beyond = " (values over 65504 become infinite in float16)" if dtype == np.float16 else ""
        _log.warning(
            "%s: %d tensors have weights that are NaN or infinite as %s%s: %s",
            where,
            len(assembly.not_finite),
            dtype.name,
            beyond,
            shorten(assembly.not_finite),
        )
    return flax.traverse_util.unflatten_dict(flat, sep="/")
