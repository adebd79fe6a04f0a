import jax
import numpy as np
import optax
import pytest

from dora_jax.adapters import kernel_sq_norms
from dora_jax.mesh import MeshConfig
from dora_jax.partition import partition, trainable_mask
from dora_jax.sharding import fetch, replicate, run_mesh, split_rows
from dora_jax.training.step import init_state, make_train_step
from tests.training.word_model import RandomBatches, word_model


def on_devices(count, **axes):
    """Return the context of a mesh of fewer devices, or of another shape."""
    return jax.set_mesh(MeshConfig(**axes).build(jax.devices()[:count]))


def shards(array):
    """Return the shape of an array's shards, and on how many devices they are."""
    shapes = {shard.data.shape for shard in array.addressable_shards}
    assert len(shapes) == 1
    return shapes.pop(), len(array.sharding.device_set)


def test_the_mesh_has_every_device():
    assert dict(run_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_rows_are_divided_over_data_and_fsdp_of_the_mesh_around():
    rows = np.arange(48).reshape(16, 3)
    with on_devices(8, data=2, fsdp=2, tensor=2):
        tree = split_rows(rows)
        assert shards(tree) == ((4, 3), 8)
        assert replicate(tree) is tree  # what is on the mesh stays as it is
    np.testing.assert_array_equal(fetch(tree), rows)


def test_replicated_arrays_are_whole_on_every_device():
    tree = replicate({"a": np.ones((8, 3)), "b": None, "c": np.int32(1)})
    assert shards(tree["a"]) == ((8, 3), 8)
    assert shards(tree["c"]) == ((), 8)
    assert tree["b"] is None


def test_rows_are_divided_among_the_devices_in_order():
    rows = np.arange(48).reshape(16, 3)
    tree = split_rows({"tokens": rows, "weights": np.ones(16)})
    assert shards(tree["tokens"]) == ((2, 3), 8)
    assert shards(tree["weights"]) == ((2,), 8)
    for shard in tree["tokens"].addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
    np.testing.assert_array_equal(tree["tokens"], rows)


@pytest.mark.parametrize("rows", [1, 4, 7, 12])
def test_rows_that_do_not_divide_are_replicated(rows):
    tree = split_rows({"tokens": np.ones((rows, 3)), "weights": np.ones(rows)})
    assert shards(tree["tokens"]) == ((rows, 3), 8)
    assert shards(tree["weights"]) == ((rows,), 8)


def test_one_device():
    with on_devices(1):
        assert shards(split_rows(np.ones((7, 2)))) == ((7, 2), 1)
        assert shards(replicate(np.ones((7, 2)))) == ((7, 2), 1)


def train(rows, micro_batches=1):
    """Return losses and parameters of three steps, placed as `fit` places them."""
    model, rules, params = word_model("dora")
    tx = optax.sgd(0.5)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    state, frozen = replicate(init_state(trainable, tx)), replicate(frozen)
    sq_norms = replicate(kernel_sq_norms(params, rules))
    step = jax.jit(make_train_step(model, rules, tx, micro_batches=micro_batches))
    losses = []
    for index in range(3):
        batch = split_rows(RandomBatches(rows).batch(index))
        state, metrics = step(state, frozen, sq_norms, batch, jax.random.key(0))
        losses.append(float(metrics.loss))
    return losses, state.trainable


@pytest.mark.parametrize(("rows", "micro_batches"), [(16, 2), (12, 1)], ids=["split", "replicated"])
def test_eight_devices_give_the_numbers_of_one(rows, micro_batches):
    losses, trained = train(rows, micro_batches)
    with on_devices(1):
        expected_losses, expected = train(rows, micro_batches)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), trained, expected
    )
    assert all(shards(leaf)[1] == 8 for leaf in jax.tree.leaves(trained))
