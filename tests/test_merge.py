import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_jax.decomposition import column_norm, init_low_rank, merge_kernel
from dora_jax.factored_norm import adapted_norm
from dora_jax.spec import AdapterSpec
from tests import reference
from tests.reference import LAYOUTS, Layout

AXES = ["out", "in"]
jitted_norm = jax.jit(column_norm, static_argnames=("norm_axis", "in_ndim", "stack_ndim"))
jitted_merge = jax.jit(merge_kernel, static_argnames="spec")
LEAVES = {
    "lora": ["lora_a", "lora_b"],
    "dora": ["lora_a", "lora_b", "magnitude"],
    "magnitude": ["magnitude"],
}


def random_kernel(layout, dtype, seed=0, size=1.0):
    return jnp.asarray(size * np.random.default_rng(seed).normal(size=layout.shape), dtype)


def random_adapter(layout, spec, kernel, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed + 100)
    adapter = reference.random_adapter(rng, layout, spec.rank, spec.norm_axis, kernel)
    return {name: jnp.asarray(adapter[name], dtype) for name in LEAVES[spec.method]}


def expected_kernel(kernel, adapter, spec, layout):
    s = reference.scale(spec.alpha, spec.rank, spec.scaling)
    return reference.merged(kernel, adapter, s, layout, spec.norm_axis)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_merged_kernel_of_every_layout(name, norm_axis):
    layout = LAYOUTS[name]
    spec = AdapterSpec("dora", rank=7, alpha=3.0, norm_axis=norm_axis)
    kernel = random_kernel(layout, "float32")
    adapter = random_adapter(layout, spec, kernel)
    merged = jitted_merge(kernel, adapter, spec)
    expected = expected_kernel(kernel, adapter, spec, layout)
    np.testing.assert_allclose(merged, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("scaling", ["standard", "rslora", "alpha"])
@pytest.mark.parametrize("method", LEAVES)
def test_each_method_and_scaling(method, scaling):
    layout = LAYOUTS["dense"]
    spec = AdapterSpec(method, rank=3, alpha=5.0, scaling=scaling)
    kernel = random_kernel(layout, "float32")
    adapter = random_adapter(layout, spec, kernel)
    expected = expected_kernel(kernel, adapter, spec, layout)
    assert np.abs(expected - np.asarray(kernel)).max() > 0.1
    np.testing.assert_allclose(merge_kernel(kernel, adapter, spec), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("method", LEAVES)
def test_float64_kernels_merge_in_float64(method, norm_axis, x64):
    layout = LAYOUTS["several axes"]
    spec = AdapterSpec(method, rank=3, norm_axis=norm_axis)
    kernel = random_kernel(layout, "float64")
    adapter = random_adapter(layout, spec, kernel, dtype="float64")
    merged = merge_kernel(kernel, adapter, spec)
    assert merged.dtype == "float64"
    np.testing.assert_allclose(
        merged, expected_kernel(kernel, adapter, spec, layout), rtol=1e-13, atol=1e-14
    )


@pytest.mark.parametrize("method", LEAVES)
def test_bfloat16_kernels_are_rounded_once(method):
    layout = Layout((40, 30), 1)
    spec = AdapterSpec(method, rank=3)
    kernel = random_kernel(layout, "bfloat16")
    adapter = random_adapter(layout, spec, kernel)
    merged = merge_kernel(kernel, adapter, spec)
    assert merged.dtype == jnp.bfloat16
    expected = expected_kernel(kernel, adapter, spec, layout)
    once = jnp.asarray(expected, "bfloat16")
    # Not all: float32 may fall on the other side of the middle of two bfloat16 numbers.
    assert (merged == once).mean() > 0.995


@settings(max_examples=7)
@given(
    name=st.sampled_from(["several axes", "stacked"]),
    method=st.sampled_from(sorted(LEAVES)),
    norm_axis=st.sampled_from(AXES),
    init=st.sampled_from(["kaiming", "gaussian", "normal", "normal_b"]),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    param_dtype=st.sampled_from(["float32", "bfloat16"]),
    exponent=st.integers(-3, 3),
    seed=st.integers(0, 20),
)
def test_a_fresh_adapter_leaves_the_kernel_bit_for_bit(
    name, method, norm_axis, init, dtype, param_dtype, exponent, seed
):
    layout = LAYOUTS[name]
    kernel = random_kernel(layout, dtype, seed, 10.0**exponent)
    kernel = kernel.at[(0,) * layout.stack_ndim + (..., 0)].set(0)
    spec = AdapterSpec(method, rank=2, norm_axis=norm_axis, init=init, param_dtype=param_dtype)
    a, b = init_low_rank(
        jax.random.key(seed),
        layout.in_shape,
        layout.out_shape,
        2,
        init,
        param_dtype,
        layout.stack_shape,
    )
    for norm, merge in ((column_norm, jitted_merge), (jitted_norm, merge_kernel)):
        adapter = {"lora_a": a, "lora_b": b, "magnitude": norm(kernel, norm_axis, **layout.axes)}
        merged = merge(kernel, {name: adapter[name] for name in LEAVES[method]}, spec)
        assert merged.dtype == kernel.dtype
        np.testing.assert_array_equal(merged, kernel)


@pytest.mark.parametrize("norm_axis", AXES)
def test_large_fresh_kernels_are_the_same_between_jit_and_eager(norm_axis):
    # Sums of many squares in another order: the norms differ in their last digit here.
    kernel = random_kernel(Layout((576, 64), 1), "float32", size=0.02)
    spec = AdapterSpec("magnitude", norm_axis=norm_axis)
    eager = column_norm(kernel, norm_axis)
    other = jnp.asarray(reference.norm(kernel, Layout((576, 64), 1), norm_axis), "float32")
    assert (eager != other).any()
    for magnitude in (eager, other, jnp.nextafter(eager, 0), jnp.nextafter(other, jnp.inf)):
        np.testing.assert_array_equal(merge_kernel(kernel, {"magnitude": magnitude}, spec), kernel)


def test_a_small_change_of_the_magnitude_is_merged():
    kernel = random_kernel(Layout((100, 4), 1), "float32")
    spec = AdapterSpec("magnitude")
    magnitude = column_norm(kernel) * np.float32(1 + 1e-5)
    merged = merge_kernel(kernel, {"magnitude": magnitude}, spec)
    np.testing.assert_allclose(merged / kernel - 1, np.full((100, 4), 1e-5), rtol=0.1)


def test_the_fresh_merge_keeps_its_gradient():
    kernel = random_kernel(Layout((6, 3), 1), "float32")
    spec = AdapterSpec("magnitude")
    gradient = jax.grad(lambda m: jnp.sum(merge_kernel(kernel, {"magnitude": m}, spec)))(
        column_norm(kernel)
    )
    np.testing.assert_allclose(gradient, kernel.sum(0) / column_norm(kernel), rtol=1e-5)


@pytest.mark.parametrize("norm_axis", AXES)
def test_zero_columns_merge_as_lora_and_zero_magnitudes_as_zero(norm_axis):
    layout = LAYOUTS["dense"]
    spec = AdapterSpec("dora", rank=3, norm_axis=norm_axis)
    at = (slice(None), 1) if norm_axis == "out" else (1,)
    kernel = random_kernel(layout, "float32").at[at].set(0)
    adapter = random_adapter(layout, spec, kernel)
    adapter["magnitude"] = adapter["magnitude"].at[2].set(0)
    gradients = jax.jit(
        jax.grad(lambda k, a: jnp.sum(merge_kernel(k, a, spec) ** 2), argnums=(0, 1))
    )(kernel, adapter)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    merged = merge_kernel(kernel, adapter, spec)
    np.testing.assert_allclose(
        merged, expected_kernel(kernel, adapter, spec, layout), rtol=1e-5, atol=1e-6
    )
    assert merged[at].all()
    assert not merged[(slice(None), 2) if norm_axis == "out" else (2,)].any()


def test_rank_above_both_sizes():
    layout = LAYOUTS["dense"]
    spec = AdapterSpec("dora", rank=9)
    kernel = random_kernel(layout, "float32")
    adapter = random_adapter(layout, spec, kernel)
    expected = expected_kernel(kernel, adapter, spec, layout)
    np.testing.assert_allclose(merge_kernel(kernel, adapter, spec), expected, rtol=2e-5, atol=1e-6)


def test_where_v_vanishes_the_merge_is_finite():
    a, b = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[1.0, -2.0]])
    kernel = -a @ b
    spec = AdapterSpec("dora", rank=1, alpha=1.0)
    adapter = {"lora_a": a, "lora_b": b, "magnitude": column_norm(kernel)}
    np.testing.assert_array_equal(merge_kernel(kernel, adapter, spec), np.zeros((3, 2)))


