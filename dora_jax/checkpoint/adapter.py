"""A trained adapter on disk: `adapter.json` (what it belongs to) and `weights/` (orbax).

`adapter.json` is written last: a folder without it is not an adapter.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.adapters import layer_scale_leaves, merge_params, residual_kernels
from dora_jax.analysis.atomic import write_text
from dora_jax.analysis.records import decode, encode
from dora_jax.checkpoint.assemble import Shardings
from dora_jax.checkpoint.peft_modules import untie
from dora_jax.checkpoint.pretrained import Pretrained, fingerprint, load_pretrained
from dora_jax.checkpoint.state import flatten, load_tree, misfits, save_tree
from dora_jax.errors import DoraError
from dora_jax.models.build import Writer, as_decoder, build_model, untied
from dora_jax.models.llama import param_shapes
from dora_jax.partition import Params, partition, trainable_mask
from dora_jax.processes import all_arrive, is_first
from dora_jax.sharding import fetch
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.config import AdapterConfig, RunMethod

ADAPTER_FILE = "adapter.json"
WEIGHTS = "weights"
FOLDER = "adapter"


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter belongs to.

    Attributes:
        model: the base model's name, as `load_pretrained` takes it.
        source: where the base weights came from; others would not fit the magnitudes.
        method: how the modules were tuned.
        adapter: rank, modules and so on (`AdapterConfig`, as plain JSON).
        prompt: the prompt template that it was trained with.
        weights: `fingerprint` of the base weights (float32), where they were at hand.
        dtype: to which the base weights were rounded in training; magnitudes belong to those.
        data: what it was trained on (`DataConfig`, as plain JSON), where that is known.
        explicit: in place of `method` and `adapter`, where modules are tuned each in its own way:
            the rules, in their order, as {"pattern": ..., "spec": AdapterSpec as plain JSON}.
        untied: whether a tied head was given a copy of the embedding of its own.
    """

    model: str
    source: str
    method: str
    adapter: dict[str, Any]
    prompt: str
    weights: str | None = None
    dtype: str = "float32"
    data: dict[str, Any] | None = None
    explicit: tuple[dict[str, Any], ...] | None = None
    untied: bool = False

    def __post_init__(self) -> None:
        # As it is read back: JSON has no tuples.
        object.__setattr__(self, "adapter", json.loads(json.dumps(self.adapter)))

    def rules(self) -> AdapterRules:
        """Return the rules that the model must be built with.

        Raises:
            DoraError: when method or adapter are not what this version knows.
        """
        method: RunMethod = self.method  # type: ignore[assignment]
        try:
            if self.explicit is not None:
                return AdapterRules(
                    [(rule["pattern"], AdapterSpec(**rule["spec"])) for rule in self.explicit]
                )
            return AdapterConfig(**self.adapter).rules(method)
        except (TypeError, ValueError, LookupError) as error:
            raise DoraError(f"adapter: {error}") from None


def save_adapter(folder: Path, info: AdapterInfo, trainable: Params) -> None:
    """Write an adapter, replacing an unfinished or older one in the folder."""
    marker = folder / ADAPTER_FILE
    if is_first():
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder / WEIGHTS, ignore_errors=True)
    all_arrive("the old adapter is gone")
    save_tree(folder / WEIGHTS, fetch(trainable))
    if is_first():
        write_text(marker, json.dumps(encode(info), indent=1) + "\n")


def find_adapter(path: Path) -> Path:
    """Return the adapter folder that a user means: itself, or the one inside a run's part.

    Raises:
        DoraError: when there is none; lists those further inside.
    """
    for folder in (path, path / FOLDER):
        if (folder / ADAPTER_FILE).is_file():
            return folder
    if not path.exists():
        raise DoraError(f"{path}: no such folder")
    if (path / "adapter_config.json").is_file():
        raise DoraError(
            f"{path}: is a PEFT adapter; make it one of ours first: dora-jax import {path} --out "
            "FOLDER"
        )
    inside = sorted(p.parent.parent for p in path.glob(f"**/{FOLDER}/{ADAPTER_FILE}"))
    more = f" and {len(inside) - 8} more" if len(inside) > 8 else ""
    hint = f"; there are {', '.join(map(str, inside[:8]))}{more}" if inside else ""
    raise DoraError(f"{path}: holds no finished adapter ({ADAPTER_FILE}){hint}")


def load_info(folder: Path) -> AdapterInfo:
    """Read what an adapter belongs to.

    Raises:
        DoraError: when its file is broken, or of a version that this one does not know.
    """
    path = folder / ADAPTER_FILE
    try:
        info = decode(AdapterInfo, json.loads(path.read_text(encoding="utf-8")))
        info.rules()
        return info
    except (OSError, ValueError, DoraError) as error:
        raise DoraError(f"{path}: cannot be read ({error}); train the adapter again") from error


