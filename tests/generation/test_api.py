import subprocess
import sys

import jax
import numpy as np
import pytest

import dora_jax
from dora_jax import AdapterRules, AdapterSpec, DoraError, Sampling, generate, merge_params
from dora_jax.generation.buckets import bucket, cache_slots, prompt_width, row_count
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llama import Llama
from tests import tiny
from tests.checkpoint import tiny_model

CONFIG = tiny_model.CONFIG
MODEL = Llama(CONFIG)
PROMPTS = ["hello world", "a", "the longest prompt of the three"]
WARM = Sampling(12, temperature=1.5)


@pytest.fixture(scope="module")
def params():
    return tiny_model.our_params(tiny_model.hf_weights())


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model.tokenizer()


@jax.jit
def all_logits(params, tokens):
    return MODEL.apply({"params": params}, tokens)


def logits_behind(params, ids):
    # Padded right to one length, which a causal model does not see: compiled once.
    row = np.zeros((1, 128), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(all_logits(params, row), np.float64)[0, : len(ids)]


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_completions_are_in_the_prompts_order_whatever_the_batches(params, tokenizer):
    together = generate(MODEL, params, PROMPTS, WARM, tokenizer=tokenizer, stop_ids=[])
    apart = generate(MODEL, params, PROMPTS, WARM, tokenizer=tokenizer, stop_ids=[], batch_size=1)
    assert [c.token_ids for c in together] == [c.token_ids for c in apart]
    assert [c.prompt for c in together] == [0, 1, 2]
    assert len({c.text for c in together}) == 3
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert generate(MODEL, params, ids, WARM, stop_ids=[])[1].token_ids == together[1].token_ids
    for completion in together:
        assert completion.text == tokenizer.decode(completion.token_ids)
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == len(completion.log_probs) == 12


def test_samples_of_a_prompt_differ_and_do_not_depend_on_their_number(params):
    ids = [[5, 6, 7], [8] * 20]
    several = Sampling(8, temperature=2.0, num_samples=3)
    found = generate(MODEL, params, ids, several, stop_ids=[])
    assert [(c.prompt, c.sample) for c in found] == [(p, s) for p in (0, 1) for s in (0, 1, 2)]
    assert len({c.token_ids for c in found}) == 6
    single = generate(MODEL, params, ids, Sampling(8, temperature=2.0), stop_ids=[])
    assert [c.token_ids for c in found[::3]] == [c.token_ids for c in single]
    assert generate(MODEL, params, ids, several, stop_ids=[], batch_size=2) == found


@pytest.mark.parametrize("asked", [Sampling(10), WARM], ids=["greedy", "sampled"])
def test_log_probs_are_the_model_s_own(params, asked):
    prompt = [7, 8, 9, 10]
    (found,) = generate(MODEL, params, [prompt], asked, stop_ids=[])
    log_probs = log_softmax(logits_behind(params, [*prompt, *found.token_ids]))
    expected = log_probs[np.arange(len(found.token_ids)) + 3, list(found.token_ids)]
    np.testing.assert_allclose(found.log_probs, expected, rtol=1e-4, atol=1e-5)
    assert found.score == pytest.approx(expected.sum(), rel=1e-4)


def test_repetition_penalty_counts_prompt_and_text_but_not_padding(params):
    prompts, penalty = [[5, 6], [5] * 9], 1.8
    found = generate(MODEL, params, prompts, Sampling(10, repetition_penalty=penalty), stop_ids=[])
    for prompt, completion in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(10):
            logits = logits_behind(params, ids)[-1]
            for token in set(ids):
                logits[token] *= penalty if logits[token] < 0 else 1 / penalty
            ids.append(int(logits.argmax()))
        assert list(completion.token_ids) == ids[len(prompt) :]
    free = generate(MODEL, params, prompts, Sampling(10), stop_ids=[])
    assert [c.token_ids for c in free] != [c.token_ids for c in found]


def test_stop_tokens_end_a_text_and_are_not_part_of_it(params):
    (free,) = generate(MODEL, params, [[5, 6, 7]], WARM, stop_ids=[])
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    (found,) = generate(MODEL, params, [[5, 6, 7]], WARM, stop_ids=[stop])
    assert found.token_ids == free.token_ids[:first]
    assert found.finish_reason == "stop"
    assert found.score == pytest.approx(sum(free.log_probs[: first + 1]), rel=1e-5)


def test_the_model_s_and_the_tokenizer_s_end_tokens_are_the_default(params, tokenizer):
    (free,) = generate(MODEL, params, ["ab"], WARM, tokenizer=tokenizer, stop_ids=[])
    config = LlamaConfig(**{**vars(CONFIG), "eos_token_id": (free.token_ids[4],)})
    (found,) = generate(Llama(config), params, ["ab"], WARM, tokenizer=tokenizer)
    assert found.finish_reason == "stop"
    assert len(found.token_ids) <= 4


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_strings_cut_the_text_and_end_its_row_alone(params, tokenizer, streamed):
    asked = Sampling(40, temperature=1.5)
    free = generate(MODEL, params, PROMPTS, asked, tokenizer=tokenizer, stop_ids=[])
    stop = tokenizer.decode(free[0].token_ids)[5:8]  # of several tokens
    pieces = {}

    def on_text(place, piece):
        pieces[place] = pieces.get(place, "") + piece

    found = generate(
        MODEL,
        params,
        PROMPTS,
        asked,
        tokenizer=tokenizer,
        stop_ids=[],
        stop=[stop],
        on_text=on_text if streamed else None,
    )
    assert found[0].text == free[0].text[: free[0].text.index(stop)]
    assert found[0].finish_reason == "stop"
    assert found[0].token_ids == free[0].token_ids[: len(found[0].token_ids)]
    assert tokenizer.decode(found[0].token_ids).endswith(stop)
    assert len(found[0].log_probs) == len(found[0].token_ids) < 40
    assert found[0].score == pytest.approx(sum(found[0].log_probs), rel=1e-5)
    assert found[2] == free[2]
    if streamed:
        assert pieces == {place: c.text for place, c in enumerate(found) if c.text}


def test_text_is_shown_as_it_comes_and_is_the_text(params, tokenizer):
    pieces = []
    asked = Sampling(24, temperature=1.0, seed=3)
    found = generate(
        MODEL,
        params,
        PROMPTS[:1],
        asked,
        tokenizer=tokenizer,
        stop_ids=[],
        on_text=lambda place, piece: pieces.append((place, piece)),
    )
    assert "".join(piece for _, piece in pieces) == found[0].text
    assert len(pieces) > 5
    assert generate(MODEL, params, PROMPTS[:1], asked, tokenizer=tokenizer, stop_ids=[]) == found


def test_beams_come_whole_and_are_cut_at_stop_strings(params, tokenizer):
    asked = Sampling(10, num_beams=3)
    (free,) = generate(MODEL, params, PROMPTS[:1], asked, tokenizer=tokenizer, stop_ids=[])
    pieces = []
    stop = free.text[2:4]
    (cut,) = generate(
        MODEL,
        params,
        PROMPTS[:1],
        asked,
        tokenizer=tokenizer,
        stop_ids=[],
        stop=stop,
        on_text=lambda place, piece: pieces.append(piece),
    )
    assert cut.text == free.text[: free.text.index(stop)]
    assert pieces == [cut.text]
    assert cut.score == free.score


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **about: COMPILED.append(str(about)) if "backend_compile" in event else None
)


