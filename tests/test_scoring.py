import jax
import numpy as np
import pytest

from dora_jax.adapters import column_norms, merge_params
from dora_jax.errors import DoraError
from dora_jax.models.llama import Llama
from dora_jax.partition import trainable_mask
from dora_jax.scoring import _log_probs, score
from dora_jax.spec import AdapterRules
from tests import small_net, tiny
from tests.checkpoint import tiny_model

PROMPTS = [[5, 9, 33], [7] * 40, [12, 80]]
CONTINUATIONS = [[[4], [90, 3, 3], [4, 8]], [[11, 12]], [[1, 2, 3, 4], [100]]]


@pytest.fixture(scope="module")
def model():
    return Llama(tiny.CONFIG), tiny.base_params()


def separate(model, params, prompt, continuation):
    """Log-likelihood, and whether it is greedy, from the logits of the whole text alone."""
    ids = np.asarray([[*prompt, *continuation]], np.int32)
    logits = np.asarray(model.apply({"params": params}, ids), np.float64)[0]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = range(len(prompt) - 1, len(ids[0]) - 1)
    total = sum(log_probs[i, t] for i, t in zip(places, continuation, strict=True))
    return total, all(logits[i].argmax() == t for i, t in zip(places, continuation, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_those_of_separate_texts(model, batch_size):
    found = score(*model, PROMPTS, CONTINUATIONS, batch_size=batch_size)
    for prompt, options, scores in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        for ids, own in zip(options, scores, strict=True):
            expected, greedy = separate(*model, prompt, ids)
            assert own.log_likelihood == pytest.approx(expected, rel=1e-4)
            assert (own.tokens, own.is_greedy) == (len(ids), greedy)


def test_greedy_continuations_are_told(model):
    ids = list(PROMPTS[0])
    for _ in range(3):
        logits = model[0].apply({"params": model[1]}, np.asarray([ids], np.int32))
        ids.append(int(np.asarray(logits)[0, -1].argmax()))
    best = ids[len(PROMPTS[0]) :]
    other = [*best[:2], (best[2] + 1) % 101]
    ((first, second),) = score(*model, PROMPTS[:1], [[best, other]])
    assert first.is_greedy
    assert not second.is_greedy


def test_an_unmerged_adapter_scores_as_the_merged_weights():
    rules = AdapterRules.preset("paper", small_net.spec("dora"))
    model, params = tiny.adapted_params(rules)
    params = small_net.moved(params, trainable_mask(params, rules))
    merged = score(
        Llama(tiny.CONFIG), merge_params(params, rules), PROMPTS, CONTINUATIONS, batch_size=2
    )
    for norms in (None, column_norms(params, rules)):
        found = score(model, params, PROMPTS, CONTINUATIONS, norms=norms, batch_size=2)
        np.testing.assert_allclose(
            [s.log_likelihood for own in found for s in own],
            [s.log_likelihood for own in merged for s in own],
            rtol=1e-4,
        )


def test_texts_are_cut_together_with_their_prompt(model):
    tokenizer = tiny_model.tokenizer()
    config = tiny_model.CONFIG
    params = tiny_model.our_params(tiny_model.hf_weights())
    model = Llama(config)
    # "hell" + "o" is one token, so both are scored behind "say".
    encode = tokenizer.encode
    ((joined, other),) = score(model, params, ["say hell"], [["o", " wor"]], tokenizer=tokenizer)
    shared = encode("say hell")[:-1]
    assert encode("say hello")[:-1] == shared
    for found, text in ((joined, "say hello"), (other, "say hell wor")):
        rest = encode(text)[len(shared) :]
        expected, greedy = separate(model, params, shared, rest)
        assert found.log_likelihood == pytest.approx(expected, rel=1e-4)
        assert (found.tokens, found.is_greedy) == (len(rest), greedy)
    ((alone,),) = score(model, params, ["say hell"], [[" wor"]], tokenizer=tokenizer)
    expected, _ = separate(model, params, encode("say hell"), encode(" wor"))
    assert alone.log_likelihood == pytest.approx(expected, rel=1e-4)


def test_lengths_in_one_bucket_are_compiled_once(model):
    prompts = [[3] * n for n in range(2, 28)]
    with_one = [[[5, 6]]] * len(prompts)
    score(*model, prompts[:1], with_one[:1], batch_size=1)
    before = _log_probs._cache_size()
    score(*model, prompts, with_one, batch_size=1)
    assert _log_probs._cache_size() == before


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ([[1]], [], "1 prompts, but 0 lists"),
        ([[1], []], [[[1]], [[1]]], "prompt 2 is empty"),
        ([[1]], [[[1], []]], "continuation 2 of prompt 1 is empty"),
        ([[1] * 127], [[[1], [1, 1]]], "continuation 2 of prompt 1 makes a text of 129 tokens"),
        (["a"], [["b"]], "texts need a tokenizer"),
        (["a"], [[[1]]], "texts need a tokenizer"),
        ([[1]], [["b"]], "texts need a tokenizer"),
    ],
)
def test_what_cannot_be_scored(model, prompts, continuations, message):
    with pytest.raises(DoraError, match=message):
        score(*model, prompts, continuations)


def test_rows_are_divided_over_the_devices(model):
    assert jax.device_count() == 8
    alone = score(*model, PROMPTS, CONTINUATIONS, batch_size=1)
    divided = score(*model, PROMPTS, CONTINUATIONS, batch_size=8)
    for a, b in zip(alone, divided, strict=True):
        np.testing.assert_allclose(
            [s.log_likelihood for s in a], [s.log_likelihood for s in b], rtol=1e-5
        )
