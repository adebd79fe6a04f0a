"""A LLaMA of toy size, shared by tests."""

import functools

import jax
import jax.numpy as jnp

from dora_jax.adapters import init_adapters
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama
from dora_jax.spec import AdapterRules

CONFIG = LlamaConfig(
    vocab_size=101,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
)


@functools.lru_cache
def base_params(config: LlamaConfig = CONFIG, seed: int = 0):
    """Random weights, larger than `init`'s so that outputs differ clearly."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(Llama(config).init)(jax.random.key(seed), tokens)["params"]
    return jax.tree.map(lambda x: x * (3 if x.ndim > 2 else 1), params)


def adapted_params(rules: AdapterRules, config: LlamaConfig = CONFIG, seed: int = 0, **fields):
    """Return (model with adapters, its fresh parameters)."""
    model = Llama(config, rules, **fields)
    example = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    return model, init_adapters(base_params(config), shapes, rules, jax.random.key(seed))
