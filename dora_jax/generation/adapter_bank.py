"""Several adapters for one batch, which merging cannot serve.

The adapters' leaves are stacked, ranks filled up with zeros, each one's scale in its lora_b, and
DoRA's c = m / ||W + s A B|| computed once; `rows` takes for each row of a batch those of its own
adapter, in the form that `row_adapters` computes with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dora_jax.decomposition import (
    adapter_layout,
    column_sq_norm,
    magnitude_scale,
    only_adapted,
    stack_scale,
)
from dora_jax.errors import DoraError
from dora_jax.factored_norm import adapted_norm
from dora_jax.generation.row_adapters import ROW_A, ROW_B, ROW_IN, ROW_OUT
from dora_jax.partition import Params, adapter_leaves, iter_modules, module_specs, weight_name
from dora_jax.spec import AdapterRules, AdapterSpec

Adapter = tuple[AdapterRules, Params] | None


class _Part(NamedTuple):
    """One adapter in one module; None where it has no such part.

    Attributes:
        lora_a: (*stack, in, r).
        lora_b: (*stack, r, out), scaled.
        scale: c, (*stack, in) or (*stack, out).
        norm_axis: which of the two.
    """

    lora_a: Array | None
    lora_b: Array | None
    scale: Array | None
    norm_axis: str


_NOTHING = _Part(None, None, None, "out")


@partial(jax.tree_util.register_dataclass, data_fields=["leaves"], meta_fields=["size"])
@dataclass(frozen=True)
class AdapterBank:
    """Adapters of one base model, stacked.

    Build it once with `AdapterBank.build` where `generate` is called often.

    Attributes:
        leaves: by module path and name; adapters are stacked on the axis behind the layers'.
        size: the number of adapters.
    """

    leaves: dict[tuple[str, ...], Array]
    size: int

    @classmethod
    def build(cls, base: Params, adapters: Sequence[Adapter]) -> "AdapterBank":
        """Stack adapters.

        Args:
            base: the plain model's parameters.
            adapters: each its rules and its parameters (those that it trains are enough), or None
                for the base model as it is.

        Raises:
            DoraError: naming adapter and module, where an adapter does not fit the base model or
                is of a kind that cannot differ by row: modules tuned in full, biases, embeddings.
        """
        kernels = {
            path: (leaves[weight_name(leaves)], weight_name(leaves))
            for path, leaves in iter_modules(base)
        }
        parts: dict[str, dict[int, _Part]] = {}
        for number, adapter in enumerate(adapters):
            if adapter is not None:
                for path, part in _parts(base, kernels, *adapter, f"adapter {number}"):
                    parts.setdefault(path, {})[number] = part
        leaves = {}
        for path, own in parts.items():
            kernel = kernels[path][0]
            every = [own.get(number, _NOTHING) for number in range(len(adapters))]
            for name, stacked in _stack(every, kernel).items():
                leaves[(*path.split("/"), name)] = stacked
        return cls(leaves, len(adapters))

    def rows(self, adapter_of: Int[Any, " b"]) -> dict[str, Any]:
        """Return the `norms` collection for a batch: each row's own leaves.

        Args:
            adapter_of: of each row, the number of its adapter.
        """
        return flax.traverse_util.unflatten_dict(_rows(self.leaves, adapter_of))


@jax.jit
def _rows(leaves: dict[tuple[str, ...], Array], adapter_of: Array) -> dict[tuple[str, ...], Array]:
    def take(path: tuple[str, ...], leaf: Array) -> Array:
        # A matrix without layers has (adapters, in, r), a scale (adapters, features).
        own = 3 if path[-1] in (ROW_A, ROW_B) else 2
        return jnp.take(leaf, adapter_of, axis=leaf.ndim - own)

    return {path: take(path, leaf) for path, leaf in leaves.items()}


def _parts(
    base: Params,
    kernels: Mapping[str, tuple[Any, str]],
    rules: AdapterRules,
    params: Params,
    where: str,
) -> list[tuple[str, _Part]]:
    try:
        specs = module_specs(base, rules)
    except ValueError as error:
        raise DoraError(f"{where}: {error}") from None
    given = dict(iter_modules(params))
    found = []
    for path, spec in specs.items():
        if spec.method == "frozen":
            continue
        kernel, weight = kernels[path]
        _check_kind(f"{where}, module {path!r}", spec, weight)
        leaves = {
            name: jnp.asarray(given[path][name])
            for name in adapter_leaves(spec)
            if given.get(path, {}).get(name) is not None
        }
        lacking = [name for name in adapter_leaves(spec) if name not in leaves]
        if lacking:
            raise DoraError(
                f"{where}, module {path!r}: has no {', '.join(lacking)}, which its method "
                f"{spec.method!r} needs: give the rules that it was trained with"
            )
        try:
            found.append((path, _part(jnp.asarray(kernel), leaves, spec)))
        except ValueError as error:
            raise DoraError(f"{where}, module {path!r}: {error}") from None
    return found


def _check_kind(where: str, spec: AdapterSpec, weight: str) -> None:
    if spec.method == "full":
        reason = "is tuned in full"
    elif spec.train_bias:
        reason = "has a tuned bias"
    elif weight != "kernel":
        reason = f"is no product with a kernel, but has {weight!r}"
    else:
        return
    raise DoraError(
        f"{where}: {reason}, which cannot differ by row: merge this adapter and generate with it "
        "alone"
    )


def _part(kernel: Array, leaves: dict[str, Array], spec: AdapterSpec) -> _Part:
    adapter_layout(kernel.shape, leaves, spec.norm_axis)  # checks the shapes
    b = leaves.get("lora_b")
    return _Part(
        leaves.get("lora_a"),
        None if b is None else _scaled(b, stack_scale(spec)),
        _column_scale(kernel, leaves, spec) if spec.has_magnitude else None,
        spec.norm_axis,
    )


def _scaled(b: Array, scale: float | Array) -> Array:
    return jnp.reshape(scale, (-1,) + (1,) * (b.ndim - 1)) * b.astype(jnp.float32)


@partial(jax.jit, static_argnames="spec")
def _column_scale(kernel: Array, leaves: dict[str, Array], spec: AdapterSpec) -> Array:
    """Return c = m / ||W + s A B||, of the magnitude's shape."""
    stack, in_ndim = adapter_layout(kernel.shape, leaves, spec.norm_axis)
    sq_norm = column_sq_norm(kernel, spec.norm_axis, in_ndim=in_ndim, stack_ndim=stack)
    if not spec.has_low_rank:
        return magnitude_scale(leaves["magnitude"], jnp.sqrt(sq_norm), sq_norm)
    a, b = leaves["lora_a"], leaves["lora_b"]
    scale = stack_scale(spec)
    norm = adapted_norm(kernel, a, b, scale, spec.norm_axis, sq_norm, stack_ndim=stack)
    return only_adapted(magnitude_scale(leaves["magnitude"], norm, sq_norm), scale)


