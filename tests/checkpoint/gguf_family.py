"""GGUF files of the tiny families, by the names and rules of llama.cpp's converter."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.checkpoint.tiny_model import gguf_metadata, interleave

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
_TURNED = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")


def architecture_of(config: dict[str, Any]) -> str:
    return ARCHITECTURES.get(config["model_type"], config["model_type"])


def _llama3_divisors(rope: dict[str, Any], dim: int) -> np.ndarray:
    low, high, old, factor = 1.0, 4.0, 8192, rope["factor"]
    found = []
    for i in range(0, dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        if wave < old / high:
            found.append(1.0)
        elif wave > old / low:
            found.append(factor)
        else:
            smooth = (old / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def _scaling(rope: dict[str, Any], config: dict[str, Any], dim: int) -> tuple[dict, dict]:
    """Return the fields, and the tensors that stand for settings."""
    kind = rope["rope_type"]
    if kind == "llama3":
        return {}, {"rope_freqs.weight": _llama3_divisors(rope, dim)}
    if kind == "longrope":
        original = rope.get("original_max_position_embeddings") or config.get(
            "original_max_position_embeddings"
        )
        stretch = config["max_position_embeddings"] / original
        attention = math.sqrt(1 + math.log(stretch) / math.log(original))
        return (
            {
                "rope.scaling.original_context_length": original,
                "rope.scaling.attn_factor": attention,
            },
            {
                f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], np.float32)
                for name in ("long", "short")
            },
        )
    if kind in ("linear", "yarn"):
        fields = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        if kind == "yarn":
            original = rope["original_max_position_embeddings"]
            fields["rope.scaling.original_context_length"] = original
        return fields, {}
    assert kind == "default"
    return {}, {}


def write_family_gguf(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a file of float32 weights.

    Args:
        path: the file.
        config: as in `config.json`.
        weights: by Hugging Face's names.
        extra: fields, without the architecture, to add or (None) to leave out.
    """
    architecture = architecture_of(config)
    is_gemma = architecture.startswith("gemma")
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    scaling, settings = _scaling(rope, config, dim)
    own: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": dim,
        "rope.freq_base": float(rope["rope_theta"]),
        **scaling,
    }
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name):
            own[name] = config[name]
    if architecture in ("llama", "gemma2", "gemma3") and config.get("sliding_window"):
        own["attention.sliding_window"] = config["sliding_window"]
    if architecture == "phi3":  # 0 is none
        own["attention.sliding_window"] = config["sliding_window"] or 0
    fields = {f"{architecture}.{name}": value for name, value in (own | (extra or {})).items()}
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in (fields | gguf_metadata()).items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, value in weights.items():
        if architecture in ("llama", "smollm3") and name.endswith(_TURNED):
            value = interleave(value, head_dim)
        if is_gemma and name.endswith("norm.weight"):
            value = value + np.float32(1)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, name
        writer.add_tensor(theirs, value)
    for name, value in settings.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
