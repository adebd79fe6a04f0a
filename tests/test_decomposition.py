import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_jax.decomposition import (
    adapter_layout,
    column_norm,
    column_sq_norm,
    compose,
    decompose,
    init_low_rank,
    magnitude_scale,
)
from dora_jax.kernel_layout import KernelLayout, sum_dtype
from tests import reference
from tests.reference import LAYOUTS, Layout

AXES = ["out", "in"]
STATIC = ("norm_axis", "in_ndim", "stack_ndim")
jitted_compose = jax.jit(compose, static_argnames=STATIC)
jitted_decompose = jax.jit(decompose, static_argnames=STATIC)
DTYPES = ["float32", "bfloat16", "float16", "float64"]
TOLERANCE = {"float64": 1e-13}


def kernel_of(layout, dtype="float32", seed=0, size=1.0):
    return jnp.asarray(size * np.random.default_rng(seed).normal(size=layout.shape), dtype)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_column_norm_of_every_layout(name, norm_axis):
    layout = LAYOUTS[name]
    kernel = kernel_of(layout)
    expected = reference.norm(kernel, layout, norm_axis)
    norm = jax.jit(lambda kernel: column_norm(kernel, norm_axis, **layout.axes))(kernel)
    assert norm.shape == layout.magnitude_shape(norm_axis)
    np.testing.assert_allclose(norm, expected, rtol=1e-6)


def test_the_square_norm_is_the_norms_square():
    layout = LAYOUTS["batch, one in"]
    kernel = kernel_of(layout)
    np.testing.assert_allclose(
        column_sq_norm(kernel, "in", **layout.axes),
        reference.norm(kernel, layout, "in") ** 2,
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_axis", AXES)
def test_norms_sum_in_float32_or_float64(dtype, norm_axis, precision):
    layout = Layout((300, 4), 1)
    with precision(dtype):
        kernel = kernel_of(layout, dtype)
        norm = column_norm(kernel, norm_axis)
        assert norm.dtype == ("float64" if dtype == "float64" else "float32") == sum_dtype(kernel)
        # bfloat16 sums would be wrong in the third digit.
        rtol = TOLERANCE.get(dtype, 1e-6)
        np.testing.assert_allclose(norm, reference.norm(kernel, layout, norm_axis), rtol=rtol)


def test_by_default_all_axes_but_the_last_are_inputs():
    kernel = kernel_of(Layout((2, 3, 4), 2))
    np.testing.assert_array_equal(column_norm(kernel), column_norm(kernel, in_ndim=2))
    np.testing.assert_array_equal(
        column_norm(kernel, stack_ndim=1), column_norm(kernel, in_ndim=1, stack_ndim=1)
    )


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3,), {}),
        ((3, 4), {"in_ndim": 2}),
        ((3, 4), {"in_ndim": 0}),
        ((3, 4), {"stack_ndim": 1}),
        ((3, 4), {"stack_ndim": -1}),
        ((3, 4, 5), {"in_ndim": 2, "stack_ndim": 1}),
    ],
)
def test_a_kernel_without_enough_axes_is_refused(shape, axes):
    with pytest.raises(ValueError, match=f"kernel of shape .*{shape[0]}.* at least one output"):
        column_norm(jnp.ones(shape), **axes)


def test_the_gradient_of_norms_is_zero_at_a_zero_column():
    kernel = kernel_of(Layout((5, 4), 1)).at[:, 1].set(0)
    gradient = jax.grad(lambda k: jnp.sum(column_norm(k)))(kernel)
    expected = np.asarray(kernel) / np.where(np.asarray(kernel).any(0), column_norm(kernel), 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_decompose_gives_norms_and_unit_columns(name, norm_axis):
    layout = LAYOUTS[name]
    kernel = kernel_of(layout)
    magnitude, direction = jitted_decompose(kernel, norm_axis, **layout.axes)
    expected = reference.norm(kernel, layout, norm_axis)
    np.testing.assert_allclose(magnitude, expected, rtol=1e-6)
    spread = np.expand_dims(expected, layout.summed(norm_axis))
    np.testing.assert_allclose(direction, np.asarray(kernel) / spread, rtol=1e-6)


@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    norm_axis=st.sampled_from(AXES),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 9),
)
def test_decompose_then_compose_is_the_identity(name, norm_axis, dtype, exponent, seed):
    layout = LAYOUTS[name]
    kernel = kernel_of(layout, dtype, seed, 10.0**exponent)
    parts = jitted_decompose(kernel, norm_axis, **layout.axes)
    composed = jitted_compose(*parts, norm_axis, **layout.axes)
    assert composed.dtype == jnp.float32
    np.testing.assert_allclose(composed, kernel.astype(jnp.float32), rtol=1e-6)


