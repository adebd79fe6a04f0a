"""Tiny models of every family, as transformers configures them, with weights that need no file."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.checkpoint import tiny_model

SIZES = {
    "vocab_size": len(tiny_model.TOKENS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **settings}}


# Contexts and windows are shorter than the texts, so that each scaling and each window shows.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", _rope("linear", factor=4.0)),
    "llama-dynamic": ("Llama", {"max_position_embeddings": 16, **_rope("dynamic", factor=8.0)}),
    "llama3": (
        "Llama",
        {
            "eos_token_id": [2, 0],
            **_rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        },
    ),
    "llama-yarn": ("Llama", _rope("yarn", factor=4.0, original_max_position_embeddings=40)),
    "llama-yarn-mscale": (
        "Llama",
        _rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=40,
            mscale=0.8,
            mscale_all_dim=1.2,
            truncate=False,
            beta_fast=16.0,
        ),
    ),
    "mistral": ("Mistral", {"sliding_window": 9, "head_dim": 12}),
    "mistral-no-window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 11}),
    "phi3-long": (
        "Phi3",
        {
            "original_max_position_embeddings": 20,
            **_rope(
                "longrope",
                partial_rotary_factor=0.5,
                short_factor=[1.0, 1.1],
                long_factor=[1.5, 4.0],
            ),
        },
    ),
    "smollm3": ("SmolLM3", {"tie_word_embeddings": True}),
}

TOKENS = np.random.default_rng(7).integers(3, SIZES["vocab_size"], (2, 24))
SEEN = (0, 11, 23)  # positions whose logits the golden file keeps
NEW_TOKENS = 64


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of a tensor, told by its Hugging Face name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape)
    scaled = 1 + 0.2 * values if "norm" in name else 0.2 * values
    return scaled.astype(np.float32)


def golden(family: str) -> dict[str, Any]:
    path = Path(__file__).parents[1] / "golden" / "families.json"
    return json.loads(path.read_text(encoding="utf-8"))[family]


def write_folder(folder: Path, family: str, **config: Any) -> dict[str, np.ndarray]:
    """Write a family's folder as transformers would; return its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    known = golden(family)
    (folder / "config.json").write_text(json.dumps({**known["config"], **config}))
    weights = {name: weight(name, tuple(shape)) for name, shape in known["shapes"].items()}
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tiny_model.tokenizer().save(folder)
    return weights
