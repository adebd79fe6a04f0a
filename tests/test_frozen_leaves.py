"""Frozen leaves stay bit for bit, trainable ones move, under jit, sharded jit and pmap alike."""

import functools

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dora_jax.partition import trainable_mask
from tests import small_net
from tests.small_net import RULES
from tests.training_ways import (
    Task,
    check_optimizer_state,
    check_what_moved,
    flat_leaves,
    shard,
    train,
)

STEPS = 4


@functools.lru_cache
def small_task(name):
    net, params = small_net.adapted(RULES[name])
    batches = [small_net.batch(seed) for seed in range(STEPS)]
    return Task(functools.partial(small_net.loss_of, net), params, RULES[name], batches)


@functools.lru_cache
def trained(name, way, placement):
    return train(small_task(name), way, placement)


def check(task, result):
    mask = trainable_mask(task.params, task.rules)
    check_what_moved(task.params, result.params, mask)
    check_optimizer_state(result.opt_state, task.params, mask)


def assert_same_parameters(one, other):
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)
    other_leaves = flat_leaves(other.params)
    for path, leaf in flat_leaves(one.params).items():
        np.testing.assert_allclose(leaf, other_leaves[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", RULES)
def test_partition_under_jit(name):
    check(small_task(name), trained(name, "partition", "jit"))


@pytest.mark.parametrize("name", RULES)
def test_the_masked_optimizer_under_jit_gives_the_same(name):
    result = trained(name, "masked", "jit")
    check(small_task(name), result)
    assert_same_parameters(trained(name, "partition", "jit"), result)


@pytest.mark.parametrize("placement", ["sharded", "pmap"])
@pytest.mark.parametrize(
    ("name", "way"), [*((name, "partition") for name in RULES), ("mixed", "masked")]
)
def test_eight_devices_give_the_parameters_of_one(name, way, placement):
    result = trained(name, way, placement)
    check(small_task(name), result)
    assert_same_parameters(trained(name, "partition", "jit"), result)


def test_the_methods_differ():
    """A flag without effect (LoRA under another name) would pass all of the above."""
    losses = {name: tuple(trained(name, "partition", "jit").losses) for name in RULES}
    assert len(set(losses.values())) == len(RULES)
    fresh = {name: values[0] for name, values in losses.items()}
    np.testing.assert_allclose(list(fresh.values()), fresh["full"], rtol=1e-5)


def test_sharded_inputs_are_sharded():
    placed = shard(small_task("dora").params, RULES["dora"])
    assert len(placed["head"]["kernel"].sharding.device_set) == 8
    assert placed["head"]["kernel"].addressable_shards[0].data.shape == (4, 5)
    assert placed["conv"]["lora_a"].addressable_shards[0].data.shape == (3, 2, 3)
    assert placed["embed"]["magnitude"].addressable_shards[0].data.shape == (2,)
    assert placed["head"]["magnitude"].sharding.spec == PartitionSpec("fsdp")
