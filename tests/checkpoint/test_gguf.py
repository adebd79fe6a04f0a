import contextlib

import gguf
import jax
import numpy as np
import pytest

from dora_jax.checkpoint.gguf import gguf_rows, read_gguf
from dora_jax.errors import DoraError
from tests.checkpoint.tiny_model import (
    CONFIG,
    TOKENS,
    hf_weights,
    interleave,
    our_params,
    write_gguf,
)


def assert_same(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, hf_weights())
    return path


def test_rows_of_queries_and_keys_go_back_to_hugging_faces_order():
    weight = np.arange(3 * 8 * 5, dtype=np.float32).reshape(24, 5)
    stored = interleave(weight, head_dim=8)
    for start, stop in ((0, 24), (5, 6), (3, 19)):
        order = gguf_rows(24, 3, start, stop)
        np.testing.assert_array_equal(stored[order], weight[start:stop])
    # Within one head, GGUF's order of the features 0 1 2 3 | 4 5 6 7.
    order = interleave(np.arange(8.0)[:, None], head_dim=8)[:, 0]
    assert order.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_float32_comes_back_bit_for_bit(intact):
    model = read_gguf(intact)
    assert model.config == CONFIG
    assert model.quantisation == "F32"
    assert_same(model.params, our_params(hf_weights()))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))
    assert model.tokenizer.vocab_size == len(TOKENS)


def test_an_output_matrix_makes_the_head_untied(tmp_path):
    weights = hf_weights() | {"lm_head.weight": hf_weights(seed=1)["model.embed_tokens.weight"]}
    write_gguf(tmp_path / "m.gguf", weights)
    model = read_gguf(tmp_path / "m.gguf")
    assert model.config.tie_word_embeddings is False
    assert_same(model.params, our_params(weights))


def dequantise_by_hand(weight, kind):
    """Round a matrix as the format says, block of 32 by block of 32."""
    blocks = weight.reshape(-1, 32).astype(np.float64)
    if kind == "Q8_0":
        scale = np.float16(np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float64)
        return (np.rint(blocks / scale) * scale).reshape(weight.shape), scale.max()
    if kind == "Q4_0":  # the value that is largest either way is level -8
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
        step = np.float16(largest / -8).astype(np.float64)
        levels = np.clip(np.floor(blocks / step + 8.5), 0, 15) - 8
        return (levels * step).reshape(weight.shape), np.abs(step).max()
    low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    step, low = (np.float16(x).astype(np.float64) for x in ((high - low) / 15, low))
    levels = np.clip(np.rint((blocks - low) / step), 0, 15)
    return (levels * step + low).reshape(weight.shape), step.max()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantised_weights_are_dequantised(tmp_path, kind):
    weights = hf_weights()
    write_gguf(tmp_path / "m.gguf", weights, kind)
    model = read_gguf(tmp_path / "m.gguf")
    assert model.quantisation == kind
    attention = model.params["layers"]["self_attn"]
    for name in ("q_proj", "o_proj"):
        weight = weights[f"model.layers.1.self_attn.{name}.weight"]
        expected, step = dequantise_by_hand(weight, kind)
        error = np.abs(attention[name]["kernel"][1] - expected.T)
        # A value half way between two levels may go either way, few are.
        assert error.max() < 1.01 * step
        assert (error > 1e-6).mean() < 0.02


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_half_precision_comes_back_bit_for_bit(tmp_path, kind, dtype):
    weights = hf_weights()
    write_gguf(tmp_path / "m.gguf", weights, kind)
    model = read_gguf(tmp_path / "m.gguf")
    assert model.quantisation == kind
    rounded = {
        name: value if value.ndim == 1 else value.astype(dtype).astype(np.float32)
        for name, value in weights.items()
    }
    assert_same(model.params, our_params(rounded))


def test_weights_are_rounded_once_to_the_dtype_asked_for(intact):
    params = read_gguf(intact, "bfloat16").params
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), our_params(hf_weights()))
    assert_same(params, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    with pytest.raises(DoraError, match="dtype int8; choose one of float32, bfloat16, float16"):
        read_gguf(intact, "int8")


def test_constants_come_back_as_the_decimals_that_they_were(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, hf_weights(), metadata={"llama.attention.layer_norm_rms_epsilon": 1e-5})
    assert read_gguf(path).config.rms_norm_eps == 1e-5


def test_missing_file(tmp_path):
    with pytest.raises(DoraError, match=r"none\.gguf: no such GGUF file"):
        read_gguf(tmp_path / "none.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip"])