@pytest.fixture
def compilations():
    """Return how often each function has been compiled in this test."""
    start = len(COMPILED)
    names = ("prefill", "advance", "search")
    return lambda: [sum(f"jit({name})" in about for about in COMPILED[start:]) for name in names]


def test_lengths_numbers_and_stop_tokens_compile_nothing_anew(params, compilations):
    jax.clear_caches()

    def ask(*lengths, stop_ids=(2,), **fields):
        fields = {"max_new_tokens": 9, "temperature": 0.5, "top_k": 5, "top_p": 0.8} | fields
        prompts = [[5] * n for n in lengths]
        generate(MODEL, params, prompts, Sampling(**fields), stop_ids=stop_ids)

    ask(3)
    assert compilations() == [1, 1, 0]
    ask(32, 1, temperature=3.0, top_k=2, top_p=0.99, seed=9, max_new_tokens=16)
    ask(9, stop_ids=(2, 3, 4, 5), max_new_tokens=2)
    ask(1, 30, stop_ids=())
    assert compilations() == [1, 1, 0]
    for length in range(33, 101, 6):
        ask(length)
    # Widths of 32, 48, 64, 96 and 128.
    assert compilations() == [5, 5, 0]


def test_beams_of_new_lengths_compile_nothing_anew(params, compilations):
    jax.clear_caches()

    def ask(length, **fields):
        generate(MODEL, params, [[5] * length], Sampling(num_beams=2, **fields), stop_ids=[2])

    for length in range(1, 33, 3):
        ask(length, max_new_tokens=1 + length % 16, length_penalty=length / 10)
    assert compilations() == [0, 0, 1]


