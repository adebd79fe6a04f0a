"""The metadata of GGUF files, and `LlamaConfig`.

llama.cpp's keys and names. What a family always does (which layers slide, which have no rotary
positions) is not in a file; it is what llama.cpp itself computes.
"""

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dora_jax.checkpoint.names import shorten
from dora_jax.errors import DoraError
from dora_jax.models.config import LayerType, LlamaConfig
from dora_jax.models.rotary import Rotary

AGAIN = "Download the file again, or take another one."
# Tensors that are not weights but settings of the rotary positions.
_DIVISORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
ROTARY_TENSORS = (_DIVISORS, _LONG, _SHORT)

_FULL: LayerType = "full_attention"
_SLIDING: LayerType = "sliding_attention"
_EPSILON = "attention.layer_norm_rms_epsilon"
_SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
# Settings that change what is computed and have no field here, each with the values that do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.causal": (True,),
    "rope.scale_linear": (0, 1),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.alpha": (0,),
}
# Of Llama 3.1 and all that followed; llama.cpp's converter knows no other.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192

Fields = dict[str, Any]


class _File(NamedTuple):
    """What is known of a file.

    Attributes:
        path: named in errors.
        architecture: in front of its keys.
        metadata: the whole.
        names: of its tensors.
        factors: the tensors of `ROTARY_TENSORS` that it has.
    """

    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    names: Set[str]
    factors: Mapping[str, np.ndarray]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting of the architecture; decimals as they were."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        return _decimal(value) if isinstance(value, float) else value

    def refuse(self, reason: str) -> DoraError:
        """Return an error about this file."""
        return DoraError(f"{self.path}: {reason}")


def _decimal(value: float) -> float:
    """Return the shortest decimal that is this float32: 1e-05, where widening gives 9.99999975e-06.

    The constants were decimals before they were stored.
    """
    return float(str(np.float32(value)))


def _window(file: _File) -> int | None:
    return file.get("attention.sliding_window") or None  # 0 is none


def _biases(file: _File) -> Fields:
    return {
        "qkv_bias": "blk.0.attn_q.bias" in file.names,
        "o_bias": "blk.0.attn_output.bias" in file.names,
        "mlp_bias": "blk.0.ffn_down.bias" in file.names,
    }


def _llama(file: _File) -> Fields:
    window = _window(file)
    # Mistral's are files of this architecture too.
    own = {} if window is None else {"model_type": "mistral", "sliding_window": window}
    return _biases(file) | own


def _qwen2(file: _File) -> Fields:
    return {"qkv_bias": True}


def _qwen3(file: _File) -> Fields:
    return _biases(file) | {"qk_norm": True}


def _gemma(file: _File) -> Fields:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "unit_offset": True,
        "scale_embeddings": True,
        "model_type": "gemma3_text" if file.architecture == "gemma3" else file.architecture,
    }


def _layer_types(file: _File, period: int) -> Fields:
    """Return the sliding layers: all but the last one of each period."""
    given = file.get("attention.sliding_window_pattern", period)
    layers = range(file.get("block_count"))
    if isinstance(given, list):
        slides = [bool(slide) for slide in given]
    else:
        slides = [(n + 1) % given != 0 for n in layers]
    return {"layer_types": tuple(_SLIDING if slide else _FULL for slide in slides)}


def _attention_scalar(file: _File, largest: int) -> int:
    """Return what attention divides by the root of; the largest of Gemma is told by its layers."""
    shared = file.get("embedding_length") // file.get("attention.head_count")
    is_largest = file.get("block_count") == largest
    return shared if is_largest else file.get("attention.key_length", shared)


