"""Several adapters of one base model as one: weighted sums of what each does to the weights.

Each adapter's change is taken against the base alone, never against a weight that already holds
another one. So the sum means

    W' = W + sum_i w_i (W_i' - W)          W_i' = c_i (W + s_i A_i B_i)
       = g W + sum_i w_i c_i s_i A_i B_i   c_i = m_i / ||W + s_i A_i B_i||, 1 for LoRA
                                           g = 1 + sum_i w_i (c_i - 1), of each column

which is again one DoRA adapter, exactly: factors [w_i s_i A_i] and [c_i / g B_i] of the ranks
together, at scale 1, and magnitude m = g ||V||. Trained magnitudes are neither dropped nor
averaged; merged and unmerged are the same. `svd` cuts the factors' product to a lower rank and
keeps g.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.traverse_util
import numpy as np

from dora_jax.decomposition import adapter_layout
from dora_jax.errors import DoraError
from dora_jax.partition import Params, adapter_leaves, iter_modules, weight_name
from dora_jax.spec import AdapterRules, AdapterSpec, takes_from_kernel

How = Literal["cat", "svd", "linear"]


class _Part(NamedTuple):
    """One adapter in one module: its weight in the sum, spec and leaves."""

    weight: float
    spec: AdapterSpec
    leaves: dict[str, np.ndarray]


class _Sum(NamedTuple):
    """The sum in one layer, float64: A (in, r), B (r, out), m (out,); None where it has none."""

    lora_a: np.ndarray | None
    lora_b: np.ndarray | None
    magnitude: np.ndarray | None


def sum_adapters(
    base: Params,
    adapters: Sequence[tuple[AdapterRules, Params]],
    weights: Sequence[float],
    how: How = "cat",
    rank: int | None = None,
) -> tuple[AdapterRules, Params]:
    """Return one adapter that does what several do together.

    Args:
        base: the plain model's parameters; kernels (stack, in, out) or (in, out).
        adapters: each its rules and parameters (those that it trains are enough).
        weights: w_i, one for each adapter; any sign.
        how: `cat` concatenates ranks: exact. `svd` cuts that to `rank`: the closest product of
            factors, with the magnitudes' gains g kept. `linear` adds the factors, each times
            sqrt(w_i s_i), as PEFT's `linear`: of LoRA adapters of one rank alone, and not the sum
            of their changes, as each A_i meets each B_j.
        rank: with `svd`.

    Returns:
        The rules, and the parameters of the model that is built with them.

    Raises:
        DoraError: naming adapter and module, where one cannot be added.
    """
    if len(adapters) != len(weights) or not adapters:
        raise DoraError(f"give a weight for each adapter; got {len(weights)} for {len(adapters)}")
    if (how == "svd") != (rank is not None) or (rank is not None and rank < 1):
        raise DoraError(f"how='svd' needs a rank of at least 1, and no other does; got {rank}")
    rules: list[tuple[str, AdapterSpec]] = []
    flat = dict(flax.traverse_util.flatten_dict(base, sep="/"))
    given = [dict(iter_modules(params)) for _, params in adapters]
    for path, leaves in iter_modules(base):
        weight = weight_name(leaves)
        parts = []
        for number, (own, _) in enumerate(adapters):
            spec = own.spec_for(path, weight)
            trains_bias = spec.train_bias and "bias" in leaves
            if spec.method != "frozen" or trains_bias:
                where = f"adapter {number}, module {path!r}"
                if spec.method == "full" or trains_bias:
                    raise DoraError(f"{where}: trains weights or biases of its own; merge it first")
                found = _checked(where, spec, given[number].get(path, {}), leaves[weight], how)
                parts.append(_Part(float(weights[number]), spec, found))
        if not parts:
            continue
        kernel = np.asarray(leaves[weight])
        stacked = kernel.ndim == 3
        try:
            layers = [
                _add(layer.astype(np.float64), parts, n if stacked else None, how, rank)
                for n, layer in enumerate(kernel if stacked else kernel[None])
            ]
        except ValueError as error:
            raise DoraError(f"module {path!r}: {error}") from None
        for name in _Sum._fields:
            own_layers = [getattr(layer, name) for layer in layers]
            if own_layers[0] is not None:
                array = np.stack(own_layers).astype(np.float32)
                flat[f"{path}/{name}"] = array if stacked else array[0]
        rules.append((f"^{path}", _spec(layers[0])))
    return AdapterRules(rules), flax.traverse_util.unflatten_dict(flat, sep="/")


def _checked(
    where: str, spec: AdapterSpec, leaves: Mapping[str, Any], kernel: Any, how: How
) -> dict[str, np.ndarray]:
    """Return an adapter's leaves, if it can be added."""
    if spec.norm_axis == "in" and spec.has_magnitude:
        raise DoraError(f"{where}: has magnitudes of its inputs (norm_axis='in'); merge it first")
    if takes_from_kernel(spec.init):
        raise DoraError(
            f"{where}: its init {spec.init!r} changed the base weights; export it as a PEFT "
            "adapter and import that, which is over the base's own"
        )
    if how == "linear" and spec.method != "lora":
        raise DoraError(
            f"{where}: is tuned by {spec.method!r}; how='linear' adds factors, which says nothing "
            "of magnitudes: take 'cat' or 'svd'"
        )
    missing = [name for name in adapter_leaves(spec) if leaves.get(name) is None]
    if missing:
        raise DoraError(f"{where}: holds no {', '.join(missing)}")
    found: dict[str, Any] = {name: np.asarray(leaves[name]) for name in adapter_leaves(spec)}
    try:
        adapter_layout(kernel.shape, found, spec.norm_axis)
    except ValueError as error:
        raise DoraError(f"{where}: {error}") from None
    return found


