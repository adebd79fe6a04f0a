"""Logits against transformers' LlamaForCausalLM of the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.models.llama import Llama
from tests.models.test_llama import CONFIGS, tokens_of, weights

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="the parity extra is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")


def peer_of(config, params):
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.rope_theta},
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
        )
    ).eval()
    state = {
        "model.embed_tokens.weight": params["embed_tokens"]["embedding"],
        "model.norm.weight": params["norm"]["scale"],
    }
    for n in range(config.num_hidden_layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{n}.{name}.weight"] = params["layers"][name]["scale"][n]
        for part in ("self_attn", "mlp"):
            for name, leaves in params["layers"][part].items():
                state[f"model.layers.{n}.{part}.{name}.weight"] = leaves["kernel"][n].T
    head = state["model.embed_tokens.weight"]
    state["lm_head.weight"] = head if config.tie_word_embeddings else params["lm_head"]["kernel"].T
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    peer.load_state_dict(tensors, strict=True)
    return peer


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_transformers(name):
    config, params = CONFIGS[name], weights(name)
    tokens = tokens_of(config, length=17, seed=2)
    with torch.no_grad():
        expected = peer_of(config, params)(torch.from_numpy(np.array(tokens, np.int64))).logits
    found = jax.jit(Llama(config).apply)({"params": params}, jnp.asarray(tokens))
    assert float(expected.abs().max()) > 1
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
