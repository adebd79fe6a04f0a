"""Norms computed once a step and passed in, or computed by each module: the same training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import column_norms, kernel_sq_norms
from dora_jax.layers import NORMS
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules
from tests import small_net, tiny
from tests.reference import wide
from tests.small_net import RULES, spec
from tests.test_frozen_gradients import llama_loss
from tests.training_ways import flat_leaves


def loss_and_gradients(loss, params, rules, norms_of, batch):
    mask = trainable_mask(params, rules)
    train, frozen = partition(params, mask)

    @jax.jit
    def run(train, frozen):
        params = combine(train, frozen)
        norms = {} if norms_of is None else {NORMS: norms_of(params)}
        return jax.value_and_grad(
            lambda train: loss({"params": combine(train, frozen), **norms}, *batch)
        )(train)

    return run(train, frozen)


def ways(params, rules):
    cached = kernel_sq_norms(params, rules)
    return {
        "cached": lambda params: column_norms(params, rules, cached),
        "all": lambda params: column_norms(params, rules),
        "the constant part": lambda params: kernel_sq_norms(params, rules),
    }


def check_same_with_and_without(loss, params, rules, batch, given=("cached",)):
    expected, expected_grads = loss_and_gradients(loss, params, rules, None, batch)
    expected_grads = flat_leaves(expected_grads)
    for name in given:
        norms_of = ways(params, rules)[name]
        value, grads = loss_and_gradients(loss, params, rules, norms_of, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for path, leaf in flat_leaves(grads).items():
            size = np.abs(expected_grads[path]).max()
            assert size > 0, path
            np.testing.assert_allclose(
                leaf, expected_grads[path], rtol=1e-4, atol=1e-5 * size, err_msg=path
            )


@pytest.mark.parametrize("name", ["dora", "dora, exact", "mixed"])
def test_small_network(name):
    rules = RULES[name]
    net, params = small_net.adapted(rules)
    params = small_net.moved(params, trainable_mask(params, rules))
    loss = functools.partial(small_net.loss_of, net)
    given = ("cached", "all", "the constant part") if name == "dora, exact" else ("cached",)
    check_same_with_and_without(loss, params, rules, small_net.batch(0), given)


LLAMA_RULES = AdapterRules(
    [
        ("(q|k)_proj", spec("dora")),
        ("v_proj", spec("dora", norm_axis="in")),
        ("o_proj", spec("magnitude", norm_axis="in")),
        ("gate_proj", spec("dora", detach_norm=False)),
        ("embed_tokens", spec("dora")),
    ]
)


def test_scanned_llama():
    model, params = tiny.adapted_params(LLAMA_RULES)
    params = small_net.moved(params, trainable_mask(params, LLAMA_RULES))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 101, (2, 7)))
    loss = functools.partial(llama_loss, model)
    check_same_with_and_without(loss, params, LLAMA_RULES, (tokens,))


def test_what_the_collection_holds():
    _, params = tiny.adapted_params(LLAMA_RULES)
    params = small_net.moved(params, trainable_mask(params, LLAMA_RULES))
    norms = flat_leaves(column_norms(params, LLAMA_RULES))
    attention = "layers/self_attn"
    assert {path: leaf.shape for path, leaf in norms.items()} == {
        f"{attention}/q_proj/kernel_sq_norm": (2, 32),
        f"{attention}/q_proj/norm": (2, 32),
        f"{attention}/k_proj/kernel_sq_norm": (2, 16),
        f"{attention}/k_proj/norm": (2, 16),
        f"{attention}/v_proj/kernel_sq_norm": (2, 32),
        f"{attention}/v_proj/norm": (2, 32),
        f"{attention}/o_proj/kernel_sq_norm": (2, 32),
        "layers/mlp/gate_proj/kernel_sq_norm": (2, 48),
        "embed_tokens/kernel_sq_norm": (32,),
        "embed_tokens/norm": (32,),
    }
    q, v = (params["layers"]["self_attn"][name] for name in ("q_proj", "v_proj"))
    kernel = wide(q["kernel"])
    np.testing.assert_allclose(
        norms[f"{attention}/q_proj/kernel_sq_norm"], (kernel**2).sum(1), rtol=1e-6
    )
    for path, leaves, axis in (("q_proj", q, 1), ("v_proj", v, 2)):
        total = wide(leaves["kernel"]) + 2 * wide(leaves["lora_a"]) @ wide(leaves["lora_b"])
        np.testing.assert_allclose(
            norms[f"{attention}/{path}/norm"], np.sqrt((total**2).sum(axis)), rtol=1e-5
        )


def test_the_constant_part_does_not_follow_the_adapter():
    _, params = tiny.adapted_params(LLAMA_RULES)
    later = small_net.moved(params, trainable_mask(params, LLAMA_RULES))
    before, after = (flat_leaves(kernel_sq_norms(p, LLAMA_RULES)) for p in (params, later))
    assert before.keys() == after.keys()
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])


def test_the_norms_take_no_gradient():
    _, params = tiny.adapted_params(LLAMA_RULES)
    params = small_net.moved(params, trainable_mask(params, LLAMA_RULES))
    gradient = jax.grad(
        lambda p: sum(jnp.sum(n) for n in jax.tree.leaves(column_norms(p, LLAMA_RULES)))
    )(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_given_squared_norms_are_used():
    rules = AdapterRules([("q_proj", spec("dora"))])
    _, params = tiny.adapted_params(rules)
    cached = jax.tree.map(lambda x: 4 * x, kernel_sq_norms(params, rules))
    norms = flat_leaves(column_norms(params, rules, cached))
    plain = flat_leaves(column_norms(params, rules))
    path = "layers/self_attn/q_proj/norm"
    np.testing.assert_allclose(norms[path], 2 * plain[path], rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_dtype_of_the_norms(dtype, expected, precision):
    with precision(dtype):
        kernel = jnp.ones((5, 4), dtype)
        low_rank = {"lora_a": jnp.ones((5, 3)), "lora_b": jnp.ones((3, 4))}
        params = {"head": {"kernel": kernel, **low_rank, "magnitude": jnp.ones(4)}}
        norms = column_norms(params, small_net.rules_of(head=spec("dora")))
    assert {name: leaf.dtype for name, leaf in norms["head"].items()} == {
        "kernel_sq_norm": expected,
        "norm": expected,
    }
