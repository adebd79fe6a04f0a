"""The tensors of a model of the LLaMA family: their names in every format, in one table.

The readers and the writers of Hugging Face folders and GGUF files all walk this table.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  # registers "bfloat16" with numpy
import numpy as np

from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig

_SHOWN = 6


class Tensor(NamedTuple):
    """One kind of tensor.

    Attributes:
        path: in our tree, slash-joined.
        hf: name in safetensors files; `{n}` stands for the layer.
        gguf: name in GGUF files; `{n}` stands for the layer.
        shape: of one layer's array, in our layout.
        rotary_heads: some GGUF files reorder the rows of this many heads for their kind of rotary
            embedding.
        gguf_offset: what GGUF adds to the values: it stores Gemma's norms as they scale.
        layers: how many there are, stacked on a leading axis in our tree; 0 where there is one.
    """

    path: str
    hf: str
    gguf: str
    shape: tuple[int, ...]
    rotary_heads: int = 0
    gguf_offset: float = 0.0
    layers: int = 0

    @property
    def is_stacked(self) -> bool:
        """Whether there is one for each layer, stacked on a leading axis in our tree."""
        return self.layers > 0

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Return the shape of all layers' array in our tree."""
        return ((self.layers,) if self.is_stacked else ()) + self.shape

    @property
    def order(self) -> tuple[int, ...]:
        """Return our axes in the order in which files have them.

        Files hold kernels as (out, in), and those of convolutions as (out, in, height, width).
        """
        rank = len(self.shape)
        if not self.path.endswith("kernel"):
            return tuple(range(rank))
        return (rank - 1, rank - 2, *range(rank - 2))

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Return the shape of one layer's array in files."""
        return tuple(self.shape[axis] for axis in self.order)

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """Return one layer's array of a file with our axes: a view."""
        return array.transpose(np.argsort(self.order))

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Return one layer's array of our tree with the axes of files: a view."""
        return array.transpose(self.order)


def tensors(config: LlamaConfig) -> list[Tensor]:
    """Return every kind of tensor that a model of this shape has."""
    c = config
    heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
    D, Q, K = c.hidden_size, heads * c.head_dim, kv_heads * c.head_dim
    F, V, N = c.intermediate_size, c.vocab_size, c.num_hidden_layers
    offset = float(c.unit_offset)

    def norm(module: str, gguf: str, size: int = D) -> list[Tensor]:
        hf = f"model.layers.{{n}}.{module.replace('/', '.')}.weight"
        name = f"blk.{{n}}.{gguf}.weight"
        path = f"layers/{module}/scale"
        return [Tensor(path, hf, name, (size,), gguf_offset=offset, layers=N)]

    def dense(
        module: str, gguf: str, *shape: int, bias: bool = False, rotary_heads: int = 0
    ) -> list[Tensor]:
        ours, hf = f"layers/{module}", f"model.layers.{{n}}.{module.replace('/', '.')}"
        gguf = f"blk.{{n}}.{gguf}"
        rows = [("kernel", "weight", shape)] + [("bias", "bias", shape[1:])] * bias
        return [
            Tensor(f"{ours}/{leaf}", f"{hf}.{name}", f"{gguf}.{name}", size, rotary_heads, layers=N)
            for leaf, name, size in rows
        ]

    if c.fused_projections:
        qkv = dense("self_attn/qkv_proj", "attn_qkv", D, Q + 2 * K, bias=c.qkv_bias)
        gate_up = dense("mlp/gate_up_proj", "ffn_up", D, 2 * F, bias=c.mlp_bias)
    else:
        qkv = [
            *dense("self_attn/q_proj", "attn_q", D, Q, bias=c.qkv_bias, rotary_heads=heads),
            *dense("self_attn/k_proj", "attn_k", D, K, bias=c.qkv_bias, rotary_heads=kv_heads),
            *dense("self_attn/v_proj", "attn_v", D, K, bias=c.qkv_bias),
        ]
        gate_up = [
            *dense("mlp/gate_proj", "ffn_gate", D, F, bias=c.mlp_bias),
            *dense("mlp/up_proj", "ffn_up", D, F, bias=c.mlp_bias),
        ]
    if c.sandwich_norms:
        inner_norms = [
            *norm("post_attention_layernorm", "post_attention_norm"),
            *norm("pre_feedforward_layernorm", "ffn_norm"),
            *norm("post_feedforward_layernorm", "post_ffw_norm"),
        ]
    else:
        inner_norms = norm("post_attention_layernorm", "ffn_norm")
    head_norms = [
        *norm("self_attn/q_norm", "attn_q_norm", c.head_dim),
        *norm("self_attn/k_norm", "attn_k_norm", c.head_dim),
    ]
    table = [
        Tensor("embed_tokens/embedding", "model.embed_tokens.weight", "token_embd.weight", (V, D)),
        *norm("input_layernorm", "attn_norm"),
        *qkv,
        *(head_norms if c.qk_norm else []),
        *dense("self_attn/o_proj", "attn_output", Q, D, bias=c.o_bias),
        *inner_norms,
        *gate_up,
        *dense("mlp/down_proj", "ffn_down", F, D, bias=c.mlp_bias),
        Tensor("norm/scale", "model.norm.weight", "output_norm.weight", (D,), gguf_offset=offset),
    ]
    if not c.tie_word_embeddings:
        table.append(Tensor("lm_head/kernel", "lm_head.weight", "output.weight", (D, V)))
    return table


def names_in_file(tensor: Tensor, pattern: str) -> list[str]:
    """Return the names of a tensor in a file: one for each layer, or the one.

    Args:
        tensor: a row of the table.
        pattern: its `hf` or `gguf`.
    """
    return [pattern.format(n=n) for n in range(tensor.layers)] if tensor.is_stacked else [pattern]


def shorten(items: Iterable[str]) -> str:
    """Return a list in words: its first items, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def check_shapes(
    where: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    way_out: str,
) -> None:
    """Compare what a file holds with what its model needs.

    Args:
        where: named in the error.
        expected: shapes by name.
        found: shapes by name.
        way_out: what the user can do about it.

    Raises:
        DoraError: naming the missing, the unexpected and the misshaped tensors, all at once.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} {tuple(found[name])} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        f"{title}: {shorten(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
        )
        if names
    ]
    if problems:
        raise DoraError(
            f"{where}: its tensors do not fit the model that it describes; "
            f"{'; '.join(problems)}. {way_out}"
        )


def file_shapes(table: Iterable[Tensor], kind: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a file, by its name there.

    Args:
        table: the model's tensors.
        kind: `hf` or `gguf`.
    """
    return {
        name: tensor.file_shape
        for tensor in table
        for name in names_in_file(tensor, getattr(tensor, kind))
    }


def parse_dtype(dtype: Any) -> np.dtype:
    """Return the numpy dtype of weights.

    Raises:
        DoraError: when it is not one of float32, bfloat16 and float16.
    """
    allowed = ("float32", "bfloat16", "float16")
    try:
        parsed = np.dtype(dtype)
    except TypeError:
        parsed = None
    if parsed is None or parsed.name not in allowed:
        raise DoraError(f"weights cannot be of dtype {dtype}; choose one of {', '.join(allowed)}")
    return parsed
