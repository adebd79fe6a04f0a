"""A few optimizer steps in every way that users take them, for models of any kind.

Two ways of training: `partition` differentiates the trainable part alone; `masked` differentiates
the whole tree and leaves it to `masked_optimizer`. Three placements: `jit` on one device;
`sharded`, jit with inputs sharded over a ("data", "fsdp", "tensor") mesh of eight; `pmap` over
eight devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dora_jax.adapters import column_norms, kernel_sq_norms
from dora_jax.layers import NORMS
from dora_jax.partition import combine, masked_optimizer, partition, trainable_mask

# Epsilon so large that Adam does not blow up the rounding errors of gradients near zero; weight
# decay, so that a frozen leaf that reaches the optimizer moves.
OPTIMIZER = optax.adamw(0.05, eps=1e-2, weight_decay=0.1)


class Task(NamedTuple):
    """What is trained: loss(variables, *batch), parameters, rules, and batches."""

    loss: Any
    params: Any
    rules: Any
    batches: list


def devices():
    return jax.devices("cpu")[:8]


def mesh():
    return Mesh(np.array(devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))


def leaf_spec(name, shape, norm_axis="out"):
    """Shard inputs over fsdp and outputs over tensor, wherever they divide; stacks over nothing.

    Magnitudes and norms lie as the kernel axis that they belong to. (XLA's partitioner gives wrong
    gradients for plain `(x * c) @ w`, too, where c lies over tensor but its axis of w over fsdp and
    the rows over data and fsdp: openxla/xla#40034, perhaps.)
    """
    vector = ("fsdp",) if norm_axis == "in" and name != "bias" else ("tensor",)
    wanted = {
        "kernel": ("fsdp", "tensor"),
        "embedding": ("fsdp", "tensor"),
        "lora_a": ("fsdp", None),
        "lora_b": (None, "tensor"),
    }.get(name, vector)
    if not shape:  # the optimizer's count of steps
        return PartitionSpec()
    wanted = (None,) * (len(shape) - len(wanted)) + wanted
    return PartitionSpec(
        *(axis if size % 2 == 0 else None for axis, size in zip(wanted, shape, strict=True))
    )


def shard(tree, rules):
    """Put a tree of parameters, norms or optimizer state on the mesh, each leaf by its name."""

    def put(path, leaf):
        *module, name = ["", *(key.key for key in path if isinstance(key, jax.tree_util.DictKey))]
        weight = "embedding" if "embed" in "/".join(module) else "kernel"
        axis = rules.spec_for("/".join(module), weight).norm_axis
        return jax.device_put(leaf, NamedSharding(mesh(), leaf_spec(name, np.shape(leaf), axis)))

    return jax.tree_util.tree_map_with_path(put, tree)


def make_step(task, way, axis_name=None):
    """Return (step(train, frozen, opt_state, sq_norms, *batch), what it starts from)."""
    mask = trainable_mask(task.params, task.rules)
    if way == "partition":
        train, frozen = partition(task.params, mask)
        tx = OPTIMIZER
    else:
        train, frozen = task.params, jax.tree.map(lambda _: None, mask)
        tx = masked_optimizer(OPTIMIZER, mask)

    def step(train, frozen, opt_state, sq_norms, *batch):
        norms = column_norms(combine(train, frozen), task.rules, sq_norms)

        def loss_of(train):
            return task.loss({"params": combine(train, frozen), NORMS: norms}, *batch)

        loss, grads = jax.value_and_grad(loss_of)(train)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        updates, opt_state = tx.update(grads, opt_state, train)
        return optax.apply_updates(train, updates), opt_state, loss

    return step, (train, frozen, tx.init(train), kernel_sq_norms(task.params, task.rules))


class Trained(NamedTuple):
    """Parameters at the end as numpy arrays, the optimizer's state, losses."""

    params: Any
    opt_state: Any
    losses: list


def _train_jit(step, start, batches, place, place_batch):
    step = jax.jit(step)
    train, frozen, opt_state, sq_norms = map(place, start)
    losses = []
    for batch in batches:
        train, opt_state, loss = step(train, frozen, opt_state, sq_norms, *map(place_batch, batch))
        losses.append(float(loss))
    return train, frozen, opt_state, losses


def _train_pmap(step, start, batches):
    count = len(devices())

    def copy(tree):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *np.shape(x))), tree)

    def split(x):
        return x.reshape(count, -1, *x.shape[1:])

    step = jax.pmap(step, axis_name="batch", devices=devices())
    train, frozen, opt_state, sq_norms = map(copy, start)
    losses = []
    for batch in batches:
        train, opt_state, loss = step(train, frozen, opt_state, sq_norms, *map(split, batch))
        losses.append(float(loss[0]))

    def same_everywhere(x):
        x = np.asarray(x)
        for other in x[1:]:
            np.testing.assert_array_equal(_bits(other), _bits(x[0]))
        return x[0]

    train, frozen, opt_state = jax.tree.map(same_everywhere, (train, frozen, opt_state))
    return train, frozen, opt_state, losses


def train(task, way, placement):
    """Take one step for each batch, and return what comes out."""
    step, start = make_step(task, way, "batch" if placement == "pmap" else None)
    if placement == "pmap":
        trained, frozen, opt_state, losses = _train_pmap(step, start, task.batches)
    elif placement == "sharded":
        rows = NamedSharding(mesh(), PartitionSpec(("data", "fsdp")))
        trained, frozen, opt_state, losses = _train_jit(
            step,
            start,
            task.batches,
            lambda tree: shard(tree, task.rules),
            lambda x: jax.device_put(x, rows),
        )
    else:
        trained, frozen, opt_state, losses = _train_jit(
            step, start, task.batches, lambda tree: tree, jnp.asarray
        )
    params = jax.tree.map(np.asarray, combine(trained, frozen))
    return Trained(params, opt_state, losses)


def _bits(array):
    array = np.asarray(array)
    return array.reshape(-1).view(np.uint8)


def flat_leaves(tree):
    """Return {slash-joined path: leaf} of a nested dict."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found["/".join(str(getattr(key, "key", key)) for key in path)] = leaf
    return found


def check_what_moved(before, after, mask):
    """Assert that frozen leaves are the same bit for bit and that every trainable one moved."""
    mask, after = flat_leaves(mask), flat_leaves(after)
    for path, leaf in flat_leaves(before).items():
        assert after[path].shape == leaf.shape, path
        assert after[path].dtype == leaf.dtype, path
        same = np.array_equal(_bits(after[path]), _bits(leaf))
        assert same != mask[path], f"{path} {'did not move' if same else 'moved'}"


def check_optimizer_state(opt_state, params, mask):
    """Assert that the state's arrays are two moments of each trainable leaf, and counts."""
    arrays = jax.tree.leaves(opt_state)
    shapes = sorted(np.shape(x) for x in arrays if np.ndim(x))
    mask = flat_leaves(mask)
    expected = [leaf.shape for path, leaf in flat_leaves(params).items() if mask[path]]
    assert shapes == sorted(expected * 2)