def test_decompose_then_compose_in_float64(x64):
    kernel = kernel_of(Layout((5, 4), 1), "float64")
    composed = compose(*decompose(kernel))
    assert composed.dtype == jnp.float64
    np.testing.assert_allclose(composed, kernel, rtol=1e-15)


def test_a_zero_column_has_magnitude_and_direction_zero_and_comes_back():
    kernel = kernel_of(Layout((5, 4), 1)).at[:, 2].set(0)
    magnitude, direction = decompose(kernel)
    assert magnitude[2] == 0
    assert not direction[:, 2].any()
    np.testing.assert_allclose(compose(magnitude, direction), kernel, rtol=1e-6)
    # Given a magnitude, a zero direction stays zero: there is none to point in.
    assert not compose(jnp.ones(4), direction)[:, 2].any()


@pytest.mark.parametrize("norm_axis", AXES)
def test_compose_normalises_a_direction_of_any_length(norm_axis):
    layout = Layout((5, 4), 1)
    direction = kernel_of(layout)
    m = np.arange(1.0, 1 + layout.magnitude_shape(norm_axis)[0])
    expected = np.asarray(direction) * np.expand_dims(
        m / reference.norm(direction, layout, norm_axis), layout.summed(norm_axis)
    )
    composed = compose(jnp.asarray(m, jnp.float32), 7 * direction, norm_axis)
    np.testing.assert_allclose(composed, expected, rtol=1e-6)


def test_compose_refuses_a_magnitude_of_the_other_axis():
    with pytest.raises(ValueError, match=r"\(5,\).*\(5, 4\).*norm_axis='out'.*\(4,\)"):
        compose(jnp.ones(5), jnp.ones((5, 4)), "out")