def test_below_the_rounding_of_w_the_merge_is_the_unmerged_forward():
    # V is half the rounding error of W: its norm counts as that error, in both.
    kernel, a, b = jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.full((1, 1), 2.0**-24 - 1)
    adapter = {"lora_a": a, "lora_b": b, "magnitude": jnp.array([3.0])}
    merged = merge_kernel(kernel, adapter, AdapterSpec("dora", rank=1, alpha=1.0))
    np.testing.assert_array_equal(merged, [[1.5]])
    np.testing.assert_allclose(3.0 / adapted_norm(kernel, a, b, 1.0) * 2.0**-24, [1.5])


@pytest.mark.parametrize("method", ["frozen", "full"])
def test_without_an_adapter_the_kernel_is_returned(method):
    kernel = jnp.ones((3, 2))
    assert merge_kernel(kernel, {}, AdapterSpec(method)) is kernel


@pytest.mark.parametrize("method", LEAVES)
def test_a_missing_leaf_is_named(method):
    layout = LAYOUTS["dense"]
    spec = AdapterSpec(method, rank=3)
    kernel = random_kernel(layout, "float32")
    for name in LEAVES[method]:
        adapter = random_adapter(layout, spec, kernel)
        del adapter[name]
        with pytest.raises(ValueError, match=f"method '{method}' needs {name}"):
            merge_kernel(kernel, adapter, spec)


def test_leaves_that_the_method_has_not_are_left_alone():
    layout = LAYOUTS["dense"]
    kernel = random_kernel(layout, "float32")
    adapter = random_adapter(layout, AdapterSpec("dora", rank=3), kernel)
    lora = AdapterSpec("lora", rank=3)
    expected = expected_kernel(kernel, {n: adapter[n] for n in LEAVES["lora"]}, lora, layout)
    np.testing.assert_allclose(merge_kernel(kernel, adapter, lora), expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_of_the_other_axis_is_refused():
    spec = AdapterSpec("dora", rank=3, norm_axis="in")
    layout = LAYOUTS["dense"]
    kernel = random_kernel(layout, "float32")
    adapter = random_adapter(layout, AdapterSpec("dora", rank=3), kernel)
    with pytest.raises(ValueError, match=r"norm_axis='in'.*do not fit"):
        merge_kernel(kernel, adapter, spec)
