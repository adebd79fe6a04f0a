"""Hugging Face's `config.json` of LLaMA models, and `LlamaConfig`."""

import json
from pathlib import Path
from typing import Any

from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig

FILE = "config.json"
ARCHITECTURES = ("LlamaForCausalLM",)

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Settings that would change the computation: what the model does without them is all we have.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}


def read_config(path: Path) -> LlamaConfig:
    """Read a `config.json`, of transformers 4 or 5.

    Raises:
        DoraError: when it is missing or broken, or describes what is not supported.
    """
    if not path.is_file():
        raise DoraError(f"{path.parent}: not a Hugging Face folder: it has no {FILE}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DoraError(f"{path}: cannot be read ({error}); download the folder again") from error
    if not isinstance(raw, dict):
        raise DoraError(f"{path}: must hold a JSON object; download the folder again")
    _check_supported(raw, path)
    heads = raw["num_attention_heads"]
    try:
        return LlamaConfig(
            **{name: raw[name] for name in _REQUIRED},
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            rope_theta=float(_rope_theta(raw)),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            bos_token_id=_first(raw.get("bos_token_id", 1)),
            eos_token_id=_first(raw.get("eos_token_id", 2)),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DoraError(f"{path}: {error}") from error


def _check_supported(raw: dict[str, Any], path: Path) -> None:
    """Refuse what the model would compute differently; says all of it at once."""
    supported = ", ".join(ARCHITECTURES)
    given = raw.get("architectures")
    if given is None and raw.get("model_type") == "llama":
        given = list(ARCHITECTURES)  # files of base models may leave it out
    if not given or any(name not in ARCHITECTURES for name in given):
        kind = ", ".join(given) if given else f"model_type {raw.get('model_type')!r}"
        raise DoraError(f"{path}: a model of architecture {kind}; supported: {supported}")
    missing = [name for name in _REQUIRED if name not in raw]
    if missing:
        raise DoraError(f"{path}: lacks {', '.join(missing)}; download the folder again")
    problems = [
        f"{name} is {json.dumps(raw[name])}, supported: {json.dumps(value)}"
        for name, value in _FIXED.items()
        if raw.get(name, value) != value
    ]
    for name in ("rope_parameters", "rope_scaling"):
        rope = raw.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            problems.append(f"{name} is of type {json.dumps(kind)}, supported: none or default")
    if problems:
        raise DoraError(f"{path}: not supported: {'; '.join(problems)}")


def _rope_theta(raw: dict[str, Any]) -> float:
    """Return the base of the rotary frequencies: transformers 5 moved it into a dict."""
    nested = (raw.get("rope_parameters") or {}).get("rope_theta")
    return raw.get("rope_theta", 10000.0) if nested is None else nested


def _first(token: Any) -> int | None:
    """Return a token id; of several end tokens, the first."""
    if isinstance(token, list):
        return token[0] if token else None
    return token


def to_json(config: LlamaConfig, dtype: str) -> str:
    """Return the text of a `config.json` that transformers 4 and 5 read alike.

    Args:
        config: the model's shape.
        dtype: of the weights beside it.
    """
    c = config
    fields = {
        "architectures": list(ARCHITECTURES),
        "model_type": "llama",
        **{name: getattr(c, name) for name in _REQUIRED},
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": c.rms_norm_eps,
        # Both spellings: versions 4 and 5.
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_theta": c.rope_theta, "rope_type": "default"},
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": c.tie_word_embeddings,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_id,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    return json.dumps(fields, indent=2) + "\n"
