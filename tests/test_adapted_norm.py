import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_jax import factored_norm
from dora_jax.decomposition import column_sq_norm
from dora_jax.factored_norm import adapted_norm
from tests import reference
from tests.jaxprs import equations, products
from tests.reference import LAYOUTS, Layout

AXES = ["out", "in"]
EPS = float(np.finfo(np.float32).eps)


# Compiled once for each shape and axis; the tests of tiles trace anew.
jitted_norm = jax.jit(adapted_norm, static_argnames=("norm_axis", "stack_ndim"))


def setup(layout, rank=3, dtype="float32", seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(size * rng.normal(size=layout.shape), dtype)
    factors = reference.random_adapter(rng, layout, rank, "out", kernel)
    a, b = factors["lora_a"], size * factors["lora_b"]
    wider = jnp.promote_types(dtype, jnp.float32)
    return kernel, jnp.asarray(a, wider), jnp.asarray(b, wider)


def direct(kernel, a, b, scale, layout, norm_axis):
    return reference.norm(reference.adapted(kernel, a, b, scale, layout), layout, norm_axis)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_factored_norm_equals_direct_for_every_layout(name, norm_axis):
    layout = LAYOUTS[name]
    kernel, a, b = setup(layout)
    expected = direct(kernel, a, b, 1.7, layout, norm_axis)
    norm = jitted_norm(kernel, a, b, 1.7, norm_axis, stack_ndim=layout.stack_ndim)
    assert norm.shape == layout.magnitude_shape(norm_axis)
    np.testing.assert_allclose(norm, expected, rtol=3e-6)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [("float32", 3e-6), ("bfloat16", 3e-6), ("float64", 1e-14)]
)
@pytest.mark.parametrize("norm_axis", AXES)
def test_factored_norm_of_each_dtype(dtype, rtol, norm_axis, precision):
    layout = Layout((40, 6), 1)
    with precision(dtype):
        kernel, a, b = setup(layout, dtype=dtype)
        norm = jitted_norm(kernel, a, b, 0.3, norm_axis)
        expected = direct(kernel, a, b, 0.3, layout, norm_axis)
        assert norm.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_allclose(norm, expected, rtol=rtol)


@pytest.mark.parametrize("norm_axis", AXES)
def test_a_given_square_norm_is_used_and_not_differentiated(norm_axis):
    layout = LAYOUTS["stacked"]
    kernel, a, b = setup(layout)
    sq_norm = column_sq_norm(kernel, norm_axis, **layout.axes)

    def norm(kernel, sq_norm):
        return jitted_norm(kernel, a, b, 0.5, norm_axis, sq_norm, stack_ndim=1)

    expected = direct(kernel, a, b, 0.5, layout, norm_axis)
    np.testing.assert_allclose(norm(kernel, sq_norm), expected, rtol=3e-6)
    np.testing.assert_allclose(norm(kernel, sq_norm + 100.0), np.sqrt(expected**2 + 100), rtol=3e-6)
    assert not jax.grad(lambda sq_norm: jnp.sum(norm(kernel, sq_norm)))(sq_norm).any()


@given(
    shape=st.sampled_from([(8, 6), (3, 7)]),
    rank=st.sampled_from([1, 11]),
    norm_axis=st.sampled_from(AXES),
    exponent=st.sampled_from([-12, -6, 0, 6, 12]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 5),
)
def test_factored_norm_equals_direct_at_any_size_and_rank(
    shape, rank, norm_axis, exponent, scale, seed
):
    layout = Layout(shape, 1)
    kernel, a, b = setup(layout, rank, seed=seed, size=10.0**exponent)
    norm = jitted_norm(kernel, a, b, scale, norm_axis)
    expected = direct(kernel, a, b, scale, layout, norm_axis)
    # No sum in float32 is nearer to V than the rounding of its terms.
    zero = np.zeros(shape)
    terms = reference.norm(kernel, layout, norm_axis) + direct(
        zero, np.abs(a), np.abs(b), scale, layout, norm_axis
    )
    assert (np.abs(norm - expected) <= 1e-5 * expected + 2 * EPS * terms).all()


