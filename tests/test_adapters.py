import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import init_adapters, magnitude_drift
from dora_jax.partition import partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from tests import small_net, tiny
from tests.small_net import rules_of, spec
from tests.training_ways import flat_leaves

ALL_LINEAR = "(embedding|kernel)"


def llama(method, key=0, **fields):
    rules = AdapterRules([(ALL_LINEAR, spec(method, **fields))])
    _, params = tiny.adapted_params(rules, seed=key)
    return flat_leaves(params)


def test_base_arrays_are_the_ones_given():
    rules = rules_of(head=spec("dora"))
    base = small_net.base_params("float32")
    _, params = small_net.adapted(rules)
    for path, leaf in flat_leaves(base).items():
        assert flat_leaves(params)[path] is leaf
    assert set(flat_leaves(params)) - set(flat_leaves(base)) == {
        "head/lora_a",
        "head/lora_b",
        "head/magnitude",
    }


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_leaves_are_those_of_the_model_s_own_init(method):
    rules = small_net.everywhere(spec(method), spec(method, norm_axis="in"))
    net, params = small_net.adapted(rules)
    own = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 9), jnp.int32))["params"]
    described = [{p: (x.shape, x.dtype) for p, x in flat_leaves(t).items()} for t in (own, params)]
    assert described[0] == described[1]


def test_a_narrow_param_dtype_leaves_the_magnitude_float32():
    rules = rules_of(head=spec("dora", param_dtype="bfloat16"))
    _, params = small_net.adapted(rules, "bfloat16")
    dtypes = {name: leaf.dtype.name for name, leaf in params["head"].items()}
    assert dtypes == {
        "kernel": "bfloat16",
        "bias": "bfloat16",
        "lora_a": "bfloat16",
        "lora_b": "bfloat16",
        "magnitude": "float32",
    }


def test_magnitudes_are_the_kernels_norms():
    rules = small_net.everywhere(spec("magnitude"), spec("dora", norm_axis="in"))
    _, params = small_net.adapted(rules)
    kernel = {name: np.asarray(params[name]["kernel"], np.float64) for name in ("conv", "head")}
    for name, axes in (("conv", (0, 1)), ("head", 1)):
        expected = np.sqrt((kernel[name] ** 2).sum(axes))
        np.testing.assert_allclose(params[name]["magnitude"], expected, rtol=1e-6)
    stacked = llama("dora")
    kernel = np.asarray(stacked["layers/mlp/up_proj/kernel"], np.float64)
    expected = np.sqrt((kernel**2).sum(1))
    np.testing.assert_allclose(stacked["layers/mlp/up_proj/magnitude"], expected, rtol=1e-6)


def test_lora_and_dora_of_one_key_share_their_factors():
    lora, dora = llama("lora"), llama("dora", norm_axis="in")
    assert "layers/mlp/up_proj/lora_a" in lora
    assert set(dora) - set(lora) == {p for p in dora if p.endswith("magnitude")}
    for path, leaf in lora.items():
        np.testing.assert_array_equal(leaf, dora[path], err_msg=path)


def test_factors_differ_between_modules_layers_and_keys():
    params = llama("lora")
    a = {path: np.asarray(leaf) for path, leaf in params.items() if path.endswith("lora_a")}
    assert len(a) == 8
    draws = [layer for leaf in a.values() if leaf.ndim == 3 for layer in leaf]
    draws = [draw for draw in draws if draw.shape == (32, 3)]
    assert len(draws) == 12
    assert len({draw.tobytes() for draw in draws}) == 12
    other = llama("lora", key=1)
    assert all((leaf != np.asarray(other[path])).any() for path, leaf in a.items())
    assert all(not np.any(leaf) for path, leaf in params.items() if path.endswith("lora_b"))


def test_a_module_s_factors_do_not_depend_on_what_else_is_tuned():
    few = AdapterRules([("up_proj", spec("dora"))])
    _, params = tiny.adapted_params(few)
    path = "layers/mlp/up_proj/lora_a"
    np.testing.assert_array_equal(flat_leaves(params)[path], llama("lora")[path])


def test_every_init_of_every_module():
    uniform = llama("lora", init="kaiming")
    for path, inputs in (("mlp/down_proj", 48), ("mlp/up_proj", 32), ("self_attn/k_proj", 32)):
        largest = np.abs(uniform[f"layers/{path}/lora_a"]).max()
        assert 0.8 / np.sqrt(inputs) < largest <= 1 / np.sqrt(inputs)
    swapped = llama("lora", init="normal_b")
    assert not np.any(swapped["layers/mlp/up_proj/lora_a"])
    assert np.std(swapped["layers/mlp/up_proj/lora_b"]) == pytest.approx(3**-0.5, rel=0.2)


