"""A trained adapter of the toy LLaMA in a Hugging Face folder, shared by tests."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.adapters import init_adapters
from dora_jax.checkpoint.adapter import AdapterInfo, save_adapter
from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.models.llama import Llama
from dora_jax.partition import partition, trainable_mask
from dora_jax.training.config import AdapterConfig
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer


def write_base(folder: Path) -> Path:
    write_hf_folder(folder, CONFIG, our_params(hf_weights()), tokenizer())
    return folder


def adapter_info(base: Path, method: str = "dora", **fields) -> AdapterInfo:
    adapter = dataclasses.asdict(AdapterConfig(**{"rank": 2, "alpha": 3.0} | fields))
    return AdapterInfo(str(base), str(base.absolute()), method, adapter, "alpaca")


def trained_params(info: AdapterInfo):
    """Return the base model's parameters with an adapter of which every leaf has moved."""
    return _trained_params(info.rules())


@functools.cache
def _trained_params(rules):
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(Llama(CONFIG, rules).init, jax.random.key(0), tokens)["params"]
    params = init_adapters(our_params(hf_weights()), shapes, rules, jax.random.key(1))
    rng = np.random.default_rng(2)

    def move(trains, leaf):
        leaf = np.asarray(leaf)
        return leaf + (0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype) if trains else leaf

    return jax.tree.map(move, trainable_mask(params, rules), params)


def write_adapter(folder: Path, info: AdapterInfo):
    """Write an adapter and return the parameters that it makes of the base model's."""
    params = trained_params(info)
    save_adapter(folder, info, partition(params, trainable_mask(params, info.rules()))[0])
    return params