def test_not_a_gguf_file(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(DoraError, match="not a GGUF file"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("share", [0.001, 0.005, 0.5, 0.999])
def test_a_truncated_file_is_refused(intact, tmp_path, share):
    content = intact.read_bytes()
    kept = int(len(content) * share)
    (tmp_path / "m.gguf").write_bytes(content[:kept])
    with pytest.raises(DoraError, match=f"damaged, or cut off after {kept} bytes"):
        read_gguf(tmp_path / "m.gguf")


def test_a_file_without_its_last_value_is_refused(intact, tmp_path):
    last = max(gguf.GGUFReader(intact).tensors, key=lambda tensor: tensor.data_offset)
    end = int(last.data_offset) + last.n_bytes
    content = intact.read_bytes()
    (tmp_path / "whole.gguf").write_bytes(content[:end])
    read_gguf(tmp_path / "whole.gguf")  # only padding is gone
    (tmp_path / "m.gguf").write_bytes(content[: end - 1])
    with pytest.raises(DoraError, match="damaged, or cut off"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("seed", range(3))
def test_damaged_headers_are_refused_or_read_but_never_crash(intact, tmp_path, seed):
    rng = np.random.default_rng(seed)
    whole = intact.read_bytes()
    header = int(gguf.GGUFReader(intact).data_offset)
    for _ in range(8):
        content = bytearray(whole)
        for place in rng.integers(4, header, 3):
            content[place] = rng.integers(256)
        (tmp_path / "m.gguf").write_bytes(content)
        # Anything but a DoraError fails the test.
        with contextlib.suppress(DoraError):
            assert read_gguf(tmp_path / "m.gguf").config.hidden_size == CONFIG.hidden_size


def test_wrong_architecture(tmp_path):
    write_gguf(tmp_path / "m.gguf", hf_weights(), architecture="gpt2")
    with pytest.raises(DoraError, match="architecture 'gpt2'; supported: llama, qwen2"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": None, "llama.feed_forward_length": None}, "lacks .*count, .*length"),
        ({"llama.rope.scaling.type": "dynamic"}, "scaled by 'dynamic' are not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "type yarn need factor, original_max_position"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 2.0},
            "yarn with an attention factor of its own",
        ),
        (
            {"llama.logit_scale": 2.0, "llama.attention.clamp_kqv": 8.0},
            "not supported: llama.logit_scale is 2.0, llama.attention.clamp_kqv is 8.0",
        ),
        ({"llama.attention.value_length": 16}, "keys have 32 features and values 16"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.dimension_count": 3}, "rotates 3 of 32 features"),
        ({"llama.attention.head_count_kv": 3}, "must be a multiple of"),
        ({"llama.attention.head_count": 0}, "head_count is 0; supported: one number, over 0"),
        ({"llama.feed_forward_length": [96, 96, 64]}, r"length is \[96, 96, 64\]; supported"),
        ({"tokenizer.ggml.tokens": None}, "lacks tokenizer.ggml.tokens"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path, metadata, message):
    write_gguf(tmp_path / "m.gguf", hf_weights(), metadata=metadata)
    with pytest.raises(DoraError, match=f"m.gguf: .*{message}"):
        read_gguf(tmp_path / "m.gguf")


def test_all_wrong_tensors_are_listed_at_once(tmp_path):
    weights = hf_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    del weights["model.norm.weight"]
    weights["model.layers.7.mlp.up_proj.weight"] = np.ones((160, 96), np.float32)
    weights["model.layers.0.mlp.down_proj.weight"] = np.ones((160, 96), np.float32)
    write_gguf(tmp_path / "m.gguf", weights)
    with pytest.raises(DoraError) as error:
        read_gguf(tmp_path / "m.gguf")
    text = str(error.value)
    assert "missing: blk.1.ffn_up.weight, output_norm.weight" in text
    assert "unexpected: blk.7.ffn_up.weight" in text
    assert "of another shape: blk.0.ffn_down.weight (160, 96) instead of (96, 160)" in text
    assert "Download the file again" in text


def test_unsupported_types_are_refused_before_the_work(intact, tmp_path, monkeypatch):
    def refuse(data, kind):
        raise NotImplementedError(kind.name)

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(DoraError, match="tensors of type F32, which cannot be dequantised"):
        read_gguf(intact)
