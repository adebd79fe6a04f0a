import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax import layers
from dora_jax.decomposition import column_sq_norm
from dora_jax.factored_norm import adapted_norm
from dora_jax.spec import AdapterRules, AdapterSpec
from tests import reference
from tests.jaxprs import products

AXES = ["out", "in"]
METHODS = ["lora", "dora", "magnitude"]
LAYOUT = reference.Layout((11, 6), 1)
IDS = jnp.array([[3, 0, 10], [3, 3, 7]])
SPEC = AdapterSpec("dora", rank=3, alpha=1.5)


def random_params(spec, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=LAYOUT.shape)
    adapter = reference.random_adapter(rng, LAYOUT, spec.rank, spec.norm_axis, embedding)
    names = ["lora_a", "lora_b"] * spec.has_low_rank + ["magnitude"] * spec.has_magnitude
    params = {"embedding": embedding} | {name: adapter[name] for name in names}
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}


def merged_embedding(params, spec):
    adapter = {name: value for name, value in params.items() if name != "embedding"}
    s = reference.scale(spec.alpha, spec.rank, spec.scaling)
    return reference.merged(params["embedding"], adapter, s, LAYOUT, spec.norm_axis)


def embed(spec, **fields):
    return layers.Embed(11, 6, adapter=spec, **fields)


def call(module, params, ids=IDS):
    return module.apply({"params": params}, ids)


def attend(module, params, query):
    return module.apply({"params": params}, query, method="attend")


def queries(dtype="float32"):
    return jnp.asarray(np.random.default_rng(9).normal(size=(2, 5, 6)), dtype)


@pytest.mark.parametrize("adapter", [None, AdapterSpec("frozen"), AdapterSpec("full")])
def test_without_an_adapter_it_is_flax_own(adapter):
    ours, plain = embed(adapter), nn.Embed(11, 6)
    key = jax.random.key(0)
    inits = [jax.make_jaxpr(m.init, return_shape=True)(key, IDS) for m in (ours, plain)]
    assert inits[0][1] == inits[1][1]
    assert str(inits[0][0]) == str(inits[1][0])
    shapes = inits[1][1]["params"]
    for run, x in ((call, IDS), (attend, queries())):
        texts = [
            str(jax.make_jaxpr(lambda p, x, m=m, run=run: run(m, p, x))(shapes, x))
            for m in (ours, plain)
        ]
        assert texts[0] == texts[1]


def test_a_fresh_adapter_keeps_embedding_and_outputs():
    key = jax.random.key(0)
    adapted = jax.jit(embed(SPEC).init)(key, IDS)["params"]
    plain = jax.jit(nn.Embed(11, 6).init)(key, IDS)["params"]
    assert {name: leaf.shape for name, leaf in adapted.items()} == {
        "embedding": (11, 6),
        "lora_a": (11, 3),
        "lora_b": (3, 6),
        "magnitude": (6,),
    }
    np.testing.assert_array_equal(adapted["embedding"], plain["embedding"])
    np.testing.assert_allclose(call(embed(SPEC), adapted), call(nn.Embed(11, 6), plain), rtol=1e-6)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("method", METHODS)
def test_call_and_attend_use_the_merged_embedding(method, norm_axis):
    spec = dataclasses.replace(SPEC, method=method, norm_axis=norm_axis)
    params = random_params(spec)
    table = merged_embedding(params, spec)
    y = jax.jit(lambda p: call(embed(spec), p))(params)
    np.testing.assert_allclose(y, table[IDS], rtol=1e-5, atol=1e-5)
    logits = jax.jit(lambda p, q: attend(embed(spec), p, q))(params, queries())
    expected = reference.wide(queries()) @ table.T
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("norm_axis", AXES)
def test_gradients_of_call_and_attend(norm_axis, detach, x64):
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis, detach_norm=detach)
    params, query = random_params(spec, "float64"), queries("float64")
    rng = np.random.default_rng(2)
    g, h = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 5, 11))

    def loss(trained):
        p, module = params | trained, embed(spec)
        return jnp.sum(call(module, p) * g) + jnp.sum(attend(module, p, query) * h)

    def formula(trained):
        v = params["embedding"] + spec.scale * trained["lora_a"] @ trained["lora_b"]
        axis = LAYOUT.summed(norm_axis)
        norm = jnp.sqrt(jnp.sum(v**2, axis=axis, keepdims=True))
        norm = jax.lax.stop_gradient(norm) if detach else norm
        table = jnp.expand_dims(trained["magnitude"], axis) * v / norm
        return jnp.sum(table[IDS] * g) + jnp.sum(query @ table.T * h)

    trained = {name: value for name, value in params.items() if name != "embedding"}
    gradient, expected = jax.jit(jax.grad(loss))(trained), jax.jit(jax.grad(formula))(trained)
    for leaf, value in expected.items():
        np.testing.assert_allclose(gradient[leaf], value, rtol=1e-9, atol=1e-11, err_msg=leaf)


