"""One optimizer step, compiled: norms once, loss at the labelled positions, micro-batches, update.

params --partition(mask)--> trainable, frozen
norms = column_norms(trainable, frozen)        once a step, not differentiated
loss, grads = value_and_grad(loss)(trainable)  micro-batches by lax.scan
updates = tx.update(grads)                     tx sees trainable leaves alone
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dora_jax.adapters import column_norms
from dora_jax.layers import NORMS
from dora_jax.partition import Params, combine
from dora_jax.spec import AdapterRules
from dora_jax.training.config import OptimConfig
from dora_jax.training.loss import cross_entropy_sum, label_chunks


class TrainState(NamedTuple):
    """What a training step changes; a checkpoint holds exactly this.

    Attributes:
        step: number of steps done.
        trainable: the trainable part of the parameters, see `partition`.
        opt_state: the optimizer's.
    """

    step: jax.Array
    trainable: Params
    opt_state: Any


class Batch(NamedTuple):
    """One batch of training rows; the head runs at the labelled positions alone.

    Attributes:
        tokens: (B, L) token ids, padded right.
        label_positions: (B, P) the positions whose next token is a label.
        label_targets: (B, P) those next tokens.
        label_weights: (B, P) 1 for labels, 0 for padding, float32.
        positions: (B, L) within the packed sequence; None where a row is one sequence.
        segments: (B, L) which packed sequence, from 1; -1 is padding. None likewise.
    """

    tokens: jax.Array
    label_positions: jax.Array
    label_targets: jax.Array
    label_weights: jax.Array
    positions: jax.Array | None = None
    segments: jax.Array | None = None


class StepMetrics(NamedTuple):
    """Scalars of one step: mean loss over labels (nats), global gradient norm before clipping."""

    loss: jax.Array
    grad_norm: jax.Array


TrainStep = Callable[[TrainState, Params, Params, Batch, jax.Array], tuple[TrainState, StepMetrics]]


def learning_rate_schedule(config: OptimConfig, peak: float, steps: int) -> optax.Schedule:
    """Return the rate by step: linear warm-up from zero, then the config's decay to zero."""
    warmup = round(config.warmup_ratio * steps)
    rest = max(1, steps - warmup)
    decay = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup == 0:
        return decay
    # The first step trains as well: the ramp starts one step above zero.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, decay], [warmup])


def make_optimizer(config: OptimConfig, peak: float, steps: int) -> optax.GradientTransformation:
    """Return clipped AdamW with the config's schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, peak, steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
        ),
    )


def init_state(trainable: Params, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, tx.init(trainable))


def labelled_loss(
    model: Any,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    norms: Params | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return the sum of the labels' negative log-likelihoods (nats), float32.

    Args:
        model: with methods `hidden_states(tokens)` and `head(hidden)`, the names of the modules
            that the head uses as `head_modules`, and `vocabulary`; such as `Llama`. Packed rows
            call `hidden_states(tokens, positions, segments)`.
        trainable: see `partition`; alone differentiable.
        frozen: see `partition`.
        batch: the rows.
        norms: the `norms` collection, if it is at hand.
        dropout_key: in training with dropout.
    """

    def variables(names: Collection[str], params: Params) -> dict[str, Any]:
        own = {} if norms is None else {NORMS: {n: norms[n] for n in names if n in norms}}
        return {"params": params} | own

    def rngs(index: Any) -> dict[str, jax.Array] | None:
        return None if dropout_key is None else {"dropout": jax.random.fold_in(dropout_key, index)}

    params = combine(trainable, frozen)
    # A model of plain rows alone needs no arguments for packing.
    packing = () if batch.segments is None else (batch.positions, batch.segments)
    hidden, _ = model.apply(
        variables(params, params), batch.tokens, *packing, method="hidden_states", rngs=rngs(0)
    )
    at_labels = jnp.take_along_axis(hidden, batch.label_positions[..., None], axis=1)
    names = model.head_modules

    def logits_of(trained: Params, h: jax.Array, index: jax.Array) -> jax.Array:
        head = combine(trained, {name: frozen[name] for name in names})
        logits: jax.Array = model.apply(
            variables(names, head), h, method="head", rngs=rngs(index + 1)
        )
        return logits

    rows, labels = batch.label_targets.shape
    chunks = label_chunks(rows, labels, model.vocabulary)
    trained = {name: trainable[name] for name in names}
    return cross_entropy_sum(
        logits_of, chunks, trained, at_labels, batch.label_targets, batch.label_weights
    )


def make_train_step(
    model: nn.Module,
    rules: AdapterRules,
    tx: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    dropout: bool = False,
) -> TrainStep:
    """Return `step(state, frozen, kernel_sq_norms, batch, key) -> (state, metrics)`, to be jitted.

    Args:
        model: see `labelled_loss`.
        rules: what the model was built with.
        tx: the optimizer; it sees the trainable leaves alone.
        micro_batches: number of equal parts the batch is split into; the gradient is that of the
            whole batch's mean over labels, whatever the split.
        dropout: whether to pass a dropout rng, made of `key` and the step's number.
    """

    def step(
        state: TrainState, frozen: Params, sq_norms: Params, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        norms = column_norms(combine(state.trainable, frozen), rules, sq_norms)
        labels = jnp.maximum(jnp.sum(batch.label_weights), 1)
        step_key = jax.random.fold_in(key, state.step)

        def loss_of(trainable: Params, part: Batch, index: jax.Array) -> jax.Array:
            dropout_key = jax.random.fold_in(step_key, index) if dropout else None
            return labelled_loss(model, trainable, frozen, part, norms, dropout_key) / labels

        loss_and_grad = jax.value_and_grad(loss_of)
        if micro_batches == 1:
            loss, grads = loss_and_grad(state.trainable, batch, jnp.zeros((), jnp.int32))
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(micro_batches, x.shape[0] // micro_batches, *x.shape[1:]),
                batch,
            )

            def add_part(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, loss_and_grad(state.trainable, *part)), None

            zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable))
            (loss, grads), _ = jax.lax.scan(add_part, zero, (parts, jnp.arange(micro_batches)))
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = StepMetrics(loss, optax.tree.norm(grads))
        is_finite = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
        # A step that is not finite is left out: the data go on, and nothing else.
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old),
            (trainable, opt_state),
            (state.trainable, state.opt_state),
        )
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return step
