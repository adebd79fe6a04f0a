"""Cross-entropy at the labelled positions, a chunk at a time: the logits are never all held.

A vocabulary is wide: the logits of 4 x 256 tokens of SmolLM2 are 200 MB, those of 8k tokens of
Llama-3 4 GB. Here one chunk of them lives at a time, in the forward pass alone: the loss is a sum,
so its gradient by the hidden states is known as soon as a chunk's logits are, and the backward
pass has only to scale it. The head's two products are computed once each, none is repeated.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

# Logits in a chunk, over all devices: 64 MB in float32, if one label of every row is not more.
CHUNK_LOGITS = 1 << 24

LogitsOf = Callable[[Any, Array, Array], Array]


def label_chunks(rows: int, labels: int, vocabulary: int) -> int:
    """Return the number of chunks in which (rows, labels) positions are taken.

    Chunks divide the labels of every row, never the rows: those may be sharded.
    """
    at_once = max(1, CHUNK_LOGITS // (rows * vocabulary))
    return -(-labels // at_once)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def cross_entropy_sum(
    logits_of: LogitsOf,
    chunks: int,
    smoothing: float,
    trained: Any,
    hidden: Float[Array, "b p d"],
    targets: Int[Array, "b p"],
    weights: Float[Array, "b p"],
) -> Float[Array, ""]:
    """Return the weighted sum of the targets' negative log-likelihoods (nats), float32.

    Args:
        logits_of: (trained, hidden (B, P / chunks, D), index of the chunk) -> float32 logits. What
            it closes over gets no gradient.
        chunks: number of equal parts of P, see `label_chunks`; P is padded to a multiple.
        smoothing: share of each label's weight that all tokens have alike (Szegedy et al. 2016,
            section 7), in [0, 1).
        trained: the head's trained parameters, which get a gradient; may be empty.
        hidden: (B, P, D).
        targets: (B, P) token ids.
        weights: (B, P), 0 for padding; no gradient.
    """
    arrays = (trained, hidden, targets, weights)
    return _walk(logits_of, chunks, smoothing, *arrays, gradient=False)[0]


def _walk(
    logits_of: LogitsOf,
    chunks: int,
    smoothing: float,
    trained: Any,
    hidden: Array,
    targets: Array,
    weights: Array,
    *,
    gradient: bool,
) -> tuple[Array, Any, Array | None]:
    """Return the loss and, if asked, its gradients by `trained` and `hidden`."""
    labels = hidden.shape[1]
    spare = -labels % chunks

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    def loss_of(trained: Any, h: Array, index: Array, target: Array, weight: Array) -> Array:
        logits = logits_of(trained, h, index).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        if smoothing:
            # All tokens' negative log-likelihoods are the target's, but for their logits.
            chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
            losses += smoothing * (chosen - jnp.mean(logits, axis=-1))
        return jnp.sum(losses * weight)

    def add_chunk(total: tuple[Array, Any], chunk: tuple) -> tuple[tuple[Array, Any], Any]:
        if not gradient:
            return (total[0] + loss_of(trained, *chunk), total[1]), None
        loss, (by_trained, by_hidden) = jax.value_and_grad(loss_of, argnums=(0, 1))(trained, *chunk)
        return jax.tree.map(jnp.add, total, (loss, by_trained)), by_hidden

    # Sums of many chunks' gradients: wide, rounded once at the end.
    zero = (
        jnp.zeros(()),
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, "float32")), trained),
    )
    parts = (split(hidden), jnp.arange(chunks), split(targets), split(weights))
    (loss, by_trained), by_hidden = jax.lax.scan(add_chunk, zero, parts)
    by_trained = jax.tree.map(lambda g, x: g.astype(x.dtype), by_trained, trained)
    if by_hidden is not None:
        joined = jnp.moveaxis(by_hidden, 0, 1).reshape(hidden.shape[0], -1, hidden.shape[2])
        by_hidden = joined[:, :labels]
    return loss, by_trained, by_hidden


def _forward(
    logits_of: LogitsOf, chunks: int, smoothing: float, *arrays: Any
) -> tuple[Array, tuple]:
    loss, *gradients = _walk(logits_of, chunks, smoothing, *arrays, gradient=True)
    return loss, tuple(gradients)


def _backward(
    logits_of: LogitsOf, chunks: int, smoothing: float, gradients: tuple, g: Array
) -> tuple:
    by_trained, by_hidden = jax.tree.map(lambda x: (g * x).astype(x.dtype), gradients)
    return by_trained, by_hidden, None, None


cross_entropy_sum.defvjp(_forward, _backward)
