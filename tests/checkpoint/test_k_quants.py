"""GGUF's K types, against decoders written from the description of the format, in float64."""

import gguf
import numpy as np
import pytest

from dora_jax.checkpoint.gguf import read_gguf
from dora_jax.models.config import LlamaConfig
from tests.checkpoint.tiny_model import TOKENS, hf_weights, write_gguf

# All widths are multiples of a block's 256 weights.
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=128,
)


def half(blocks, at):
    """Return the half-precision number at a byte of each block."""
    return blocks[:, at : at + 2].copy().view(np.float16)[:, 0].astype(np.float64)


def scale_and_minimum(packed, j):
    """Return the 6-bit pair of sub-block j of 8, packed in 12 bytes."""
    p = packed.astype(int)
    if j < 4:
        return p[:, j] & 63, p[:, j + 4] & 63
    scale = (p[:, j + 4] & 15) | ((p[:, j - 4] >> 6) << 4)
    return scale, (p[:, j + 4] >> 4) | ((p[:, j] >> 6) << 4)


def decode_45(blocks, bits):
    """Q4_K is d, dmin, 12 bytes of scales, nibbles; Q5_K has fifth bits in 32 bytes before them."""
    d, dmin, packed = half(blocks, 0), half(blocks, 2), blocks[:, 4:16]
    high, nibbles = blocks[:, 16:48].astype(int), blocks[:, 16 if bits == 4 else 48 :].astype(int)
    out = np.empty((len(blocks), 256))
    for i in range(256):
        sub, place = divmod(i, 32)
        byte = nibbles[:, sub // 2 * 32 + place]
        level = byte >> 4 if sub % 2 else byte & 15
        if bits == 5:
            level = level + 16 * (high[:, place] >> sub & 1)
        scale, minimum = scale_and_minimum(packed, sub)
        out[:, i] = d * scale * level - dmin * minimum
    return out


def decode_6(blocks):
    """Q6_K is 128 bytes of low nibbles, 64 of high pairs of bits, 16 signed scales, d."""
    low, high = blocks[:, :128].astype(int), blocks[:, 128:192].astype(int)
    scales, d = blocks[:, 192:208].copy().view(np.int8).astype(np.float64), half(blocks, 208)
    out = np.empty((len(blocks), 256))
    for i in range(256):
        part, inner = divmod(i, 128)  # each has 64 bytes of low, 32 of high, 8 scales
        quarter, place = divmod(inner, 32)
        byte = low[:, part * 64 + quarter % 2 * 32 + place]
        nibble = byte >> 4 if quarter >= 2 else byte & 15
        pair = high[:, part * 32 + place] >> (2 * quarter) & 3
        scale = scales[:, part * 8 + quarter * 2 + place // 16]
        out[:, i] = d * scale * ((nibble | pair << 4) - 32)
    return out


DECODERS = {
    "Q4_K": lambda blocks: decode_45(blocks, 4),
    "Q5_K": lambda blocks: decode_45(blocks, 5),
    "Q6_K": decode_6,
}
HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def random_blocks(kind, shape, rng):
    """Return a matrix in which all bits that are not a half-precision number are random."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // 256, size), np.uint8)
    for at in HALVES[kind]:
        scale = rng.uniform(-0.01, 0.01, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", list(DECODERS))
def test_a_k_type_is_decoded(tmp_path, kind):
    rng = np.random.default_rng(0)
    weights = {
        name: value if value.ndim == 1 else random_blocks(kind, value.shape, rng)
        for name, value in hf_weights(CONFIG).items()
    }
    write_gguf(tmp_path / "m.gguf", weights, kind, config=CONFIG)
    model = read_gguf(tmp_path / "m.gguf")
    assert model.quantisation == kind
    layers = model.params["layers"]
    found = {
        "model.embed_tokens.weight": model.params["embed_tokens"]["embedding"],
        "model.layers.1.self_attn.q_proj.weight": layers["self_attn"]["q_proj"]["kernel"][1].T,
        "model.layers.0.mlp.down_proj.weight": layers["mlp"]["down_proj"]["kernel"][0].T,
    }
    for name, value in found.items():
        _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        expected = DECODERS[kind](weights[name].reshape(-1, size)).reshape(value.shape)
        assert len(np.unique(expected)) > 1000
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
