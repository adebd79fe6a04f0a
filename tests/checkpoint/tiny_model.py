"""A LLaMA of toy size with a tokenizer, written as GGUF or as a Hugging Face folder."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from dora_jax.data.tokenizer import Tokenizer
from dora_jax.models.config import LlamaConfig
from dora_jax.models.rotary import Rotary

TEMPLATE = (
    "{% for message in messages %}\n"
    "{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
_MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or"]
# Special tokens first, then the 256 bytes, then what the merges make.
TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    *sorted(ByteLevel.alphabet()),
    *(merge.replace(" ", "") for merge in _MERGES),
]

# No two widths are the same: hidden 96, queries 128, keys 64, MLP 160.
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rope=Rotary(rope_theta=5000.0),
    rms_norm_eps=2e-5,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)


def gguf_metadata() -> dict[str, Any]:
    """Return the tokenizer's part of a GGUF file's metadata."""
    types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": _MERGES,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(gguf_metadata(), "tiny")


def hf_weights(config: LlamaConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights by Hugging Face's names, each (out, in); spelled out by hand."""
    rng = np.random.default_rng(seed)
    c = config
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocab_size, c.hidden_size),
        "model.norm.weight": (c.hidden_size,),
    }
    for n in range(c.num_hidden_layers):
        layer = f"model.layers.{n}."
        shapes[layer + "input_layernorm.weight"] = (c.hidden_size,)
        shapes[layer + "post_attention_layernorm.weight"] = (c.hidden_size,)
        shapes[layer + "self_attn.q_proj.weight"] = (queries, c.hidden_size)
        shapes[layer + "self_attn.k_proj.weight"] = (keys, c.hidden_size)
        shapes[layer + "self_attn.v_proj.weight"] = (keys, c.hidden_size)
        shapes[layer + "self_attn.o_proj.weight"] = (c.hidden_size, queries)
        shapes[layer + "mlp.gate_proj.weight"] = (c.intermediate_size, c.hidden_size)
        shapes[layer + "mlp.up_proj.weight"] = (c.intermediate_size, c.hidden_size)
        shapes[layer + "mlp.down_proj.weight"] = (c.hidden_size, c.intermediate_size)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return {
        name: (rng.standard_normal(shape) / 8 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def our_params(weights: dict[str, np.ndarray], config: LlamaConfig = CONFIG) -> dict[str, Any]:
    """Return the tree that those weights must become, built without the table under test."""

    def stack(name: str) -> np.ndarray:
        layers = range(config.num_hidden_layers)
        return np.stack([weights[f"model.layers.{n}.{name}.weight"] for n in layers])

    def kernels(block: str, names: str) -> dict[str, Any]:
        return {
            name: {"kernel": stack(f"{block}.{name}").transpose(0, 2, 1)} for name in names.split()
        }

    params: dict[str, Any] = {
        "embed_tokens": {"embedding": weights["model.embed_tokens.weight"]},
        "layers": {
            "input_layernorm": {"scale": stack("input_layernorm")},
            "post_attention_layernorm": {"scale": stack("post_attention_layernorm")},
            "self_attn": kernels("self_attn", "q_proj k_proj v_proj o_proj"),
            "mlp": kernels("mlp", "gate_proj up_proj down_proj"),
        },
        "norm": {"scale": weights["model.norm.weight"]},
    }
    if "lm_head.weight" in weights:
        params["lm_head"] = {"kernel": weights["lm_head.weight"].T}
    return params


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module.startswith("model.layers."):
        _, _, n, module = module.split(".", 3)
        return f"blk.{n}.{_GGUF_NAMES[module]}.weight"
    return f"{_GGUF_NAMES[module]}.weight"


def interleave(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Put rows into GGUF's order, one by one: the features i and i + F / 2 side by side."""
    out = np.empty_like(weight)
    for row in range(len(weight)):
        head, feature = divmod(row, head_dim)
        half, i = divmod(feature, head_dim // 2)
        out[head * head_dim + 2 * i + half] = weight[row]
    return out


def write_gguf(
    path: Path,
    weights: dict[str, np.ndarray],
    kind: str = "F32",
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
    config: LlamaConfig = CONFIG,
) -> None:
    """Write a GGUF file.

    Args:
        path: the file.
        weights: by Hugging Face's names, in its row order.
        kind: type of the matrices; vectors are always F32.
        architecture: as the file names it.
        metadata: fields to add, or, when None, to leave out.
        config: the shape that the file gives.
    """
    kind_id = gguf.GGMLQuantizationType[kind]
    fields: dict[str, Any] = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope.rope_theta,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        **gguf_metadata(),
        **(metadata or {}),
    }
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for name, value in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            value = interleave(value, config.head_dim)
        if value.ndim == 1:
            writer.add_tensor(_gguf_name(name), value)
        elif value.dtype == np.uint8:  # is in that format already
            writer.add_tensor(_gguf_name(name), value, raw_dtype=kind_id)
        else:
            data = gguf.quants.quantize(value, kind_id)
            writer.add_tensor(_gguf_name(name), data, raw_dtype=kind_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
