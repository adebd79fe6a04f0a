import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import column_norms, merge_params
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama, init_cache
from dora_jax.models.rotary import Rotary
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules
from tests import small_net, tiny
from tests.jaxprs import equations
from tests.models import reference_llama
from tests.small_net import spec
from tests.test_frozen_gradients import llama_loss
from tests.training_ways import flat_leaves

# Three key-value heads of two query heads each, an odd number of layers, an untied head.
UNTIED = LlamaConfig(
    vocab_size=53,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=10,
    rope=Rotary(rope_theta=1000.0),
    rms_norm_eps=1e-3,
    tie_word_embeddings=False,
    max_position_embeddings=64,
)
CONFIGS = {"tied": tiny.CONFIG, "untied": UNTIED}


@functools.lru_cache
def weights(name):
    """Random parameters, norms' scales included."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x * jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype),
        tiny.base_params(CONFIGS[name]),
    )


def tokens_of(config, rows=2, length=11, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, config.vocab_size, (rows, length)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, *args):
    return model.apply(variables, *args)


def logits(name, *args, **fields):
    return np.asarray(apply(Llama(CONFIGS[name], **fields), {"params": weights(name)}, *args))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_reference_s(name):
    config = CONFIGS[name]
    tokens = tokens_of(config)
    found = logits(name, tokens)
    assert found.dtype == np.float32
    for row in range(2):
        expected = reference_llama.logits(weights(name), config, tokens[row])
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-4)


def test_shapes_of_the_parameters():
    shapes = {path: leaf.shape for path, leaf in flat_leaves(tiny.base_params(UNTIED)).items()}
    assert shapes == {
        "embed_tokens/embedding": (53, 24),
        "layers/input_layernorm/scale": (3, 24),
        "layers/post_attention_layernorm/scale": (3, 24),
        "layers/self_attn/q_proj/kernel": (3, 24, 60),
        "layers/self_attn/k_proj/kernel": (3, 24, 30),
        "layers/self_attn/v_proj/kernel": (3, 24, 30),
        "layers/self_attn/o_proj/kernel": (3, 60, 24),
        "layers/mlp/gate_proj/kernel": (3, 24, 40),
        "layers/mlp/up_proj/kernel": (3, 24, 40),
        "layers/mlp/down_proj/kernel": (3, 40, 24),
        "norm/scale": (24,),
        "lm_head/kernel": (24, 53),
    }
    assert "lm_head" not in tiny.base_params()


def test_stacked_layers_start_differently():
    kernel = np.asarray(tiny.base_params(UNTIED)["layers"]["mlp"]["up_proj"]["kernel"])
    assert (kernel[0] != kernel[1]).all()


@pytest.mark.parametrize("method", ["none", "dora"])
def test_the_program_does_not_grow_with_depth(method):
    found = []
    for depth in (2, 8):
        config = dataclasses.replace(tiny.CONFIG, num_hidden_layers=depth)
        rules = AdapterRules.preset("paper", spec("dora")) if method == "dora" else None
        model = Llama(config, rules)
        tokens = jnp.zeros((1, 4), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]

        def gradient(params, model=model, tokens=tokens, rules=rules):
            norms = {} if rules is None else {"norms": column_norms(params, rules)}
            return jax.grad(lambda p: llama_loss(model, {"params": p, **norms}, tokens))(params)

        traced = jax.jit(gradient).trace(params)
        text = traced.lower().as_text()
        found.append((sum(1 for _ in equations(traced.jaxpr)), len(text.splitlines())))
    assert found[0] == found[1]
    assert found[0][0] > 100


def test_left_padding_with_positions_and_segments_changes_nothing():
    tokens = tokens_of(UNTIED)
    plain = logits("untied", tokens)
    padding = 5
    padded = jnp.pad(tokens, ((0, 0), (padding, 0)), constant_values=7)
    real = jnp.arange(padded.shape[1]) >= padding
    positions = jnp.broadcast_to(
        jnp.maximum(jnp.arange(padded.shape[1]) - padding, 0), padded.shape
    )
    segments = jnp.broadcast_to(jnp.where(real, 0, -1), padded.shape)
    found = logits("untied", padded, positions, segments)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, padding:], plain, rtol=1e-4, atol=1e-4)
    unmasked = logits("untied", padded)
    assert np.abs(unmasked[:, padding:] - plain).max() > 0.1


def test_right_padding_needs_no_segments():
    tokens = tokens_of(UNTIED)
    padded = jnp.pad(tokens, ((0, 0), (0, 4)), constant_values=7)
    np.testing.assert_allclose(
        logits("untied", padded)[:, :11], logits("untied", tokens), rtol=1e-4, atol=1e-4
    )


def test_positions_are_relative():
    tokens = tokens_of(UNTIED)
    positions = jnp.broadcast_to(jnp.arange(11), tokens.shape)
    plain = logits("untied", tokens)
    np.testing.assert_allclose(logits("untied", tokens, positions + 9), plain, rtol=1e-3, atol=1e-4)
    assert np.abs(logits("untied", tokens, positions * 2) - plain).max() > 0.1


@functools.partial(jax.jit, static_argnums=0)
def with_cache(model, params, tokens, cache, positions=None, segments=None):
    hidden, cache = model.apply(
        {"params": params}, tokens, positions, segments, cache, method="hidden_states"
    )
    return model.apply({"params": params}, hidden, method="head"), cache


@pytest.mark.parametrize("parts", [(11,), (6, 1, 1, 3)])
@pytest.mark.parametrize("explicit", [False, True])
def test_decoding_with_a_cache_equals_the_full_forward(parts, explicit):
    """In any parts, and with the default segments and positions as with those written out."""
    tokens = tokens_of(UNTIED)
    model, slots = Llama(UNTIED), 14
    cache, found, start = init_cache(UNTIED, 2, slots), [], 0
    for length in parts:
        positions = segments = None
        if explicit:
            own = start + jnp.arange(length)
            positions = jnp.broadcast_to(own, (2, length))
            segments = jnp.zeros((2, length), jnp.int32)
        part = tokens[:, start : start + length]
        out, cache = with_cache(model, weights("untied"), part, cache, positions, segments)
        found.append(out)
        start += length
        assert int(cache.length) == start
    found = np.concatenate(found, axis=1)
    np.testing.assert_allclose(found, logits("untied", tokens), rtol=1e-4, atol=1e-4)
    assert not np.any(cache.key[:, :, :, 11:])
    assert cache.value.shape == (3, 2, 3, slots, 10)


def tuned(rules, config=tiny.CONFIG, **fields):
    model, params = tiny.adapted_params(rules, config, **fields)
    return model, small_net.moved(params, trainable_mask(params, rules))


@pytest.mark.slow
def test_remat_changes_neither_loss_nor_gradients():
    rules = AdapterRules.preset("qkv-dora", spec("dora"))
    tokens = tokens_of(tiny.CONFIG)
    found, sizes = {}, {}
    for remat in ("none", "dots", "full"):
        model, params = tuned(rules, remat=remat)
        trainable, frozen = partition(params, trainable_mask(params, rules))

        def loss(trainable, model=model, frozen=frozen):
            return llama_loss(model, {"params": combine(trainable, frozen)}, tokens)

        gradient = jax.jit(jax.value_and_grad(loss))
        found[remat] = gradient(trainable)
        _, residuals = jax.vjp(loss, trainable)
        sizes[remat] = sum(x.size for x in jax.tree.leaves(residuals))
    for remat in ("dots", "full"):
        np.testing.assert_allclose(found[remat][0], found["none"][0], rtol=1e-6)
        expected = flat_leaves(found["none"][1])
        for path, leaf in flat_leaves(found[remat][1]).items():
            np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)
    assert sizes["full"] < sizes["dots"] < sizes["none"]


def test_an_unknown_remat_names_the_choices():
    with pytest.raises(ValueError, match=r"one of 'none', 'dots', 'full'; got 'dot' .*mean 'dots'"):
        Llama(tiny.CONFIG, remat="dot").init(jax.random.key(0), tokens_of(tiny.CONFIG))


def test_bfloat16_is_near_float32():
    tokens = tokens_of(UNTIED)
    expected = logits("untied", tokens)
    found = logits("untied", tokens, dtype=jnp.bfloat16)
    assert found.dtype == np.float32
    # The root of the mean square: single logits differ by how a processor sums in bfloat16.
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < 0.08
    hidden, _ = Llama(UNTIED, dtype=jnp.bfloat16).apply(
        {"params": weights("untied")}, tokens, method="hidden_states"
    )
    assert hidden.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("config", "rules"),
    [
        (tiny.CONFIG, {"embed_tokens": spec("dora")}),
        (tiny.CONFIG, {"embed_tokens": spec("dora", norm_axis="in"), "q_proj": spec("lora")}),
        (UNTIED, {"lm_head": spec("dora"), "embed_tokens": spec("lora")}),
    ],
)
def test_adapters_on_the_embedding_and_the_head(config, rules):
    rules = AdapterRules(list(rules.items()))
    model, params = tuned(rules, config)
    tokens = tokens_of(config)
    found = apply(model, {"params": params}, tokens)
    merged = merge_params(params, rules)
    for row in range(2):
        expected = reference_llama.logits(merged, config, tokens[row])
        np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=1e-4)
    untuned = reference_llama.logits(tiny.base_params(config), config, tokens[0])
    assert np.abs(untuned - found[0]).max() > 0.1


@pytest.mark.parametrize("norm_axis", ["out", "in"])
def test_zero_columns_train_and_merge(norm_axis):
    """As in the o_proj of Llama-3.1-8B: columns (and here rows) of zeros in every kernel."""
    rules = AdapterRules([("(kernel|embedding)", spec("dora", norm_axis=norm_axis))])
    zeroed = jax.tree.map(
        lambda x: x.at[..., 3].set(0).at[..., 5, :].set(0) if x.ndim > 1 else x,
        {k: v for k, v in tiny.base_params(UNTIED).items() if k != "norm"},
    )
    model, params = tuned(rules, UNTIED)
    fresh = {**flat_leaves(params), **flat_leaves(zeroed)}
    import flax.traverse_util

    params = flax.traverse_util.unflatten_dict(fresh, sep="/")
    tokens = tokens_of(UNTIED)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: llama_loss(model, {"params": p}, tokens)))(
        params
    )
    assert np.isfinite(loss)
    for path, leaf in flat_leaves(grads).items():
        assert np.isfinite(leaf).all(), path
    merged = merge_params(params, rules)
    np.testing.assert_allclose(
        apply(Llama(UNTIED), {"params": merged}, tokens),
        apply(model, {"params": params}, tokens),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 0, "num_hidden_layers must be at least 1, got 0"),
        ("num_key_value_heads", 4, "must be a multiple of num_key_value_heads \\(4\\)"),
        ("head_dim", 9, "head_dim must be even"),
    ],
)
def test_impossible_shapes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(UNTIED, **{field: value})
