"""A small Linen network of all our layers and one of Flax's, shared by tests.

Its kernels, (12, 4), (3, 4, 6), (6, 2, 4) and (8, 10), have shapes that nothing else has in a
training step, in any order of their axes.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dora_jax import layers
from dora_jax.adapters import init_adapters
from dora_jax.spec import AdapterRules, AdapterSpec

ROWS, LENGTH, VOCABULARY, CLASSES = 16, 9, 12, 10
RANK = 3


class Net(nn.Module):
    """Embed, Conv, LayerNorm (Flax's), DenseGeneral, Dense: a classifier of id sequences."""

    adapter: AdapterRules | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, ids):
        fields = {"adapter": self.adapter, "param_dtype": self.param_dtype}
        x = layers.Embed(VOCABULARY, 4, name="embed", **fields)(ids)
        x = nn.gelu(layers.Conv(6, (3,), name="conv", **fields)(x))
        x = nn.LayerNorm(name="norm")(x)
        x = layers.DenseGeneral((2, 4), name="general", **fields)(x)
        x = jnp.tanh(x).mean(axis=1).reshape(-1, 8)
        return layers.Dense(CLASSES, name="head", **fields)(x)


def rules_of(**specs):
    """Return rules by module name."""
    return AdapterRules(list(specs.items()))


def spec(method, **fields):
    return AdapterSpec(method, rank=RANK, alpha=6.0, **fields)


def everywhere(one, other=None):
    """Return rules that give `one` to Embed and Conv, `other` to DenseGeneral and Dense."""
    other = one if other is None else other
    return rules_of(embed=one, conv=one, general=other, head=other)


RULES = {
    "lora": everywhere(spec("lora")),
    "dora": everywhere(spec("dora"), spec("dora", norm_axis="in")),
    "dora, exact": rules_of(  # on the other axes than the line above
        embed=spec("dora", detach_norm=False, norm_axis="in"),
        conv=spec("dora", detach_norm=False),
        general=spec("dora", detach_norm=False),
        head=spec("dora", detach_norm=False),
    ),
    "magnitude": everywhere(spec("magnitude"), spec("magnitude", norm_axis="in")),
    "full": everywhere(spec("full")),
    "mixed": rules_of(
        embed=spec("lora", scaling="rslora"),
        conv=spec("dora", norm_axis="in", train_bias=True),
        norm=spec("full"),
        general=spec("magnitude"),
        head=spec("frozen", train_bias=True),
    ),
}


@functools.lru_cache
def base_params(param_dtype="float32"):
    """Parameters of the plain network; a -0.0 in each kernel, which careless zeros would turn."""
    ids = jnp.zeros((1, LENGTH), jnp.int32)
    params = jax.jit(Net().init)(jax.random.key(0), ids)["params"]
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.ndim == 1:  # no zero biases
            return jnp.asarray(rng.normal(size=leaf.shape) + 1, param_dtype)
        return leaf.astype(param_dtype).at[(0,) * leaf.ndim].set(-0.0)

    return jax.tree.map(fill, params)


def adapted(rules, param_dtype="float32", seed=0):
    """Return (network with adapters, its fresh parameters)."""
    net = Net(rules, param_dtype)
    ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), ids)["params"]
    return net, init_adapters(base_params(param_dtype), shapes, rules, jax.random.key(seed))


def moved(params, mask, seed=1):
    """Return parameters whose trainable leaves are some way from where they start."""
    rng = np.random.default_rng(seed)

    def move(train, leaf):
        if not train:
            return leaf
        noise = rng.normal(size=leaf.shape) * 0.2
        return jnp.asarray(np.asarray(leaf, np.float64) * (1 + noise) + 0.1 * noise, leaf.dtype)

    return jax.tree.map(move, mask, params)


def batch(seed):
    """Return ids (ROWS, LENGTH) and labels (ROWS,)."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32),
        rng.integers(0, CLASSES, ROWS).astype(np.int32),
    )


def loss_of(net, variables, ids, labels):
    """Return the mean cross-entropy of a batch."""
    logits = net.apply(variables, ids)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
