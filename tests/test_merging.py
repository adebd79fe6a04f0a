"""Adapters in a tree merge into plain parameters that cost and say what they should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import init_adapters, merge_params
from dora_jax.models.llama import Llama
from dora_jax.partition import trainable_mask
from dora_jax.spec import AdapterRules
from tests import hlo, reference, small_net, tiny
from tests.reference import Layout
from tests.small_net import RULES, Net, rules_of, spec
from tests.training_ways import flat_leaves

LLAMA_RULES = AdapterRules(
    [
        ("(q|k)_proj", spec("dora")),
        ("v_proj", spec("dora", norm_axis="in", scaling="rslora")),
        ("o_proj", spec("magnitude")),
        ("(gate|up)_proj", spec("lora")),
        ("down_proj", spec("dora", detach_norm=False)),
        ("embed_tokens", spec("dora")),
        ("norm", spec("full")),
    ]
)
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 101, (2, 9)), jnp.int32)


@functools.lru_cache
def tuned_llama(dtype="float32"):
    """Return (model with adapters, its base's parameters, tuned parameters)."""
    model, params = tiny.adapted_params(LLAMA_RULES, dtype=dtype)
    mask = trainable_mask(params, LLAMA_RULES)
    is_adapter = trainable_mask(params)
    cast = lambda keep, leaf: leaf if keep else leaf.astype(dtype)  # noqa: E731
    params = jax.tree.map(cast, is_adapter, params)
    base = jax.tree.map(lambda x: x.astype(dtype), tiny.base_params())
    return model, base, small_net.moved(params, mask)


def compiled_forward(model, params):
    forward = jax.jit(lambda params, inputs: model.apply({"params": params}, inputs))
    inputs = TOKENS if isinstance(model, Llama) else small_net.batch(0)[0]
    return hlo.instructions(forward.lower(params, inputs).compile().as_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_llama_is_the_plain_one_to_the_compiler(dtype):
    adapted, base, tuned = tuned_llama(dtype)
    plain = Llama(tiny.CONFIG, dtype=dtype)
    merged = merge_params(tuned, LLAMA_RULES)
    expected = compiled_forward(plain, base)
    assert compiled_forward(plain, merged) == expected
    assert len(expected) > 50
    if dtype == "float32":  # adapters would show
        assert compiled_forward(adapted, tuned) != expected


@pytest.mark.parametrize("name", ["dora", "mixed"])
def test_the_merged_small_network_is_the_plain_one_to_the_compiler(name):
    _, params = small_net.adapted(RULES[name])
    merged = merge_params(params, RULES[name])
    assert compiled_forward(Net(), merged) == compiled_forward(Net(), small_net.base_params())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.05)])
def test_the_merged_llama_says_what_the_adapted_one_does(dtype, tolerance):
    adapted, base, tuned = tuned_llama(dtype)
    merged = merge_params(tuned, LLAMA_RULES)
    described = lambda tree: {p: (x.shape, x.dtype) for p, x in flat_leaves(tree).items()}  # noqa: E731
    full = {p: x for p, x in described(base).items() if "norm" not in p}
    assert {p: x for p, x in described(merged).items() if "norm" not in p} == full
    plain = Llama(tiny.CONFIG, dtype=dtype)
    expected = np.asarray(jax.jit(adapted.apply)({"params": tuned}, TOKENS))
    found = np.asarray(jax.jit(plain.apply)({"params": merged}, TOKENS))
    untuned = np.asarray(jax.jit(plain.apply)({"params": base}, TOKENS))
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() < tolerance * size
    assert np.abs(untuned - expected).max() > 5 * tolerance * size


@pytest.mark.parametrize("name", [n for n in RULES if n != "full"])
def test_the_merged_small_network_says_what_the_adapted_one_does(name):
    net, params = small_net.adapted(RULES[name])
    params = small_net.moved(params, trainable_mask(params, RULES[name]))
    ids, _ = small_net.batch(0)
    expected = jax.jit(net.apply)({"params": params}, ids)
    merged = merge_params(params, RULES[name])
    assert jax.tree.structure(merged) == jax.tree.structure(small_net.base_params())
    np.testing.assert_allclose(
        jax.jit(Net().apply)({"params": merged}, ids), expected, rtol=1e-4, atol=1e-5
    )


