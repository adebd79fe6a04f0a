"""Adapters written as Hugging Face PEFT's folders, which PEFT and its readers load."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from dora_jax.checkpoint.folder import check_free_name
from dora_jax.checkpoint.peft_config import FILE, PeftConfig
from dora_jax.checkpoint.peft_export import peft_config
from dora_jax.checkpoint.peft_files import WEIGHTS_FILE
from dora_jax.checkpoint.peft_load import layers_of, own_names
from dora_jax.checkpoint.peft_modules import PREFIX, Module, has_head, modules, untie
from dora_jax.errors import DoraError
from dora_jax.kernel_init import init_from_kernel
from dora_jax.models.build import DecoderConfig
from dora_jax.models.llava import LlavaConfig
from dora_jax.partition import Params, adapter_leaves
from dora_jax.spec import AdapterRules, AdapterSpec, takes_from_kernel

_log = logging.getLogger(__name__)
# PEFT's class of language models is not for LLaVA; this is how its AutoPeftModel finds the model.
_LLAVA = {
    "base_model_class": "LlavaForConditionalGeneration",
    "parent_library": "transformers.models.llava.modeling_llava",
}


def save_peft(
    folder: str | Path,
    config: DecoderConfig,
    rules: AdapterRules,
    params: Params,
    base: Params,
    base_model: str | None = None,
) -> PeftConfig:
    """Write an adapter as PEFT's `adapter_config.json` and `adapter_model.safetensors`.

    Numbers are written as they are. An adapter whose init took from the kernel (PiSSA, OLoRA)
    becomes plain LoRA of twice the rank over the base's own weights, [A, A0] and [B, -B0].

    Args:
        folder: must not exist, or be empty. The config is written last.
        config: the model that was tuned.
        rules: what was tuned.
        params: its parameters, or those that trained.
        base: the plain model's parameters before training.
        base_model: the name under which PEFT's users find it.

    Returns:
        The settings that were written.

    Raises:
        DoraError: when PEFT cannot express the rules, leaves are missing, or the folder is in use.
    """
    folder = Path(folder)
    check_free_name(folder)
    if not config.text.tie_word_embeddings and not has_head(base):
        base = untie(base)
    specs = {module: rules.spec_for(module.path, module.weight) for module in modules(config)}
    shared = [module for module in specs if module.is_embedding and specs[module].has_low_rank]
    if config.text.tie_word_embeddings and shared:
        raise DoraError(
            f"module {shared[0].path!r}: its adapter is the tied head's too, which PEFT cannot "
            "say; merge the adapter instead (dora-jax merge)"
        )
    is_llava = isinstance(config, LlavaConfig)
    peft = peft_config(specs, base_model, None if is_llava else "CAUSAL_LM")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    flat_base = flax.traverse_util.flatten_dict(base, sep="/")
    found: dict[str, np.ndarray] = {}
    for module, spec in specs.items():
        if spec.has_low_rank:
            leaves = _adapter(module, spec, flat)
            kernel = np.asarray(flat_base[f"{module.path}/{module.weight}"])
            found |= _tensors(module, spec, leaves, kernel)
            if module.is_of_vocabulary:
                name = f"{PREFIX}{module.names[0]}.base_layer.weight"
                found[name] = _turned(module, module.weight, kernel)
        for leaf, names in own_names(module, spec).items():
            whole = np.asarray(_leaf(flat, f"{module.path}/{leaf}"))
            layers = whole if module.is_stacked else whole[None]
            found |= {n: _turned(module, leaf, x) for n, x in zip(names, layers, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in found.items()}
    safetensors.numpy.save_file(contiguous, folder / WEIGHTS_FILE, {"format": "pt"})
    fields = _as_json(peft) | {"auto_mapping": _LLAVA if is_llava else None}
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")
    return peft


def _as_json(peft: PeftConfig) -> dict[str, Any]:
    # What is empty is null there.
    given = {k: None if v == () else v for k, v in dataclasses.asdict(peft).items()}
    return given | {"peft_type": "LORA", "inference_mode": True, "fan_in_fan_out": False}


def _leaf(flat: Mapping[str, Any], path: str) -> Any:
    if flat.get(path) is None:
        raise DoraError(f"the parameters hold no {path}, which these rules train")
    return flat[path]


def _adapter(module: Module, spec: AdapterSpec, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {leaf: np.asarray(_leaf(flat, f"{module.path}/{leaf}")) for leaf in adapter_leaves(spec)}


def _turned(module: Module, leaf: str, array: Any) -> np.ndarray:
    return module.leaves[leaf].to_file(np.asarray(array))


def _tensors(
    module: Module, spec: AdapterSpec, leaves: Mapping[str, np.ndarray], kernel: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the tensors of a module's adapter, each layer at its own rank, by PEFT's names."""
    if not module.is_stacked:
        leaves, kernel = {leaf: array[None] for leaf, array in leaves.items()}, kernel[None]
    taken = None
    if takes_from_kernel(spec.init):
        taken = init_from_kernel(jnp.asarray(kernel), spec, 1, 1)[1:]
    scales = spec.layer_scales or (spec.scale,) * len(module.names)
    ranks = dict(layers_of(module, spec))
    found: dict[str, np.ndarray] = {}
    for n, (name, scale) in enumerate(zip(module.names, scales, strict=True)):
        if name not in ranks:
            continue
        a, b = leaves["lora_a"][n][:, : ranks[name]], leaves["lora_b"][n][: ranks[name]]
        if taken is not None:
            a0, b0 = (np.asarray(factor[n]).astype(a.dtype) for factor in taken)
            a = np.concatenate([a, a0[:, : ranks[name]]], axis=1)
            b = np.concatenate([b, -b0[: ranks[name]]], axis=0)
        own = {"lora_a": a, "lora_b": b}
        if "magnitude" in leaves:
            own["magnitude"] = _live_magnitude(name, leaves["magnitude"][n], kernel[n], a, b, scale)
        found |= {module.adapter_name(name, leaf): array.T for leaf, array in own.items()}
    return found


def _live_magnitude(
    name: str, magnitude: np.ndarray, kernel: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float
) -> np.ndarray:
    """Return the magnitude with which PEFT computes what we do.

    A column whose kernel is zero is a plain LoRA column here; PEFT takes m / n there as well, so
    that m must be n.
    """
    dead = ~np.asarray(kernel).any(axis=0)
    if not dead.any():
        return magnitude
    delta = scale * a.astype(np.float64) @ b[:, dead].astype(np.float64)
    norm = np.linalg.norm(delta, axis=0)
    if not norm.all():
        _log.warning(
            "%s: %d outputs have zero weights and an untrained adapter: PEFT divides by zero there",
            name,
            int((norm == 0).sum()),
        )
    magnitude = magnitude.copy()
    magnitude[dead] = norm
    return magnitude
