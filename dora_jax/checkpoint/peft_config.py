"""PEFT's `adapter_config.json`: every field of its LoraConfig is honoured, or refused by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object

FILE = "adapter_config.json"

# What says nothing of the numbers, or nothing without a field that is refused.
RECORDS = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
}
_MERGE = "merge it in PEFT (merge_and_unload, save_pretrained) and take the merged model"
# Fields that must have their neutral value, and what they would need.
REFUSED: dict[str, str] = {
    "fan_in_fan_out": "transposed weights (Conv1D) are of no model here",
    "trainable_token_indices": "single trained rows of an embedding have no counterpart here",
    "megatron_config": "Megatron's parallel layers have no counterpart here",
    "corda_config": "CorDA takes directions out of the base weights by data that is not here",
    "lora_ga_config": "LoRA-GA takes gradients out of the base weights that are not here",
    "velora_config": "VeLoRA changes the backward pass in a way that is not here",
    "alora_invocation_tokens": "activated LoRA is on for some tokens alone",
    "use_qalora": "QALoRA pools its inputs",
    "monteclora_config": "MonteCLoRA samples its weights",
    "layer_replication": "replicated layers are another model; write that one as a checkpoint",
    "lora_bias": "a bias on lora_B has no counterpart here",
    "target_parameters": "parameters that are no module's weight (experts) are of no model here",
    "use_bdlora": "BD-LoRA's block-diagonal factors have no counterpart here",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA takes directions out of the base weights and adds a diagonal",
    "ensure_weight_tying": "an adapter that embedding and head share has no counterpart here",
}
_REFUSED_INITS = {
    "loftq": "LoftQ replaces the base weights by quantised ones that are not in the folder",
    "corda": "CorDA takes directions out of the base weights by data that is not in the folder",
    "lora_ga": "LoRA-GA takes gradients out of the base weights that are not in the folder",
    "mica": "MiCA freezes lora_B",
}
# PEFT's init_lora_weights -> ours. What is read replaces the start: of those that leave the base
# weights alone, only a new start from the same rules would tell them apart.
INITS = {
    "true": "kaiming",
    "false": "kaiming",
    "eva": "kaiming",
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "olora": "olora",
    "pissa": "pissa",
}


@dataclass(frozen=True)
class PeftConfig:
    """The fields of PEFT's LoraConfig that are honoured; names and defaults are PEFT's.

    Attributes:
        target_modules: names (whole, or the ends of paths), one regular expression, or
            `all-linear`.
        init_lora_weights: True, False or a name.
    """

    r: int = 8
    lora_alpha: float = 8
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: str | tuple[str, ...] = ()
    exclude_modules: str | tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    bias: str = "none"
    lora_dropout: float = 0.0
    init_lora_weights: bool | str = True
    base_model_name_or_path: str | None = None
    task_type: str | None = None

    @property
    def init(self) -> str:
        """Our name of `init_lora_weights`."""
        return INITS[str(self.init_lora_weights).lower()]

    def targets(self, path: str, is_linear: bool, is_head: bool) -> bool:
        """Whether a module of the torch model gets an adapter.

        Args:
            path: of the module.
            is_linear: whether it is a linear layer.
            is_head: whether it is the output head.
        """
        excluded = self.exclude_modules
        if isinstance(excluded, str):
            if excluded and re.fullmatch(excluded, path):
                return False
        elif _ends_with(path, excluded):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in self.modules_to_save):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == "all-linear":
                return is_linear and not is_head
            return re.fullmatch(self.target_modules, path) is not None
        if path in self.target_modules:
            return True
        return _ends_with(path, self.target_modules) and self._is_in_layers(path)

    def _is_in_layers(self, path: str) -> bool:
        if not self.layers_to_transform:
            return self.layers_to_transform is None or self.layers_to_transform == ()
        patterns = [rf"(?:^|.*?\.){pattern}" for pattern in self.layers_pattern]
        for pattern in patterns or [r".*?\.[^.]*"]:
            if found := re.match(rf"{pattern}\.(?P<layer>\d+)\.", path):
                return int(found["layer"]) in self.layers_to_transform
        return False

    def saves(self, path: str) -> bool:
        """Whether a module of the torch model is trained in full: it, or one that it is part of.

        By plain ends of their paths, as PEFT has it.
        """
        parts = path.split(".")
        holders = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        return any(holder.endswith(self.modules_to_save) for holder in holders)

    def rank_and_alpha(self, path: str) -> tuple[int, float]:
        """Return r and alpha of a module that gets an adapter."""
        return (
            _by_pattern(self.rank_pattern, path, self.r),
            _by_pattern(self.alpha_pattern, path, self.lora_alpha),
        )


def _ends_with(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


HONOURED = {f.name for f in fields(PeftConfig)} - RECORDS


def read_config(folder: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        DoraError: when it is missing or broken, describes something else than LoRA or DoRA, or
            sets a field that cannot be honoured; names the field and the reason.
    """
    path = folder / FILE
    if not path.is_file():
        raise DoraError(f"{folder}: holds no {FILE}, so it is no PEFT adapter; name its folder")
    return parse_config(read_json_object(path, "save the adapter again"), str(path))


