"""Hugging Face's `config.json` of the LLaMA family's models, and `LlamaConfig`.

Each family is read into the fields that say what is computed, and written back from them; a setting
that would change the computation and has no field is refused.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object
from dora_jax.models.config import LayerType, LlamaConfig
from dora_jax.models.rotary import Rotary

FILE = "config.json"

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Of attention layers, as `layer_types` names them.
_FULL: LayerType = "full_attention"
_SLIDING: LayerType = "sliding_attention"
_TANH = "gelu_pytorch_tanh"

Raw = dict[str, Any]


class _Family(NamedTuple):
    """What is particular to one family.

    Attributes:
        model_type: its name in the file.
        defaults: of settings that a file may leave out.
        fixed: settings with one value that is supported.
        read: returns the fields of `LlamaConfig` that are particular to it.
        write: returns the settings for those fields.
    """

    model_type: str
    defaults: Raw
    fixed: Raw
    read: Callable[[Raw], Raw]
    write: Callable[[LlamaConfig], Raw]


def _sliding_layers(raw: Raw, slides: Callable[[int], bool]) -> Raw:
    types = raw.get("layer_types") or [
        _SLIDING if slides(n) else _FULL for n in range(raw["num_hidden_layers"])
    ]
    return {"sliding_window": raw["sliding_window"], "layer_types": tuple(types)}


def _read_biases(raw: Raw) -> Raw:
    return {
        "qkv_bias": bool(raw["attention_bias"]),
        "o_bias": bool(raw["attention_bias"]),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "hidden_act": raw["hidden_act"],
    }


def _write_biases(c: LlamaConfig) -> Raw:
    return {"attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias, "hidden_act": c.hidden_act}


def _read_qwen2(raw: Raw) -> Raw:
    own: Raw = {"qkv_bias": True, "hidden_act": raw["hidden_act"]}
    if raw["use_sliding_window"] and raw["sliding_window"] is not None:
        own |= _sliding_layers(raw, lambda n: n >= raw["max_window_layers"])
    return own


def _write_qwen2(c: LlamaConfig) -> Raw:
    slides = c.layer_types is not None
    types = list(c.layer_types) if c.layer_types is not None else [_FULL] * c.num_hidden_layers
    return {
        "hidden_act": c.hidden_act,
        "use_sliding_window": slides,
        "sliding_window": c.sliding_window,
        "max_window_layers": types.index(_SLIDING) if _SLIDING in types else c.num_hidden_layers,
        "layer_types": types,
    }


def _read_qwen3(raw: Raw) -> Raw:
    return _read_qwen2(raw) | _read_biases(raw) | {"qk_norm": True}


def _write_qwen3(c: LlamaConfig) -> Raw:
    return _write_qwen2(c) | {"attention_bias": c.qkv_bias}


def _read_gemma(raw: Raw) -> Raw:
    # Early files say "gelu" where the tanh approximation is meant: transformers reads it so.
    act = raw.get("hidden_activation") or raw.get("hidden_act")
    return _read_biases(raw | {"hidden_act": _TANH if act in (None, "gelu") else act}) | {
        "unit_offset": True,
        "scale_embeddings": True,
    }


def _write_gemma(c: LlamaConfig) -> Raw:
    return {
        "attention_bias": c.qkv_bias,
        "hidden_act": c.hidden_act,
        "hidden_activation": c.hidden_act,
    }


def _read_gemma2(raw: Raw) -> Raw:
    return (
        _read_gemma(raw | {"hidden_act": raw["hidden_activation"]})
        | _sliding_layers(raw, lambda n: n % 2 == 0)
        | {
            "sandwich_norms": True,
            "query_pre_attn_scalar": raw["query_pre_attn_scalar"],
            "attn_logit_softcapping": raw["attn_logit_softcapping"],
            "final_logit_softcapping": raw["final_logit_softcapping"],
        }
    )


def _write_gemma2(c: LlamaConfig) -> Raw:
    return {
        "attention_bias": c.qkv_bias,
        "hidden_activation": c.hidden_act,
        "sliding_window": c.sliding_window,
        "layer_types": list(c.layer_types or ()),
        "query_pre_attn_scalar": c.query_pre_attn_scalar,
        "attn_logit_softcapping": c.attn_logit_softcapping,
        "final_logit_softcapping": c.final_logit_softcapping,
    }


def _read_gemma3(raw: Raw) -> Raw:
    pattern = raw["sliding_window_pattern"]
    types = _sliding_layers(raw, lambda n: (n + 1) % pattern != 0)
    nested = raw.get("rope_parameters") or {}
    local = nested.get(_SLIDING) or {"rope_theta": raw["rope_local_base_freq"]}
    sliding_rope = _rotary(local, raw, 10000.0)
    return _read_gemma2(raw | {"layer_types": types["layer_types"]}) | {
        "qk_norm": True,
        "sliding_rope": sliding_rope,
    }


def _write_gemma3(c: LlamaConfig) -> Raw:
    full, local = _rope_fields(c.rope), _rope_fields(c.sliding_rope or c.rope)
    # transformers 4 tells the layers by a period, where there is one.
    types = c.layer_types or ()
    period = types.index(_FULL) + 1 if _FULL in types else len(types) + 1
    return _write_gemma2(c) | {
        "rope_local_base_freq": local["rope_theta"],
        "rope_parameters": {_FULL: full, _SLIDING: local},
        "sliding_window_pattern": period,
    }


def _read_phi3(raw: Raw) -> Raw:
    return {
        "hidden_act": raw["hidden_act"],
        "fused_projections": True,
        "sliding_window": raw["sliding_window"],
    }


def _write_phi3(c: LlamaConfig) -> Raw:
    own = {
        "hidden_act": c.hidden_act,
        "sliding_window": c.sliding_window,
        "partial_rotary_factor": c.rope.partial_rotary_factor,
    }
    original = c.rope.original_max_position_embeddings
    return own if original is None else own | {"original_max_position_embeddings": original}


def _read_smollm3(raw: Raw) -> Raw:
    interval = raw["no_rope_layer_interval"]
    ropes = raw.get("no_rope_layers") or [
        int((n + 1) % interval != 0) for n in range(raw["num_hidden_layers"])
    ]
    own = _read_biases(raw) | {"no_rope_layers": tuple(ropes)}
    if raw["use_sliding_window"] and raw["sliding_window"] is not None:
        own |= _sliding_layers(raw, lambda n: not ropes[n])
    return own


def _write_smollm3(c: LlamaConfig) -> Raw:
    layers = c.num_hidden_layers
    return _write_biases(c) | {
        "use_sliding_window": c.layer_types is not None,
        "sliding_window": c.sliding_window,
        "layer_types": list(c.layer_types or [_FULL] * layers),
        "no_rope_layers": list(c.no_rope_layers or [1] * layers),
    }


def _window(c: LlamaConfig) -> Raw:
    return {"hidden_act": c.hidden_act, "sliding_window": c.sliding_window}


_SILU = {"hidden_act": "silu", "rms_norm_eps": 1e-6}
_LLAMA = _SILU | {"attention_bias": False, "mlp_bias": False}
_QWEN = _SILU | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA = {
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "max_position_embeddings": 8192,
    "hidden_activation": _TANH,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GEMMA2 = _GEMMA | {
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = _GEMMA2 | {
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_ONE_WAY = {"use_bidirectional_attention": (None, False)}

_FAMILIES = {
    "LlamaForCausalLM": _Family("llama", _LLAMA, {}, _read_biases, _write_biases),
    "MistralForCausalLM": _Family(
        "mistral",
        _SILU | {"sliding_window": 4096, "max_position_embeddings": 131072},
        {},
        lambda raw: {name: raw[name] for name in ("hidden_act", "sliding_window")},
        _window,
    ),
    "Qwen2ForCausalLM": _Family(
        "qwen2", _QWEN | {"max_position_embeddings": 32768}, {}, _read_qwen2, _write_qwen2
    ),
    "Qwen3ForCausalLM": _Family(
        "qwen3",
        _QWEN | {"attention_bias": False, "head_dim": 128, "max_position_embeddings": 32768},
        {},
        _read_qwen3,
        _write_qwen3,
    ),
    "GemmaForCausalLM": _Family("gemma", _GEMMA, _ONE_WAY, _read_gemma, _write_gemma),
    "Gemma2ForCausalLM": _Family("gemma2", _GEMMA2, _ONE_WAY, _read_gemma2, _write_gemma2),
    "Gemma3ForCausalLM": _Family("gemma3_text", _GEMMA3, _ONE_WAY, _read_gemma3, _write_gemma3),
    "Phi3ForCausalLM": _Family(
        "phi3",
        {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "max_position_embeddings": 4096,
            "eos_token_id": 32000,
        },
        {},
        _read_phi3,
        _write_phi3,
    ),
    "SmolLM3ForCausalLM": _Family(
        "smollm3",
        _LLAMA
        | {
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            "max_position_embeddings": 32768,
            "rope_theta": 2e6,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        {},
        _read_smollm3,
        _write_smollm3,
    ),
}
ARCHITECTURES = tuple(_FAMILIES)
_BY_TYPE = {family.model_type: name for name, family in _FAMILIES.items()}


# Read by the modules beside this one.
_ELSEWHERE = ("LlavaForConditionalGeneration", "BartForConditionalGeneration", "VLBart")


def read_config(path: Path) -> LlamaConfig:
    """Read a `config.json`, of transformers 4 or 5.

    Raises:
        DoraError: when it is missing or broken, or describes what is not supported.
    """
    return config_of(read_raw(path), path)


def read_raw(path: Path) -> Raw:
    """Return the settings of a `config.json`, as they stand.

    Raises:
        DoraError: when it is missing or broken.
    """
    if not path.is_file():
        raise DoraError(f"{path.parent}: not a Hugging Face folder: it has no {FILE}")
    return read_json_object(path, "download the folder again")


def config_of(given: Raw, path: Path) -> LlamaConfig:
    """Return the shape that settings describe.

    Args:
        given: of a `config.json`, or of the language model in one.
        path: names it in messages.

    Raises:
        DoraError: when they describe what is not supported.
    """
    family = _FAMILIES[_architecture(given, path)]
    raw = family.defaults | given
    _check_supported(raw, family, path)
    heads = raw["num_attention_heads"]
    try:
        return LlamaConfig(
            **{name: raw[name] for name in _REQUIRED},
            model_type=family.model_type,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            rope=_read_rope(raw),
            rms_norm_eps=float(raw["rms_norm_eps"]),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            bos_token_id=raw.get("bos_token_id", 1),
            eos_token_id=_tokens(raw.get("eos_token_id", 2)),
            pad_token_id=raw.get("pad_token_id"),
            **family.read(raw),
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DoraError(f"{path}: {error}") from error


def _architecture(raw: Raw, path: Path) -> str:
    """Return which family it is."""
    given = raw.get("architectures")
    if given is None:  # files of base models may leave it out
        given = [_BY_TYPE.get(raw.get("model_type", ""))]
    if not isinstance(given, list) or len(given) != 1 or given[0] not in _FAMILIES:
        named = [str(name) for name in given if name] if isinstance(given, list) else [str(given)]
        kind = ", ".join(named) or f"model_type {raw.get('model_type')!r}"
        raise DoraError(
            f"{path}: a model of architecture {kind}; supported: {', '.join(_FAMILIES)}; of models "
            f"that see or encode: {', '.join(_ELSEWHERE)}"
        )
    return given[0]


def _check_supported(raw: Raw, family: _Family, path: Path) -> None:
    """Refuse what the model would compute differently; says all of it at once."""
    missing = [name for name in _REQUIRED if name not in raw]
    if missing:
        raise DoraError(f"{path}: lacks {', '.join(missing)}; download the folder again")
    fixed = {"quantization_config": (None,), **family.fixed}
    problems = [
        f"{name} is {json.dumps(raw[name])}, supported: {json.dumps(values[0])}"
        for name, values in fixed.items()
        if raw.get(name, values[0]) not in values
    ]
    if problems:
        raise DoraError(f"{path}: not supported: {'; '.join(problems)}")


def _read_rope(raw: Raw) -> Rotary:
    """Return the rotary settings: transformers 5 gathered them in one dict."""
    nested = raw.get("rope_parameters") or {}
    if _FULL in nested:
        nested = nested[_FULL]
    given = nested or raw.get("rope_scaling") or {}
    theta = raw.get("rope_theta")
    return _rotary(given, raw, 10000.0 if theta is None else theta)


def _rotary(given: Raw, raw: Raw, theta: float) -> Rotary:
    given = dict(given)
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if raw.get("model_type") == "phi3" and kind in ("su", "yarn"):  # as its first files call it
        kind = "longrope"
    known = {field.name for field in dataclasses.fields(Rotary)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"rotary settings that are not supported: {', '.join(unknown)}")
    settings = {name: value for name, value in given.items() if value is not None}
    settings.setdefault("rope_theta", theta)
    settings.setdefault("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    if kind in ("llama3", "yarn", "longrope"):
        longest = raw.get("max_position_embeddings", 2048)
        # Some files say it beside the rotary settings; that has priority in transformers.
        original = raw.get("original_max_position_embeddings")
        if original is not None:
            settings["original_max_position_embeddings"] = original
        settings.setdefault("original_max_position_embeddings", longest)
        if kind == "yarn":
            stretch = longest / settings["original_max_position_embeddings"]
            settings.setdefault("factor", stretch)
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = tuple(map(float, value))
        elif isinstance(value, int) and name != "original_max_position_embeddings":
            settings[name] = value if isinstance(value, bool) else float(value)
    return Rotary(**settings, rope_type=kind)  # type: ignore[arg-type]  # checked by LlamaConfig


def _rope_fields(rope: Rotary) -> Raw:
    """Return the settings that are not left at their default."""
    defaults = Rotary()
    given = {
        field.name: getattr(rope, field.name)
        for field in dataclasses.fields(Rotary)
        if getattr(rope, field.name) != getattr(defaults, field.name)
    }
    return {"rope_type": rope.rope_type, "rope_theta": rope.rope_theta, **given}


def _tokens(given: Any) -> tuple[int, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list) else (given,)


def to_json(config: LlamaConfig, dtype: str) -> str:
    """Return the text of a `config.json` that transformers 4 and 5 read alike.

    Args:
        config: the model's shape.
        dtype: of the weights beside it.
    """
    return json.dumps(to_dict(config, dtype), indent=2) + "\n"


def to_dict(config: LlamaConfig, dtype: str) -> Raw:
    """Return the settings of a `config.json`; arguments as `to_json`."""
    c = config
    architecture = _BY_TYPE[c.model_type]
    rope = _rope_fields(c.rope)
    is_scaled = c.rope.rope_type != "default"
    ends = list(c.eos_token_id)
    return {
        "architectures": [architecture],
        "model_type": c.model_type,
        **{name: getattr(c, name) for name in _REQUIRED},
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.rms_norm_eps,
        # Both spellings of the rotary settings: versions 4 and 5.
        "rope_theta": c.rope.rope_theta,
        "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"} if is_scaled else None,
        "rope_parameters": rope,
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": c.tie_word_embeddings,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": c.pad_token_id,
        "torch_dtype": dtype,
        "dtype": dtype,
        **_FAMILIES[architecture].write(c),
    }
