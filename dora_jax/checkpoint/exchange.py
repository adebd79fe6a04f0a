"""Adapters between our folders and Hugging Face PEFT's, and what an adapter holds, in words."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dora_jax.analysis.records import encode
from dora_jax.checkpoint.adapter import (
    WEIGHTS,
    AdapterInfo,
    Loaded,
    find_adapter,
    load_info,
    load_model,
    save_adapter,
)
from dora_jax.checkpoint.folder import check_free_name
from dora_jax.checkpoint.peft_config import FILE, read_config
from dora_jax.checkpoint.peft_files import read_tensors
from dora_jax.checkpoint.peft_load import load_peft
from dora_jax.checkpoint.peft_save import save_peft
from dora_jax.checkpoint.pretrained import fingerprint, load_pretrained
from dora_jax.checkpoint.state import flatten, load_tree
from dora_jax.closest_lora import closest_lora
from dora_jax.errors import DoraError
from dora_jax.models.build import Decoder, as_decoder, build_model
from dora_jax.spec import AdapterRules

_log = logging.getLogger(__name__)

_SAMPLE = "The capital of France is Paris. Water boils at 100 degrees, and 2 + 2 = 4."


def _as_json(rules: AdapterRules) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"pattern": pattern, "spec": encode(dataclasses.asdict(spec))}
        for pattern, spec in rules.rules
    )


def import_peft(folder: Path, out: Path, model: str | None = None) -> list[str]:
    """Make an adapter of PEFT one of ours.

    Args:
        folder: PEFT's.
        out: ours; must not exist, or be empty.
        model: the base model; None takes the one that PEFT's config names.

    Returns:
        What was done, in words.

    Raises:
        DoraError: when the adapter cannot be read (`load_peft`), or the base model is not found.
    """
    check_free_name(out)
    peft = read_config(folder)
    named = peft.base_model_name_or_path
    if model is None and not named:
        raise DoraError(f"{folder / FILE}: names no base model; name it with --model")
    if model is not None and named and Path(model).name.lower() != Path(named).name.lower():
        _log.warning("%s was made for %s, and is put on %s", folder, named, model)
    try:
        pretrained = load_pretrained(model or str(named))
    except DoraError as error:
        raise DoraError(
            f"the base model of {folder}: {error} (name another place by --model)"
        ) from error
    adapter = load_peft(folder, as_decoder(pretrained.config), pretrained.params)
    adapter.params(pretrained.params)  # fits, or says why not
    info = AdapterInfo(
        model=pretrained.name,
        source=pretrained.source,
        method="dora" if peft.use_dora else "lora",
        adapter={},
        prompt=pretrained.usual_template or "plain",
        weights=fingerprint(pretrained.params),
        explicit=_as_json(adapter.rules),
        untied=adapter.config != pretrained.config,
    )
    save_adapter(out, info, adapter.trainable)
    return [f"adapter written to {out}", *describe(out)]


def _named(loaded: Loaded) -> str:
    return loaded.info.model if loaded.info else loaded.pretrained.name


def export_peft(adapter: Path, out: Path, model: str | None = None) -> list[str]:
    """Write an adapter as PEFT's; see `save_peft`.

    Args:
        adapter: an adapter's folder, or the part of a run that holds one.
        out: the folder to write; must not exist, or be empty.
        model: where the base weights are now; None takes the adapter's own record.

    Returns:
        What was done, in words.

    Raises:
        DoraError: when it cannot be loaded, or PEFT cannot express it.
    """
    check_free_name(out)
    loaded = load_model(model, adapter)
    assert loaded.rules is not None  # an adapter was named
    pretrained = loaded.pretrained
    config = as_decoder(pretrained.config)
    save_peft(out, config, loaded.rules, loaded.params, pretrained.params, _named(loaded))
    return [f"PEFT adapter written to {out}", *describe(out)]


def export_as_lora(
    adapter: Path,
    out: Path,
    rank: int | None = None,
    error: float | None = None,
    *,
    model: str | None = None,
) -> list[str]:
    """Write the closest plain LoRA of an adapter as PEFT's; see `closest_lora`.

    Args:
        adapter: as in `export_peft`, like the rest.
        out: the folder to write.
        rank: of the LoRA, or
        error: the share of each change's norm that may be lost.
        model: where the base weights are now.

    Returns:
        What was lost, by module and in the logits, in words.

    Raises:
        DoraError: when it cannot be loaded, or PEFT cannot express it.
    """
    check_free_name(out)
    loaded = load_model(model, adapter)
    assert loaded.rules is not None  # an adapter was named
    pretrained = loaded.pretrained
    base, config = pretrained.params, as_decoder(pretrained.config)
    found = closest_lora(base, loaded.params, loaded.rules, rank, error)
    save_peft(out, config, found.rules, found.params, base, _named(loaded))
    lines = [f"PEFT adapter (plain LoRA) written to {out}", "lost of each change's norm, rank:"]
    for path, losses in found.errors.items():
        ranks = found.ranks[path]
        lines.append(f"  {path}: {max(losses):.2%} at most, rank {min(ranks)} to {max(ranks)}")
    tokens = np.array([pretrained.tokenizer.encode(_SAMPLE)])
    tuned = _logits(build_model(config, loaded.rules), loaded.params, tokens)
    change = np.abs(_logits(build_model(config, found.rules), found.params, tokens) - tuned)
    moved = np.abs(tuned - _logits(build_model(config), base, tokens))
    lines.append(
        f"logits of a short text: moved by {moved.mean():.4f} from the base model's in the mean "
        f"({moved.max():.4f} at most), the LoRA's differ from that by {change.mean():.4f} "
        f"({change.max():.4f} at most)"
    )
    return lines


def _logits(model: Decoder, params: Any, tokens: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(model.apply)({"params": params}, tokens))


def describe(folder: Path) -> list[str]:
    """Return what an adapter holds, in words: what it belongs to, its modules, their numbers.

    Args:
        folder: ours, or PEFT's.

    Raises:
        DoraError: when it is neither, or broken.
    """
    if (folder / FILE).is_file():
        return list(_describe_peft(folder))
    return list(_describe_own(find_adapter(folder)))


def _describe_peft(folder: Path) -> Iterator[str]:
    peft = read_config(folder)
    yield f"PEFT adapter, {'DoRA' if peft.use_dora else 'LoRA'}, of {peft.base_model_name_or_path}"
    for field in dataclasses.fields(peft):
        value = getattr(peft, field.name)
        if value not in (field.default, None, {}, ()) and field.name != "base_model_name_or_path":
            yield f"  {field.name}: {value}"
    yield from _sizes(read_tensors(folder), ".")


def _describe_own(folder: Path) -> Iterator[str]:
    info = load_info(folder)
    yield f"{info.method} adapter of {info.model} ({info.source})"
    for pattern, spec in info.rules().rules:
        ranks = sorted({layer[0] for layer in spec.per_layer or () if layer})
        rank = f"{ranks[0]} to {ranks[-1]}" if ranks else str(spec.rank)
        if spec.per_layer and None in spec.per_layer:
            rank += f", in {sum(map(bool, spec.per_layer))} of {len(spec.per_layer)} layers"
        low_rank = f", rank {rank}, scale {spec.scale:g}" if spec.has_low_rank else ""
        yield f"  {pattern}: {spec.method}{low_rank}"
    yield from _sizes(flatten(load_tree(folder / WEIGHTS)), "/")


def _sizes(arrays: Mapping[str, Any], separator: str) -> Iterator[str]:
    kinds: dict[str, list[int]] = {}
    for name, array in arrays.items():
        parts = name.removesuffix(f"{separator}weight").split(separator)
        # The authors' LLaVA numbers the projector's layers.
        kind = ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
        kinds.setdefault(kind, []).append(int(np.prod(array.shape)))
    total = sum(map(sum, kinds.values()))
    yield f"  {total:,} numbers: " + ", ".join(
        f"{sum(sizes):,} in {len(sizes)} {kind}" for kind, sizes in sorted(kinds.items())
    )
    norms = [n for n in arrays if n.split(separator)[-1] in ("magnitude", "lora_magnitude_vector")]
    if norms:
        values = np.concatenate([np.asarray(arrays[n], np.float32).reshape(-1) for n in norms])
        yield f"  magnitudes {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