def test_merged_kernels_are_the_reference_s():
    _, _, tuned = tuned_llama()
    merged = merge_params(tuned, LLAMA_RULES)["layers"]
    for group, name, axis, scale in (
        ("self_attn", "q_proj", "out", 2.0),
        ("self_attn", "v_proj", "in", 6 / 3**0.5),
        ("self_attn", "o_proj", "out", None),
        ("mlp", "up_proj", "out", 2.0),
        ("mlp", "down_proj", "out", 2.0),
    ):
        leaves = dict(tuned["layers"][group][name])
        kernel = leaves.pop("kernel")
        expected = reference.merged(kernel, leaves, scale, Layout(kernel.shape, 1, 1), axis)
        np.testing.assert_allclose(merged[group][name]["kernel"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_fresh_adapters_merge_into_the_base_bit_for_bit(method, dtype):
    rules = small_net.everywhere(spec(method), spec(method, norm_axis="in"))
    _, params = small_net.adapted(rules, dtype)
    for compiled in (merge_params, jax.jit(merge_params, static_argnums=1)):
        merged = flat_leaves(compiled(params, rules))
        for path, leaf in flat_leaves(small_net.base_params(dtype)).items():
            np.testing.assert_array_equal(merged[path], leaf, err_msg=path)


def test_adapted_again_after_a_merge():
    first = rules_of(head=spec("dora"))
    second = rules_of(head=spec("dora", norm_axis="in"), conv=spec("lora"))
    _, params = small_net.adapted(first)
    merged = merge_params(small_net.moved(params, trainable_mask(params)), first)
    net, shapes = small_net.adapted(second)
    again = init_adapters(merged, shapes, second, jax.random.key(5))
    kernel = np.asarray(merged["head"]["kernel"], np.float64)
    np.testing.assert_allclose(again["head"]["magnitude"], np.sqrt((kernel**2).sum(1)), rtol=1e-6)
    again = small_net.moved(again, trainable_mask(again))
    ids, _ = small_net.batch(0)
    twice = merge_params(again, second)
    np.testing.assert_allclose(
        jax.jit(Net().apply)({"params": twice}, ids),
        jax.jit(net.apply)({"params": again}, ids),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_adapted_parameters_are_left_as_they_are():
    _, _, tuned = tuned_llama()
    before = {path: np.array(leaf) for path, leaf in flat_leaves(tuned).items()}
    merged = merge_params(tuned, LLAMA_RULES)
    merged["layers"]["mlp"]["up_proj"].clear()
    assert flat_leaves(tuned).keys() == before.keys()
    for path, leaf in flat_leaves(tuned).items():
        np.testing.assert_array_equal(leaf, before[path])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"conv": spec("lora")}, "'head' holds lora_a, lora_b, magnitude, .*method 'frozen'"),
        ({"conv": spec("lora"), "head": spec("lora")}, "'head' holds magnitude, .*method 'lora'"),
        ({"conv": spec("lora"), "head": spec("full")}, "'head' holds lora_a, .*method 'full'"),
        ({"conv": spec("dora"), "head": spec("dora")}, "'conv' has .* no magnitude"),
    ],
)
def test_rules_that_would_lose_or_lack_an_adapter_are_refused(kept, message):
    _, params = small_net.adapted(rules_of(conv=spec("lora"), head=spec("dora")))
    with pytest.raises(ValueError, match=message):
        merge_params(params, rules_of(**kept))


def test_a_misshaped_adapter_names_its_module():
    rules = rules_of(head=spec("dora"))
    _, params = small_net.adapted(rules)
    params["head"]["lora_b"] = jnp.zeros((3, 9))
    with pytest.raises(ValueError, match="module 'head': kernel of shape"):
        merge_params(params, rules)
