"""The loss in chunks against autodiff of the whole logits, with a head that trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import column_norms
from dora_jax.partition import combine, partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training import loss as chunked
from dora_jax.training.step import labelled_loss
from tests import tiny
from tests.training.test_step import random_batch

HEADS = {
    "tied, adapted": (True, "embed_tokens", AdapterSpec("dora", rank=2)),
    "tied, full": (True, "embed_tokens", AdapterSpec("full")),
    "untied, adapted": (False, "lm_head", AdapterSpec("dora", rank=2)),
    "untied, exact norm": (False, "lm_head", AdapterSpec("dora", rank=2, detach_norm=False)),
    "untied, full": (False, "lm_head", AdapterSpec("full")),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("with_norms", [True, False])
def test_gradients_of_a_trained_head(monkeypatch, name, with_norms):
    tied, module, spec = HEADS[name]
    config = dataclasses.replace(tiny.CONFIG, tie_word_embeddings=tied)
    rules = AdapterRules([(module, spec), ("q_proj", AdapterSpec("lora", rank=2))])
    model, params = tiny.adapted_params(rules, config)
    mask = trainable_mask(params, rules)
    params = jax.tree.map(lambda train, x: x + 0.02 * train, mask, params)
    trainable, frozen = partition(params, mask)
    norms = column_norms(params, rules) if with_norms else None
    batch = random_batch()
    # Several chunks, one of them padded.
    rows, labels = batch.label_targets.shape
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 2 * rows * config.vocab_size)
    assert chunked.label_chunks(rows, labels, config.vocab_size) == 2

    def whole(trainable):
        variables = {"params": combine(trainable, frozen)}
        if norms is not None:
            variables["norms"] = norms
        logits = model.apply(variables, batch.tokens)
        at = jnp.take_along_axis(logits, batch.label_positions[..., None], axis=1)
        log_p = jax.nn.log_softmax(at)
        chosen = jnp.take_along_axis(log_p, batch.label_targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * batch.label_weights)

    expected = jax.jit(jax.value_and_grad(whole))(trainable)
    found = jax.jit(jax.value_and_grad(lambda t: labelled_loss(model, t, frozen, batch, norms)))(
        trainable
    )
    assert len(jax.tree.leaves(found)) == len(jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected
    )
