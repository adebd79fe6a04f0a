"""GGUF files of the LLaMA family, dequantised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from dora_jax.checkpoint.assemble import Shardings, build_params
from dora_jax.checkpoint.gguf_config import (
    AGAIN,
    ROTARY_TENSORS,
    permutes_rows,
    read_config,
)
from dora_jax.checkpoint.mapped import MappedFile
from dora_jax.checkpoint.names import Tensor, check_shapes, file_shapes, parse_dtype, tensors
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig


class GgufModel(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        config: the model's shape.
        params: nested dict of arrays, in our names and layout, rows in Hugging Face's order.
        tokenizer: rebuilt from the metadata.
        quantisation: the type that most weights are stored in, such as `Q4_1`.
    """

    config: LlamaConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    quantisation: str


class _Stored(NamedTuple):
    """A tensor in a file: its type, shape (rows first), and where its bytes are."""

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int


class _Reader(gguf.GGUFReader):
    """A reader of a plain array: slicing `np.memmap`, token by token, takes three times as long."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, np.asarray(value) if name == "data" else value)


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise DoraError(f"{path}: no such GGUF file")
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise DoraError(f"{path}: not a GGUF file: it begins with {magic!r}, not with b'GGUF'")
    try:
        # It parses the header and slices every tensor out of the file, so a file that ends before
        # its last tensor fails here.
        return _Reader(path)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        size = path.stat().st_size
        raise DoraError(
            f"{path}: damaged, or cut off after {size} bytes ({error}). {AGAIN}"
        ) from error


def _metadata(reader: gguf.GGUFReader, path: Path) -> dict[str, Any]:
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise DoraError(f"{path}: damaged metadata ({error}). {AGAIN}") from error


def _check_types(stored: Mapping[str, _Stored], path: Path) -> None:
    """Refuse types that cannot be dequantised before the long work begins; all at once."""
    unsupported = []
    for kind in {tensor.kind for tensor in stored.values()}:
        block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        try:
            gguf.quants.dequantize(np.zeros(block_bytes, np.uint8), kind)
        except NotImplementedError:
            unsupported.append(kind.name)
    if unsupported:
        raise DoraError(
            f"{path}: holds tensors of type {', '.join(sorted(unsupported))}, which cannot be "
            "dequantised here; take a file of another type, such as Q8_0, Q4_1 or F16"
        )


class _Tensors:
    """The tensors of an open file, by rows in Hugging Face's order."""

    def __init__(self, path: Path, stored: Mapping[str, _Stored], permuted: bool):
        self._file = MappedFile(path)
        self._stored = stored
        self._permuted = permuted

    def whole(self, name: str) -> np.ndarray:
        """Return all of a tensor as it is stored, float32."""
        stored = self._stored[name]
        return self.stored_rows(name, 0, stored.shape[0])

    def stored_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows in the file's order, float32."""
        stored = self._stored[name]
        if len(stored.shape) == 1:  # a block may be longer than a row
            whole = self._file.array(stored.offset, (stored.size,), np.uint8)
            return gguf.quants.dequantize(whole, stored.kind)[start:stop]
        row_bytes = stored.size // stored.shape[0]
        shape = (stop - start, row_bytes)
        part = self._file.array(stored.offset + start * row_bytes, shape, np.uint8)
        return gguf.quants.dequantize(part, stored.kind)

    def rows(self, tensor: Tensor, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows as Hugging Face has them, float32."""
        if self._permuted and tensor.rotary_heads:
            order = gguf_rows(tensor.file_shape[0], tensor.rotary_heads, start, stop)
            first = int(order.min())
            values = self.stored_rows(name, first, int(order.max()) + 1)[order - first]
        else:
            values = self.stored_rows(name, start, stop)
        return values - np.float32(tensor.gguf_offset) if tensor.gguf_offset else values


def gguf_rows(size: int, heads: int, start: int, stop: int) -> np.ndarray:
    """Return where GGUF keeps rows `start` to `stop` of a query or key projection.

    GGUF keeps the two features that are rotated together side by side (2i, 2i + 1); Hugging Face
    keeps them half a head apart (i, i + F / 2).

    Args:
        size: number of rows of the whole, heads * F.
        heads: number of heads in it.
        start: first row, in Hugging Face's order.
        stop: behind the last one.
    """
    width = size // heads
    head, feature = np.divmod(np.arange(start, stop), width)
    half, i = np.divmod(feature, width // 2)
    return head * width + 2 * i + half


def read_gguf(
    path: str | Path, dtype: Any = "float32", sharding: Shardings | None = None
) -> GgufModel:
    """Read a model of the LLaMA family from a GGUF file.

    Args:
        path: the file.
        dtype: of the arrays returned: float32, bfloat16 or float16.
        sharding: where the arrays go, as `read_hf_folder` takes it.

    Raises:
        DoraError: when the file is missing, not GGUF, damaged or cut off, of another architecture
            or an unsupported type, or when tensors are missing, unexpected or of another shape.
    """
    path = Path(path)
    wanted = parse_dtype(dtype)
    reader = _open(path)
    metadata = _metadata(reader, path)
    # GGUF lists the axes of a tensor in the reverse of numpy's order.
    stored = {
        tensor.name: _Stored(
            tensor.tensor_type,
            tuple(int(n) for n in reversed(tensor.shape)),
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    }
    del reader  # it holds an object for each token
    _check_types(stored, path)
    source = _Tensors(path, stored, permutes_rows(metadata))
    factors = {name: source.whole(name) for name in ROTARY_TENSORS if name in stored}
    config = read_config(metadata, frozenset(stored), factors, path)
    tokenizer = Tokenizer.from_gguf(metadata, path)
    del metadata
    shapes = {name: tensor.shape for name, tensor in stored.items() if name not in factors}
    check_shapes(path, file_shapes(tensors(config), "gguf"), shapes, AGAIN)
    params = build_params(tensors(config), "gguf", wanted, source.rows, path, sharding)
    sizes: dict[str, int] = {}
    for tensor in stored.values():
        count = int(np.prod(tensor.shape))
        sizes[tensor.kind.name] = sizes.get(tensor.kind.name, 0) + count
    return GgufModel(config, params, tokenizer, max(sizes, key=lambda name: sizes[name]))
