import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.errors import DoraError
from dora_jax.generation import sampling
from dora_jax.generation.sampling import Sampling

LOGITS = (3 * np.random.default_rng(0).standard_normal((5, 97))).astype(np.float32)
SEEN = np.random.default_rng(1).random((5, 97)) < 0.3


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def filtered(row, kept):
    return np.where(np.isin(np.arange(len(row)), kept), row, -np.inf)


def reference_top_k(row, k):
    return np.where(row >= np.sort(row)[-min(k, len(row))], row, -np.inf)


def reference_top_p(row, p):
    kept, total = [], 0.0
    for token in np.argsort(-row):
        if total >= p:
            break
        kept.append(token)
        total += softmax(row.astype(np.float64))[token]
    return filtered(row, kept)


def reference_min_p(row, p):
    probabilities = softmax(row.astype(np.float64))
    return np.where(probabilities >= p * probabilities.max(), row, -np.inf)


@pytest.mark.parametrize(
    ("ours", "reference", "values"),
    [
        (sampling.keep_top_k, reference_top_k, (1, 2, 10, 96, 97, 500)),
        (sampling.keep_top_p, reference_top_p, (1e-6, 0.3, 0.9, 0.999)),
        (sampling.keep_min_p, reference_min_p, (0.01, 0.3, 1.0)),
    ],
)
def test_filters_keep_what_their_definitions_keep(ours, reference, values):
    compiled = jax.jit(ours)
    for value in values:
        found = compiled(LOGITS, jnp.float32(value))
        expected = np.stack([reference(row, value) for row in LOGITS])
        np.testing.assert_array_equal(found, expected)
    assert compiled._cache_size() == 1
    assert np.isinf(compiled(LOGITS, jnp.float32(values[0]))).any()


def test_top_k_keeps_what_ties_with_the_kth_and_orders_signs_and_zeros():
    row = np.array([[0.0, -0.0, -1.0, 2.0, -np.inf, 1e-30, -1e-30, -3.0]], np.float32)
    for k in range(1, 9):
        found = np.asarray(sampling.keep_top_k(jnp.asarray(row), jnp.float32(k)))
        np.testing.assert_array_equal(found[0], reference_top_k(row[0], k))


def test_filters_after_filters_see_what_is_left():
    asked = Sampling(temperature=0.7, top_k=12, top_p=0.8, min_p=0.1)
    found = sampling.warp(jnp.asarray(LOGITS), asked.filters(), asked.knobs())
    for row, logits in zip(found, LOGITS, strict=True):
        expected = reference_top_k(logits / np.float32(0.7), 12)
        expected = reference_min_p(reference_top_p(expected, 0.8), 0.1)
        np.testing.assert_allclose(row, expected, rtol=1e-6)
        assert 1 < np.isfinite(row).sum() < 12


def test_a_repeated_token_is_less_likely_whatever_its_sign():
    found = sampling.penalise_repetition(jnp.asarray(LOGITS), jnp.asarray(SEEN), jnp.float32(1.5))
    expected = np.where(SEEN, LOGITS - np.abs(LOGITS) * np.where(LOGITS > 0, 1 / 3, 0.5), LOGITS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (np.asarray(found) <= LOGITS).all()


def test_samples_follow_the_filtered_distribution():
    asked = Sampling(temperature=2.0, top_k=9, top_p=0.95)
    draws = 20_000
    logits = jnp.broadcast_to(LOGITS[0], (draws, 97))
    keys = jax.random.split(jax.random.key(0), draws)
    nothing = sampling.Written(None, jnp.zeros((draws, 1), jnp.int32), jnp.int32(0))
    knobs = asked.knobs()
    tokens, log_probs = sampling.choose(logits, None, nothing, keys, asked.filters(), knobs)
    seen = np.bincount(tokens, minlength=97) / draws
    expected = softmax(reference_top_p(reference_top_k(LOGITS[0] / 2, 9), 0.95))
    assert np.abs(seen - expected).max() < 0.015
    assert not seen[expected == 0].any()
    np.testing.assert_allclose(log_probs, np.log(softmax(LOGITS[0]))[tokens], rtol=1e-4)


def test_filters_are_off_where_they_would_do_nothing():
    assert Sampling(top_k=3, top_p=0.5, min_p=0.1).filters() == (True, *[False] * 7)
    idle = Sampling(temperature=1.0, top_p=1.0, min_p=0.0)
    assert not any(idle.filters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1; got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1, or None"),
        ({"top_p": 0.0}, "top_p must be over 0"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be over 0"),
        ({"length_penalty": float("inf")}, "length_penalty"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_samples": True}, "num_samples"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be a whole number, 0 for none"),
        ({"forced_bos_token_id": -3}, "forced_bos_token_id must be a token's id, or None; got -3"),
        ({"forced_eos_token_id": 1.5}, "forced_eos_token_id must be a token's id"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"early_stopping": "always"}, "early_stopping must be True, False, 'never'"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams 2 searches and temperature 1.0 samples"),
        ({"num_beams": 2, "num_samples": 3}, r"num_samples must be at most num_beams \(2\)"),
        ({"num_samples": 2}, "num_samples 2 at temperature 0 would be one text"),
    ],
)
def test_bad_requests_are_refused_by_field(fields, message):
    with pytest.raises(DoraError, match=message):
        Sampling(**fields)


@pytest.mark.parity
def test_steps_are_those_of_transformers():
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    texts = [np.flatnonzero(row) for row in SEEN]
    width = max(map(len, texts))
    ids = torch.tensor(np.stack([np.resize(row, width) for row in texts]))
    asked = Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    expected = torch.from_numpy(LOGITS)
    for step in (
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
        transformers.TemperatureLogitsWarper(0.8),
        transformers.TopKLogitsWarper(20),
        transformers.TopPLogitsWarper(0.9),
        transformers.MinPLogitsWarper(0.05),
    ):
        expected = step(ids, expected)
    knobs = asked.knobs()
    penalised = sampling.penalise_repetition(
        jnp.asarray(LOGITS), jnp.asarray(SEEN), knobs.repetition_penalty
    )
    found = sampling.warp(penalised, asked.filters(), knobs)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    assert 1 < np.isfinite(found).sum() / len(LOGITS) < 20