def test_magnitude_scale_is_m_over_n_and_one_where_the_kernel_is_zero():
    m = jnp.array([2.0, 0.0, 3.0, 5.0])
    n = jnp.array([4.0, 2.0, 0.0, 10.0])
    c, gradient = jax.vjp(lambda m: magnitude_scale(m, n, jnp.array([1.0, 1.0, 0.0, 0.0])), m)
    np.testing.assert_array_equal(c, [0.5, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(gradient(jnp.ones(4))[0], [0.25, 0.5, 0.0, 0.0])


def test_magnitude_scale_is_in_the_norms_dtype():
    n = jnp.array([3.0])
    assert magnitude_scale(jnp.array([1.0], jnp.bfloat16), n, n).dtype == jnp.float32


@pytest.mark.parametrize(
    ("shapes", "norm_axis", "expected"),
    [
        ({"lora_a": (5, 2), "lora_b": (2, 4)}, "out", KernelLayout(0, 1)),
        ({"lora_a": (5, 2), "lora_b": (2, 4), "magnitude": (4,)}, "out", KernelLayout(0, 1)),
        ({"lora_a": (5, 2), "lora_b": (2, 4), "magnitude": (5,)}, "in", KernelLayout(0, 1)),
        ({"magnitude": (4,)}, "out", KernelLayout(0, 1)),
        ({"magnitude": (5,)}, "in", KernelLayout(0, 1)),
    ],
)
def test_adapter_layout_of_a_matrix(shapes, norm_axis, expected):
    adapter = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    assert adapter_layout((5, 4), adapter, norm_axis) == expected


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_adapter_layout_is_found_from_shapes(name, norm_axis):
    layout = LAYOUTS[name]
    adapter = reference.random_adapter(
        np.random.default_rng(0), layout, 7, norm_axis, np.ones(layout.shape)
    )
    expected = KernelLayout(layout.stack_ndim, layout.in_ndim)
    assert adapter_layout(layout.shape, adapter, norm_axis) == expected
    del adapter["magnitude"]
    assert adapter_layout(layout.shape, adapter, norm_axis) == expected


def test_a_lone_magnitude_gives_the_axes_to_sum_over():
    adapter = {"magnitude": np.ones((3, 4))}
    assert adapter_layout((3, 5, 4), adapter, "out") == KernelLayout(1, 1)
    assert adapter_layout((5, 3, 4), adapter, "out") == KernelLayout(0, 1)
    # However the axes before the output are divided, the sum is over the same one.
    assert sum(adapter_layout((3, 4, 5), adapter, "in")) == 2


@pytest.mark.parametrize(
    ("kernel", "shapes", "norm_axis", "problem"),
    [
        ((5, 4), {"lora_a": (4, 2), "lora_b": (2, 5)}, "out", "do not fit"),
        ((5, 4), {"lora_a": (5, 2), "lora_b": (3, 4)}, "out", "do not fit"),
        ((5, 4), {"lora_a": (5, 2), "lora_b": (2, 3)}, "out", "do not fit"),
        ((3, 5, 4), {"lora_a": (3, 5, 2), "lora_b": (6, 2, 4)}, "out", "do not fit"),
        ((5, 4), {"lora_a": (5, 2), "lora_b": (2, 4), "magnitude": (5,)}, "out", "do not fit"),
        ((5, 4), {"lora_a": (2,), "lora_b": (2, 5, 4)}, "out", "do not fit"),
        ((5, 4), {"lora_a": (5,), "lora_b": (4,)}, "out", "do not fit"),
        ((5, 4), {"magnitude": (4,)}, "in", "do not fit"),
        ((4, 4, 4), {"magnitude": (4, 4)}, "out", "more than one way"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(kernel, shapes, norm_axis, problem):
    adapter = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=problem) as raised:
        adapter_layout(kernel, adapter, norm_axis)
    assert str(kernel) in str(raised.value)
    assert all(f"{name} {shape}" in str(raised.value) for name, shape in shapes.items())
    assert repr(norm_axis) in str(raised.value)


# Standard deviation of the random factor, for 20 inputs and rank 16.
DEVIATION = {
    "kaiming": 1 / np.sqrt(3 * 20),
    "gaussian": 1 / 16,
    "normal": 1 / 4,
    "normal_b": 1 / 4,
}


@pytest.mark.parametrize("init", DEVIATION)
def test_init_draws_one_factor_and_zeros_the_other(init):
    a, b = jax.jit(lambda key: init_low_rank(key, (4, 5), (6, 50), 16, init, "float32", (3,)))(
        jax.random.key(0)
    )
    drawn, zero = (np.asarray(b), a) if init == "normal_b" else (np.asarray(a), b)
    assert a.shape == (3, 4, 5, 16)
    assert b.shape == (3, 16, 6, 50)
    assert not zero.any()
    assert abs(drawn.mean()) < 5 * DEVIATION[init] / np.sqrt(drawn.size)
    np.testing.assert_allclose(drawn.std(), DEVIATION[init], rtol=5 / np.sqrt(2 * drawn.size))
    if init == "kaiming":
        assert 0.99 / np.sqrt(20) < np.abs(drawn).max() <= 1 / np.sqrt(20)
        assert (drawn < 0).any()
    else:
        assert np.abs(drawn).max() > 2.5 * DEVIATION[init]
    # Layers of a stack are drawn apart.
    assert not (drawn[0] == drawn[1]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", DEVIATION)
def test_init_dtype(dtype, init, precision):
    with precision(dtype):
        a, b = jax.eval_shape(
            lambda key: init_low_rank(key, (5,), (4,), 3, init, dtype), jax.random.key(0)
        )
    assert a.dtype == b.dtype == dtype
