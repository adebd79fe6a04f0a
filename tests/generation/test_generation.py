import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.errors import DoraError
from dora_jax.generation import Sampling, generate_ids
from dora_jax.models.llama import Llama
from tests.tiny import CONFIG, base_params

MODEL = Llama(CONFIG)
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]


@pytest.fixture(scope="module")
def variables():
    return {"params": base_params()}


@jax.jit
def all_logits(variables, tokens):
    return MODEL.apply(variables, tokens)


def continue_by_full_forward(variables, prompt, steps):
    # Padded right to one length, which a causal model does not see: compiled once.
    tokens = np.zeros((1, 128), np.int32)
    tokens[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + steps):
        tokens[0, end] = int(jnp.argmax(all_logits(variables, tokens)[0, end - 1]))
    return tokens[0, len(prompt) : len(prompt) + steps].tolist()


def test_greedy_batch_of_unequal_prompts_equals_full_forward_of_each(variables):
    generated = generate_ids(MODEL, variables, PROMPTS, Sampling(10), stop_ids=[])
    assert generated == [continue_by_full_forward(variables, p, 10) for p in PROMPTS]
    assert len({tuple(row) for row in generated}) == len(PROMPTS)


def test_a_row_ends_before_its_stop_token_and_others_go_on(variables):
    free = generate_ids(MODEL, variables, PROMPTS, Sampling(10), stop_ids=[])
    stop = free[0][3]
    stopped = generate_ids(MODEL, variables, PROMPTS, Sampling(10), stop_ids=[stop])
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert stopped == expected


def test_all_rows_stopped_early_are_cut_at_the_stop(variables):
    free = generate_ids(MODEL, variables, [PROMPTS[0]], Sampling(10), stop_ids=[])
    stopped = generate_ids(MODEL, variables, [PROMPTS[0]], Sampling(10), stop_ids=[free[0][0]])
    assert stopped == [[]]


def test_sampling_is_reproducible_and_follows_the_distribution(variables):
    one = generate_ids(MODEL, variables, PROMPTS, Sampling(8, temperature=2.0, seed=1), [])
    again = generate_ids(MODEL, variables, PROMPTS, Sampling(8, temperature=2.0, seed=1), [])
    other = generate_ids(MODEL, variables, PROMPTS, Sampling(8, temperature=2.0, seed=2), [])
    assert one == again != other

    rows = 512
    logits = all_logits(variables, jnp.array([PROMPTS[0]]))[0, -1]
    expected = np.asarray(jax.nn.softmax(logits / 3.0))
    first = [
        row[0]
        for seed in range(4)
        for row in generate_ids(
            MODEL, variables, [PROMPTS[0]] * rows, Sampling(1, temperature=3.0, seed=seed), []
        )
    ]
    seen = np.bincount(first, minlength=CONFIG.vocab_size) / (4 * rows)
    assert np.abs(seen - expected).sum() < 0.25


def test_bad_requests_are_refused(variables):
    with pytest.raises(DoraError, match="prompt 2 is empty"):
        generate_ids(MODEL, variables, [[1], []], Sampling(4), [])
    with pytest.raises(DoraError, match="context of 128"):
        generate_ids(MODEL, variables, [[1] * 120], Sampling(20), [])
    with pytest.raises(DoraError, match="max_new_tokens"):
        Sampling(0)
    with pytest.raises(DoraError, match="temperature"):
        Sampling(4, temperature=-1.0)


def test_a_prompt_that_just_fits_the_context_is_generated(variables):
    (row,) = generate_ids(MODEL, variables, [[1] * 120], Sampling(8), [])
    assert row == continue_by_full_forward(variables, [1] * 120, 8)
