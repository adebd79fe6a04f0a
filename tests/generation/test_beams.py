import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dora_jax.checkpoint.hf import read_hf_folder
from dora_jax.generation import Sampling, generate, generate_ids
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama
from tests.generation import beam_cases
from tests.generation.beam_cases import (
    BEAMS,
    CASES,
    FAMILIES,
    NEW_TOKENS,
    PROMPTS,
    SETTINGS,
    STOP_IDS,
)
from tests.models.families import write_folder
from tests.tiny import CONFIG, base_params


@functools.lru_cache
def loaded(family):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), family)
        config, params, _ = read_hf_folder(folder)
    return Llama(config), params


def search(family, settings, **asked):
    fields = {"stop_ids": STOP_IDS, **settings}
    stop_ids = fields.pop("stop_ids")
    sampling = Sampling(NEW_TOKENS, num_beams=BEAMS, num_samples=BEAMS, **fields)
    return generate(*loaded(family), PROMPTS, sampling, stop_ids=stop_ids, **asked)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_beam_is_transformers(family, name):
    expected = beam_cases.golden()[family][name]
    found = search(family, SETTINGS[name])
    texts = [list(completion.token_ids) for completion in found]
    assert texts == [text for row in expected["texts"] for text in row]
    scores = [completion.score for completion in found]
    np.testing.assert_allclose(scores, np.ravel(expected["scores"]), rtol=1e-4, atol=1e-4)
    numbers = [(completion.prompt, completion.sample) for completion in found]
    assert numbers == list(np.ndindex(len(PROMPTS), BEAMS))


def test_the_golden_searches_differ_and_end():
    golden = beam_cases.golden()
    for family in FAMILIES:
        texts = {name: str(found["texts"]) for name, found in golden[family].items()}
        assert len(set(texts.values())) >= 3
        lengths = [len(t) for row in golden[family]["plain"]["texts"] for t in row]
        assert min(lengths) < NEW_TOKENS


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_every_beam_is_that_of_transformers_at_hand(family):
    pytest.importorskip("torch", reason="the parity extra is not installed")
    pytest.importorskip("transformers", reason="the parity extra is not installed")
    from tests.golden.make_families_golden import peer

    settings = {"length_penalty": 1.4, "early_stopping": True}
    expected, scores = beam_cases.peer_search(peer(family), settings)
    found = search(family, settings)
    assert [list(c.token_ids) for c in found] == [text for row in expected for text in row]
    np.testing.assert_allclose([c.score for c in found], scores.ravel(), rtol=1e-4, atol=1e-4)


def test_a_prompt_s_beams_do_not_depend_on_the_batch():
    together = search("gemma3", {}, batch_size=3 * BEAMS)
    alone = search("gemma3", {}, batch_size=1)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_log_probs_are_the_model_s_and_sum_to_the_score():
    model, params = loaded("mistral")
    for completion in search("mistral", {})[:3]:
        row = np.array([[*PROMPTS[0], *completion.token_ids]])
        logits = np.asarray(model.apply({"params": params}, row), np.float64)[0]
        all_log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        start, chosen = len(PROMPTS[0]) - 1, completion.token_ids
        expected = all_log_probs[np.arange(start, start + len(chosen)), list(chosen)]
        np.testing.assert_allclose(completion.log_probs, expected, rtol=1e-4, atol=1e-4)
        if completion.finish_reason == "length":
            assert completion.score == pytest.approx(expected.sum() / NEW_TOKENS, rel=1e-4)


def test_enough_beams_find_the_likeliest_text_of_all():
    # With as many beams as there are tokens, two steps of beam search are exhaustive.
    config = LlamaConfig(**{**vars(CONFIG), "vocab_size": 23})
    model, variables = Llama(config), {"params": base_params(config)}
    (found,) = generate_ids(model, variables, [[5, 6]], Sampling(2, num_beams=23), ())
    first = np.asarray(model.apply(variables, np.array([[5, 6]])))[0, -1]
    rows = np.array([[5, 6, token] for token in range(23)])
    second = np.asarray(model.apply(variables, rows))[:, -1]

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    both = log_softmax(first)[:, None] + log_softmax(second)
    assert tuple(found) == np.unravel_index(both.argmax(), both.shape)
