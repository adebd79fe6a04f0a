"""The LLaMA architecture in float64 numpy, layer after layer, written from the papers.

Shares no code with the library: loops over layers, heads and positions where that is clearest.
"""

import numpy as np


def _norm(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def _rotate(head, positions, theta):
    """RoPE as rotations of complex numbers; Hugging Face pairs feature i with i + F / 2."""
    half = head.shape[-1] // 2
    pairs = head[:, :half] + 1j * head[:, half:]
    turned = pairs * np.exp(1j * np.outer(positions, theta ** (-np.arange(half) / half)))
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _attend(q, k, v):
    """One head, causal."""
    out = np.zeros_like(v)
    for i in range(len(q)):
        scores = k[: i + 1] @ q[i] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[i] = weights / weights.sum() @ v[: i + 1]
    return out


def logits(params, config, tokens):
    """Return the logits (L, V) of one row of tokens."""

    def wide(array):
        return np.asarray(array).astype(np.float64)

    F, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    positions = np.arange(len(tokens))
    embedding = wide(params["embed_tokens"]["embedding"])
    x = embedding[np.asarray(tokens)]
    layers = params["layers"]
    for n in range(config.num_hidden_layers):
        kernel = {
            name: wide(leaves["kernel"][n])
            for part in ("self_attn", "mlp")
            for name, leaves in layers[part].items()
        }
        h = _norm(x, wide(layers["input_layernorm"]["scale"][n]), config.rms_norm_eps)
        heads = []
        for j in range(config.num_attention_heads):
            own, shared = slice(j * F, (j + 1) * F), slice(j // group * F, (j // group + 1) * F)
            q = _rotate(h @ kernel["q_proj"][:, own], positions, config.rope.rope_theta)
            k = _rotate(h @ kernel["k_proj"][:, shared], positions, config.rope.rope_theta)
            heads.append(_attend(q, k, h @ kernel["v_proj"][:, shared]))
        x = x + np.concatenate(heads, axis=-1) @ kernel["o_proj"]
        h = _norm(x, wide(layers["post_attention_layernorm"]["scale"][n]), config.rms_norm_eps)
        gate = h @ kernel["gate_proj"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ kernel["up_proj"])) @ kernel["down_proj"]
    x = _norm(x, wide(params["norm"]["scale"]), config.rms_norm_eps)
    return x @ (embedding.T if config.tie_word_embeddings else wide(params["lm_head"]["kernel"]))
