"""DoRA gathers no kernel that LoRA would not: the compiled steps, sharded over eight devices."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dora_jax import layers
from dora_jax.adapters import column_norms
from dora_jax.layers import NORMS
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules
from tests import hlo
from tests.small_net import spec
from tests.training_ways import mesh

WIDTH, INNER = 64, 96
RULES = {
    "lora": spec("lora"),
    "dora": spec("dora"),
    "dora, in": spec("dora", norm_axis="in"),
    "dora, exact": spec("dora", detach_norm=False),
}
# Of a kernel (in, out), and the axis that each half of the mesh's names belongs to.
PLACEMENTS = {"out": (None, "tensor"), "in": ("fsdp", None), "both": ("fsdp", "tensor")}
GATHERS = ("all-gather", "all-gather-start", "all-to-all", "collective-permute")


class MLP(nn.Module):
    """Two Dense layers, the second scanned twice: kernels (64, 96), (2, 96, 96)."""

    rules: AdapterRules

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(layers.Dense(INNER, adapter=self.rules, name="first")(x))

        class Layer(nn.Module):
            rules: AdapterRules

            @nn.compact
            def __call__(self, x, _):
                return jnp.tanh(layers.Dense(INNER, adapter=self.rules, name="dense")(x)), None

        scanned = nn.scan(
            Layer, variable_axes={"params": 0, NORMS: 0}, split_rngs={"params": True}, length=2
        )
        return scanned(self.rules, name="layers")(x, None)[0]


def place(tree, placement, norm_axis):
    inputs, outputs = PLACEMENTS[placement]
    wanted = {"kernel": (inputs, outputs), "lora_a": (inputs, None), "lora_b": (None, outputs)}

    def put(path, shape):
        own = wanted.get(path[-1].key, (inputs if norm_axis == "in" else outputs,))
        axes = (None,) * (len(shape.shape) - len(own)) + own
        sharding = NamedSharding(mesh(), PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(put, tree)


@functools.lru_cache
def compiled(name, placement):
    rules = AdapterRules([("kernel", RULES[name])])
    model = MLP(rules)
    x = jax.ShapeDtypeStruct((16, WIDTH), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    train, frozen = partition(
        place(params, placement, RULES[name].norm_axis), trainable_mask(params, rules)
    )

    def step(train, frozen, x):
        norms = column_norms(combine(train, frozen), rules)

        def loss(train):
            variables = {"params": combine(train, frozen), NORMS: norms}
            return jnp.mean(model.apply(variables, x) ** 2)

        grads = jax.grad(loss)(train)
        return jax.tree.map(lambda p, g: p - 0.1 * g, train, grads)

    rows = NamedSharding(mesh(), PartitionSpec("data"))
    x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
    return jax.jit(step).lower(train, frozen, x).compile().as_text()


def moved_arrays(name, placement, at_least):
    """Count the shapes of so many elements that devices send each other whole."""
    shapes = hlo.result_shapes(compiled(name, placement), *GATHERS)
    return collections.Counter(s for s in map(hlo.squeezed, shapes) if hlo.size(s) >= at_least)


# A device's share of the smallest kernel; activations here are (16, 96) at most.
SHARE = WIDTH * INNER // 4


# With the exact gradient only one placement: the forward pass is that of the detached one.
GATHERED = [(name, p) for name in RULES if name not in ("lora", "dora, exact") for p in PLACEMENTS]


@pytest.mark.parametrize(("name", "placement"), [*GATHERED, ("dora, exact", "both")])
def test_no_kernel_is_gathered_on_account_of_dora(name, placement):
    found = moved_arrays(name, placement, SHARE)
    assert not found - moved_arrays("lora", placement, SHARE)


@pytest.mark.parametrize(("name", "placement"), [("dora", "in"), ("dora, in", "out")])
def test_norms_over_a_sharded_axis_take_a_small_sum(name, placement):
    sums = hlo.result_shapes(compiled(name, placement), "all-reduce", "all-reduce-start")
    lora = hlo.result_shapes(compiled("lora", placement), "all-reduce", "all-reduce-start")
    new = collections.Counter(map(hlo.squeezed, sums)) - collections.Counter(
        map(hlo.squeezed, lora)
    )
    assert new
    assert max(map(hlo.size, new)) <= 2 * 3 * INNER


def test_a_gathered_kernel_would_be_seen():
    placed = place({"kernel": jax.ShapeDtypeStruct((WIDTH, INNER), np.float32)}, "both", "out")
    gather = jax.jit(
        lambda tree: tree["kernel"], out_shardings=NamedSharding(mesh(), PartitionSpec())
    )
    text = gather.lower(placed).compile().as_text()
    assert any(hlo.size(shape) >= SHARE for shape in hlo.result_shapes(text, *GATHERS))