def cancelling(layout, norm_axis, relative, size, scale, seed=0):
    """W = -s A B but for a relative perturbation, in every third column alone."""
    rng = np.random.default_rng(seed)
    _, a, b = setup(layout, rank=4, seed=seed)
    b = b * size
    product = reference.adapted(np.zeros(layout.shape), a, b, scale, layout)
    noise = rng.normal(size=layout.shape) * np.abs(product).mean()
    near = np.arange(layout.shape[1 if norm_axis == "out" else 0]) % 3 == 0
    near = near if norm_axis == "out" else near[:, None]
    kernel = np.where(near, -product + relative * noise, noise)
    return jnp.asarray(kernel, "float32"), a, b


@given(
    relative=st.sampled_from([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]),
    norm_axis=st.sampled_from(AXES),
    size=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 5),
)
def test_factored_norm_equals_direct_where_ab_nearly_cancels_w(relative, norm_axis, size, seed):
    layout, scale = Layout((48, 30), 1), 2.0
    kernel, a, b = cancelling(layout, norm_axis, relative, size, scale, seed)
    expected = direct(kernel, a, b, scale, layout, norm_axis)
    norm = jitted_norm(kernel, a, b, scale, norm_axis)
    # V itself is known to W's rounding, no better: the direct sum in float32 errs as much.
    rounding = 2 * EPS * reference.norm(kernel, layout, norm_axis)
    assert (np.abs(norm - expected) <= 1e-5 * expected + rounding).all()
    assert (expected < 2 * relative * reference.norm(kernel, layout, norm_axis)).any()


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("tile", [1 << 20, 50, 1])
@pytest.mark.parametrize("shape", [(11, 9), (2, 12, 10)])
def test_cancelled_norms_are_right_whatever_the_tile(monkeypatch, tile, shape, norm_axis):
    monkeypatch.setattr(factored_norm, "_TILE_ELEMENTS", tile)
    layout = Layout(shape, 1, len(shape) - 2)
    _, a, b = setup(layout, rank=2)
    kernel = reference.adapted(np.zeros(shape), a, b, -0.5, layout)
    kernel = jnp.asarray(kernel + 1e-4 * np.random.default_rng(1).normal(size=shape), "float32")
    norm = jax.jit(lambda *args: adapted_norm(*args, 0.5, norm_axis, stack_ndim=layout.stack_ndim))(
        kernel, a, b
    )
    expected = direct(kernel, a, b, 0.5, layout, norm_axis)
    assert expected.max() < 1e-3
    np.testing.assert_allclose(norm, expected, rtol=2e-3)


@pytest.mark.parametrize("norm_axis", AXES)
def test_where_v_vanishes_the_norm_is_w_rounding_and_its_gradient_zero(norm_axis):
    # Small whole numbers: the cancellation is exact.
    a, b = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[1.0, -2.0, 4.0, 1.0]])
    kernel = -2 * a @ b
    norm, gradients = jax.jit(
        jax.value_and_grad(
            lambda *args: jnp.sum(adapted_norm(*args, 2.0, norm_axis)), argnums=(0, 1, 2)
        )
    )(kernel, a, b)
    expected = EPS * reference.norm(kernel, Layout((3, 4), 1), norm_axis).sum()
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("name", ["dense", "batch, two in"])
def test_gradient_of_the_factored_norm_is_that_of_the_direct_one(name, norm_axis, x64):
    layout = LAYOUTS[name]
    kernel, a, b = setup(layout, dtype="float64")
    weights = np.random.default_rng(3).normal(size=layout.magnitude_shape(norm_axis))

    def loss(kernel, a, b):
        norm = adapted_norm(kernel, a, b, 0.7, norm_axis, stack_ndim=layout.stack_ndim)
        return jnp.sum(norm * weights)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(kernel, a, b)
    for index, gradient in enumerate(gradients):
        for entry in [(0,) * gradient.ndim, (-1,) * gradient.ndim]:
            step = 1e-6
            moved = []
            for sign in (1, -1):
                args = [np.array(kernel), np.array(a), np.array(b)]
                args[index][entry] += sign * step
                moved.append(np.sum(direct(*args, 0.7, layout, norm_axis) * weights))
            np.testing.assert_allclose(
                gradient[entry], (moved[0] - moved[1]) / (2 * step), rtol=1e-7, atol=1e-9
            )


