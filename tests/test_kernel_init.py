"""PiSSA, OLoRA and orthogonal factors, and layers with ranks and scales of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import column_norms, init_adapters, merge_params
from dora_jax.decomposition import init_low_rank
from dora_jax.generation import AdapterBank
from dora_jax.generation.row_adapters import row_adapters
from dora_jax.kernel_init import init_from_kernel
from dora_jax.layers import NORMS, Dense
from dora_jax.partition import partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec

KERNEL = np.random.default_rng(0).standard_normal((2, 9, 7)).astype("f4")


def parts(init, **fields):
    spec = AdapterSpec("lora", rank=3, alpha=2, scaling="alpha", init=init, **fields)
    return [np.asarray(x, float) for x in init_from_kernel(jnp.asarray(KERNEL), spec, 1, 1)]


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_30", "olora"])
def test_the_residual_and_the_factors_are_the_kernel(init):
    residual, a, b = parts(init)
    np.testing.assert_allclose(residual + 2 * a @ b, KERNEL, atol=2e-6)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_30"])
def test_pissa_takes_the_largest_singular_directions(init):
    residual, a, b = parts(init)
    for n in range(2):
        s = np.linalg.svd(KERNEL[n], compute_uv=False)
        np.testing.assert_allclose(
            np.linalg.svd(residual[n], compute_uv=False)[:4], s[3:], atol=1e-5
        )
        # Both factors carry the same share of them.
        np.testing.assert_allclose(a[n].T @ a[n], b[n] @ b[n].T, atol=1e-5)


def test_olora_takes_the_first_columns_of_the_transposed_kernels_qr():
    _, a, b = parts("olora")
    for n in range(2):
        q, r = np.linalg.qr(KERNEL[n].T)
        np.testing.assert_allclose(b[n].T @ a[n].T, q[:, :3] @ r[:3], atol=1e-5)
        np.testing.assert_allclose(b[n] @ b[n].T, np.eye(3), atol=1e-5)


def test_a_rank_beyond_the_kernels_and_other_inits_are_refused():
    with pytest.raises(ValueError, match=r"at most 7 directions .* rank 8 asks for more"):
        init_from_kernel(jnp.asarray(KERNEL), AdapterSpec(rank=8, init="pissa"), 1, 1)
    with pytest.raises(ValueError, match="'kaiming' does not start from the kernel"):
        init_from_kernel(jnp.asarray(KERNEL), AdapterSpec(rank=2), 1, 1)
    with pytest.raises(ValueError, match="'orthogonal' needs an even rank; got 3"):
        AdapterSpec(rank=3, init="orthogonal")
    with pytest.raises(ValueError, match=r"AdapterSpec.init must be one of .*pissa_niter_x"):
        AdapterSpec(rank=3, init="pissa_niter_x")


def test_orthogonal_factors_are_large_and_their_product_zero():
    a, b = init_low_rank(jax.random.key(0), (40, 2), (30,), 6, "orthogonal", "float32", (3,))
    assert (a.shape, b.shape) == ((3, 40, 2, 6), (3, 6, 30))
    product = np.einsum("sixr,sro->sixo", np.asarray(a, float), np.asarray(b, float))
    assert np.abs(product).max() < 1e-7
    # Normal entries / 10, turned: half of the rank's directions each.
    np.testing.assert_allclose(np.mean(np.square(a)), 0.01 / 2, rtol=0.2)
    np.testing.assert_allclose(np.mean(np.square(b)), 0.01 / 2, rtol=0.2)


def test_an_embeddings_b_is_normal_and_its_a_zero():
    a, b = init_low_rank(jax.random.key(0), (40,), (50,), 16, "embedding")
    assert not np.any(a)
    np.testing.assert_allclose(np.std(b), 1, rtol=0.1)


class Stack(nn.Module):
    """Three scanned layers, x + dense(x)."""

    adapters: AdapterRules | None = None

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            adapters: AdapterRules | None

            @nn.compact
            def __call__(self, x, _):
                return x + Dense(5, use_bias=False, adapter=self.adapters, name="dense")(x), None

        axes = {"params": 0, NORMS: 0}
        scan = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)
        return scan(self.adapters, name="layers")(x, None)[0]


def stack(**fields):
    per_layer = ((1, 2.0), None, (3, 1.0))
    spec = AdapterSpec("dora", rank=3, alpha=1.0, per_layer=per_layer, **fields)
    rules = AdapterRules([("dense", spec)])
    x = jax.random.normal(jax.random.key(5), (4, 5))
    base = Stack().init(jax.random.key(0), x)["params"]
    shapes = jax.eval_shape(Stack(rules).init, jax.random.key(0), x)["params"]
    return x, base, rules, init_adapters(base, shapes, rules, jax.random.key(1))


def moved(params):
    """Return parameters whose trained numbers differ from the start, within each layer's rank."""
    rng = np.random.default_rng(2)
    leaves = {k: np.array(v) for k, v in params["layers"]["dense"].items()}
    for n, rank in enumerate((1, 0, 3)):
        leaves["lora_b"][n, :rank] = rng.standard_normal((rank, 5))
        leaves["magnitude"][n] *= 1.3
    return {"layers": {"dense": leaves}}


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "pissa"])
def test_a_fresh_adapter_of_unequal_layers_changes_nothing(init):
    x, base, rules, params = stack(init=init)
    leaves = params["layers"]["dense"]
    for n, rank in enumerate((1, 0, 3)):
        assert np.all(leaves["lora_a"][n][:, :rank] != 0)
        assert not np.any(leaves["lora_a"][n][:, rank:])
        assert not np.any(leaves["lora_b"][n][rank:])
    np.testing.assert_allclose(leaves["lora_scale"], [2, 0, 1 / 3], rtol=1e-6)
    own = Stack(rules).apply({"params": params}, x)
    np.testing.assert_allclose(own, Stack().apply({"params": base}, x), atol=1e-5)


