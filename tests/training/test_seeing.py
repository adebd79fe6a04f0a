"""Training with images: the loss is the model's own, and the same step goes on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dora_jax.adapters import column_norms, init_adapters, kernel_sq_norms, merge_params
from dora_jax.checkpoint.llava import read_llava_folder
from dora_jax.cost import step_cost
from dora_jax.models.llama import param_shapes
from dora_jax.models.llava import Llava
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import Batch, init_state, labelled_loss, make_train_step
from tests.models.llavas import IMAGES, TOKENS, write_folder
from tests.test_cost import product_flops

RULES = AdapterRules(
    [
        (r"language_model/.*/(q|v)_proj", AdapterSpec("dora", rank=2, alpha=4)),
        (r"multi_modal_projector/linear_\d", AdapterSpec("full")),
    ]
)
BATCH = Batch(
    jnp.asarray(TOKENS[:, :-1]),
    jnp.asarray([[27, 28, 29], [29, 29, 0], [3, 4, 29]]),
    jnp.asarray(np.stack([TOKENS[0, 28:31], [TOKENS[1, 30]] * 3, TOKENS[2, [4, 5, 30]]])),
    jnp.asarray([[1, 1, 1], [1, 0, 0], [1, 1, 1]], jnp.float32),
    images=jnp.asarray(IMAGES),
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model with fresh adapters and its parameters."""
    folder = tmp_path_factory.mktemp("llava") / "folder"
    write_folder(folder, "llava-1.5")
    config, params, *_ = read_llava_folder(folder)
    model = Llava(config, RULES)
    return model, init_adapters(params, param_shapes(model), RULES, jax.random.key(1))


def parts(params):
    return partition(params, trainable_mask(params, RULES))


def test_the_loss_is_that_of_the_logits(start):
    model, params = start
    trainable, frozen = parts(params)
    found = labelled_loss(model, trainable, frozen, BATCH, column_norms(params, RULES))
    logits = model.apply({"params": params}, BATCH.tokens, images=BATCH.images)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    expected = -sum(
        BATCH.label_weights[r, n]
        * log_probs[r, BATCH.label_positions[r, n], BATCH.label_targets[r, n]]
        for r, n in np.ndindex(3, 3)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def step_of(model, params, batch=BATCH, **how):
    tx = optax.sgd(0.1)
    trainable, frozen = parts(params)
    step = jax.jit(make_train_step(model, RULES, tx, **how))
    state = init_state(jax.tree.map(jnp.asarray, trainable), tx)
    return step(state, frozen, kernel_sq_norms(params, RULES), batch, jax.random.key(0))


def test_a_step_goes_down_the_gradient_of_all_that_is_tuned(start):
    model, params = start
    trainable, frozen = parts(params)

    def loss_of(trainable):
        norms = jax.lax.stop_gradient(column_norms(combine(trainable, frozen), RULES))
        return labelled_loss(model, trainable, frozen, BATCH, norms) / BATCH.label_weights.sum()

    grads = jax.grad(loss_of)(trainable)
    state, metrics = step_of(model, params)
    moved = jax.tree.map(lambda x, g: x - 0.1 * g, trainable, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.trainable, moved)
    assert float(metrics.grad_norm) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
    projector = grads["multi_modal_projector"]["linear_1"]["kernel"]
    assert jnp.abs(projector).max() > 1e-6


def test_micro_batches_divide_the_images_with_their_rows(start):
    model, params = start
    rows = np.array([0, 1, 2, 2])  # two of each part
    batch = jax.tree.map(lambda x: x[rows], BATCH)
    (whole, _), (divided, _) = (step_of(model, params, batch, micro_batches=n) for n in (1, 2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
        whole.trainable,
        divided.trainable,
    )


def test_a_divided_step_is_the_same_step(start):
    """Rows, and images with them, over eight devices."""
    from dora_jax.mesh import MeshConfig
    from dora_jax.sharding import split_rows

    model, params = start
    rows = np.arange(8) % 3
    batch = jax.tree.map(lambda x: np.asarray(x)[rows], BATCH)
    alone, _ = step_of(model, params, batch)
    with jax.set_mesh(MeshConfig(data=8).build()):
        divided, _ = step_of(model, params, split_rows(batch))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
            jax.device_get(divided.trainable),
            jax.device_get(alone.trainable),
        )


def test_the_tuned_model_merges(start):
    model, params = start
    state, _ = step_of(model, params)
    tuned = combine(state.trainable, parts(params)[1])
    merged = merge_params(tuned, RULES)
    plain = Llava(model.config)
    np.testing.assert_allclose(
        plain.apply({"params": merged}, TOKENS, images=IMAGES),
        model.apply({"params": tuned}, TOKENS, images=IMAGES),
        atol=5e-5,
    )


@pytest.mark.parametrize(
    ("pattern", "method"), [("language_model/.*/q_proj", "lora"), ("vision_tower/.*/fc1", "full")]
)
def test_operations_are_counted_with_the_tower(start, pattern, method):
    """Against the products in the compiled step's program, but what XLA does not multiply for."""
    model, _ = start
    rules = AdapterRules([(pattern, AdapterSpec(method, rank=2))])
    model = dataclasses.replace(model, adapters=rules)
    shapes = param_shapes(model)
    trainable, frozen = partition(shapes, trainable_mask(shapes, rules))
    tx = optax.sgd(0.1)
    state = jax.eval_shape(lambda t: init_state(t, tx), trainable)
    norms = jax.eval_shape(lambda t, f: kernel_sq_norms(combine(t, f), rules), trainable, frozen)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = make_train_step(model, rules, tx)
    jaxpr = jax.make_jaxpr(step)(state, frozen, norms, BATCH, key)
    labels = BATCH.label_targets.size
    found = step_cost(model, 3, TOKENS.shape[1] - 1, labels, IMAGES.shape[0] * IMAGES.shape[1])
    # The causal half of attention is counted, and all of it multiplied.
    text = model.config.text
    tokens, width = BATCH.tokens.size, text.num_attention_heads * text.head_dim
    half = 6.0 * text.num_hidden_layers * tokens * BATCH.tokens.shape[1] * width
    assert found.total + half == pytest.approx(product_flops(jaxpr.jaxpr), rel=0.08)
