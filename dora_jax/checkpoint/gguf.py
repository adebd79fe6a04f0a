"""GGUF files of the LLaMA architecture, dequantised."""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from dora_jax.checkpoint.names import Tensor, build_params, check_shapes, file_shapes, parse_dtype
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig

ARCHITECTURE = "llama"
_AGAIN = "Download the file again, or take another one."
_EPSILON = "llama.attention.layer_norm_rms_epsilon"
_SIZES = (
    "llama.block_count",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
)


class GgufModel(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        config: the model's shape.
        params: nested dict of numpy arrays, in our names and layout, rows in Hugging Face's order.
        tokenizer: rebuilt from the metadata.
        quantisation: the type that most weights are stored in, such as `Q4_1`.
    """

    config: LlamaConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    quantisation: str


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
            f"{path}: damaged, or cut off after {size} bytes ({error}). {_AGAIN}"
        ) from error


def _metadata(reader: gguf.GGUFReader, path: Path) -> dict[str, Any]:
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise DoraError(f"{path}: damaged metadata ({error}). {_AGAIN}") from error


def _decimal(value: float) -> float:
    """Return the shortest decimal that is this float32: 1e-05, where widening gives 9.99999975e-06.

    The constants were decimals before they were stored.
    """
    return float(str(np.float32(value)))


def _config(metadata: dict[str, Any], vocab_size: int, tied: bool, path: Path) -> LlamaConfig:
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise DoraError(
            f"{path}: a model of architecture {architecture!r}; supported: {ARCHITECTURE!r}"
        )
    missing = [name for name in (*_SIZES, _EPSILON) if name not in metadata]
    if missing:
        raise DoraError(f"{path}: its metadata lacks {', '.join(missing)}. {_AGAIN}")
    for name in _SIZES:  # some models of this architecture give a list, one number a layer
        if not isinstance(metadata[name], int) or metadata[name] < 1:
            raise DoraError(f"{path}: {name} is {metadata[name]!r}; supported: one number, over 0")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise DoraError(
            f"{path}: rotary positions scaled by {scaling!r} are not supported, only unscaled ones"
        )
    if metadata.get("llama.expert_count", 0):
        raise DoraError(f"{path}: a mixture of experts; only dense LLaMA models are supported")
    heads = metadata["llama.attention.head_count"]
    hidden = metadata["llama.embedding_length"]
    head_dim = metadata.get("llama.attention.key_length", hidden // heads)
    rotated = metadata.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise DoraError(
            f"{path}: rotates {rotated} of {head_dim} features of a head; only all is supported"
        )
    try:
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=metadata["llama.feed_forward_length"],
            num_hidden_layers=metadata["llama.block_count"],
            num_attention_heads=heads,
            num_key_value_heads=metadata.get("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            rope_theta=_decimal(metadata.get("llama.rope.freq_base", 10000.0)),
            rms_norm_eps=_decimal(metadata[_EPSILON]),
            tie_word_embeddings=tied,
            max_position_embeddings=metadata.get("llama.context_length", 2048),
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        )
    except (TypeError, ValueError) as error:
        raise DoraError(f"{path}: {error}. {_AGAIN}") from error


def _check_types(stored: dict[str, gguf.ReaderTensor], path: Path) -> None:
    """Refuse types that cannot be dequantised before the long work begins; all at once."""
    unsupported = []
    for kind in {tensor.tensor_type for tensor in stored.values()}:
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


def to_hf_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of a query or key projection back into Hugging Face's order.

    GGUF keeps the two features that are rotated together side by side (2i, 2i + 1); Hugging Face
    keeps them half a head apart (i, i + F / 2).

    Args:
        weight: (heads * F, in).
        heads: number of heads in it.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_gguf(path: str | Path, dtype: Any = "float32") -> GgufModel:
    """Read a LLaMA-architecture model from a GGUF file.

    Args:
        path: the file.
        dtype: of the arrays returned: float32, bfloat16 or float16.

    Raises:
        DoraError: when the file is missing, not GGUF, damaged or cut off, of another architecture
            or an unsupported type, or when tensors are missing, unexpected or of another shape.
    """
    path = Path(path)
    wanted = parse_dtype(dtype)
    reader = _open(path)
    metadata = _metadata(reader, path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    # GGUF lists the axes of a tensor in the reverse of numpy's order.
    shapes = {
        name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in stored.items()
    }
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    config = _config(metadata, len(tokens) or 1, "output.weight" not in stored, path)
    tokenizer = Tokenizer.from_gguf(metadata, path)
    check_shapes(path, file_shapes(config, "gguf"), shapes, _AGAIN)
    _check_types(stored, path)

    def read(tensor: Tensor, name: str) -> np.ndarray:
        source = stored[name]
        value = gguf.quants.dequantize(source.data, source.tensor_type)
        return to_hf_rows(value, tensor.rotary_heads) if tensor.rotary_heads else value

    params = build_params(config, "gguf", wanted, read)
    sizes: dict[str, int] = {}
    for tensor in stored.values():
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + tensor.n_elements
    return GgufModel(config, params, tokenizer, max(sizes, key=lambda name: sizes[name]))
