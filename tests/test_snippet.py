"""The simplest published DoRA snippet, by its own formulas in PyTorch's (out, in) layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax import layers
from dora_jax.decomposition import init_low_rank, merge_kernel
from dora_jax.spec import AdapterSpec, snippet_dora, snippet_lora

INPUTS, OUTPUTS, RANK, ALPHA = 5, 7, 3, 2.5


def dora_data():
    """W (out, in), bias, m (1, in), A (out, r), B (r, in), x and the gradient of the output."""
    rng = np.random.default_rng(0)
    shapes = {
        "W": (OUTPUTS, INPUTS),
        "bias": (OUTPUTS,),
        "m": (1, INPUTS),
        "A": (OUTPUTS, RANK),
        "B": (RANK, INPUTS),
        "x": (4, INPUTS),
        "g": (4, OUTPUTS),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def dora_formulas(d):
    """F.linear(x, m (W + A B) / ||W + A B||_dim0, bias) and its gradients, by hand."""
    v = d["W"] + d["A"] @ d["B"]
    norm = np.sqrt((v**2).sum(axis=0, keepdims=True))
    weight = d["m"] * v / norm
    d_weight = d["g"].T @ d["x"]
    d_m = (d_weight * v / norm).sum(axis=0, keepdims=True)
    # Through the norm: what lies along v falls away.
    d_v = d["m"] / norm * (d_weight - v / norm * d_m)
    gradients = {
        "m": d_m,
        "A": d_v @ d["B"].T,
        "B": d["A"].T @ d_v,
        "bias": d["g"].sum(axis=0),
        "x": d["g"] @ weight,
    }
    return d["x"] @ weight.T + d["bias"], weight, gradients


def as_params(d):
    """The snippet's tensors as ours: A is on the output side, so it is lora_b."""
    named = {
        "kernel": d["W"].T,
        "bias": d["bias"],
        "magnitude": d["m"][0],
        "lora_b": d["A"].T,
        "lora_a": d["B"].T,
    }
    return {name: jnp.asarray(value) for name, value in named.items()}


def run(spec, params, x, g):
    module = layers.Dense(OUTPUTS, adapter=spec)

    def loss(params, x):
        y = module.apply({"params": params}, x)
        return jnp.sum(y * g), y

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, y), gradients = compiled(params, x)
    return y, *gradients


def check_dora(d, y, weight, expected):
    params, spec = as_params(d), snippet_dora(RANK)
    ours, gradients, dx = run(spec, params, jnp.asarray(d["x"]), d["g"])
    np.testing.assert_allclose(ours, y, rtol=1e-12)
    np.testing.assert_allclose(gradients["magnitude"], expected["m"][0], rtol=1e-11)
    np.testing.assert_allclose(gradients["lora_b"].T, expected["A"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradients["lora_a"].T, expected["B"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradients["bias"], expected["bias"], rtol=1e-12)
    np.testing.assert_allclose(dx, expected["x"], rtol=1e-11)
    adapter = {name: params[name] for name in ("lora_a", "lora_b", "magnitude")}
    np.testing.assert_allclose(merge_kernel(params["kernel"], adapter, spec).T, weight, rtol=1e-12)


def test_dora_is_the_snippets_formulas(x64):
    d = dora_data()
    check_dora(d, *dora_formulas(d))


def test_dora_starts_as_the_snippet_does():
    module = layers.Dense(400, adapter=snippet_dora(16))
    params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, 300)))["params"]
    np.testing.assert_allclose(
        params["magnitude"], jnp.linalg.norm(params["kernel"].T, axis=0), rtol=1e-6
    )
    # A (out, r) ~ N(0, 1 / r) and B (r, in) = 0.
    assert params["lora_b"].shape == (16, 400)
    np.testing.assert_allclose(params["lora_b"].std(), 1 / np.sqrt(16), rtol=0.05)
    assert not params["lora_a"].any()


