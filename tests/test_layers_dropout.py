import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax import layers
from dora_jax.spec import AdapterSpec
from tests import reference
from tests.layer_cases import CASES, jit_apply, random_params

SPEC = AdapterSpec("dora", rank=3, alpha=1.5, dropout=0.25)
KEEP = 0.75


def apply(case, spec, params, x, key=None):
    rngs = {} if key is None else {"rngs": {"dropout": jax.random.key(key)}}
    return _apply(case.adapted(spec), params, x, rngs)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, x, rngs):
    return module.apply({"params": params}, x, **rngs)


@pytest.mark.parametrize("style", ["low_rank", "peft"])
@pytest.mark.parametrize("name", ["dense", "conv, groups"])
def test_dropout_is_off_without_an_rng_or_a_rate(name, style):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, dropout_style=style)
    off = dataclasses.replace(spec, dropout=0.0)
    params, x = random_params(case, spec), case.inputs()
    expected = apply(case, off, params, x)
    np.testing.assert_array_equal(apply(case, spec, params, x), expected)
    np.testing.assert_array_equal(apply(case, off, params, x, key=0), expected)
    one, again, other = (apply(case, spec, params, x, key) for key in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != expected).any()
    assert (one != other).any()


def dropped_inputs(spec, x, key):
    """Read the mask off a layer whose low-rank path is the identity and whose kernel is zero."""
    features = x.shape[-1]
    lora = dataclasses.replace(spec, method="lora", rank=features, scaling="alpha", alpha=1.0)
    eye = jnp.eye(features, dtype=x.dtype)
    params = {"kernel": 0 * eye, "lora_a": eye, "lora_b": eye}
    module = layers.Dense(features, use_bias=False, adapter=lora)
    return module.apply({"params": params}, x, rngs={"dropout": jax.random.key(key)})


def test_the_mask_drops_its_share_and_scales_up_the_rest():
    x = jnp.ones((400, 50))
    dropped = np.asarray(dropped_inputs(SPEC, x, 0))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / KEEP)}
    assert abs((dropped != 0).mean() - KEEP) < 5 * np.sqrt(KEEP * (1 - KEEP) / x.size)
    # Element by element, not rows or features at once.
    assert 0.5 < (dropped != 0).mean(0).min() < (dropped != 0).mean(0).max() < 1
    assert 0.5 < (dropped != 0).mean(1).min() < (dropped != 0).mean(1).max() < 1


@pytest.mark.parametrize(
    ("method", "norm_axis"),
    [("dora", "out"), ("dora", "in"), ("lora", "out"), ("magnitude", "in")],
)
@pytest.mark.parametrize("style", ["low_rank", "peft"])
def test_each_style_is_its_formula(method, style, norm_axis, x64):
    case = CASES["dense"]
    spec = dataclasses.replace(SPEC, method=method, dropout_style=style, norm_axis=norm_axis)
    params, x = random_params(case, spec, "float64"), case.inputs("float64")
    drop_x = np.asarray(dropped_inputs(spec, x, 7))
    x_, w = np.asarray(x), np.asarray(params["kernel"])
    a = np.asarray(params.get("lora_a", np.zeros((4, 3))))
    b = np.asarray(params.get("lora_b", np.zeros((3, 6))))
    s, layout = spec.scale, case.layout
    c = np.ones(layout.magnitude_shape(norm_axis))
    if method != "lora":
        c = np.asarray(params["magnitude"]) / reference.norm(w + s * a @ b, layout, norm_axis)
    c = np.expand_dims(c, layout.summed(norm_axis))
    if method == "magnitude":
        expected = x_ @ (c * w)
    elif style == "low_rank":
        expected = x_ @ (c * w) + s * drop_x @ (c * (a @ b))
    else:
        expected = x_ @ w + drop_x @ ((c - 1) * w) + s * drop_x @ (c * (a @ b))
    y = apply(case, spec, params, x, key=7)
    np.testing.assert_allclose(y, expected + np.asarray(params["bias"]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "style", "norm_axis"),
    [
        ("general, swapped", "low_rank", "in"),
        ("general, batch", "peft", "in"),
        ("conv, groups", "peft", "in"),
    ],
)
def test_expectation_of_every_layer(name, style, norm_axis):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, dropout_style=style, norm_axis=norm_axis, dropout=0.5)
    params, x = random_params(case, spec, size=0.3), case.inputs()
    module = case.adapted(spec)
    keys = jax.random.split(jax.random.key(0), 500)
    samples = jax.jit(
        jax.vmap(lambda key: module.apply({"params": params}, x, rngs={"dropout": key}))
    )(keys)
    expected = jit_apply(module, params, x)
    error = samples.std(0) / np.sqrt(len(keys))
    assert (jnp.abs(samples.mean(0) - expected) < 6 * error + 1e-5).all()
    assert (samples.std(0) > 0).mean() > 0.9


def test_lora_has_no_second_product_in_either_style():
    case = CASES["dense"]
    counts = []
    for style in ("low_rank", "peft"):
        spec = dataclasses.replace(SPEC, method="lora", dropout_style=style)
        params, x = random_params(case, spec), case.inputs()
        text = str(jax.make_jaxpr(lambda x, s=spec, p=params: apply(case, s, p, x, key=0))(x))
        counts.append(text.count("dot_general["))
    assert counts == [3, 3]


def test_bfloat16_inputs_stay_bfloat16():
    case = CASES["dense"]
    params, x = random_params(case, SPEC, "bfloat16"), case.inputs("bfloat16")
    for style in ("low_rank", "peft"):
        spec = dataclasses.replace(SPEC, dropout_style=style)
        assert apply(case, spec, params, x, key=0).dtype == jnp.bfloat16


def test_scanned_layers_draw_masks_of_their_own():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            # The output is the dropped input, of ones: 0 or 1 / keep.
            y = layers.Dense(8, use_bias=False, adapter=dataclasses.replace(SPEC, method="lora"))(x)
            return x, y

    scan = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=2,
    )
    x = jnp.ones((5, 8))
    params = scan().init(jax.random.key(0), x, None)["params"]
    leaves = params["Dense_0"]
    leaves["lora_a"] = jnp.stack([jnp.ones((8, 3))] * 2)
    leaves["lora_b"] = jnp.stack([jnp.ones((3, 8))] * 2)
    leaves["kernel"] = 0 * leaves["kernel"]
    _, y = scan().apply({"params": params}, x, None, rngs={"dropout": jax.random.key(0)})
    assert (y[0] != y[1]).any()
