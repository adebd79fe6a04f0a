"""What a run trains: one mask for adapters, biases, norms and modules in full."""

import dataclasses

import jax
import pytest

from dora_jax.errors import DoraError
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.partition import trainable_mask
from dora_jax.training.config import AdapterConfig
from tests import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, qkv_bias=True, tie_word_embeddings=False)
QKV = {f"layers/self_attn/{name}_proj" for name in "qkv"}


def trained(method, config=CONFIG, **fields):
    """Return the paths of the trained leaves of the tiny Llama."""
    rules = AdapterConfig(rank=2, **fields).rules(method)
    mask = trainable_mask(param_shapes(Llama(config, rules)), rules)
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, on in leaves if on}


def under(modules, *names):
    return {f"{module}/{name}" for module in modules for name in names}


def test_adapters_alone():
    assert trained("lora", modules="(q|k|v)_proj") == under(QKV, "lora_a", "lora_b")
    dora = under(QKV, "lora_a", "lora_b", "magnitude")
    assert trained("dora", modules="(q|k|v)_proj") == dora
    assert trained("magnitude", modules="(q|k|v)_proj") == under(QKV, "magnitude")
    assert trained("full", modules="(q|k|v)_proj") == under(QKV, "kernel", "bias")


def test_biases_beside_adapters():
    q = under({"layers/self_attn/q_proj"}, "lora_a", "lora_b")
    assert trained("lora", modules="q_proj") == q
    own = under({"layers/self_attn/q_proj"}, "bias")
    assert trained("lora", modules="q_proj", bias="lora_only") == q | own
    assert trained("lora", modules="q_proj", bias="all") == q | under(QKV, "bias")


def test_biases_and_norms_without_adapters():
    assert trained("bitfit") == under(QKV, "bias")
    norms = {"layers/input_layernorm", "layers/post_attention_layernorm", "norm"}
    assert trained("norms") == under(norms, "scale")


def test_modules_in_full_beside_adapters():
    found = trained("dora", modules="q_proj", modules_to_save=("lm_head", "norm", "k_proj"))
    assert found == under({"layers/self_attn/q_proj"}, "lora_a", "lora_b", "magnitude") | {
        "lm_head/kernel",
        "norm/scale",
        "layers/self_attn/k_proj/kernel",
        "layers/self_attn/k_proj/bias",
    }


def test_what_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="'lm_haed' matches no module; near misses: lm_head"):
        trained("dora", modules_to_save=("lm_haed",))
    with pytest.raises(DoraError, match=r"adapter\.bias must be one of"):
        AdapterConfig(bias="some")
    with pytest.raises(DoraError, match=r"adapter\.modules_to_save: '\(' is not a regular"):
        AdapterConfig(modules_to_save=("(",))


def test_a_method_without_anything_to_train_trains_nothing():
    assert trained("bitfit", tiny.CONFIG) == set()
