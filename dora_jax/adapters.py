"""Adapters in a parameter tree: put in, normed once a step, measured, merged away.

A model's parameters are a nested dict in which an adapted module's `lora_a`, `lora_b` and
`magnitude` stand beside its `kernel` (or `embedding`).
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from dora_jax.decomposition import (
    adapter_layout,
    column_norm,
    column_sq_norm,
    init_low_rank,
    merge_kernel,
    stack_scale,
)
from dora_jax.factored_norm import adapted_norm
from dora_jax.kernel_init import init_from_kernel
from dora_jax.partition import (
    ADAPTER_LEAVES,
    SCALE_LEAF,
    Params,
    adapter_leaves,
    check_leaves,
    iter_modules,
    module_specs,
    weight_name,
)
from dora_jax.spec import AdapterRules, AdapterSpec, takes_from_kernel

_BESIDE = (*ADAPTER_LEAVES, SCALE_LEAF)


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")) if path else ()


def _adapted_modules(
    params: Params, rules: AdapterRules
) -> Iterator[tuple[str, Mapping[str, Any], AdapterSpec, Any, dict[str, Any]]]:
    """Yield path, leaves, spec, kernel and adapter of each module that has an adapter."""
    specs = module_specs(params, rules)
    for path, leaves in iter_modules(params):
        spec = specs[path]
        if not (spec.has_low_rank or spec.has_magnitude):
            continue
        check_leaves(path, leaves, spec)
        adapter = {name: leaves[name] for name in ADAPTER_LEAVES if name in leaves}
        yield path, leaves, spec, leaves[weight_name(leaves)], adapter


def _layout(path: str, spec: AdapterSpec, kernel: Any, adapter: Mapping[str, Any]) -> Any:
    try:
        return adapter_layout(kernel.shape, adapter, spec.norm_axis)
    except ValueError as error:
        raise ValueError(f"module {path!r}: {error}") from None


def init_adapters(
    base_params: Params, shapes: Params, rules: AdapterRules, key: jax.Array
) -> Params:
    """Put fresh adapters beside pre-trained weights.

    Args:
        base_params: parameters of the plain model.
        shapes: parameters (or `jax.eval_shape` of them) of the same model built with the rules.
        rules: the rules that the model was built with.
        key: random key. A module's factors depend on it and the module's path alone, so LoRA and
            DoRA of one key start from the same A.

    Returns:
        The adapted model's parameters: `base_params`' arrays as they are, `lora_a`, `lora_b` by
        each spec's init, `magnitude` = ||W||.

    Raises:
        ValueError: listing every leaf that is missing, unexpected or of another shape; or when a
            rule matches no module.
    """
    flat_base = flax.traverse_util.flatten_dict(base_params, sep="/")
    flat_shapes = flax.traverse_util.flatten_dict(shapes, sep="/")
    expected = {p: s.shape for p, s in flat_shapes.items() if p.split("/")[-1] not in _BESIDE}
    problems = [f"missing {p} {shape}" for p, shape in expected.items() if p not in flat_base]
    problems += [f"unexpected {p} {v.shape}" for p, v in flat_base.items() if p not in expected]
    problems += [
        f"{p} has shape {flat_base[p].shape}, expected {shape}"
        for p, shape in expected.items()
        if p in flat_base and flat_base[p].shape != shape
    ]
    if problems:
        raise ValueError("the weights do not fit the model: " + "; ".join(problems))

    flat = dict(flat_base)
    for path, leaves, spec, _, adapter in _adapted_modules(shapes, rules):
        prefix = f"{path}/" if path else ""
        kernel = flat_base[prefix + weight_name(leaves)]
        stack, in_ndim = _layout(path, spec, kernel, adapter)
        split = stack + in_ndim
        if spec.has_low_rank:
            # crc32, not hash(): the same on every process and every run.
            module_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            flat[f"{prefix}lora_a"], flat[f"{prefix}lora_b"] = _fresh_factors(
                module_key, kernel, spec, stack, split
            )
        if spec.has_magnitude:
            flat[f"{prefix}magnitude"] = column_norm(
                jnp.asarray(kernel), spec.norm_axis, in_ndim=in_ndim, stack_ndim=stack
            )
    flat |= layer_scale_leaves(shapes, rules) | residual_kernels(base_params, shapes, rules)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _fresh_factors(
    key: jax.Array, kernel: Any, spec: AdapterSpec, stack: int, split: int
) -> tuple[jax.Array, jax.Array]:
    if takes_from_kernel(spec.init):
        return init_from_kernel(jnp.asarray(kernel), spec, split - stack, stack)[1:]
    shapes = kernel.shape[stack:split], kernel.shape[split:]
    if spec.per_layer is None:
        return init_low_rank(
            key, *shapes, spec.rank, spec.init, spec.param_dtype, kernel.shape[:stack]
        )
    factors = []
    for number, layer in enumerate(spec.per_layer):
        rank = 0 if layer is None else layer[0]
        pad = [(0, spec.rank - rank)]
        layer_key = jax.random.fold_in(key, number)
        a, b = init_low_rank(layer_key, *shapes, max(rank, 1), spec.init, spec.param_dtype)
        a = jnp.pad(a[..., :rank], [(0, 0)] * (a.ndim - 1) + pad)
        b = jnp.pad(b[:rank], pad + [(0, 0)] * (b.ndim - 1))
        factors.append((a, b))
    return jnp.stack([a for a, _ in factors]), jnp.stack([b for _, b in factors])


def residual_kernels(base_params: Params, shapes: Params, rules: AdapterRules) -> dict[str, Any]:
    """Return the kernels that remain where factors start from them (PiSSA, OLoRA), by path.

    They depend on the plain model's weights and the rules alone, and replace the kernels wherever
    an adapter of such an init is used.

    Args:
        base_params: parameters of the plain model.
        shapes: parameters, or their shapes, of the model built with the rules.
        rules: its rules.
    """
    flat = flax.traverse_util.flatten_dict(base_params, sep="/")
    found = {}
    for path, leaves, spec, kernel, adapter in _adapted_modules(shapes, rules):
        if spec.has_low_rank and takes_from_kernel(spec.init):
            stack, in_ndim = _layout(path, spec, kernel, adapter)
            name = f"{path}/{weight_name(leaves)}" if path else weight_name(leaves)
            found[name] = init_from_kernel(jnp.asarray(flat[name]), spec, in_ndim, stack)[0]
    return found


def layer_scale_leaves(params: Params, rules: AdapterRules) -> dict[str, jax.Array]:
    """Return the `lora_scale` (layers,) of every module whose layers differ, by slash-joined path.

    Raises:
        ValueError: when a spec lists another number of layers than the module has.
    """
    found = {}
    for path, leaves, spec, kernel, _ in _adapted_modules(params, rules):
        if spec.layer_scales is None:
            continue
        layers = len(spec.layer_scales)
        if kernel.shape[0] != layers:
            raise ValueError(
                f"module {path!r}: its spec lists {layers} layers, its {weight_name(leaves)} of "
                f"shape {kernel.shape} stacks {kernel.shape[0]}"
            )
        found[f"{path}/{SCALE_LEAF}"] = jnp.asarray(spec.layer_scales, jnp.float32)
    return found


def kernel_sq_norms(params: Params, rules: AdapterRules) -> Params:
    """Return ||W||^2 of every module with a magnitude: compute once, pass to `column_norms`.

    Returns:
        A nested dict with `kernel_sq_norm` at the path of each module, float32 or float64.
    """
    flat = {}
    for path, _, spec, kernel, adapter in _adapted_modules(params, rules):
        if spec.has_magnitude:
            stack, in_ndim = _layout(path, spec, kernel, adapter)
            flat[(*_split(path), "kernel_sq_norm")] = column_sq_norm(
                jnp.asarray(kernel), spec.norm_axis, in_ndim=in_ndim, stack_ndim=stack
            )
    return flax.traverse_util.unflatten_dict(flat)


def column_norms(
    params: Params, rules: AdapterRules, cached_sq_norms: Params | None = None
) -> Params:
    """Return the `norms` collection: each DoRA module's ||W + s A B||, not differentiated.

    It depends on the parameters alone, so compute it once an optimizer step, outside the
    differentiated function, and pass it beside the parameters:
    `model.apply({"params": params, "norms": norms}, ...)`. Without it each module computes its own.
    Modules with `detach_norm=False` get ||W||^2 alone: their norm must be differentiated.

    Args:
        params: the adapted model's parameters.
        rules: what is tuned.
        cached_sq_norms: what `kernel_sq_norms` returned, if you keep it (it never changes).

    Returns:
        A nested dict with `kernel_sq_norm` and, for detached DoRA, `norm` at each module's path.
    """
    params = jax.lax.stop_gradient(params)
    sq_norms = kernel_sq_norms(params, rules) if cached_sq_norms is None else cached_sq_norms
    flat = flax.traverse_util.flatten_dict(sq_norms)
    for path, _, spec, kernel, adapter in _adapted_modules(params, rules):
        if spec.method == "dora" and spec.detach_norm:
            flat[(*_split(path), "norm")] = adapted_norm(
                kernel,
                adapter["lora_a"],
                adapter["lora_b"],
                stack_scale(spec),
                spec.norm_axis,
                flat[(*_split(path), "kernel_sq_norm")],
                stack_ndim=_layout(path, spec, kernel, adapter).stack_ndim,
            )
    return flax.traverse_util.unflatten_dict(flat)


def merge_params(params: Params, rules: AdapterRules) -> Params:
    """Return plain parameters for the plain model, every adapter merged into its kernel.

    The plain model then runs at its own cost: the compiled forward is the base model's. Unmerging
    is keeping `params`.

    Raises:
        ValueError: when an adapter's shapes do not fit, or the rules leave out an adapter that the
            parameters hold, so that it would be lost; names the module.
    """
    specs = module_specs(params, rules)
    for path, leaves in iter_modules(params):
        kept = adapter_leaves(specs[path])
        lost = [name for name in ADAPTER_LEAVES if name in leaves and name not in kept]
        if lost:
            raise ValueError(
                f"module {path!r} holds {', '.join(lost)}, which these rules (method "
                f"{specs[path].method!r}) would lose: merge with the rules that it was tuned with"
            )
    flat = {
        key: value
        for key, value in flax.traverse_util.flatten_dict(params).items()
        if key[-1] not in _BESIDE
    }
    for path, leaves, spec, _, _ in _adapted_modules(params, rules):
        flat[(*_split(path), weight_name(leaves))] = merge_module(path, leaves, spec)
    return flax.traverse_util.unflatten_dict(flat)


def merge_module(path: str, leaves: Mapping[str, Any], spec: AdapterSpec) -> jax.Array:
    """Return the merged weight of one module.

    Args:
        path: named in errors.
        leaves: its own.
        spec: its own.

    Raises:
        ValueError: when its adapter's shapes do not fit.
    """
    adapter = {name: leaves[name] for name in adapter_leaves(spec) if name in leaves}
    try:
        return merge_kernel(jnp.asarray(leaves[weight_name(leaves)]), adapter, spec)
    except ValueError as error:
        raise ValueError(f"module {path!r}: {error}") from None


def magnitude_drift(params: Params, initial: Params) -> jax.Array:
    """Return the mean of |m / m0 - 1| over all magnitudes: how far DoRA has moved them.

    Args:
        params: the tuned parameters, or their trainable part.
        initial: the same at the start. Columns that started at zero are left out.
    """
    total, count = jnp.zeros(()), jnp.zeros(())
    start = dict(iter_modules(initial))
    for path, leaves in iter_modules(params):
        if leaves.get("magnitude") is None:
            continue
        m, m0 = leaves["magnitude"], start[path]["magnitude"]
        live = m0 != 0
        total += jnp.sum(jnp.where(live, jnp.abs(m / jnp.where(live, m0, 1) - 1), 0))
        count += jnp.sum(live)
    return total / jnp.maximum(count, 1)