def _gemma2(file: _File) -> Fields:
    return {
        **_gemma(file),
        **_layer_types(file, 2),
        "sandwich_norms": True,
        "sliding_window": file.get("attention.sliding_window", 4096),
        "query_pre_attn_scalar": _attention_scalar(file, 46),
        "attn_logit_softcapping": file.get("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": file.get("final_logit_softcapping", 30.0) or None,
    }


def _gemma3(file: _File) -> Fields:
    return {
        **_gemma2(file),
        **_layer_types(file, 6),
        "qk_norm": True,
        "query_pre_attn_scalar": _attention_scalar(file, 62),
        "sliding_rope": Rotary(rope_theta=file.get("rope.freq_base_swa", 10000.0)),
        "attn_logit_softcapping": file.get("attn_logit_softcapping") or None,
        "final_logit_softcapping": file.get("final_logit_softcapping") or None,
    }


def _phi3(file: _File) -> Fields:
    return {"fused_projections": True, "sliding_window": _window(file)}


def _smollm3(file: _File) -> Fields:
    turns = [int((n + 1) % 4 != 0) for n in range(file.get("block_count"))]
    return _biases(file) | {"no_rope_layers": tuple(turns)}


class _Family(NamedTuple):
    """What is particular to the files of one architecture.

    Attributes:
        read: returns fields of `LlamaConfig`.
        permutes: whether the rows of queries and keys are in llama.cpp's order.
    """

    read: Callable[[_File], Fields]
    permutes: bool = False


_FAMILIES = {
    "llama": _Family(_llama, permutes=True),
    "qwen2": _Family(_qwen2),
    "qwen3": _Family(_qwen3),
    "gemma": _Family(_gemma),
    "gemma2": _Family(_gemma2),
    "gemma3": _Family(_gemma3),
    "phi3": _Family(_phi3),
    "smollm3": _Family(_smollm3, permutes=True),
}
ARCHITECTURES = tuple(_FAMILIES)


def permutes_rows(metadata: Mapping[str, Any]) -> bool:
    """Return whether the rows of queries and keys are in llama.cpp's order in this file."""
    family = _FAMILIES.get(metadata.get("general.architecture", ""))
    return family is not None and family.permutes


def _check(file: _File) -> None:
    if file.architecture not in _FAMILIES:
        raise file.refuse(
            f"a model of architecture {file.architecture!r}; supported: {', '.join(ARCHITECTURES)}"
        )
    keys = [f"{file.architecture}.{name}" for name in (*_SIZES, _EPSILON)]
    missing = [key for key in keys if key not in file.metadata]
    if missing:
        raise file.refuse(f"its metadata lacks {', '.join(missing)}. {AGAIN}")
    for key in keys[:-1]:  # some models of these architectures give a list, one number a layer
        value = file.metadata[key]
        if not isinstance(value, int) or value < 1:
            raise file.refuse(f"{key} is {value!r}; supported: one number, over 0")
    problems = [
        f"{file.architecture}.{name} is {file.get(name)!r}"
        for name, values in _NEUTRAL.items()
        if file.get(name, values[0]) not in values
    ]
    if file.get("expert_count", 0):
        raise file.refuse("a mixture of experts; only dense models are supported")
    if problems:
        raise file.refuse(f"settings that are not supported: {shorten(problems)}")


def _head_dim(file: _File) -> int:
    heads = file.get("attention.head_count")
    head_dim = file.get("attention.key_length", file.get("embedding_length") // heads)
    value_dim = file.get("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise file.refuse(
            f"keys have {head_dim} features and values {value_dim}; only as many is supported"
        )
    return head_dim


def _rotary(file: _File, head_dim: int) -> Rotary:
    turned = file.get("rope.dimension_count", head_dim)
    settings: Fields = {
        "rope_theta": file.get("rope.freq_base", 10000.0),
        "partial_rotary_factor": turned / head_dim,
    }
    kind = file.get("rope.scaling.type") or "none"
    attention = file.get("rope.scaling.attn_factor", 1.0)
    if _LONG in file.factors or _SHORT in file.factors:
        settings |= _longrope(file, attention)
    elif kind == "linear":
        settings |= {"rope_type": "linear", "factor": file.get("rope.scaling.factor", 1.0)}
    elif kind == "yarn":
        if attention != 1 or file.get("rope.scaling.yarn_attn_factor", 1.0) != 1:
            raise file.refuse("yarn with an attention factor of its own is not supported")
        settings |= {
            "rope_type": "yarn",
            "factor": file.get("rope.scaling.factor"),
            "original_max_position_embeddings": file.get("rope.scaling.original_context_length"),
            "beta_fast": file.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": file.get("rope.scaling.yarn_beta_slow"),
        }
    elif kind != "none":
        raise file.refuse(
            f"rotary positions scaled by {kind!r} are not supported; supported: linear, yarn, and "
            "longrope with its two tensors"
        )
    elif _DIVISORS in file.factors:
        settings |= _llama3(file, settings["rope_theta"], turned)
    return Rotary(**settings)


def _longrope(file: _File, attention: float) -> Fields:
    lacking = [name for name in (_LONG, _SHORT) if name not in file.factors]
    original = file.get("rope.scaling.original_context_length")
    if lacking or original is None:
        lacking = lacking or [f"{file.architecture}.rope.scaling.original_context_length"]
        raise file.refuse(f"lacks {', '.join(lacking)}, which longrope needs. {AGAIN}")
    stretch = file.get("context_length", original) / original
    usual = np.sqrt(1 + np.log(stretch) / np.log(original)) if stretch > 1 else 1.0
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        "long_factor": tuple(_decimal(x) for x in file.factors[_LONG]),
        "short_factor": tuple(_decimal(x) for x in file.factors[_SHORT]),
        # Left to the formula where it is the formula's.
        "attention_factor": None if np.isclose(attention, usual, rtol=1e-5) else attention,
    }


def _llama3(file: _File, theta: float, turned: int) -> Fields:
    """Return the scaling whose divisors of the frequencies a file holds in place of its settings.

    The longest waves are divided by the factor itself; from it all the others follow.
    """
    divisors = file.factors[_DIVISORS].astype(np.float64)
    if np.all(divisors == 1):
        return {}
    factor = float(divisors.max(initial=1.0))
    frequencies = theta ** -(np.arange(0, turned, 2) / turned)
    turns = _LLAMA3_ORIGINAL * frequencies / (2 * np.pi)
    kept = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0, 1)
    expected = 1 / (kept + (1 - kept) / factor)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-5, atol=0):
        raise file.refuse(
            f"{_DIVISORS} holds frequencies that are not Llama 3.1's; other ones are not supported"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }


