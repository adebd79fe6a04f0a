"""From PEFT's settings to our rules: which module, which layers of it, at what rank and scale."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from dora_jax.checkpoint.llava_names import LIVE, Spelling
from dora_jax.checkpoint.names import shorten
from dora_jax.checkpoint.peft_config import PeftConfig
from dora_jax.checkpoint.peft_modules import Module, modules
from dora_jax.errors import DoraError
from dora_jax.models.build import DecoderConfig, untied
from dora_jax.spec import FROZEN, AdapterRules, AdapterSpec, FloatDtype, Scaling

Layers = tuple[tuple[int, float] | None, ...]


def _layers(peft: PeftConfig, module: Module) -> Layers:
    """Return (rank, alpha) of each of a module's layers, None without an adapter."""
    return tuple(
        peft.rank_and_alpha(name) if peft.targets(name, module.is_linear, module.is_head) else None
        for name in module.names
    )


def needs_own_head(peft: PeftConfig, config: DecoderConfig, spelling: Spelling = LIVE) -> bool:
    """Whether an adapter treats a tied head and its embedding differently.

    PEFT adapts either without the other, although they share their weight. Here such a model is
    untied: the head gets a copy of the embedding, and each its own adapter.

    Args:
        peft: the settings.
        config: the model.
        spelling: of a LLaVA's modules in the settings.
    """
    if not config.text.tie_word_embeddings:
        return False
    return any(
        peft.saves(module.names[0]) or _layers(peft, module)[0] is not None
        for module in modules(untied(config), spelling)
        if module.is_embedding or module.is_head
    )


def rules_of(
    peft: PeftConfig, reached: Sequence[Module], where: str, param_dtype: FloatDtype = "float32"
) -> AdapterRules:
    """Return the rules that treat each module as PEFT does.

    Layers of one module that differ become one spec with `per_layer`.

    Args:
        peft: the settings.
        reached: the modules to which they apply, of the model untied where it `needs_own_head`.
        where: named in errors.
        param_dtype: of the factors.

    Raises:
        DoraError: when nothing matches, or what matches cannot be tuned so.
    """
    paths_of: dict[AdapterSpec, list[str]] = {}
    adapted = 0
    try:
        for module in reached:
            layers = _layers(peft, module)
            if any(layers) and not module.takes_adapter:
                raise DoraError(
                    f"{where}: target_modules match {module.names[0]}, which multiplies by no "
                    "matrix; name it in modules_to_save, or be more specific"
                )
            spec = _spec(peft, module, layers, where, param_dtype)
            adapted += spec.has_low_rank
            if spec != FROZEN:
                paths_of.setdefault(spec, []).append(module.path)
    except (ValueError, re.error) as error:
        raise DoraError(f"{where}: {error}") from None
    if not adapted:
        raise DoraError(
            f"{where}: target_modules = {peft.target_modules!r} match nothing in this model, whose "
            f"modules are {shorten(n for m in reached if m.takes_adapter for n in m.names[:1])}"
            "; is the adapter made for another one?"
        )
    return AdapterRules(
        [("^(?:" + "|".join(map(re.escape, paths)) + ")", s) for s, paths in paths_of.items()]
    )


def _spec(
    peft: PeftConfig, module: Module, layers: Layers, where: str, param_dtype: FloatDtype
) -> AdapterSpec:
    saved = [peft.saves(name) for name in module.names]
    present = [layer for layer in layers if layer is not None]
    bias = "bias" in module.leaves
    if any(saved):
        if not all(saved):
            name = module.names[saved.index(True)]
            raise DoraError(
                f"{where}: modules_to_save takes {name} and not that of every layer, which are one "
                "stack here; merge the adapter in PEFT, or save the module of all layers"
            )
        return AdapterSpec("full")
    if bias and peft.bias == "lora_only" and 0 < len(present) < len(layers):
        raise DoraError(
            f"{where}: bias = 'lora_only' trains the bias of some layers of {module.path} alone, "
            "which are one stack here; merge the adapter in PEFT"
        )
    train_bias = bias and (peft.bias == "all" or (peft.bias == "lora_only" and bool(present)))
    if not present:
        return AdapterSpec("frozen", train_bias=True) if train_bias else FROZEN
    differ = len(set(layers)) > 1
    rank, alpha = max(present)
    method: Literal["dora", "lora"] = "dora" if peft.use_dora else "lora"
    scaling: Scaling = "rslora" if peft.use_rslora else "standard"
    options: dict[str, Any] = {"per_layer": layers} if differ else {}
    return AdapterSpec(
        method,
        rank,
        alpha,
        scaling,
        dropout=peft.lora_dropout,
        dropout_style="peft" if peft.use_dora else "low_rank",
        init="embedding" if module.weight == "embedding" else peft.init,
        train_bias=train_bias,
        param_dtype=param_dtype,
        **options,
    )