def lora_data():
    rng = np.random.default_rng(1)
    shapes = {
        "W": (OUTPUTS, INPUTS),
        "bias": (OUTPUTS,),
        "A": (INPUTS, RANK),
        "B": (RANK, OUTPUTS),
        "x": (4, INPUTS),
        "g": (4, OUTPUTS),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def lora_formulas(d):
    """y = x W^T + bias + alpha x A B, merged as W + alpha (A B)^T."""
    weight = d["W"] + ALPHA * (d["A"] @ d["B"]).T
    gradients = {
        "A": ALPHA * d["x"].T @ d["g"] @ d["B"].T,
        "B": ALPHA * (d["x"] @ d["A"]).T @ d["g"],
        "bias": d["g"].sum(axis=0),
        "x": d["g"] @ weight,
    }
    y = d["x"] @ d["W"].T + d["bias"] + ALPHA * d["x"] @ d["A"] @ d["B"]
    return y, weight, gradients


def check_lora(d, y, weight, expected):
    spec = snippet_lora(RANK, ALPHA)
    named = {"kernel": d["W"].T, "bias": d["bias"], "lora_a": d["A"], "lora_b": d["B"]}
    params = {name: jnp.asarray(value) for name, value in named.items()}
    ours, gradients, dx = run(spec, params, jnp.asarray(d["x"]), d["g"])
    np.testing.assert_allclose(ours, y, rtol=1e-12)
    np.testing.assert_allclose(gradients["lora_a"], expected["A"], rtol=1e-11)
    np.testing.assert_allclose(gradients["lora_b"], expected["B"], rtol=1e-11)
    np.testing.assert_allclose(gradients["bias"], expected["bias"], rtol=1e-12)
    np.testing.assert_allclose(dx, expected["x"], rtol=1e-11)
    adapter = {name: params[name] for name in ("lora_a", "lora_b")}
    np.testing.assert_allclose(merge_kernel(params["kernel"], adapter, spec).T, weight, rtol=1e-12)


def test_lora_is_the_snippets_formulas(x64):
    d = lora_data()
    check_lora(d, *lora_formulas(d))


def test_lora_starts_as_the_snippet_does():
    spec = snippet_lora(16, ALPHA)
    assert spec.scale == ALPHA
    a, b = init_low_rank(jax.random.key(0), (300,), (400,), spec.rank, spec.init)
    assert a.shape == (300, 16)
    np.testing.assert_allclose(a.std(), 1 / np.sqrt(16), rtol=0.05)
    assert not b.any()


def test_the_presets_say_what_the_snippet_does():
    assert snippet_dora(8) == AdapterSpec(
        method="dora",
        rank=8,
        alpha=1.0,
        scaling="alpha",
        norm_axis="in",
        detach_norm=False,
        init="normal_b",
    )
    assert snippet_lora(8, 4.0) == AdapterSpec(
        method="lora", rank=8, alpha=4.0, scaling="alpha", init="normal"
    )


@pytest.mark.parity
def test_dora_is_the_snippet_run_by_torch(x64):
    torch = pytest.importorskip("torch", reason="needs torch (the parity extra)")
    d = dora_data()
    t = {name: torch.tensor(value, requires_grad=name != "g") for name, value in d.items()}
    v = t["W"] + t["A"] @ t["B"]
    weight = t["m"] * v / v.norm(p=2, dim=0, keepdim=True)
    y = torch.nn.functional.linear(t["x"], weight, t["bias"])
    y.backward(t["g"])
    gradients = {name: t[name].grad.numpy() for name in ("m", "A", "B", "bias", "x")}
    check_dora(d, y.detach().numpy(), weight.detach().numpy(), gradients)


@pytest.mark.parity
def test_lora_is_the_snippet_run_by_torch(x64):
    torch = pytest.importorskip("torch", reason="needs torch (the parity extra)")
    d = lora_data()
    t = {name: torch.tensor(value, requires_grad=name != "g") for name, value in d.items()}
    y = torch.nn.functional.linear(t["x"], t["W"], t["bias"]) + ALPHA * (t["x"] @ t["A"] @ t["B"])
    y.backward(t["g"])
    weight = t["W"] + ALPHA * (t["A"] @ t["B"]).T
    gradients = {name: t[name].grad.numpy() for name in ("A", "B", "bias", "x")}
    check_lora(d, y.detach().numpy(), weight.detach().numpy(), gradients)
