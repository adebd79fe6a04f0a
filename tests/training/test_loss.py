import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dora_jax.training import loss as chunked
from dora_jax.training.loss import cross_entropy_sum, label_chunks

ROWS, LABELS, WIDTH, VOCABULARY = 3, 7, 5, 11


def inputs(rows=ROWS, labels=LABELS, vocabulary=VOCABULARY):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(WIDTH, vocabulary))
    hidden = rng.normal(size=(rows, labels, WIDTH))
    targets = rng.integers(0, vocabulary, (rows, labels))
    weights = rng.uniform(size=(rows, labels)) * (rng.uniform(size=(rows, labels)) > 0.3)
    return kernel, hidden, targets, weights


def reference(kernel, hidden, targets, weights):
    """Return loss and gradients by the formula, in float64."""
    logits = hidden @ kernel
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    one_hot = np.eye(kernel.shape[1])[targets]
    loss = -np.sum(weights * np.log((p * one_hot).sum(-1)))
    by_logits = weights[..., None] * (p - one_hot)
    return loss, np.einsum("bpd,bpv->dv", hidden, by_logits), by_logits @ kernel.T


def logits_of(kernel, hidden, index):
    return hidden @ kernel


@pytest.mark.parametrize("chunks", [1, 2, 3, 7])
def test_value_and_gradients_are_the_formula_s(chunks):
    kernel, hidden, targets, weights = inputs()
    expected = reference(kernel, hidden, targets, weights)

    @jax.jit
    def found(k, h):
        def loss_of(k, h):
            return 3 * cross_entropy_sum(
                logits_of, chunks, 0.0, k, h, targets, jnp.asarray(weights)
            )

        return jax.value_and_grad(loss_of, argnums=(0, 1))(k, h)

    loss, gradients = found(jnp.asarray(kernel, jnp.float32), jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(loss, 3 * expected[0], rtol=1e-5)
    for got, want in zip(gradients, expected[1:], strict=True):
        np.testing.assert_allclose(got, 3 * want, rtol=1e-4, atol=1e-5)
    # Without differentiation it is the same loss.
    alone = cross_entropy_sum(
        logits_of,
        chunks,
        0.0,
        jnp.float32(kernel),
        jnp.float32(hidden),
        targets,
        jnp.float32(weights),
    )
    np.testing.assert_allclose(alone, expected[0], rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 3])
def test_smoothed_labels_are_optax_s(chunks):
    kernel, hidden, targets, weights = (jnp.asarray(x) for x in inputs())
    kernel, hidden = kernel.astype("float32"), hidden.astype("float32")

    def found(k, h):
        return cross_entropy_sum(logits_of, chunks, 0.2, k, h, targets, weights)

    def expected(k, h):
        labels = optax.smooth_labels(jax.nn.one_hot(targets, VOCABULARY), 0.2)
        return jnp.sum(optax.softmax_cross_entropy(logits_of(k, h, 0), labels) * weights)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.value_and_grad(found, argnums=(0, 1))(kernel, hidden),
        jax.value_and_grad(expected, argnums=(0, 1))(kernel, hidden),
    )


def test_the_head_s_gradient_is_summed_wide():
    """In bfloat16 a sum of many small parts stops growing: 256 + 1 is 256."""
    chunks, labels = 512, 1024
    hidden = jnp.ones((1, labels, 1), "bfloat16")
    kernel = jnp.zeros((1, 2), "bfloat16")
    targets, weights = jnp.zeros((1, labels), "int32"), jnp.ones((1, labels))

    def loss_of(k):
        return cross_entropy_sum(lambda k, h, i: h @ k, chunks, 0.0, k, hidden, targets, weights)

    # Each label pulls its own logit by a half.
    gradient = jax.grad(loss_of)(kernel)
    np.testing.assert_array_equal(gradient, jnp.array([[-labels / 2, labels / 2]], "bfloat16"))


def test_each_chunk_has_its_own_index():
    _, hidden, targets, weights = inputs()

    def seen(_, h, index):
        return jnp.where(jnp.arange(VOCABULARY) == index, 100.0, 0.0) + 0 * h[..., :1]

    # Chunk 0 is sure of token 0, chunk 1 of token 1: no loss where the targets say so.
    targets = np.repeat([[0, 0, 0, 0, 1, 1, 1]], ROWS, axis=0)
    loss = cross_entropy_sum(seen, 2, 0.0, (), jnp.asarray(hidden), targets, jnp.asarray(weights))
    assert float(loss) < 1e-6


def test_a_frozen_head_costs_two_products_and_one_chunk_of_logits(monkeypatch):
    """Forward and backward have the head's two products, once each; no gradient of its kernel."""
    rows, labels, vocabulary = 4, 64, 4096
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", rows * 8 * vocabulary)
    kernel, hidden, targets, weights = (jnp.asarray(x) for x in inputs(rows, labels, vocabulary))
    chunks = label_chunks(rows, labels, vocabulary)
    assert chunks == 8

    @jax.jit
    def gradient(kernel, hidden):
        def loss_of(h):
            return cross_entropy_sum(
                lambda _, h, i: h @ kernel, chunks, 0.0, (), h, targets, weights
            )

        return jax.grad(loss_of)(hidden)

    compiled = gradient.lower(kernel, hidden).compile()
    assert len(re.findall(r" (?:dot|custom-call)\(", compiled.as_text())) == 2
    logits_bytes = 4 * rows * labels * vocabulary
    assert compiled.memory_analysis().temp_size_in_bytes < logits_bytes / 2


@pytest.mark.parametrize(
    ("rows", "labels", "vocabulary", "expected"),
    # The last: one label of every row is the least that a chunk holds.
    [(4, 256, 49152, 4), (1, 1, 49152, 1), (16, 8, 49152, 1), (10_000, 5, 50_000, 5)],
)
def test_labels_are_divided_so_that_chunks_are_small(rows, labels, vocabulary, expected):
    assert label_chunks(rows, labels, vocabulary) == expected
