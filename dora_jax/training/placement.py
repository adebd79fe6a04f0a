"""Which axes of which leaf are divided over the mesh.

A model gives its rules as (path pattern -> axes) for its own weights; adapters, magnitudes and
norms follow their kernel. An axis that does not divide a leaf's size is left out for that leaf.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dora_jax.decomposition import adapter_layout
from dora_jax.mesh import ShardingRules, fitting_axis
from dora_jax.partition import ADAPTER_LEAVES, Params, iter_modules, module_specs, weight_name
from dora_jax.sharding import put
from dora_jax.spec import AdapterRules, NormAxis

Axes = tuple[str | None, ...]


def _axes_of(path: str, ndim: int, rules: ShardingRules) -> Axes:
    for pattern, axes in rules:
        if re.fullmatch(pattern, path):
            if len(axes) > ndim:
                raise ValueError(
                    f"the sharding rule {pattern!r} gives {axes} to {path}, of {ndim} axes"
                )
            return (None,) * (ndim - len(axes)) + tuple(axes)
    return (None,) * ndim


def _adapter_axes(
    kernel: Axes, shapes: Mapping[str, Any], weight: str, norm_axis: NormAxis
) -> dict[str, Axes]:
    """Return the axes of an adapter's leaves: those of the kernel's axes that each of them has."""
    adapter = {name: shapes[name] for name in ADAPTER_LEAVES if name in shapes}
    if not adapter:
        return {}
    stack, in_ndim = adapter_layout(shapes[weight].shape, adapter, norm_axis)
    split = stack + in_ndim
    kept = kernel[:stack] + kernel[split:] if norm_axis == "out" else kernel[:split]
    axes = {
        "lora_a": (*kernel[:split], None),
        "lora_b": (*kernel[:stack], None, *kernel[split:]),
        "magnitude": kept,
    }
    return {name: axes[name] for name in adapter}


def _sharding(mesh: Mesh, axes: Axes, shape: Sequence[int]) -> NamedSharding:
    fitting = [fitting_axis(axis, size, mesh.shape) for axis, size in zip(axes, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*fitting))


def weight_sharding(
    mesh: Mesh, sharding: ShardingRules
) -> Callable[[str, Sequence[int]], NamedSharding]:
    """Return what says where a weight goes, by its path and shape: see `load_pretrained`.

    Args:
        mesh: of `MeshConfig.build`.
        sharding: the model's rules; a leaf that none matches is repeated everywhere.
    """
    return lambda path, shape: _sharding(mesh, _axes_of(path, len(shape), sharding), shape)


def param_shardings(
    mesh: Mesh, shapes: Params, sharding: ShardingRules, adapters: AdapterRules | None = None
) -> Params:
    """Return the sharding of every parameter.

    Args:
        mesh: of `MeshConfig.build`.
        shapes: parameters, or their shapes.
        sharding: the model's rules; a leaf that none matches is repeated everywhere.
        adapters: what is tuned, where the parameters hold adapters.
    """
    specs = None if adapters is None else module_specs(shapes, adapters)
    found: dict[tuple[str, ...], NamedSharding] = {}
    for path, leaves in iter_modules(shapes):
        weight = weight_name(leaves)
        prefix = f"{path}/" if path else ""
        axes = {name: _axes_of(prefix + name, leaf.ndim, sharding) for name, leaf in leaves.items()}
        if specs is not None:
            axes |= _adapter_axes(axes[weight], leaves, weight, specs[path].norm_axis)
        for name, leaf in leaves.items():
            key = tuple(filter(None, (*path.split("/"), name)))
            found[key] = _sharding(mesh, axes[name], leaf.shape)
    return flax.traverse_util.unflatten_dict(found)


def norm_shardings(shardings: Params, norms: Params) -> Params:
    """Return the shardings of the `norms` collection: those of the magnitudes beside them."""
    flat = flax.traverse_util.flatten_dict(shardings)
    return flax.traverse_util.unflatten_dict(
        {key: flat[(*key[:-1], "magnitude")] for key in flax.traverse_util.flatten_dict(norms)}
    )


def optimizer_shardings(
    mesh: Mesh, tx: optax.GradientTransformation, trainable: Params, shardings: Params
) -> Any:
    """Return the shardings of an optimizer's state: a leaf's moments lie where the leaf does.

    Args:
        mesh: of the shardings.
        tx: the optimizer.
        trainable: the trained leaves, or their shapes.
        shardings: theirs.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def is_masked(node: Any) -> bool:  # a leaf that another part of the optimizer moves
        return isinstance(node, optax.MaskedNode)

    def of_param(moment: Any, leaf: Any, sharding: NamedSharding) -> Any:
        if is_masked(moment):
            return moment
        # Factored moments (Adafactor's) have another shape.
        return sharding if moment.shape == leaf.shape else everywhere

    return optax.tree.map_params(
        tx,
        of_param,
        jax.eval_shape(tx.init, trainable),
        trainable,
        shardings,
        transform_non_params=lambda _: everywhere,
        is_leaf=is_masked,
    )


def place(tree: Any, shardings: Any) -> Any:
    """Put arrays where they belong; each process gives the whole, and keeps its part.

    Args:
        tree: of arrays, the same in every process.
        shardings: of the same structure, or one for all.
    """
    if not isinstance(shardings, NamedSharding):
        return jax.tree.map(put, tree, shardings)
    return jax.tree.map(lambda x: put(x, shardings), tree)
