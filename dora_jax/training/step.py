"""One optimizer step, compiled: norms once, loss at the labelled positions, micro-batches, update.

params --partition(mask)--> trainable, frozen
norms = column_norms(trainable, frozen)        once a step, not differentiated
loss, grads = value_and_grad(loss)(trainable)  micro-batches by lax.scan
updates = tx.update(grads)                     tx sees trainable leaves alone
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from dora_jax.adapters import column_norms
from dora_jax.layers import NORMS
from dora_jax.mesh import ROWS, constrain
from dora_jax.models.source import Source
from dora_jax.partition import Params, combine
from dora_jax.spec import AdapterRules
from dora_jax.training.loss import cross_entropy_sum, label_chunks


class TrainState(NamedTuple):
    """What a training step changes; a checkpoint holds exactly this.

    Attributes:
        step: number of steps done.
        trainable: the trainable part of the parameters, see `partition`.
        opt_state: the optimizer's.
        ema: the mean of the trainable parameters over steps; None where none is kept.
    """

    step: jax.Array
    trainable: Params
    opt_state: Any
    ema: Params | None = None

    @property
    def result(self) -> Params:
        """What training has come to: the mean over steps, if one is kept."""
        return self.trainable if self.ema is None else self.ema


class Batch(NamedTuple):
    """One batch of training rows; the head runs at the labelled positions alone.

    Attributes:
        tokens: (B, L) token ids, padded right.
        label_positions: (B, P) the positions whose next token is a label.
        label_targets: (B, P) those next tokens.
        label_weights: (B, P) 1 for labels, 0 for padding, float32.
        positions: (B, L) within the packed sequence; None where a row is one sequence.
        segments: (B, L) which packed sequence, from 1; -1 is padding. None likewise.
        images: (B, M, height, width, channels) of each row, in the order of their tokens; filled
            up with zeros. None where no row has any.
        source: what the texts are written to, by a model that has an encoder: `tokens` are then its
            decoder's, from its start token on. None for other models.
    """

    tokens: jax.Array
    label_positions: jax.Array
    label_targets: jax.Array
    label_weights: jax.Array
    positions: jax.Array | None = None
    segments: jax.Array | None = None
    images: jax.Array | None = None
    source: Source | None = None


class StepMetrics(NamedTuple):
    """Scalars of one step.

    Attributes:
        loss: mean over labels (nats), smoothed as the training is.
        grad_norm: global norm of the gradient, before clipping.
        trained_norm: global norm of the trained parameters, after the step.
        labels: number of labels.
    """

    loss: jax.Array
    grad_norm: jax.Array
    trained_norm: jax.Array
    labels: jax.Array


TrainStep = Callable[[TrainState, Params, Params, Batch, jax.Array], tuple[TrainState, StepMetrics]]


def init_state(
    trainable: Params, tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """Return the state before the first step.

    Args:
        trainable: see `partition`. What is narrower than float32 is kept in float32: updates are
            often smaller than what bfloat16 can add.
        tx: the optimizer.
        ema: whether a mean over steps is kept.
    """
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), trainable)
    mean = jax.tree.map(jnp.copy, wide) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), wide, tx.init(wide), mean)


def labelled_loss(
    model: Any,
    trainable: Params,
    frozen: Params,
    batch: Batch,
    norms: Params | None = None,
    noise_key: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Return the sum of the labels' negative log-likelihoods (nats), float32.

    Args:
        model: with methods `hidden_states(tokens)` and `head(hidden)`, the paths of the modules
            that the head uses as `head_modules`, and `vocabulary`; such as `Llama`. Packed rows
            call `hidden_states(tokens, positions, segments)`; rows with images give it `images`,
            those with a source `source`.
        trainable: see `partition`; alone differentiable.
        frozen: see `partition`.
        batch: the rows.
        norms: the `norms` collection, if it is at hand.
        noise_key: in training, of what is drawn there: the rngs `dropout` and `neftune`.
        label_smoothing: see `cross_entropy_sum`.
    """

    def variables(params: Params, norms: Params | None) -> dict[str, Any]:
        return {"params": params} | ({} if norms is None else {NORMS: norms})

    def rngs(index: Any) -> dict[str, jax.Array] | None:
        if noise_key is None:
            return None
        key = jax.random.fold_in(noise_key, index)
        return {"dropout": key, "neftune": jax.random.fold_in(key, 0)}

    params = combine(trainable, frozen)
    # A model of plain rows of text alone needs no arguments for more.
    packing = () if batch.segments is None else (batch.positions, batch.segments)
    beside = {"images": batch.images, "source": batch.source}
    seen = {name: given for name, given in beside.items() if given is not None}
    hidden, _ = model.apply(
        variables(params, norms),
        batch.tokens,
        *packing,
        **seen,
        method="hidden_states",
        rngs=rngs(0),
    )
    at_labels = jnp.take_along_axis(hidden, batch.label_positions[..., None], axis=1)
    # What goes through the chunks of the head is the head's alone.
    trained, rest = (_modules(tree, model.head_modules) for tree in (trainable, frozen))
    head_norms = None if norms is None else _modules(norms, model.head_modules)

    def logits_of(trained: Params, h: jax.Array, index: jax.Array) -> jax.Array:
        logits: jax.Array = model.apply(
            variables(combine(trained, rest), head_norms), h, method="head", rngs=rngs(index + 1)
        )
        return logits

    rows, labels = batch.label_targets.shape
    chunks = label_chunks(rows, labels, model.vocabulary)
    return cross_entropy_sum(
        logits_of,
        chunks,
        label_smoothing,
        trained,
        at_labels,
        batch.label_targets,
        batch.label_weights,
    )


