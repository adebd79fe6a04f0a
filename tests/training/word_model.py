"""The smallest model that `fit` trains, and batches for it, shared by tests."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.adapters import init_adapters
from dora_jax.layers import Dense, Embed
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import Batch

VOCABULARY, WIDTH = 23, 8


class WordModel(nn.Module):
    """Tells the next token from the one before."""

    adapters: AdapterRules | None = None

    def setup(self):
        self.embed = Embed(VOCABULARY, WIDTH)
        self.mix = Dense(WIDTH, adapter=self.adapters)
        self.out = Dense(VOCABULARY, use_bias=False)

    @property
    def vocabulary(self):
        return VOCABULARY

    @property
    def head_modules(self):
        return ("out",)

    def hidden_states(self, tokens):
        x = self.embed(tokens)
        return x + nn.silu(self.mix(x)), None

    def head(self, hidden):
        return self.out(hidden)

    def __call__(self, tokens):
        return self.head(self.hidden_states(tokens)[0])


@functools.cache
def word_model(method="dora", **fields):
    """Return (model, rules, fresh parameters)."""
    rules = AdapterRules([("mix", AdapterSpec(method, rank=2, alpha=4.0, **fields))])
    tokens = jnp.zeros((1, 2), jnp.int32)
    base = WordModel().init(jax.random.key(0), tokens)["params"]
    model = WordModel(rules)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return model, rules, init_adapters(base, shapes, rules, jax.random.key(1))


class RandomBatches:
    """Batches of one shape, a pure function of the step; notes the steps it was asked for."""

    def __init__(self, rows=8, length=6, labels=3):
        self.rows, self.length, self.labels = rows, length, labels
        self.asked = []

    def batch(self, step):
        self.asked.append(step)
        rng = np.random.default_rng(step)
        tokens = rng.integers(0, VOCABULARY, (self.rows, self.length)).astype(np.int32)
        positions = np.tile(np.arange(self.labels, dtype=np.int32), (self.rows, 1))
        weights = np.ones((self.rows, self.labels), np.float32)
        weights[0, -1] = 0.0
        return Batch(tokens, positions, tokens[:, 1 : self.labels + 1], weights)