def attach(base: Params, trainable: Params, model: Writer, where: Path | str) -> Params:
    """Put an adapter's leaves into the base model's parameters.

    Args:
        base: the plain model's parameters.
        trainable: what was trained: adapter leaves, and kernels or biases tuned in full.
        model: the model built with the adapter's rules.
        where: named in errors.

    Raises:
        DoraError: when leaves are missing, unexpected or of another shape, or a rule matches no
            module of the model.
    """
    shapes = param_shapes(model)
    rules = model.adapters or AdapterRules(())
    try:
        mask = trainable_mask(shapes, rules)
    except ValueError as error:
        raise DoraError(f"{where}: does not fit its base model ({error})") from None
    found = flatten(trainable)
    # First what the rules train, and nothing else: a frozen leaf must stay the base model's.
    problems = misfits(found, flatten(partition(shapes, mask)[0]))
    params = flatten(base) | found
    try:
        params |= layer_scale_leaves(shapes, rules)
        problems = problems or misfits(params, flatten(shapes))
        # Last: decompositions take a while.
        params |= {} if problems else residual_kernels(base, shapes, rules)
    except ValueError as error:
        raise DoraError(f"{where}: does not fit its base model ({error})") from None
    if problems:
        raise DoraError(f"{where}: does not fit its base model ({problems}); train it again")
    return flax.traverse_util.unflatten_dict(params, sep="/")


@dataclass(frozen=True)
class Loaded:
    """A base model with, perhaps, an adapter in it; float32; numpy, or jax if placed.

    Attributes:
        pretrained: the base model, as the adapter was trained on it: rounded, or untied.
        original: the base model, as it was read.
        params: of the model with the adapter.
        rules: the adapter's.
        info: what it belongs to.
    """

    pretrained: Pretrained
    original: Pretrained
    params: Params
    rules: AdapterRules | None
    info: AdapterInfo | None

    def merged(self) -> Params:
        """Return the plain model's parameters, the adapter merged."""
        return self.params if self.rules is None else merge_params(self.params, self.rules)


def load_model(
    model: str | Pretrained | None, adapter: Path | None, sharding: Shardings | None = None
) -> Loaded:
    """Load a base model, with an adapter in its parameters if one is named.

    Args:
        model: the base model's name, or itself; None takes the one that the adapter was trained
            on. An adapter's weights can so be found in another place, if they are the same.
        adapter: an adapter's folder, or the run folder around it.
        sharding: where the base model's weights go, as `load_pretrained` takes it.

    Raises:
        DoraError: when something is missing or broken, or the adapter was trained on other weights.
        ValueError: when neither is given.
    """
    if adapter is None:
        if model is None:
            raise ValueError("give a model, an adapter, or both")
        pretrained = _base(model, sharding)
        return Loaded(pretrained, pretrained, pretrained.params, None, None)
    folder = find_adapter(adapter)
    info = load_info(folder)
    pretrained = _base(info.model if model is None else model, sharding)
    _check_weights(folder, info, pretrained)
    base = pretrained.params
    base = jax.tree.map(lambda x: x.astype(jnp.dtype(info.dtype)), base)
    config = pretrained.config
    if info.untied:
        base, config = untie(base), untied(as_decoder(config))
    rules = info.rules()
    # Wide again at the end alone: a residual kernel (PiSSA) was rounded in training too.
    params = _wide(attach(base, load_tree(folder / WEIGHTS), build_model(config, rules), folder))
    trained_on = dataclasses.replace(pretrained, config=config, params=_wide(base))
    return Loaded(trained_on, pretrained, params, rules, info)


def _base(model: str | Pretrained, sharding: Shardings | None) -> Pretrained:
    return model if isinstance(model, Pretrained) else load_pretrained(model, sharding=sharding)


def _wide(params: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


def _check_weights(folder: Path, info: AdapterInfo, pretrained: Pretrained) -> None:
    if info.weights is not None:
        if fingerprint(pretrained.params) != info.weights:
            raise DoraError(
                f"{folder}: was trained on other weights of {info.model} than those now from "
                f"{pretrained.source}: an adapter fits only the weights it was trained on; train "
                "it again, or name the right ones with --model (evaluate: --model.name)"
            )
    elif pretrained.source != info.source:
        raise DoraError(
            f"{folder}: was trained on {info.model} from {info.source}, but the weights found now "
            f"come from {pretrained.source}: an adapter fits only the weights it was trained on"
        )