def test_each_layer_has_its_own_scale_and_one_without_an_adapter_none():
    x, base, rules, params = stack()
    params = moved(params)
    leaves = params["layers"]["dense"]
    y = np.asarray(x, float)
    for n, scale in enumerate((2, 0, 1 / 3)):
        w = np.asarray(leaves["kernel"][n], float)
        v = w + scale * leaves["lora_a"][n].astype(float) @ leaves["lora_b"][n]
        # The magnitude moved in all three, and has no part in the second.
        m = leaves["magnitude"][n] if scale else np.linalg.norm(w, axis=0)
        y = y + y @ (m * v / np.linalg.norm(v, axis=0))
    found = Stack(rules).apply({"params": params}, x)
    np.testing.assert_allclose(found, y, rtol=1e-4, atol=1e-5)
    norms = column_norms(params, rules)
    np.testing.assert_allclose(
        Stack(rules).apply({"params": params, NORMS: norms}, x), y, rtol=1e-4, atol=1e-5
    )
    merged = merge_params(params, rules)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(Stack().apply({"params": merged}, x), y, rtol=1e-4, atol=1e-5)
    bank = AdapterBank.build(base, [(rules, params)])
    with row_adapters():
        rows = Stack().apply({"params": base, NORMS: bank.rows(np.zeros(4, int))}, x[:, None])
    np.testing.assert_allclose(rows[:, 0], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detach_norm", [True, False])
def test_nothing_outside_a_layers_rank_gets_a_gradient(detach_norm):
    x, _, rules, params = stack(detach_norm=detach_norm)
    params = jax.tree.map(jnp.asarray, moved(params))
    mask = trainable_mask(params, rules)
    trainable, frozen = partition(params, mask)
    assert trainable["layers"]["dense"]["lora_scale"] is None

    def loss(trainable):
        whole = jax.tree.map(
            lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None
        )
        return jnp.sum(Stack(rules).apply({"params": whole}, x) ** 2)

    grads = jax.grad(loss)(trainable)["layers"]["dense"]
    for n, rank in enumerate((1, 0, 3)):
        assert np.all(np.asarray(grads["lora_a"][n][:, :rank]) != 0)
        assert not np.any(grads["lora_a"][n][:, rank:])
        assert not np.any(grads["lora_b"][n][rank:])
        assert np.any(grads["magnitude"][n]) == bool(rank)


def test_layers_are_checked():
    with pytest.raises(ValueError, match="must be the largest of per_layer; got 2"):
        AdapterSpec(rank=2, per_layer=((3, 1.0), None))
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1; got 0"):
        AdapterSpec(rank=2, per_layer=((2, 1.0), (0, 1.0)))
    with pytest.raises(ValueError, match="ranks, which method 'magnitude' does not have"):
        AdapterSpec("magnitude", per_layer=((16, 1.0),))
    spec = AdapterSpec(rank=2, per_layer=((2, 1.0), None))
    rules, x = AdapterRules([("dense", spec)]), np.ones((1, 5))
    shapes = jax.eval_shape(Stack(rules).init, jax.random.key(0), x)
    base = Stack().init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=r"lists 2 layers, its kernel of shape .* stacks 3"):
        init_adapters(base, shapes["params"], rules, jax.random.key(0))