def parse_config(given: Mapping[str, Any], where: str) -> PeftConfig:
    """Return the honoured fields of a LoraConfig; arguments and errors as `read_config`.

    Args:
        given: the JSON object. Keys that are missing have PEFT's defaults.
        where: named in errors.
    """
    kind = given.get("peft_type")
    if kind != "LORA":
        found = "no peft_type" if kind is None else f"peft_type {kind!r}"
        raise DoraError(f"{where}: has {found}; only LORA adapters (with DoRA) can be read")
    if given.get("task_type") not in (None, "CAUSAL_LM"):
        raise DoraError(
            f"{where}: task_type {given['task_type']!r} is no language model's; supported: "
            "CAUSAL_LM"
        )
    for name, value in given.items():
        if name in HONOURED or name in RECORDS or not value:
            continue
        reason = REFUSED.get(name, "this version does not know it, and will not ignore it")
        raise DoraError(f"{where}: {name} = {value!r} cannot be honoured: {reason}; {_MERGE}")
    _check_init(given.get("init_lora_weights", True), where)
    known = {name: given[name] for name in given if name in {f.name for f in fields(PeftConfig)}}
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        known[name] = _names(known.get(name), name, where)
    layers = known.get("layers_to_transform")
    if layers is not None:
        known["layers_to_transform"] = (layers,) if isinstance(layers, int) else tuple(layers)
    for name in ("rank_pattern", "alpha_pattern"):
        known[name] = known.get(name) or {}
    config = PeftConfig(**known)
    _check_values(config, where)
    return config


def _names(given: Any, name: str, where: str) -> str | tuple[str, ...]:
    if isinstance(given, str):
        return given if name in ("target_modules", "exclude_modules") else (given,)
    names = tuple(given or ())
    if not all(isinstance(item, str) for item in names):
        raise DoraError(f"{where}: {name} must be a text or a list of texts; got {given!r}")
    return names


def _check_init(init: Any, where: str) -> None:
    name = str(init).lower()
    if name in INITS:
        return
    if re.fullmatch(r"pissa_niter_\d+", name):
        reason = "its base weights were changed by a random decomposition that cannot be repeated"
    else:
        reason = _REFUSED_INITS.get(name, "this version does not know it")
    raise DoraError(
        f"{where}: init_lora_weights = {init!r} cannot be honoured: {reason}; convert it to plain "
        "LoRA in PEFT (save_pretrained with path_initial_model_for_weight_conversion), or merge it"
    )


def _check_values(config: PeftConfig, where: str) -> None:
    if not config.target_modules:
        raise DoraError(
            f"{where}: target_modules is empty; write the names of the modules that it adapts, as "
            "newer versions of PEFT save them"
        )
    if config.bias not in ("none", "all", "lora_only"):
        raise DoraError(f"{where}: bias must be 'none', 'all' or 'lora_only'; got {config.bias!r}")
    for name in ("target_modules", "exclude_modules"):
        pattern = getattr(config, name)
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as error:
                raise DoraError(
                    f"{where}: {name} = {pattern!r} is no regular expression ({error})"
                ) from error
