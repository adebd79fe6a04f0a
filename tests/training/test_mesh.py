"""Every mesh of eight devices gives what one device gives."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dora_jax.adapters import kernel_sq_norms
from dora_jax.errors import DoraError
from dora_jax.mesh import MeshConfig, constrain
from dora_jax.models.config import LlamaConfig
from dora_jax.partition import partition, trainable_mask
from dora_jax.sharding import split_rows
from dora_jax.spec import AdapterRules
from dora_jax.training.config import OptimConfig
from dora_jax.training.optimizer import make_optimizer
from dora_jax.training.placement import (
    norm_shardings,
    optimizer_shardings,
    param_shardings,
    place,
)
from dora_jax.training.step import Batch, init_state, make_train_step
from tests import small_net, tiny

CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=8,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)
MESHES = [m for m in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(m) == 8]
STEPS = 2


def rules_of(method):
    pattern = "layers/.*_proj"
    return AdapterRules([(pattern, small_net.spec(method))])


def batch_of(rows=8, length=12):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length - 1), (rows, length - 1)).astype(np.int32)
    weights = (rng.random(positions.shape) < 0.7).astype(np.float32)
    return Batch(tokens, positions, tokens[:, 1:], weights)


OPTIMIZERS = {
    # A large epsilon: Adam would make a rounding error of a tiny gradient a whole step.
    "adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, eps=1e-2)),
    "muon": make_optimizer(OptimConfig(optimizer="muon", warmup_ratio=0.0), 1e-3, 10),
    "adafactor": make_optimizer(OptimConfig(optimizer="adafactor", warmup_ratio=0.0), 1e-3, 10),
}


def prepare(method, optimizer="adamw", micro_batches=1):
    rules = rules_of(method)
    model, params = tiny.adapted_params(rules, CONFIG, remat="dots")
    params = small_net.moved(params, trainable_mask(params, rules))
    tx = OPTIMIZERS[optimizer]
    step = make_train_step(model, rules, tx, micro_batches=micro_batches)
    return rules, model, params, tx, step


@functools.lru_cache
def on_one_device(*setting):
    rules, _, params, tx, step = prepare(*setting)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    state, sq_norms = init_state(trainable, tx), kernel_sq_norms(params, rules)
    losses = []
    for _ in range(STEPS):
        state, metrics = jax.jit(step)(state, frozen, sq_norms, batch_of(), jax.random.key(0))
        losses.append((float(metrics.loss), float(metrics.grad_norm)))
    return losses, jax.device_get(state.trainable)


def on_mesh(sizes, *setting):
    rules, model, params, tx, step = prepare(*setting)
    mesh = MeshConfig(*sizes).build()
    mask = trainable_mask(params, rules)
    shardings = param_shardings(mesh, params, model.sharding_rules, rules)
    trainable, frozen = (
        place(part, where)
        for part, where in zip(partition(params, mask), partition(shardings, mask), strict=True)
    )
    state = init_state(trainable, tx)
    state = state._replace(
        opt_state=place(
            state.opt_state, optimizer_shardings(mesh, tx, trainable, partition(shardings, mask)[0])
        )
    )
    sq_norms = kernel_sq_norms(params, rules)
    sq_norms = place(sq_norms, norm_shardings(shardings, sq_norms))
    with jax.set_mesh(mesh):
        batch = split_rows(batch_of())
        compiled = (
            jax.jit(step, donate_argnums=0)
            .lower(state, frozen, sq_norms, batch, jax.random.key(0))
            .compile()
        )
        losses = []
        for _ in range(STEPS):
            state, metrics = compiled(state, frozen, sq_norms, batch, jax.random.key(0))
            losses.append((float(metrics.loss), float(metrics.grad_norm)))
    return losses, state, frozen, compiled


CASES = [
    *((sizes, ("dora",)) for sizes in MESHES),
    *((sizes, ("full",)) for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 2, 4))),
    *(((2, 2, 2), ("dora", optimizer, 2)) for optimizer in OPTIMIZERS),
    ((2, 2, 2), ("full", "muon")),
    ((2, 2, 2), ("full", "adafactor")),
]


@pytest.mark.parametrize(("sizes", "setting"), CASES)
def test_every_mesh_gives_what_one_device_gives(sizes, setting):
    losses, trained = on_one_device(*setting)
    found, state, _, _ = on_mesh(sizes, *setting)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for expected, leaf in zip(
        jax.tree.leaves(trained), jax.tree.leaves(state.trainable), strict=True
    ):
        np.testing.assert_allclose(jax.device_get(leaf), expected, rtol=1e-4, atol=1e-5)


def share_of_one_device(tree):
    """Bytes on the first device, to those of the whole."""
    first = jax.devices()[0]
    leaves = jax.tree.leaves(tree)
    own = sum(
        shard.data.nbytes
        for leaf in leaves
        for shard in leaf.addressable_shards
        if shard.device == first
    )
    return own / sum(leaf.nbytes for leaf in leaves)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "most"), [((8, 1, 1), 1.0), ((1, 8, 1), 0.13), ((1, 2, 4), 0.13)]
)
def test_a_device_holds_its_part_alone(sizes, most):
    _, state, frozen, _ = on_mesh(sizes, "full")
    share = share_of_one_device((state.trainable, state.opt_state))
    assert share <= most
    assert share > most / 2
    _, _, frozen, _ = on_mesh(sizes, "dora")
    assert share_of_one_device(frozen) <= most


def test_an_adapter_lies_where_its_kernel_lies():
    rules = AdapterRules(
        [("q_proj", small_net.spec("dora")), ("down_proj", small_net.spec("dora", norm_axis="in"))]
    )
    model, params = tiny.adapted_params(rules, CONFIG)
    mesh = MeshConfig(1, 2, 4).build()
    found = param_shardings(mesh, params, model.sharding_rules, rules)["layers"]
    q, down = found["self_attn"]["q_proj"], found["mlp"]["down_proj"]
    assert {name: s.spec for name, s in q.items()} == {
        "kernel": PartitionSpec(None, "fsdp", "tensor"),
        "lora_a": PartitionSpec(None, "fsdp", None),
        "lora_b": PartitionSpec(None, None, "tensor"),
        "magnitude": PartitionSpec(None, "tensor"),
    }
    assert {name: s.spec for name, s in down.items()} == {
        "kernel": PartitionSpec(None, "tensor", "fsdp"),
        "lora_a": PartitionSpec(None, "tensor", None),
        "lora_b": PartitionSpec(None, None, "fsdp"),
        "magnitude": PartitionSpec(None, "tensor"),
    }


def test_what_does_not_divide_is_repeated():
    rules = rules_of("lora")
    model, params = tiny.adapted_params(rules, tiny.CONFIG)  # vocabulary 101, key heads 2 x 8
    mesh = MeshConfig(1, 1, 8).build()
    found = param_shardings(mesh, params, model.sharding_rules, rules)
    assert found["embed_tokens"]["embedding"].spec == PartitionSpec(None, "fsdp")
    assert found["layers"]["self_attn"]["k_proj"]["kernel"].spec == PartitionSpec(
        None, "fsdp", "tensor"
    )


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((4, 2))
    assert "sharding_constraint" not in str(jax.make_jaxpr(lambda x: constrain(x, "data"))(x))
    with jax.set_mesh(MeshConfig().build()):
        assert "sharding_constraint" in str(jax.make_jaxpr(lambda x: constrain(x, "data"))(x))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "data 3 x fsdp 1 x tensor 1 does not make 8 devices"),
        ((-1, 3, 1), "data -1 x fsdp 3 x tensor 1 does not make 8 devices"),
        ((0, 1, 1), "mesh.data must be at least 1, or -1"),
        ((-1, -1, 1), "only one axis may be -1"),
    ],
)
def test_meshes_that_cannot_be(sizes, message):
    with pytest.raises(DoraError, match=message):
        MeshConfig(*sizes).build()


def test_the_rest_of_the_devices_is_found():
    assert dict(MeshConfig(-1, 2, 2).build().shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_norms_collection_lies_where_the_magnitudes_lie():
    rules, model, params, _, _ = prepare("dora")
    mesh = MeshConfig(1, 2, 4).build()
    shardings = param_shardings(mesh, params, model.sharding_rules, rules)
    norms = norm_shardings(shardings, kernel_sq_norms(params, rules))
    q = norms["layers"]["self_attn"]["q_proj"]
    assert q["kernel_sq_norm"].spec == PartitionSpec(None, "tensor")
