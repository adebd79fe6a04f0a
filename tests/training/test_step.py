import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dora_jax.adapters import kernel_sq_norms
from dora_jax.mesh import MeshConfig
from dora_jax.partition import partition, trainable_mask
from dora_jax.sharding import split_rows
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training import step as step_module
from dora_jax.training.config import OptimConfig
from dora_jax.training.optimizer import learning_rate_schedule, make_optimizer
from dora_jax.training.step import (
    Batch,
    init_state,
    labelled_loss,
    make_train_step,
)
from tests.tiny import adapted_params
from tests.training.word_model import RandomBatches, WordModel, word_model


def random_batch(rows=4, length=12, labels=3, seed=0):
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.permuted(np.tile(np.arange(length - 1), (rows, 1)), axis=1)[:, :labels])
    weights = np.ones((rows, labels), np.float32)
    weights[0, -1] = 0.0
    tokens = rng.integers(0, 101, (rows, length)).astype(np.int32)
    targets = np.take_along_axis(tokens, positions + 1, axis=1)
    return Batch(tokens, positions.astype(np.int32), targets, weights)


def run(spec, micro_batches=1, steps=2):
    rules = AdapterRules.preset("paper", spec)
    model, params = adapted_params(rules)
    tx = optax.sgd(0.1)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    state = init_state(trainable, tx)
    step = jax.jit(make_train_step(model, rules, tx, micro_batches=micro_batches))
    sq_norms = kernel_sq_norms(params, rules)
    losses = []
    for index in range(steps):
        batch = random_batch(seed=index)
        state, metrics = step(state, frozen, sq_norms, batch, jax.random.key(0))
        losses.append(float(metrics.loss))
    return state, losses


def test_loss_at_labelled_positions_is_the_full_logits_cross_entropy():
    model, params = adapted_params(AdapterRules.preset("paper", AdapterSpec(rank=2)))
    batch = random_batch()
    logits = jax.jit(model.apply)({"params": params}, batch.tokens)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    expected = -sum(
        batch.label_weights[b, p]
        * log_probs[b, batch.label_positions[b, p], batch.label_targets[b, p]]
        for b in range(4)
        for p in range(3)
    )
    loss = jax.jit(lambda p: labelled_loss(model, p, jax.tree.map(lambda _: None, p), batch))(
        params
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude", "full"])
def test_micro_batches_give_the_whole_batch_s_update(method):
    spec = AdapterSpec(method=method, rank=2)
    whole, whole_losses = run(spec)
    split, split_losses = run(spec, micro_batches=4)
    np.testing.assert_allclose(whole_losses, split_losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        whole.trainable,
        split.trainable,
    )


def test_training_lowers_the_loss_of_a_repeated_batch():
    rules = AdapterRules.preset("paper", AdapterSpec(rank=4))
    model, params = adapted_params(rules)
    tx = optax.adam(1e-2)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    state = init_state(trainable, tx)
    step = jax.jit(make_train_step(model, rules, tx))
    losses = []
    for _ in range(15):
        state, metrics = step(
            state, frozen, kernel_sq_norms(params, rules), random_batch(), jax.random.key(0)
        )
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.step) == 15


def test_dropout_depends_on_the_key_and_the_step_and_is_off_by_default():
    # Both factors non-zero, so that what is dropped shows.
    spec = AdapterSpec(rank=4, dropout=0.5)
    rules = AdapterRules.preset("qv", spec)
    model, params = adapted_params(rules)
    mask = trainable_mask(params, rules)
    params = jax.tree.map(lambda train, x: x + 0.1 * train, mask, params)
    trainable, frozen = partition(params, mask)
    sq_norms = kernel_sq_norms(params, rules)
    steps = {on: jax.jit(make_train_step(model, rules, optax.sgd(0.1), noise=on)) for on in (0, 1)}

    def losses(on, key):
        state = init_state(trainable, optax.sgd(0.1))
        found = []
        for _ in range(2):
            state, metrics = steps[on](
                state._replace(trainable=trainable),
                frozen,
                sq_norms,
                random_batch(),
                jax.random.key(key),
            )
            found.append(float(metrics.loss))
        return found

    plain, one, again, other = losses(0, 1), losses(1, 1), losses(1, 1), losses(1, 2)
    assert plain[0] == plain[1]
    assert one[0] != one[1]
    assert one == again
    assert one != other
    assert one != plain


def test_norms_are_those_of_the_current_parameters_at_every_step():
    """The step's own norms equal what modules compute when no norms are passed in."""
    rules = AdapterRules.preset("paper", AdapterSpec(rank=4))
    model, params = adapted_params(rules)
    mask = trainable_mask(params, rules)
    tx = optax.sgd(0.02)
    trainable, frozen = partition(params, mask)
    state, reference = init_state(trainable, tx), trainable
    step = jax.jit(make_train_step(model, rules, tx))
    sq_norms = kernel_sq_norms(params, rules)

    @jax.jit
    def plain_step(trainable, batch):
        def loss_of(trainable):
            return labelled_loss(model, trainable, frozen, batch) / batch.label_weights.sum()

        grads = jax.grad(loss_of)(trainable)
        return jax.tree.map(lambda p, g: p - 0.02 * g, trainable, grads)

    for index in range(3):
        batch = random_batch(seed=index)
        state, _ = step(state, frozen, sq_norms, batch, jax.random.key(0))
        reference = plain_step(reference, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        state.trainable,
        reference,
    )


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1, 1)]
)
def test_schedules_warm_up_and_decay(schedule, middle, last):
    rate = learning_rate_schedule(OptimConfig(schedule=schedule, warmup_ratio=0.2), 1.0, 100)
    assert float(rate(0)) == pytest.approx(1 / 20)
    assert float(rate(9)) == pytest.approx(0.5)
    assert float(rate(19)) == pytest.approx(1.0)
    assert float(rate(20)) == pytest.approx(1.0)
    assert float(rate(60)) == pytest.approx(middle)
    assert float(rate(100)) == pytest.approx(last)