def _end_tokens(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens that end a text, a turn and a message: any of them ends an answer."""
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(end for end in ends if end is not None))


def read_config(
    metadata: Mapping[str, Any],
    names: Set[str],
    factors: Mapping[str, np.ndarray],
    path: Path,
) -> LlamaConfig:
    """Return the shape of the model that a GGUF file holds.

    Args:
        metadata: the file's fields.
        names: of its tensors.
        factors: those of `ROTARY_TENSORS` that it has.
        path: the file, named in errors.

    Raises:
        DoraError: when it is of another architecture, lacks a field, or asks for a computation that
            is not supported.
    """
    file = _File(path, str(metadata.get("general.architecture")), metadata, names, factors)
    _check(file)
    head_dim = _head_dim(file)
    heads = file.get("attention.head_count")
    fields: Fields = {
        "model_type": file.architecture,
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", [])) or 1,
        "hidden_size": file.get("embedding_length"),
        "intermediate_size": file.get("feed_forward_length"),
        "num_hidden_layers": file.get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": file.get(_EPSILON),
        "tie_word_embeddings": "output.weight" not in names,
        "max_position_embeddings": file.get("context_length", 2048),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(metadata),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    try:
        rope = _rotary(file, head_dim)
        return LlamaConfig(**fields | {"rope": rope} | _FAMILIES[file.architecture].read(file))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise DoraError(f"{path}: {error}. {AGAIN}") from error