@pytest.mark.parametrize("norm_axis", AXES)
def test_zero_columns_have_the_norm_of_ab_and_finite_gradients(norm_axis):
    kernel, a, b = setup(Layout((5, 4), 1))
    kernel = kernel.at[:, 1].set(0) if norm_axis == "out" else kernel.at[1].set(0)
    value_and_grad = jax.jit(
        jax.value_and_grad(
            lambda *args: jnp.sum(adapted_norm(*args, 0.5, norm_axis)), argnums=(0, 1, 2)
        )
    )
    for b_now in (b, jnp.zeros_like(b)):
        norm, gradients = value_and_grad(kernel, a, b_now)
        expected = direct(kernel, a, b_now, 0.5, Layout((5, 4), 1), norm_axis)
        np.testing.assert_allclose(norm, expected.sum(), rtol=1e-6)
        assert all(np.isfinite(g).all() for g in gradients)
    assert jitted_norm(kernel, a, jnp.zeros_like(b), 0.5, norm_axis)[1] == 0


def test_ab_is_never_formed(monkeypatch):
    # 11 x 13 is the size of W and A B, and of no other array here.
    monkeypatch.setattr(factored_norm, "_TILE_ELEMENTS", 40)
    a, b = jnp.ones((11, 3)), jnp.ones((3, 13))
    for norm_axis in AXES:
        jaxpr = jax.make_jaxpr(
            jax.value_and_grad(
                lambda a, b, axis=norm_axis: jnp.sum(
                    adapted_norm(jnp.ones((11, 13)), a, b, 1.0, axis)
                ),
                argnums=(0, 1),
            )
        )(a, b)
        assert max(math.prod(shape) for shape in products(jaxpr)) < 11 * 13
        made = {
            e.primitive.name
            for e in equations(jaxpr)
            if e.outvars[0].aval.shape and math.prod(e.outvars[0].aval.shape) == 11 * 13
        }
        # W made, seen otherwise, and squared: nothing is added to it.
        views = {"reshape", "transpose", "convert_element_type", "copy", "stop_gradient"}
        assert made <= views | {"broadcast_in_dim", "square", "pjit", "jit"}


SHARDED = """
    import re, jax, jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from dora_jax.factored_norm import adapted_norm
    mesh = Mesh(jax.devices(), ("t",))
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((2048, 2048), (2048, 4), (4, 2048))]
    for spec in (P(None, "t"), P("t", None)):
        for axis in ("out", "in"):
            shardings = [NamedSharding(mesh, s) for s in (spec, P(), P())]
            f = jax.jit(lambda *args: adapted_norm(*args, 1.0, axis), in_shardings=shardings)
            text = f.lower(*shapes).compile().as_text()
            assert "2048,256" in text or "256,2048" in text, "W is not sharded"
            for line in text.splitlines():
                if re.search("(all-gather|all-to-all|collective-permute)[-a-z]*[(]", line):
                    raise SystemExit(f"{spec} {axis}: {line}")
"""


def test_no_device_gathers_a_sharded_kernel():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_gradient_takes_one_more_product_with_the_kernel():
    """That by A alone: what the forward took for B's is kept."""
    n, r = 256, 4
    kernel, a, b = (jnp.ones(shape) for shape in ((n, n), (n, r), (r, n)))
    base = column_sq_norm(kernel)

    def total(a, b):
        return jnp.sum(adapted_norm(kernel, a, b, 1.0, kernel_sq_norm=base, detach_kernel=True))

    def flops(function):
        return jax.jit(function).lower(a, b).compile().cost_analysis()["flops"]

    product = 2 * n * n * r
    # The direct norm, in the branch for kernels that cancel, is counted in both.
    extra = flops(jax.grad(total, argnums=(0, 1))) - flops(total)
    assert 1 <= extra / product < 1.5