def _modules(tree: Params, paths: Collection[str]) -> Params:
    """Return the part of a tree that some modules hold, in its place."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    own = {k: v for k, v in flat.items() if any(k.startswith(f"{path}/") for path in paths)}
    return flax.traverse_util.unflatten_dict(own, sep="/")


def make_train_step(
    model: nn.Module,
    rules: AdapterRules,
    tx: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    noise: bool = False,
    label_smoothing: float = 0.0,
    ema: float = 0.0,
) -> TrainStep:
    """Return `step(state, frozen, kernel_sq_norms, batch, key) -> (state, metrics)`, to be jitted.

    A step whose loss or gradient is not finite changes nothing but the step's number.

    Args:
        model: see `labelled_loss`.
        rules: what the model was built with.
        tx: the optimizer; it sees the trainable leaves alone.
        micro_batches: number of equal parts the batch is split into; the gradient is that of the
            whole batch's mean over labels, whatever the split.
        noise: whether the model draws something in training, by `key` and the step's number.
        label_smoothing: see `cross_entropy_sum`.
        ema: decay of the mean over steps, where the state holds one.
    """

    def step(
        state: TrainState, frozen: Params, sq_norms: Params, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        norms = column_norms(combine(state.trainable, frozen), rules, sq_norms)
        labels = jnp.sum(batch.label_weights)
        step_key = jax.random.fold_in(key, state.step)

        def loss_of(trainable: Params, part: Batch, index: jax.Array) -> jax.Array:
            noise_key = jax.random.fold_in(step_key, index) if noise else None
            total = labelled_loss(model, trainable, frozen, part, norms, noise_key, label_smoothing)
            return total / jnp.maximum(labels, 1)

        loss_and_grad = jax.value_and_grad(loss_of)
        if micro_batches == 1:
            loss, grads = loss_and_grad(state.trainable, batch, jnp.zeros((), jnp.int32))
        else:

            def add_part(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, loss_and_grad(state.trainable, *part)), None

            zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable))
            parts = (_split(batch, micro_batches), jnp.arange(micro_batches))
            (loss, grads), _ = jax.lax.scan(add_part, zero, parts)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        mean = state.ema
        if mean is not None:
            mean = jax.tree.map(lambda m, x: ema * m + (1 - ema) * x, mean, trainable)
        stepped = TrainState(state.step, trainable, opt_state, mean)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        after = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), stepped, state)
        metrics = StepMetrics(loss, grad_norm, optax.tree.norm(after.trainable), labels)
        return after._replace(step=state.step + 1), metrics

    return step


def _split(batch: Batch, parts: int) -> Batch:
    """Return the batch's rows on two axes, parts first; each device's rows stay with it."""

    def split(x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, parts, *x.shape[1:])
        return constrain(jnp.moveaxis(rows, 1, 0), None, ROWS)

    return jax.tree.map(split, batch)