def test_at_most_a_third_of_a_bucket_is_unused():
    sizes = [bucket(n, 32) for n in range(1, 3000)]
    assert all(n <= size for n, size in zip(range(1, 3000), sizes, strict=True))
    assert all(3 * (size - n) <= size for n, size in zip(range(32, 3000), sizes[31:], strict=True))
    assert len(set(sizes)) == 14
    assert [row_count(n, 4) for n in (1, 4, 5, 9, 17)] == [4, 4, 8, 12, 24]


def test_a_cache_is_no_longer_than_the_widest_window_where_all_layers_have_one():
    windowed = LlamaConfig(**{**vars(CONFIG), "sliding_window": 40})
    assert cache_slots(windowed, width=32, room=96) == 40
    assert cache_slots(windowed, width=64, room=96) == 64
    assert cache_slots(windowed, width=16, room=16) == 32
    kinds = ("sliding_attention", "full_attention", "sliding_attention")
    mixed = LlamaConfig(**{**vars(windowed), "layer_types": kinds})
    assert cache_slots(mixed, width=32, room=96) == 128


def test_a_window_s_cache_goes_round_for_prompts_of_any_length():
    config = LlamaConfig(**{**vars(tiny.CONFIG), "sliding_window": 10})
    model, params = Llama(config), tiny.base_params()
    prompts = [[3, 4, 5], list(range(1, 33))]
    assert cache_slots(config, prompt_width(32), 64) == 32
    found = generate(model, params, prompts, Sampling(60), stop_ids=[])
    forward = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))
    for prompt, completion in zip(prompts, found, strict=True):
        row = np.zeros((1, 92), np.int32)
        row[0, : len(prompt) + 60] = [*prompt, *completion.token_ids]
        logits = np.asarray(forward(params, row))[0]
        expected = logits.argmax(-1)[len(prompt) - 1 : len(prompt) + 59]
        assert completion.token_ids == tuple(expected)


@pytest.mark.parametrize("asked", [Sampling(8), Sampling(8, num_beams=3)], ids=["greedy", "beams"])
def test_an_unmerged_adapter_continues_as_its_merged_weights(asked):
    rules = AdapterRules.preset("all-linear", AdapterSpec("dora", rank=3, alpha=7))
    model, params = tiny.adapted_params(rules)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 if path[-1].key == "lora_b" else x, params
    )
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    found = generate(model, params, prompts, asked, stop_ids=[])
    norms = dora_jax.column_norms(params, rules)
    assert generate(model, params, prompts, asked, norms=norms, stop_ids=[]) == found
    plain = Llama(tiny.CONFIG)
    merged = generate(plain, merge_params(params, rules), prompts, asked, stop_ids=[])
    assert [c.token_ids for c in found] == [c.token_ids for c in merged]
    base = generate(plain, tiny.base_params(), prompts, asked, stop_ids=[])
    assert [c.token_ids for c in found] != [c.token_ids for c in base]


def test_bad_requests_are_refused(params, tokenizer):
    def refuse(match, prompts=((5,),), asked=None, **fields):
        with pytest.raises(DoraError, match=match):
            generate(MODEL, params, prompts, asked, **fields)

    refuse("prompt 2 is empty", [[1], []])
    refuse("prompt 2 has 100 tokens; with 64 new ones .* context of 128: shorten it to 64 tokens",
           [[1], [1] * 100])  # fmt: skip
    refuse("prompt 1 has a token outside the model's vocabulary", [[5, 5000]])
    refuse("prompt 1 is text: pass tokenizer=", ["hello"])
    refuse("for one prompt give", "hello", tokenizer=tokenizer)
    refuse("got a list of ids", [1, 2, 3])
    refuse("stop strings need a tokenizer", stop=["x"])
    refuse("on_text need a tokenizer", on_text=print)
    refuse("a stop string is empty", stop=["x", ""], tokenizer=tokenizer)
    refuse("batch_size must be at least 1", batch_size=0)
    assert generate(MODEL, params, []) == []


def test_the_core_install_is_enough_to_import_it():
    block = "import sys; sys.modules.update(dict.fromkeys(['tokenizers', 'jinja2', 'gguf']))"
    code = f"{block}; import dora_jax; print(dora_jax.generate.__name__, dora_jax.Sampling(3))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("generate Sampling(max_new_tokens=3")
