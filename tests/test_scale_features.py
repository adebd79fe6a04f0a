import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.decomposition import scale_features


def data(shape, c_shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.5, 2.0, c_shape) * rng.choice([-1, 1], c_shape)
    wide = jnp.promote_types(dtype, "float32")
    return (
        jnp.asarray(rng.normal(size=shape), wide),
        jnp.asarray(c, wide),
        jnp.asarray(rng.normal(size=shape), dtype),
    )


@pytest.mark.parametrize(
    ("shape", "c_shape", "tokens"),
    [
        ((7, 4), (1, 4), (0,)),
        ((2, 7, 4), (1, 1, 4), (0, 1)),
        ((2, 7, 3, 4), (1, 1, 3, 4), (0, 1)),
        ((2, 7, 4), (2, 1, 4), (1,)),
        ((7, 1), (1, 1), (0,)),
        ((3, 4, 5), (3, 1, 5), (1,)),
    ],
)
def test_value_and_gradients(shape, c_shape, tokens, x64):
    z, c, g = data(shape, c_shape, "float64")

    def run(z, c, g):
        y, backward = jax.vjp(lambda z, c: scale_features(z, c, jnp.dtype("float64")), z, c)
        return y, *backward(g)

    y, dz, dc = jax.jit(run)(z, c, g)
    z, c, g = map(np.asarray, (z, c, g))
    np.testing.assert_allclose(y, c * z, rtol=1e-15)
    np.testing.assert_allclose(dz, g * c, rtol=1e-15)
    np.testing.assert_allclose(dc, np.sum(g * z, axis=tokens, keepdims=True), rtol=1e-12)


def test_bfloat16_is_rounded_once_and_summed_in_float32():
    z, c, g = data((4096, 3), (1, 3), "bfloat16")
    y, backward = jax.vjp(lambda z, c: scale_features(z, c, jnp.dtype("bfloat16")), z, c)
    dz, dc = backward(g)
    assert (y.dtype, dz.dtype, dc.dtype) == ("bfloat16", "float32", "float32")
    np.testing.assert_array_equal(y, (z * c).astype("bfloat16"))
    exact = np.sum(np.asarray(g, "float64") * np.asarray(z, "float64"), axis=0, keepdims=True)
    # Each y carries a random rounding of 2^-9; a sum in bfloat16 would be lost altogether.
    np.testing.assert_allclose(dc, exact, atol=4 * 2**-9 * 64)
    np.testing.assert_array_equal(dz, g.astype("float32") * c)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-38, -1e-35])
def test_a_scale_of_zero_gives_zero_and_still_learns(dtype, zero):
    z, c, g = data((50, 3), (1, 3), dtype)
    c = c.at[0, 1].set(zero)
    y, backward = jax.vjp(lambda z, c: scale_features(z, c, jnp.dtype(dtype)), z, c)
    dz, dc = backward(g)
    assert jnp.abs(y[:, 1]).max() < 1e-29
    assert jnp.abs(dz[:, 1]).max() < 1e-34
    expected = np.sum(np.asarray(g, "float64") * np.asarray(z), axis=0, keepdims=True)
    rtol = 1e-5 if dtype == "float32" else 0.02
    np.testing.assert_allclose(dc, expected, rtol=rtol, atol=rtol)


def test_one_array_of_the_outputs_size_is_kept():
    z, c, _ = data((7, 4), (1, 4))
    y, backward = jax.vjp(lambda z, c: scale_features(z, c, jnp.dtype("float32")), z, c)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size == z.size]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], y)


def test_under_vmap_and_jit():
    z, c, g = data((5, 7, 4), (5, 1, 4))

    def run(z, c, g):
        y, backward = jax.vjp(lambda z, c: scale_features(z, c, jnp.dtype("float32")), z, c)
        return y, *backward(g)

    mapped = jax.jit(jax.vmap(run))(z, c, g)
    for index in range(5):
        for one, many in zip(run(z[index], c[index], g[index]), mapped, strict=True):
            np.testing.assert_allclose(many[index], one, rtol=1e-5, atol=1e-6)
