"""Texts of BART, by the generation code of all models, against those of `transformers`."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import init_adapters
from dora_jax.checkpoint.bart import read_bart_folder
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling, generate, generate_ids
from dora_jax.generation.hf_settings import sampling_of
from dora_jax.generation.sampling import Written, ban_repeated_ngrams
from dora_jax.models.bart import Bart
from dora_jax.models.llama import param_shapes
from dora_jax.models.source import Source
from dora_jax.spec import AdapterRules, AdapterSpec
from tests.models.barts import (
    BARTS,
    BEAMS,
    EOS,
    NEW_TOKENS,
    OWN,
    PROMPTS,
    SETTINGS,
    STOP_IDS,
    golden,
    source,
    write_folder,
)

CASES = [*(("bart", setting) for setting in SETTINGS), ("scaled", "own")]
every_case = pytest.mark.parametrize(("name", "setting"), CASES)


@functools.lru_cache
def loaded(name):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "it", name)
        found = read_bart_folder(Path(folder) / "it")
    return Bart(found.config), found.params, found.tokenizer


def write(name, sampling, prompts=PROMPTS, **asked):
    model, params, _ = loaded(name)
    return generate(model, params, prompts, sampling, stop_ids=STOP_IDS, **asked)


@every_case
def test_greedy_texts_are_those_of_transformers(name, setting):
    fields = SETTINGS[setting]
    of_beams = {"early_stopping", "length_penalty"}
    own = {key: value for key, value in fields.items() if key not in of_beams}
    found = write(name, Sampling(NEW_TOKENS, **own))
    assert [list(c.token_ids) for c in found] == golden(name)["greedy"][setting]["texts"]


@every_case
def test_every_beam_is_that_of_transformers(name, setting):
    sampling = Sampling(NEW_TOKENS, num_beams=BEAMS, num_samples=BEAMS, **SETTINGS[setting])
    found = write(name, sampling)
    expected = golden(name)["beams"][setting]
    assert [list(c.token_ids) for c in found] == expected["texts"]
    scores = [c.score for c in found]
    np.testing.assert_allclose(scores, expected["scores"], rtol=1e-4, atol=1e-4)


def test_the_golden_texts_differ():
    for name in BARTS:
        for kind in ("greedy", "beams"):
            texts = [str(golden(name)[kind][setting]["texts"]) for setting in SETTINGS]
            assert len(set(texts)) == len(SETTINGS)
            own = golden(name)[kind]["own"]["texts"]
            assert len({tuple(text) for text in own}) > len(own) / 2
            assert {text[0] for text in own} == {OWN["forced_bos_token_id"]}


def test_texts_do_not_depend_on_the_batch():
    sampling = Sampling(NEW_TOKENS, num_beams=BEAMS, no_repeat_ngram_size=2)
    together = write("bart", sampling)
    alone = [write("bart", sampling, [prompt])[0] for prompt in PROMPTS]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_samples_go_on_from_their_own_source():
    """Each sample's log-probabilities are those of its own text to its own source."""
    model, params, _ = loaded("bart")
    sampling = Sampling(6, temperature=1.5, num_samples=3, seed=4)
    found = generate(model, params, PROMPTS, sampling, stop_ids=())
    assert len({c.token_ids for c in found}) == len(found)
    rows = np.array([[EOS, *c.token_ids[:-1]] for c in found])
    own = Source(*(x[[c.prompt for c in found]] for x in source()[:2]))
    logits = np.asarray(jax.jit(model.apply)({"params": params}, rows, source=own), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for completion, expected in zip(found, log_probs, strict=True):
        chosen = expected[np.arange(6), list(completion.token_ids)]
        np.testing.assert_allclose(completion.log_probs, chosen, rtol=1e-4, atol=1e-4)


def test_prompts_of_text_are_whole_texts():
    model, params, tokenizer = loaded("bart")

    class Ending:
        """The tiny tokenizer, as BART's: with a start and an end around a text."""

        start_ids, final_ids, end_ids = [1], [2], (2,)
        encode = staticmethod(tokenizer.encode)
        decode = staticmethod(tokenizer.decode)

    (by_text,) = generate(model, params, ["hello"], Sampling(8), tokenizer=Ending(), stop_ids=())
    ids = [1, *tokenizer.encode("hello"), 2]
    (by_ids,) = generate(model, params, [ids], Sampling(8), stop_ids=())
    (cut,) = generate(model, params, [ids[:-1]], Sampling(8), stop_ids=())
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.log_probs != cut.log_probs
    assert by_text.text == tokenizer.decode(by_text.token_ids)


def test_streamed_texts_are_the_same():
    tokenizer = loaded("bart")[2]
    pieces = {}

    def on_text(place, piece):
        pieces[place] = pieces.get(place, "") + piece

    sampling = Sampling(NEW_TOKENS, no_repeat_ngram_size=2)
    shown = write("bart", sampling, tokenizer=tokenizer, on_text=on_text)
    silent = write("bart", sampling)
    assert [c.token_ids for c in shown] == [c.token_ids for c in silent]
    assert [pieces[n] for n in range(len(PROMPTS))] == [c.text for c in shown]


def test_adapters_by_row_are_each_row_s_own():
    model, params, _ = loaded("bart")
    spec = AdapterSpec("dora", rank=2)
    rules = AdapterRules([(r"encoder/.*/v_proj", spec), (r"encoder_attn/(q|k)_proj", spec)])
    shapes = param_shapes(Bart(model.config, rules))
    fresh = init_adapters(params, shapes, rules, jax.random.key(0))

    def moved(path, leaf):
        return leaf + 0.3 if path[-1].key in ("lora_b", "magnitude") else leaf

    adapted = jax.tree_util.tree_map_with_path(moved, fresh)
    sampling = Sampling(NEW_TOKENS, no_repeat_ngram_size=2)
    mixed = write("bart", sampling, adapters=[None, (rules, adapted)], adapter_of=[1, 0, 1])
    plain = write("bart", sampling)
    alone = generate(Bart(model.config, rules), adapted, PROMPTS, sampling, stop_ids=STOP_IDS)
    expected = [alone[0], plain[1], alone[2]]
    assert [c.token_ids for c in mixed] == [c.token_ids for c in expected]
    assert alone[0].token_ids != plain[0].token_ids


def test_what_cannot_be_written_is_refused():
    model, params, _ = loaded("bart")
    variables = {"params": params}
    with pytest.raises(DoraError, match=r"48 new tokens and the start token .* 47"):
        generate_ids(model, variables, PROMPTS, Sampling(48), ())
    assert len(generate_ids(model, variables, PROMPTS[:1], Sampling(47), ())[0]) == 47
    with pytest.raises(DoraError, match=r"prompt 1 has 49 tokens"):
        generate_ids(model, variables, [[5] * 49], Sampling(2), ())
    with pytest.raises(DoraError, match=r"forced_bos_token_id 266 is outside .* of 266"):
        generate_ids(model, variables, PROMPTS, Sampling(2, forced_bos_token_id=266), ())
    with pytest.raises(DoraError, match="reads text alone"):
        generate(model, params, PROMPTS[:1], images=[[np.zeros((2, 2, 3))]])


def test_a_source_as_long_as_the_context_is_read():
    model, params, _ = loaded("bart")
    # Its bucket would be longer than there are positions.
    longest = [PROMPTS[0] * 3][0][:48]
    (found,) = generate(model, params, [longest], Sampling(4), stop_ids=())
    assert np.isfinite(found.log_probs).all()


def test_a_model_s_own_settings_are_those_of_its_generation_config():
    own = {**OWN, "num_beams": 4, "early_stopping": True, "max_length": 20, "min_length": 0}
    found = sampling_of({**own, "decoder_start_token_id": 2, "top_k": 50}, max_new_tokens=9)
    assert found == Sampling(9, num_beams=4, early_stopping=True, **OWN)
    sampled = sampling_of({"do_sample": True, "top_p": 0.9, "top_k": 0}, seed=3)
    assert sampled == Sampling(temperature=1.0, top_p=0.9, seed=3)
    for name, value in {"min_length": 56, "num_beam_groups": 2, "bad_words_ids": [[3]]}.items():
        with pytest.raises(DoraError, match=f"{name} .* is not supported"):
            sampling_of({name: value})


def reference_banned(sequence, size):
    """Return the tokens that would repeat an n-gram, spelled out."""
    if len(sequence) + 1 < size:
        return set()
    last = sequence[len(sequence) - size + 1 :]
    grams = [sequence[i : i + size] for i in range(len(sequence) - size + 1)]
    return {gram[-1] for gram in grams if gram[:-1] == last}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 40])