def test_no_warm_up_starts_at_the_peak():
    rate = learning_rate_schedule(OptimConfig(warmup_ratio=0.0), 2.0, 10)
    assert float(rate(0)) == 2.0


def test_optimizer_clips_by_global_norm():
    params = {"a": jnp.zeros(4)}
    updates = {}
    for factor in (1.0, 1000.0):
        # Adam normalises one step; the second step's moments see whether the first was clipped.
        tx = make_optimizer(OptimConfig(clip_norm=1.0, schedule="constant", warmup_ratio=0), 0.1, 9)
        state = tx.init(params)
        _, state = tx.update({"a": jnp.ones(4) * factor}, state, params)
        updates[factor], _ = tx.update({"a": -jnp.ones(4) * 0.5}, state, params)
    np.testing.assert_allclose(updates[1.0]["a"], updates[1000.0]["a"], rtol=1e-5)


def test_weight_decay_is_decoupled_and_the_config_s():
    params = {"lora_a": jnp.array([2.0, -4.0])}
    for decay in (0.0, 0.5):
        tx = make_optimizer(OptimConfig(weight_decay=decay, warmup_ratio=0.0), 0.1, 10)
        updates, _ = tx.update({"lora_a": jnp.zeros(2)}, tx.init(params), params)
        np.testing.assert_allclose(updates["lora_a"], [-0.2 * decay, 0.4 * decay], rtol=1e-6)


def stepped(steps, **options):
    """Return all states of some steps of the smallest model, the first one included."""
    model, rules, params = word_model("dora")
    tx = optax.adam(0.05)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    state = init_state(trainable, tx, ema="ema" in options)
    step = jax.jit(make_train_step(model, rules, tx, **options))
    sq_norms = kernel_sq_norms(params, rules)
    states = [state]
    for index in range(steps):
        batch = RandomBatches().batch(index)
        state, metrics = step(state, frozen, sq_norms, batch, jax.random.key(0))
        states.append(state)
    return states, metrics


def test_the_mean_over_steps_is_the_formula_s():
    states, _ = stepped(4, ema=0.7)
    leaves = [np.float64(state.trainable["mix"]["lora_b"]) for state in states]
    mean = leaves[0]
    for leaf in leaves[1:]:
        mean = 0.7 * mean + 0.3 * leaf
    np.testing.assert_allclose(states[-1].ema["mix"]["lora_b"], mean, rtol=1e-4, atol=1e-7)
    assert states[-1].result is states[-1].ema
    plain, _ = stepped(4)
    assert plain[-1].ema is None
    assert plain[-1].result is plain[-1].trainable
    # It changes nothing of what is trained.
    np.testing.assert_array_equal(plain[-1].trainable["mix"]["lora_b"], leaves[-1].astype("f4"))


def test_norms_and_labels_are_in_the_metrics():
    states, metrics = stepped(2)
    norm = np.sqrt(sum(float(np.sum(np.square(x))) for x in jax.tree.leaves(states[-1].trainable)))
    assert float(metrics.trained_norm) == pytest.approx(norm, rel=1e-5)
    assert float(metrics.labels) == RandomBatches().batch(0).label_weights.sum()


def test_trained_leaves_of_a_narrow_base_are_kept_wide():
    """In bfloat16 a hundred updates of 1e-3 to a parameter of 1 would all be lost."""
    rules = AdapterRules([("mix", AdapterSpec("full"))])
    model, params = WordModel(rules), word_model("full")[2]
    params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    params["mix"]["bias"] = jnp.ones_like(params["mix"]["bias"])
    trainable, frozen = partition(params, trainable_mask(params, rules))
    state = init_state(trainable, optax.sgd(1e-5))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.trainable)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}
    step = jax.jit(make_train_step(model, rules, optax.sgd(1e-5), micro_batches=4))
    batch = RandomBatches().batch(0)
    for _ in range(5):
        state, _ = step(state, frozen, {}, batch, jax.random.key(0))
    moved = np.abs(np.asarray(state.trainable["mix"]["bias"]) - 1)
    assert 0 < moved.max() < 2**-9  # less than half a step of bfloat16 at 1


def test_the_state_is_given_up_to_the_step():
    model, rules, params = word_model("dora")
    tx = optax.adam(0.05)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    state = init_state(trainable, tx, ema=True)
    step = make_train_step(model, rules, tx, ema=0.9)
    arguments = (state, frozen, kernel_sq_norms(params, rules), RandomBatches().batch(0))
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments, jax.random.key(0)).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes == size


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_the_parts_of_a_batch_leave_each_device_its_rows(micro_batches):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    with jax.set_mesh(mesh):
        rows = split_rows(np.arange(16))
        parts = jax.jit(lambda x: step_module._split(x, micro_batches))(rows)
    assert sorted(np.asarray(parts).reshape(-1)) == list(range(16))
    before = {shard.device: set(np.asarray(shard.data)) for shard in rows.addressable_shards}
    for shard in parts.addressable_shards:
        assert set(np.asarray(shard.data).reshape(-1)) == before[shard.device]
