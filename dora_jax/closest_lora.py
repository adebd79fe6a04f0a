"""The plain LoRA that is closest to a tuned model: for servers that know no magnitudes.

Of each adapted module, the change W' - W of the merged weight is cut to its largest singular
directions (Eckart and Young, 1936: no other product of that rank is closer in the Frobenius norm).
DoRA's change has full rank, as it scales every column of W; so something is lost, and reported.
"""

from dataclasses import dataclass
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from dora_jax.adapters import merge_module
from dora_jax.errors import DoraError
from dora_jax.partition import ADAPTER_LEAVES, SCALE_LEAF, Params, iter_modules, weight_name
from dora_jax.spec import AdapterRules, AdapterSpec


@dataclass(frozen=True)
class ClosestLora:
    """A plain LoRA, and how far it is from what it replaces.

    Attributes:
        rules: plain LoRA where there was an adapter; full modules and biases as they were.
        params: of the model built with them, over the base's own weights.
        errors: by module, of each layer ||change - LoRA|| / ||change||.
        ranks: by module, of each layer.
    """

    rules: AdapterRules
    params: Params
    errors: dict[str, list[float]]
    ranks: dict[str, list[int]]


def _cut(change: np.ndarray, rank: int | None, error: float | None) -> tuple[Any, Any, float]:
    """Return A (in, r), B (r, out) and the relative error of the closest product."""
    u, s, vt = np.linalg.svd(change, full_matrices=False)
    total = float(np.sum(s**2))
    if not total:
        return u[:, :0], vt[:0], 0.0
    # lost[r] is the share of the squared norm beyond rank r.
    lost = np.append(np.cumsum((s**2)[::-1])[::-1], 0.0) / total
    if rank is None:
        rank = int(np.argmax(np.sqrt(lost) <= (error or 0.0)))
    rank = min(rank, len(s))
    root = np.sqrt(s[:rank])
    return u[:, :rank] * root, root[:, None] * vt[:rank], float(np.sqrt(lost[rank]))


def closest_lora(
    base: Params,
    params: Params,
    rules: AdapterRules,
    rank: int | None = None,
    error: float | None = None,
) -> ClosestLora:
    """Return the closest plain LoRA, a module at a time, by exact singular values.

    Args:
        base: the plain model's parameters before training.
        params: the tuned model's.
        rules: its rules.
        rank: the same for all; or
        error: the largest allowed ||change - LoRA|| / ||change|| of each layer of each module,
            which then has the lowest rank that keeps it.

    Raises:
        DoraError: unless one of rank (at least 1) and error (in [0, 1)) is given.
    """
    if (rank is None) == (error is None):
        raise DoraError("give a rank, or an error that may be made, and not both")
    if rank is not None and rank < 1:
        raise DoraError(f"the rank of a LoRA must be at least 1; got {rank}")
    if error is not None and not 0 <= error < 1:
        raise DoraError(f"the error must be a share in [0, 1); got {error}")
    flat: dict[str, Any] = {}
    new_rules: list[tuple[str, AdapterSpec]] = []
    errors: dict[str, list[float]] = {}
    ranks: dict[str, list[int]] = {}
    plain = dict(iter_modules(base))
    for path, leaves in iter_modules(params):
        weight = weight_name(leaves)
        spec = rules.spec_for(path, weight)
        kept = {k: v for k, v in leaves.items() if k not in (*ADAPTER_LEAVES, SCALE_LEAF)}
        if spec.has_low_rank or spec.has_magnitude:
            kept[weight] = plain[path][weight]
            merged = merge_module(path, leaves, spec)
            change = np.asarray(merged, np.float64) - np.asarray(kept[weight], np.float64)
            stack = change if change.ndim == 3 else change[None]
            cuts = [_cut(layer, rank, error) for layer in stack]
            errors[path] = [e for *_, e in cuts]
            ranks[path] = [a.shape[1] for a, *_ in cuts]
            lora = _spec(ranks[path], spec.train_bias)
            if lora.has_low_rank:
                kept |= _leaves(cuts, lora, change.ndim == 3)
            spec = lora
        if spec.method != "frozen" or spec.train_bias:
            new_rules.append((f"^{path}", spec))
        flat |= {f"{path}/{name}": leaf for name, leaf in kept.items()}
    tree = flax.traverse_util.unflatten_dict(flat, sep="/")
    return ClosestLora(AdapterRules(new_rules), tree, errors, ranks)


def _spec(ranks: list[int], train_bias: bool) -> AdapterSpec:
    rank = max(ranks)
    if not rank:
        return AdapterSpec("frozen", train_bias=train_bias)
    same = len(set(ranks)) == 1
    layers = None if same else tuple((r, float(r)) if r else None for r in ranks)
    return AdapterSpec("lora", rank, float(rank), train_bias=train_bias, per_layer=layers)


def _leaves(cuts: list[tuple[Any, Any, float]], spec: AdapterSpec, stacked: bool) -> dict[str, Any]:
    a = np.stack([np.pad(a, ((0, 0), (0, spec.rank - a.shape[1]))) for a, *_ in cuts])
    b = np.stack([np.pad(b, ((0, spec.rank - len(b)), (0, 0))) for _, b, _ in cuts])
    found: dict[str, Any] = {"lora_a": a.astype(np.float32), "lora_b": b.astype(np.float32)}
    if not stacked:
        return {name: array[0] for name, array in found.items()}
    if spec.layer_scales is not None:
        found[SCALE_LEAF] = jnp.asarray(spec.layer_scales, jnp.float32)
    return found