@pytest.mark.parametrize("norm_axis", AXES)
def test_zero_rows_or_columns_and_zero_magnitudes(norm_axis):
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis, detach_norm=False)
    params = random_params(spec)
    at = (slice(None), 3) if norm_axis == "out" else (3,)
    params["embedding"] = params["embedding"].at[at].set(0)
    params["magnitude"] = params["magnitude"].at[3].set(0).at[0].set(0)

    def loss(params):
        module = embed(spec)
        outputs = call(module, params), attend(module, params, queries())
        return sum(jnp.sum(y**2) + jnp.sum(y) for y in outputs), outputs

    (_, (y, logits)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    table = merged_embedding(params, spec)
    np.testing.assert_allclose(y, table[IDS], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, reference.wide(queries()) @ table.T, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in gradient.values())
    assert gradient["magnitude"][3] == 0
    assert jnp.abs(gradient["magnitude"][0]) > 1e-3


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_dtypes_are_those_of_flax(given, norm_axis):
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis)
    params, plain = random_params(spec), nn.Embed(11, 6, dtype=jnp.bfloat16)
    module = embed(spec, dtype=jnp.bfloat16)
    expected = {"embedding": params["embedding"]}
    assert call(module, params).dtype == call(plain, expected).dtype == jnp.bfloat16
    logits = attend(module, params, queries(given))
    assert logits.dtype == attend(plain, expected, queries(given)).dtype == jnp.bfloat16
    exact = reference.wide(queries()) @ merged_embedding(params, spec).T
    assert np.abs(np.asarray(logits, "float32") - exact).max() < 0.02 * np.abs(exact).max()


def test_given_norms_are_used():
    params = random_params(SPEC)
    sq_norm = column_sq_norm(params["embedding"])
    norm = adapted_norm(
        params["embedding"], params["lora_a"], params["lora_b"], SPEC.scale, "out", sq_norm
    )
    module = embed(SPEC)
    own = call(module, params)
    for factor in (1, 2):
        norms = {"kernel_sq_norm": sq_norm, "norm": factor * norm}
        y = module.apply({"params": params, "norms": norms}, IDS)
        np.testing.assert_allclose(y, own / factor, rtol=1e-5)


def test_a_rule_finds_it_by_its_own_weight():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            rules = AdapterRules([("tokens/embedding", SPEC)])
            return layers.Embed(11, 6, name="tokens", adapter=rules)(ids)

    shapes = jax.eval_shape(Net().init, jax.random.key(0), IDS)["params"]["tokens"]
    assert set(shapes) == {"embedding", "lora_a", "lora_b", "magnitude"}


@pytest.mark.parametrize("norm_axis", AXES)
def test_no_product_of_the_embeddings_size(norm_axis):
    spec = dataclasses.replace(SPEC, norm_axis=norm_axis)
    params = random_params(spec)
    trained = {name: value for name, value in params.items() if name != "embedding"}

    def loss(trained):
        p, module = params | trained, embed(spec)
        return jnp.sum(call(module, p) ** 2) + jnp.sum(attend(module, p, queries()) ** 2)

    # The norm's tile is the one product of this size: this table is smaller than a tile.
    shapes = products(jax.make_jaxpr(jax.grad(loss))(trained))
    assert sum(sorted(shape) in ([6, 11], [1, 6, 11]) for shape in shapes) == 2
