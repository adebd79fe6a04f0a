"""Adapters of Hugging Face PEFT, read: `adapter_config.json` and `adapter_model.safetensors`.

Layers that are separate there are stacked here. Where they differ in rank, the factors are filled
up to the largest with zero columns of A and zero rows of B: both get a zero gradient, so that they
stay zero and training follows PEFT's; a layer without an adapter is such a one of rank 0. Where
they differ in scale, each has its own (`AdapterSpec.per_layer`): folding it into a factor would
change the size of Adam's steps, and the bits that are written back.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.traverse_util
import ml_dtypes  # noqa: F401  # registers "bfloat16" with numpy
import numpy as np

from dora_jax.checkpoint.adapter import attach
from dora_jax.checkpoint.names import check_shapes
from dora_jax.checkpoint.peft_config import PeftConfig, read_config
from dora_jax.checkpoint.peft_files import WEIGHTS_FILE, open_adapter
from dora_jax.checkpoint.peft_llava import find_spelling, reached, with_saved
from dora_jax.checkpoint.peft_modules import PREFIX, Module, has_head, modules, untie
from dora_jax.checkpoint.peft_rules import needs_own_head, rules_of
from dora_jax.errors import DoraError
from dora_jax.models.build import DecoderConfig, build_model, untied
from dora_jax.partition import Params, adapter_leaves
from dora_jax.spec import AdapterRules, AdapterSpec


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter that came from PEFT.

    Attributes:
        config: the model that it belongs to; untied where the adapter treats the head and the
            embedding of a tied model differently.
        rules: what is tuned, and how.
        trainable: what was trained: adapter leaves, full weights, biases; numpy arrays in our tree.
        peft: the settings as they were read; what the authors' LLaVA saved beside the adapter is
            among `modules_to_save`.
    """

    config: DecoderConfig
    rules: AdapterRules
    trainable: Params
    peft: PeftConfig

    def params(self, base: Params) -> Params:
        """Return the parameters of `build_model(config, rules)`.

        Args:
            base: the plain model's parameters, as they were before the adapter was trained.

        Raises:
            DoraError: when they do not fit.
        """
        if not self.config.text.tie_word_embeddings and not has_head(base):
            base = untie(base)
        return attach(
            base, self.trainable, build_model(self.config, self.rules), "the PEFT adapter"
        )


def load_peft(folder: str | Path, config: DecoderConfig, base: Params | None = None) -> PeftAdapter:
    """Read an adapter's folder.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        config: of the model that it was made for.
        base: that model's parameters. Where given, a base weight that PEFT saved beside an
            embedding's adapter is compared with it.

    Raises:
        DoraError: when the files are missing, damaged or pickled, the settings cannot be honoured
            (`read_config`), or tensors are missing, unexpected, of another shape or type.

    Example:
        >>> adapter = load_peft("folder", pretrained.config, pretrained.params)
        >>> params = adapter.params(pretrained.params)
        >>> logits = build_model(adapter.config, adapter.rules).apply({"params": params}, tokens)
    """
    folder = Path(folder)
    peft = read_config(folder)
    files = open_adapter(folder)
    made_for = peft.base_model_name_or_path or "a model that adapter_config.json does not name"
    spelling = find_spelling(folder, files, config, made_for)
    peft = with_saved(peft, files, modules(config, spelling))
    if needs_own_head(peft, config, spelling):
        config = untied(config)
    whole = modules(config, spelling)
    parts = {**files.adapter, **(files.beside or {})}
    factors = {
        part.dtype
        for name, part in parts.items()
        if ".lora_" in name and not name.endswith("magnitude_vector")
    }
    param_dtype: Any = factors.pop() if len(factors) == 1 else "float32"
    rules = rules_of(peft, reached(peft, whole, spelling), str(folder), param_dtype)

    def read(name: str) -> np.ndarray:
        return parts[name].read()

    specs = {module: rules.spec_for(module.path, module.weight) for module in whole}
    base_weights = {
        f"{PREFIX}{module.names[0]}.base_layer.weight": module
        for module, spec in specs.items()
        if spec.has_low_rank and module.is_of_vocabulary
    }
    expected = _shapes(specs)
    found = {name: part.shape for name, part in parts.items() if name not in base_weights}
    check_shapes(
        folder / WEIGHTS_FILE, expected, found, f"It was made for {made_for}: name that base model."
    )
    for name, module in base_weights.items():
        if name in parts and base is not None:
            _check_base(folder, name, read(name), module, base)
    flat: dict[str, np.ndarray] = {}
    for module, spec in specs.items():
        flat |= _leaves(module, spec, read)
    return PeftAdapter(config, rules, flax.traverse_util.unflatten_dict(flat, sep="/"), peft)