def test_repeated_ngrams_are_ruled_out_and_nothing_else(size):
    rng = np.random.default_rng(size)
    vocabulary, room, banned = 4, 12, 0
    compiled = jax.jit(ban_repeated_ngrams, static_argnums=2)
    for step in (0, 1, 2, 5, 11):
        lengths = rng.integers(1, 6, 8)
        prompt = rng.integers(0, vocabulary, (8, 5))
        prompt = np.where(np.arange(5) >= 5 - lengths[:, None], prompt, -1)
        tokens = rng.integers(0, vocabulary, (8, room))
        logits = rng.standard_normal((8, vocabulary)).astype(np.float32)
        found = compiled(jnp.asarray(logits), Written(prompt, tokens, step), size)
        for row in range(8):
            sequence = [int(t) for t in prompt[row] if t >= 0] + tokens[row, :step].tolist()
            out = reference_banned(sequence, size)
            banned += len(out)
            expected = [-np.inf if v in out else logits[row, v] for v in range(vocabulary)]
            np.testing.assert_array_equal(found[row], np.float32(expected))
    assert (banned > 0) == (size < 40)


@pytest.mark.parity
def test_beams_are_those_of_transformers_at_hand():
    pytest.importorskip("torch", reason="the parity extra is not installed")
    pytest.importorskip("transformers", reason="the parity extra is not installed")
    from tests.golden.make_barts_golden import peer, write_texts

    settings = {"length_penalty": 0.5, "no_repeat_ngram_size": 2, "early_stopping": True}
    expected = write_texts(peer("scaled")[0], BEAMS, settings)
    found = write("scaled", Sampling(NEW_TOKENS, num_beams=BEAMS, num_samples=BEAMS, **settings))
    assert [list(c.token_ids) for c in found] == expected["texts"]
