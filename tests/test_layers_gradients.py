import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax import factored_norm
from dora_jax.spec import AdapterSpec
from tests import reference
from tests.jaxprs import products
from tests.layer_cases import CASES, SPEC, jit_apply, merged_params, random_params, run

AXES = ["out", "in"]
LEAVES = ["lora_a", "lora_b", "magnitude"]
EACH = [
    ("dense", "out"),
    ("dense", "in"),
    ("general, swapped", "in"),
    ("general, batch", "out"),
    ("general, batch of two, swapped", "in"),
    ("conv, groups", "in"),
    ("conv, strides, dilation", "out"),
]


def loss_and_gradient(module, params, x, g):
    """Return <g, y> with its gradients: g is then dL/dy."""

    def loss(params, x):
        return jnp.sum(run(module, params, x) * g)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)


def output_gradient(case, seed=5):
    shape = jax.eval_shape(case.plain().init_with_output, jax.random.key(0), case.inputs())[0].shape
    return np.random.default_rng(seed).normal(size=shape)


def detached(case, params, spec, x, g):
    """The paper's gradient: that of x (m V / n) with n a constant, W' formed, in float64."""
    layout = case.layout
    v = reference.adapted(params["kernel"], params["lora_a"], params["lora_b"], spec.scale, layout)
    n = np.expand_dims(reference.norm(v, layout, spec.norm_axis), layout.summed(spec.norm_axis))

    def loss(trained, x):
        m = jnp.expand_dims(trained["magnitude"], layout.summed(spec.norm_axis))
        stack = "stuvw"[: layout.stack_ndim]
        ins, outs = "abcde"[: layout.in_ndim], "mnop"[: len(layout.out_shape)]
        ab = jnp.einsum(
            f"{stack}{ins}r,{stack}r{outs}->{stack}{ins}{outs}",
            trained["lora_a"],
            trained["lora_b"],
        )
        plain = {**params, "kernel": m * (params["kernel"] + spec.scale * ab) / n}
        plain = {name: plain[name] for name in ("kernel", "bias") if name in plain}
        return jnp.sum(run(case.plain(), plain, x) * g)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))({name: params[name] for name in LEAVES}, x)


@pytest.mark.parametrize(("name", "norm_axis"), EACH)
def test_the_detached_gradient_is_the_papers(name, norm_axis, x64):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis)
    params, x, g = (
        random_params(case, spec, "float64"),
        case.inputs("float64"),
        output_gradient(case),
    )
    _, (gradient, dx) = loss_and_gradient(case.adapted(spec), params, x, g)
    expected, expected_dx = detached(case, params, spec, x, g)
    for leaf, value in expected.items():
        assert jnp.abs(value).max() > 1e-3
        np.testing.assert_allclose(gradient[leaf], value, rtol=1e-9, atol=1e-11, err_msg=leaf)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-9, atol=1e-11)


def test_the_papers_equations_for_a_dense_layer(x64):
    case = CASES["dense"]
    params, x = random_params(case, SPEC, "float64"), case.inputs("float64")
    g = output_gradient(case)
    _, (gradient, dx) = loss_and_gradient(case.adapted(SPEC), params, x, g)
    p = {name: np.asarray(value) for name, value in params.items()}
    x, g, s = np.asarray(x).reshape(-1, 4), g.reshape(-1, 6), SPEC.scale
    v = p["kernel"] + s * p["lora_a"] @ p["lora_b"]
    n = np.sqrt((v**2).sum(axis=0))
    y = p["magnitude"] / n * (x @ v)
    dz = g * p["magnitude"] / n
    expected = {
        "magnitude": (g * y / p["magnitude"]).sum(axis=0),
        "lora_a": s * x.T @ dz @ p["lora_b"].T,
        "lora_b": s * (x @ p["lora_a"]).T @ dz,
        "bias": g.sum(axis=0),
    }
    for leaf, value in expected.items():
        np.testing.assert_allclose(gradient[leaf], value, rtol=1e-10, atol=1e-12, err_msg=leaf)
    np.testing.assert_allclose(np.reshape(dx, (-1, 4)), dz @ v.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "norm_axis"), EACH)