def layers_of(module: Module, spec: AdapterSpec) -> list[tuple[str, int]]:
    """Return (name, rank) of those of a module's layers that have an adapter."""
    layers = spec.per_layer or ((spec.rank, spec.alpha),) * len(module.names)
    return [(n, layer[0]) for n, layer in zip(module.names, layers, strict=True) if layer]


def own_names(module: Module, spec: AdapterSpec) -> dict[str, list[str]]:
    """Return PEFT's names of a module's own trained tensors, one a layer, by leaf.

    (A rule for biases may cover modules that have none.)
    """
    bias = ("bias",) if spec.train_bias and "bias" in module.leaves else ()
    leaves = tuple(module.leaves) if spec.method == "full" else bias
    inside = "base_layer." if spec.has_low_rank else ""
    return {
        leaf: [
            f"{PREFIX}{name}.{inside}{'bias' if leaf == 'bias' else 'weight'}"
            for name in module.names
        ]
        for leaf in leaves
    }


def _shapes(specs: Mapping[Module, AdapterSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a file must hold."""
    expected = {}
    for module, spec in specs.items():
        if spec.has_low_rank:
            for name, rank in layers_of(module, spec):
                for leaf in adapter_leaves(spec):
                    expected[module.adapter_name(name, leaf)] = module.file_shape(leaf, rank)
        for leaf, names in own_names(module, spec).items():
            expected |= dict.fromkeys(names, module.leaves[leaf].file_shape)
    return expected


def _leaves(module: Module, spec: AdapterSpec, read: Any) -> dict[str, np.ndarray]:
    """Return a module's trained leaves, layers stacked, by path."""
    found = {}
    if spec.has_low_rank:
        ranks = dict(layers_of(module, spec))
        for leaf in adapter_leaves(spec):
            layers: list[np.ndarray | None] = []
            for name in module.names:
                if name not in ranks:
                    layers.append(None)
                    continue
                array = read(module.adapter_name(name, leaf)).T
                pad = spec.rank - ranks[name]
                widths = {"lora_a": [(0, 0), (0, pad)], "lora_b": [(0, pad), (0, 0)]}.get(leaf)
                layers.append(array if widths is None else np.pad(array, widths))
            empty = np.zeros_like(next(array for array in layers if array is not None))
            stacked = np.stack([empty if array is None else array for array in layers])
            found[f"{module.path}/{leaf}"] = stacked if module.is_stacked else stacked[0]
    for leaf, names in own_names(module, spec).items():
        own = [module.leaves[leaf].from_file(read(name)) for name in names]
        found[f"{module.path}/{leaf}"] = np.stack(own) if module.is_stacked else own[0]
    return found


def _check_base(folder: Path, name: str, saved: np.ndarray, module: Module, base: Params) -> None:
    if module.is_head and not has_head(base):
        base = untie(base)
    own = functools.reduce(lambda tree, name: tree[name], module.path.split("/"), base)
    weight = np.asarray(own["kernel"]).T if "kernel" in own else np.asarray(own["embedding"])
    same = weight.shape == saved.shape and np.array_equal(
        weight.astype(np.float32), saved.astype(np.float32)
    )
    if not same:
        raise DoraError(
            f"{folder / WEIGHTS_FILE}: {name} {saved.shape} is not the weight of this base model "
            f"{weight.shape}: the adapter was made for another one, or for a resized vocabulary; "
            "merge it in PEFT, or name its own base model"
        )
