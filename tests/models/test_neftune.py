"""Noise on embeddings in training (Jain et al. 2023)."""

import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.models.llama import Llama
from tests import tiny

ALPHA = 5.0
LENGTH = 200


def noise(segments=None, alpha=ALPHA, key=0):
    """Return what is added to the embeddings, of shape (2, LENGTH, D)."""
    config = tiny.CONFIG
    tokens = np.ones((2, LENGTH), np.int32)
    segments = np.zeros((2, LENGTH), np.int32) if segments is None else segments
    x = jnp.zeros((2, LENGTH, config.hidden_size))
    model = Llama(config, neftune_alpha=alpha)
    params = model.init(jax.random.key(0), tokens)["params"]
    return np.asarray(
        model.apply(
            {"params": params}, x, segments, method="_noise", rngs={"neftune": jax.random.key(key)}
        )
    )


def test_noise_is_uniform_and_of_the_papers_size():
    found = noise()
    size = ALPHA / np.sqrt(LENGTH * tiny.CONFIG.hidden_size)
    assert 0.99 * size < np.abs(found).max() <= size
    assert abs(found.mean()) < 0.05 * size
    assert abs(found.std() / (size / np.sqrt(3)) - 1) < 0.05
    assert (noise(key=1) != found).all()


def test_the_length_is_that_of_each_packed_sequence():
    segments = np.array([[1] * 50 + [2] * 120 + [-1] * 30, [1] * 200])
    found = np.abs(noise(segments))
    for row, part, length in (
        (0, slice(0, 50), 50),
        (0, slice(50, 170), 120),
        (1, slice(0, 200), 200),
    ):
        size = ALPHA / np.sqrt(length * tiny.CONFIG.hidden_size)
        assert 0.98 * size < found[row, part].max() <= size


def test_there_is_none_outside_of_training():
    config = tiny.CONFIG
    tokens = np.arange(2 * 9).reshape(2, 9) % config.vocab_size
    plain, noisy = Llama(config), Llama(config, neftune_alpha=ALPHA)
    params = plain.init(jax.random.key(0), tokens)["params"]
    expected = plain.apply({"params": params}, tokens)
    np.testing.assert_array_equal(noisy.apply({"params": params}, tokens), expected)
    rngs = {"neftune": jax.random.key(0)}
    assert (noisy.apply({"params": params}, tokens, rngs=rngs) != expected).any()
    np.testing.assert_array_equal(plain.apply({"params": params}, tokens, rngs=rngs), expected)