_PRINT_FACTORS = """
import hashlib, jax, numpy as np
from dora_jax.adapters import init_adapters
from dora_jax.spec import AdapterRules, AdapterSpec
base = {n: {"kernel": np.ones((4, 3), np.float32)} for n in ("q", "k")}
extra = {"lora_a": np.ones((4, 2)), "lora_b": np.ones((2, 3))}
shapes = {n: {**base[n], **extra} for n in base}
rules = AdapterRules([("q|k", AdapterSpec("lora", rank=2))])
params = init_adapters(base, shapes, rules, jax.random.key(7))
data = b"".join(np.asarray(params[n]["lora_a"]).tobytes() for n in ("q", "k"))
print(hashlib.sha256(data).hexdigest())
"""


@pytest.mark.slow
def test_factors_are_the_same_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", _PRINT_FACTORS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_every_misfit_is_listed():
    rules = rules_of(head=spec("dora"))
    base = small_net.base_params()
    _, params = small_net.adapted(rules)
    broken = {
        "conv": {"kernel": base["conv"]["kernel"]},
        "embed": {"embedding": np.ones((11, 4))},
        "general": base["general"],
        "head": {**base["head"], "lora_a": np.ones((8, 3))},
        "norm": base["norm"],
        "extra": {"scale": np.ones(2)},
    }
    with pytest.raises(ValueError, match="the weights do not fit the model") as error:
        init_adapters(broken, params, rules, jax.random.key(0))
    listed = str(error.value).split(": ", 1)[1].split("; ")
    assert sorted(listed) == [
        "embed/embedding has shape (11, 4), expected (12, 4)",
        "missing conv/bias (6,)",
        "unexpected extra/scale (2,)",
        "unexpected head/lora_a (8, 3)",
    ]


def test_shapes_of_a_model_without_the_rules_are_an_error():
    base = small_net.base_params()
    with pytest.raises(ValueError, match="'head' has method 'dora' but no lora_a, lora_b, magni"):
        init_adapters(base, base, rules_of(head=spec("dora")), jax.random.key(0))


def test_a_magnitude_of_the_other_axis_names_the_module():
    _, params = small_net.adapted(rules_of(head=spec("dora")))
    with pytest.raises(ValueError, match="module 'head': kernel of shape"):
        init_adapters(
            small_net.base_params(),
            params,
            rules_of(head=spec("dora", norm_axis="in")),
            jax.random.key(0),
        )


def test_a_rule_that_matches_nothing_is_an_error():
    base = small_net.base_params()
    with pytest.raises(ValueError, match="near misses: head"):
        init_adapters(base, base, rules_of(heed=spec("lora")), jax.random.key(0))


def test_numpy_weights_at_the_root():
    base = {"kernel": np.full((4, 3), 2, np.float32)}
    shapes = {**base, "magnitude": np.ones(3), "lora_a": np.ones((4, 2)), "lora_b": np.ones((2, 3))}
    rules = AdapterRules([(".*", AdapterSpec(rank=2))])
    params = init_adapters(base, shapes, rules, jax.random.key(0))
    assert params["kernel"] is base["kernel"]
    np.testing.assert_allclose(params["magnitude"], np.full(3, 4.0))
    assert params["lora_a"].shape == (4, 2)


def test_magnitude_drift_by_hand():
    initial = {
        "a": {"magnitude": jnp.array([2.0, 4.0])},
        "b": {"magnitude": jnp.array([[1.0, 0.0]])},
    }
    now = {"a": {"magnitude": jnp.array([3.0, 3.0])}, "b": {"magnitude": jnp.array([[1.9, 5.0]])}}
    # |3/2 - 1|, |3/4 - 1|, |1.9 - 1|; the column that started at zero is left out.
    assert float(magnitude_drift(now, initial)) == pytest.approx((0.5 + 0.25 + 0.9) / 3)
    assert float(jax.jit(magnitude_drift)(now, initial)) == pytest.approx(0.55)
    assert float(magnitude_drift(initial, initial)) == 0
    assert float(magnitude_drift({"a": {"kernel": 1}}, initial)) == 0


def test_magnitude_drift_of_the_trainable_part():
    _, params = small_net.adapted(rules_of(conv=spec("lora"), head=spec("dora")))
    mask = trainable_mask(params)
    moved = small_net.moved(params, mask)
    drift = magnitude_drift(partition(moved, mask)[0], partition(params, mask)[0])
    m, m0 = moved["head"]["magnitude"], params["head"]["magnitude"]
    np.testing.assert_allclose(drift, np.abs(np.asarray(m / m0) - 1).mean(), rtol=1e-5)