def _spec(layer: _Sum) -> AdapterSpec:
    if layer.lora_a is None:
        return AdapterSpec("magnitude")
    method: Literal["lora", "dora"] = "lora" if layer.magnitude is None else "dora"
    return AdapterSpec(method, layer.lora_a.shape[1], 1.0, "alpha")


def _add(
    w: np.ndarray, parts: Sequence[_Part], layer: int | None, how: How, rank: int | None
) -> _Sum:
    """Return the sum in one layer, of kernel W (in, out)."""
    gain = np.ones(w.shape[1])
    lows, highs = [], []
    for weight, spec, leaves in parts:
        own = {k: v if layer is None else v[layer] for k, v in leaves.items()}
        own = {k: v.astype(np.float64) for k, v in own.items()}
        scales = spec.layer_scales
        s = spec.scale if scales is None or layer is None else scales[layer]
        c = _column_scale(w, own, s) if spec.has_magnitude else np.ones_like(gain)
        gain += weight * (c - 1)
        if spec.has_low_rank:
            lows.append((weight * s, own["lora_a"]))
            highs.append(c * own["lora_b"])
    if how == "linear":
        return _add_factors(lows, highs)
    has_magnitude = any(part.spec.has_magnitude for part in parts)
    if not gain.all():
        raise ValueError(
            "these weights take a column's magnitude to exactly 0, where no direction is left; "
            "change a weight a little"
        )
    if not lows:
        return _Sum(None, None, gain * np.linalg.norm(w, axis=0))
    a = np.concatenate([factor * low for factor, low in lows], axis=1)
    b = np.concatenate(highs) / gain
    if rank is not None:
        a, b = _cut(a, b, rank)
    return _Sum(a, b, gain * np.linalg.norm(w + a @ b, axis=0) if has_magnitude else None)


def _column_scale(w: np.ndarray, leaves: Mapping[str, np.ndarray], s: float) -> np.ndarray:
    """Return c (out,): 1 for a column whose kernel is zero, and in a layer without an adapter."""
    v = w
    if "lora_a" in leaves:
        if s == 0:
            return np.ones(w.shape[1])
        v = w + s * leaves["lora_a"] @ leaves["lora_b"]
    norm = np.linalg.norm(v, axis=0)
    live = w.any(axis=0) & (norm > 0)
    return np.where(live, leaves["magnitude"] / np.where(live, norm, 1), 1)


def _add_factors(lows: Sequence[tuple[float, np.ndarray]], highs: Sequence[np.ndarray]) -> _Sum:
    if len({low.shape for _, low in lows}) > 1:
        raise ValueError("how='linear' adds factors of one rank; these differ: take 'cat' or 'svd'")
    if any(factor < 0 for factor, _ in lows):
        raise ValueError("how='linear' takes roots of weights, none of which may be below 0")
    roots = [np.sqrt(factor) for factor, _ in lows]
    a = sum(root * low for root, (_, low) in zip(roots, lows, strict=True))
    b = sum(root * high for root, high in zip(roots, highs, strict=True))
    return _Sum(np.asarray(a), np.asarray(b), None)


def _cut(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return factors of the closest product of a rank, without forming A B."""
    (qa, ra), (qb, rb) = np.linalg.qr(a), np.linalg.qr(b.T)
    u, s, vt = np.linalg.svd(ra @ rb.T, full_matrices=False)
    root = np.sqrt(s[:rank])
    return (qa @ u[:, :rank]) * root, root[:, None] * (vt[:rank] @ qb.T)