def test_the_exact_gradient_is_the_difference_quotient(name, norm_axis, x64):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis, detach_norm=False)
    params, x, g = (
        random_params(case, spec, "float64"),
        case.inputs("float64"),
        output_gradient(case),
    )
    _, (gradient, _) = loss_and_gradient(case.adapted(spec), params, x, g)
    plain = case.plain()
    rng = np.random.default_rng(11)
    for leaf in LEAVES:
        direction, step = rng.normal(size=params[leaf].shape), 1e-5
        moved = [
            jnp.sum(
                jit_apply(
                    plain,
                    merged_params(case, {**params, leaf: params[leaf] + d * direction}, spec),
                    x,
                )
                * g
            )
            for d in (step, -step)
        ]
        quotient = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(
            jnp.sum(gradient[leaf] * direction), quotient, rtol=1e-6, atol=1e-8, err_msg=leaf
        )


@pytest.mark.parametrize("method", ["dora", "magnitude"])
@pytest.mark.parametrize("detach", [True, False])
def test_no_gradient_of_the_kernel_goes_through_the_norm(detach, method, x64):
    # The kernel is frozen: the norm's part in its gradient would be work for nothing.
    case = CASES["dense"]
    spec = dataclasses.replace(SPEC, method=method, detach_norm=detach)
    params, x = random_params(case, spec, "float64"), case.inputs("float64")
    g = output_gradient(case)
    _, (gradient, _) = loss_and_gradient(case.adapted(spec), params, x, g)
    adapter = {"lora_a": np.zeros((4, 1)), "lora_b": np.zeros((1, 6))} | params
    v = reference.adapted(
        params["kernel"], adapter["lora_a"], adapter["lora_b"], spec.scale, case.layout
    )
    dz = g.reshape(-1, 6) * np.asarray(params["magnitude"]) / np.sqrt((v**2).sum(axis=0))
    expected = np.asarray(x).reshape(-1, 4).T @ dz
    np.testing.assert_allclose(gradient["kernel"], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "norm_axis"), [("dense", "out"), ("general, batch", "in")])
def test_a_lone_magnitude_and_plain_lora(name, norm_axis, x64):
    case = CASES[name]
    x, g = case.inputs("float64"), output_gradient(case)
    dora = dataclasses.replace(SPEC, norm_axis=norm_axis)
    full = random_params(case, dora, "float64")
    # The magnitude alone is DoRA with A B = 0; LoRA is DoRA with m = n, the norm detached.
    zero = {**full, "lora_b": 0 * full["lora_b"]}
    _, (expected, _) = loss_and_gradient(case.adapted(dora), zero, x, g)
    spec = dataclasses.replace(dora, method="magnitude")
    alone = {k: v for k, v in full.items() if k not in ("lora_a", "lora_b")}
    _, (gradient, _) = loss_and_gradient(case.adapted(spec), alone, x, g)
    np.testing.assert_allclose(gradient["magnitude"], expected["magnitude"], rtol=1e-10)

    v = reference.adapted(full["kernel"], full["lora_a"], full["lora_b"], dora.scale, case.layout)
    same = {**full, "magnitude": jnp.asarray(reference.norm(v, case.layout, norm_axis))}
    _, (expected, _) = loss_and_gradient(case.adapted(dora), same, x, g)
    lora = {k: v for k, v in full.items() if k != "magnitude"}
    spec = dataclasses.replace(dora, method="lora")
    _, (gradient, _) = loss_and_gradient(case.adapted(spec), lora, x, g)
    for leaf in ("lora_a", "lora_b"):
        np.testing.assert_allclose(gradient[leaf], expected[leaf], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "norm_axis", "detach"),
    [
        ("dense", "out", True),
        ("dense", "in", False),
        ("general, batch", "in", True),
        ("general, swapped", "out", False),
        ("conv, groups", "out", False),
        ("conv, groups", "in", True),
    ],
)
def test_zero_columns_and_zero_magnitudes(name, norm_axis, detach, x64):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis, detach_norm=detach)
    params, x, g = (
        random_params(case, spec, "float64"),
        case.inputs("float64"),
        output_gradient(case),
    )
    shape = params["magnitude"].shape
    dead, mute = (0,) * len(shape), (-1,) * len(shape)
    # The kernel's column at `dead` is zero, and the magnitude at `mute`.
    spread = np.ones(shape)
    spread[dead] = 0
    spread = np.expand_dims(spread, case.layout.summed(norm_axis))
    params["kernel"] = params["kernel"] * spread
    params["magnitude"] = params["magnitude"].at[dead].set(0).at[mute].set(0)
    y = jit_apply(case.adapted(spec), params, x)
    expected = jit_apply(case.plain(), merged_params(case, params, spec), x)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-11)
    _, (gradient, dx) = loss_and_gradient(case.adapted(spec), params, x, g)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, dx)))
    assert gradient["magnitude"][dead] == 0
    # y is linear in m: its gradient at 0 is the difference to m = 1, exactly.
    one = {**params, "magnitude": params["magnitude"].at[mute].set(1)}
    ones = jit_apply(case.plain(), merged_params(case, one, spec), x)
    np.testing.assert_allclose(
        gradient["magnitude"][mute], jnp.sum((ones - expected) * g), rtol=1e-8
    )
    assert jnp.abs(gradient["magnitude"][mute]) > 1e-3


