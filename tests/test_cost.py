import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
import pytest

from dora_jax.adapters import kernel_sq_norms
from dora_jax.cost import StepCost, step_cost, tokens_for_overhead
from dora_jax.factored_norm import cheaper_path, norm_flops
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import Batch, init_state, make_train_step
from tests.test_step_memory import CONFIG

ROWS, LENGTH, LABELS = 2, 6, 3


def product_flops(jaxpr):
    """Count the operations of all matrix products, loops taken as often as they run.

    Branches do not count: the direct norm of nearly cancelling kernels is not the usual way.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            summed = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * summed
        elif name != "cond":
            times = equation.params.get("length", 1) if name == "scan" else 1
            inner = jax.extend.core.jaxprs_in_params(equation.params)
            total += times * sum(product_flops(getattr(j, "jaxpr", j)) for j in inner)
    return total


def counted(model):
    rules = model.adapters
    shapes = param_shapes(model)
    trainable, frozen = partition(shapes, trainable_mask(shapes, rules))
    tx = optax.sgd(0.1)
    state = jax.eval_shape(lambda t: init_state(t, tx), trainable)
    sq_norms = jax.eval_shape(lambda t, f: kernel_sq_norms(combine(t, f), rules), trainable, frozen)
    labels = jax.ShapeDtypeStruct((ROWS, LABELS), jnp.int32)
    batch = Batch(
        jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32),
        labels,
        labels,
        jax.ShapeDtypeStruct((ROWS, LABELS), jnp.float32),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(make_train_step(model, rules, tx))(state, frozen, sq_norms, batch, key)
    return product_flops(jaxpr.jaxpr)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("method", "axis"),
    [("lora", "out"), ("dora", "out"), ("dora", "in"), ("magnitude", "out"), ("full", "out")],
)
def test_the_formula_counts_the_products_of_the_step(method, axis, tied):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    spec = AdapterSpec(method, rank=5, norm_axis=axis)
    model = Llama(config, AdapterRules.preset("paper", spec))
    cost = step_cost(model, ROWS, LENGTH, ROWS * LABELS)
    # Scaling and the norms' two sums over r are no products; of attention all is computed, not the
    # causal half.
    rest = AdapterRules.preset("paper", AdapterSpec("dora", rank=5, norm_axis=axis))
    sums = step_cost(Llama(config, rest), 1, 1).scaling / 6 * 4 * 5 if method == "dora" else 0.0
    expected = cost.total - cost.scaling + cost.attention - sums
    assert counted(model) == pytest.approx(expected, rel=1e-6)


def test_the_overhead_falls_below_the_share_at_the_tokens_that_are_named():
    model = Llama(LlamaConfig(), AdapterRules.preset("paper", AdapterSpec(rank=16)))
    tokens = tokens_for_overhead(model, seq=64)
    assert step_cost(model, 1, 64).dora_overhead > 0.01
    assert step_cost(model, math.ceil(tokens / 64) + 1, 64).dora_overhead <= 0.01
    assert step_cost(model, tokens // 64 - 1, 64).dora_overhead > 0.01
    with pytest.raises(ValueError, match="the scaling alone is"):
        tokens_for_overhead(model, seq=64, share=1e-6)


def test_the_total_is_the_sum_of_the_parts():
    parts = {field.name: 2.0**i for i, field in enumerate(dataclasses.fields(StepCost))}
    assert StepCost(**parts).total == sum(parts.values())


def test_high_ranks_take_the_direct_norm_where_its_operations_are_fewer():
    assert cheaper_path(4096, 4096, 16) == "factored"
    assert cheaper_path(576, 576, 512) == "direct"
    assert cheaper_path(576, 576, 512, narrow=True) == "factored"
    flops = norm_flops(576, 1536, 512)
    assert flops["direct"] < flops["factored"]
    assert norm_flops(8, 8, 2, narrow=True)["factored"] - norm_flops(8, 8, 2)["factored"] == 256
