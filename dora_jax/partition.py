"""Which leaves train: the only place that decides it.

A mask is a tree of the parameters' structure with a bool for each leaf. What is differentiated,
what the optimizer holds state for, what an adapter's checkpoint contains and what the parameter
count reports all follow from it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dora_jax.spec import AdapterRules, AdapterSpec

Params = Any
ADAPTER_LEAVES = ("lora_a", "lora_b", "magnitude")
# Each layer's factor on A B, where a stack's differ (`AdapterSpec.per_layer`): never trained.
SCALE_LEAF = "lora_scale"
WEIGHT_LEAVES = ("kernel", "embedding", "scale")


def iter_modules(params: Params) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (slash-joined path, leaves by name) of every module that holds leaves of its own."""

    def walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        leaves = {k: v for k, v in tree.items() if not isinstance(v, Mapping)}
        if leaves:
            yield "/".join(path), leaves
        for name, child in tree.items():
            if isinstance(child, Mapping):
                yield from walk(child, (*path, name))

    yield from walk(params, ())


def weight_name(leaves: Mapping[str, Any]) -> str:
    """Return the name of a module's weight leaf: `kernel`, `embedding`, or else its first leaf."""
    return next((name for name in WEIGHT_LEAVES if name in leaves), next(iter(leaves)))


def module_specs(params: Params, rules: AdapterRules) -> dict[str, AdapterSpec]:
    """Return the spec of every module of a parameter tree, by path.

    Raises:
        ValueError: when a rule matches no module; names near misses.
    """
    return rules.resolve((path, weight_name(leaves)) for path, leaves in iter_modules(params))


# A leaf that no rule trains, as torch's buffers: BART's bias of the logits, which is zeros.
BUFFER = "buffer"


def adapter_leaves(spec: AdapterSpec) -> tuple[str, ...]:
    """Return the names of the leaves that a module of this spec holds beside its own."""
    low_rank = ADAPTER_LEAVES[:2] if spec.has_low_rank else ()
    magnitude = ADAPTER_LEAVES[2:] if spec.has_magnitude else ()
    return low_rank + magnitude


def trainable_leaves(spec: AdapterSpec) -> tuple[str, ...] | None:
    """Return the names of the leaves that a module of this spec trains; None means all of them."""
    if spec.method == "full":
        return None
    return adapter_leaves(spec) + (("bias",) if spec.train_bias else ())


def check_leaves(path: str, leaves: Mapping[str, Any], spec: AdapterSpec) -> None:
    """Check that a module holds the adapter that its spec says.

    Raises:
        ValueError: naming the module, what it has and what it lacks.
    """
    missing = [n for n in adapter_leaves(spec) if n not in leaves]
    if missing:
        raise ValueError(
            f"module {path!r} has method {spec.method!r} but no {', '.join(missing)}, only "
            f"{', '.join(leaves)}: build the model and its parameters with these rules; a module "
            "that is not one of dora_jax.layers takes method 'full' or 'frozen' alone"
        )


def trainable_mask(params: Params, rules: AdapterRules | None = None) -> Params:
    """Return the mask of the leaves that train.

    Args:
        params: a nested dict of parameters (or of their shapes).
        rules: what is tuned. Without rules, the adapter leaves (`lora_a`, `lora_b`, `magnitude`)
            train and everything else is frozen.

    Returns:
        A nested dict of bools of the same structure.

    Raises:
        ValueError: when a rule matches no module, or a module lacks the leaves of its spec.

    Example:
        >>> trainable_mask({"dense": {"kernel": 0, "lora_a": 0, "lora_b": 0}})
        {'dense': {'kernel': False, 'lora_a': True, 'lora_b': True}}
    """
    specs = None if rules is None else module_specs(params, rules)
    trained: dict[str, tuple[str, ...] | None] = {}
    for path, leaves in iter_modules(params):
        if specs is None:
            trained[path] = ADAPTER_LEAVES
        else:
            check_leaves(path, leaves, specs[path])
            trained[path] = trainable_leaves(specs[path])

    def trains(keys: tuple[Any, ...], _: Any) -> bool:
        *module, name = (key.key for key in keys)
        names = trained["/".join(module)]
        return name != BUFFER and (names is None or name in names)

    return jax.tree_util.tree_map_with_path(
        trains, params, is_leaf=lambda node: not isinstance(node, Mapping)
    )


def partition(params: Params, mask: Params) -> tuple[Params, Params]:
    """Split parameters into (trainable, frozen), with None where the other has the leaf."""
    trainable = jax.tree.map(lambda train, leaf: leaf if train else None, mask, params)
    frozen = jax.tree.map(lambda train, leaf: None if train else leaf, mask, params)
    return trainable, frozen


def combine(trainable: Params, frozen: Params) -> Params:
    """Undo `partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None
    )


def masked_optimizer(
    tx: optax.GradientTransformation, mask: Params
) -> optax.GradientTransformation:
    """Return an optimizer for whole parameter trees that updates the masked leaves alone.

    Frozen leaves get an update of exactly zero and no optimizer state. (A loop that
    differentiates `partition`'s trainable tree alone can use `tx` as it is.)

    Example:
        >>> tx = masked_optimizer(optax.adam(1e-3), trainable_mask(params, rules))
    """
    labels = jax.tree.map(lambda train: "train" if train else "freeze", mask)
    # Minus zero: adding it keeps every bit, where adding zero would turn -0.0 into 0.0.
    freeze = optax.stateless(lambda updates, _: jax.tree.map(lambda u: -jnp.zeros_like(u), updates))
    return optax.multi_transform({"train": tx, "freeze": freeze}, labels)


def count_parameters(params: Params, mask: Params | None = None) -> int:
    """Return the number of scalars in a tree, of the masked leaves alone if a mask is given."""
    if mask is not None:
        params = partition(params, mask)[0]
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