@pytest.mark.parametrize(("norm_axis", "dtype"), [("out", "float32"), ("in", "bfloat16")])
@pytest.mark.parametrize("name", ["general, swapped", "conv, groups"])
def test_fresh_zero_columns_have_finite_gradients(name, norm_axis, dtype):
    case = CASES[name]
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis, detach_norm=False)
    params, x = random_params(case, spec), case.inputs()
    params["kernel"] = 0 * params["kernel"]
    params["lora_b"] = 0 * params["lora_b"]
    params["magnitude"] = 0 * params["magnitude"]
    module = case.adapted(spec, dtype=dtype)
    _, (gradient, dx) = loss_and_gradient(module, params, x, output_gradient(case))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, dx)))
    # Such a module learns as LoRA does.
    assert gradient["lora_b"].any()


@pytest.mark.parametrize("name", ["dense", "conv, groups"])
def test_gradients_in_bfloat16_are_near_those_in_float32(name):
    case = CASES[name]
    params, x, g = random_params(case, SPEC), case.inputs(), output_gradient(case)
    _, (exact, _) = loss_and_gradient(case.adapted(SPEC), params, x, g)
    _, (gradient, _) = loss_and_gradient(case.adapted(SPEC, dtype=jnp.bfloat16), params, x, g)
    for leaf in LEAVES:
        assert gradient[leaf].dtype == jnp.float32
        error = jnp.abs(gradient[leaf] - exact[leaf]).max() / jnp.abs(exact[leaf]).max()
        assert error < 0.03


# Sizes of which every product is told apart: 7 tokens, 11 in, 13 out, rank 3.
WIDE = CASES["dense, no bias"]._replace(
    input_shape=(7, 11),
    fields={"features": 13, "use_bias": False},
    layout=reference.Layout((11, 13), 1),
)


def trained(params):
    return {name: params[name] for name in LEAVES if name in params}


@pytest.mark.parametrize("norm_axis", AXES)
def test_the_backward_keeps_one_array_of_the_outputs_size(norm_axis):
    def kept(spec):
        params, x = random_params(WIDE, spec), WIDE.inputs()
        module = WIDE.adapted(spec)
        _, backward = jax.vjp(lambda t, x: run(module, params | t, x), trained(params), x)
        return [leaf.shape for leaf in jax.tree.leaves(backward) if hasattr(leaf, "shape")]

    lora = kept(AdapterSpec("lora", rank=3))
    dora = kept(dataclasses.replace(SPEC, norm_axis=norm_axis))
    assert lora.count((7, 13)) == 0
    assert dora.count((7, 13)) == (1 if norm_axis == "out" else 0)
    assert dora.count((7, 11)) <= lora.count((7, 11)) + (0 if norm_axis == "out" else 1)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("norm_axis", AXES)
def test_no_product_of_the_kernels_size_forward_and_backward(monkeypatch, norm_axis, detach):
    monkeypatch.setattr(factored_norm, "_TILE_ELEMENTS", 40)
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis, detach_norm=detach)
    params, x = random_params(WIDE, spec), WIDE.inputs()
    module = WIDE.adapted(spec)
    jaxpr = jax.make_jaxpr(
        jax.grad(lambda t, x: jnp.sum(run(module, params | t, x) ** 2), argnums=(0, 1))
    )(trained(params), x)
    shapes = products(jaxpr)
    assert (7, 13) in shapes
    assert max(math.prod(shape) for shape in shapes) < 11 * 13, shapes
    # The base product forward, its two on the way to x, and LoRA's: no second one with W.
    assert shapes.count((7, 13)) == 2
    assert shapes.count((7, 11)) == 2