def _stack(parts: Sequence[_Part], kernel: Any) -> dict[str, Array]:
    """Return one module's leaves, adapters on the axis behind the layers'."""
    *layers, inputs, outputs = kernel.shape
    axis = len(layers)
    found: dict[str, Array] = {}
    rank = max((part.lora_a.shape[-1] for part in parts if part.lora_a is not None), default=0)
    if rank:

        def widen(factor: Array | None, shape: tuple[int, ...]) -> Array:
            if factor is None:
                return jnp.zeros(shape, jnp.float32)
            return jnp.pad(factor, [(0, to - n) for n, to in zip(factor.shape, shape, strict=True)])

        a = [widen(part.lora_a, (*layers, inputs, rank)) for part in parts]
        b = [widen(part.lora_b, (*layers, rank, outputs)) for part in parts]
        found |= {ROW_A: jnp.stack(a, axis), ROW_B: jnp.stack(b, axis)}
    for name, norm_axis, size in ((ROW_IN, "in", inputs), (ROW_OUT, "out", outputs)):
        scales = [part.scale if part.norm_axis == norm_axis else None for part in parts]
        if any(scale is not None for scale in scales):
            ones = jnp.ones((*layers, size), jnp.float32)
            found[name] = jnp.stack([ones if c is None else c for c in scales], axis)
    return found
