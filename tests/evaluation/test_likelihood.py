import jax
import numpy as np
import pytest

from dora_jax.data.encode import EncodedRow
from dora_jax.evaluation.likelihood import OptionScores, pick, row_length, score_rows
from dora_jax.models.llama import Llama
from tests import tiny
from tests.data.rows import random_row

EOS = 2
ROWS = [
    random_row(0, 5, [1, 3, 2], correct=1),
    random_row(1, 9, [2, 2], correct=0),
    random_row(2, 30, [4, 1, 1, 2], correct=3),
    random_row(3, 4, [1, 6], correct=1),
    random_row(4, 7, [3, 1], correct=1),
]


@pytest.fixture(scope="module")
def model():
    return Llama(tiny.CONFIG), tiny.base_params()


def separate(model, params, prompt, continuation):
    """Log-likelihood of a continuation from the logits of prompt + continuation alone."""
    ids = np.asarray([[*prompt, *continuation]], np.int32)
    logits = np.asarray(model.apply({"params": params}, ids), np.float64)[0]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    start = len(prompt)
    return sum(log_probs[start + i - 1, token] for i, token in enumerate(continuation))


def test_scores_are_those_of_separate_sequences(model):
    done = []
    scores = score_rows(*model, ROWS, 2, EOS, done.append)
    for row, found in zip(ROWS, scores, strict=True):
        expected = [separate(*model, row.prompt, option) for option in row.options]
        np.testing.assert_allclose(found.log_likelihoods, expected, rtol=1e-4)
        assert found.loss_sum == pytest.approx(
            -separate(*model, row.prompt, [*row.answer, EOS]), rel=1e-4
        )
        assert found.loss_tokens == len(row.answer) + 1
    assert sum(done) == sum(map(row_length, ROWS))


def test_neither_order_nor_company_matters(model):
    whole = score_rows(*model, ROWS, 3, EOS)
    turned = score_rows(*model, ROWS[::-1], 5, EOS)[::-1]
    for a, b in zip(whole, turned, strict=True):
        np.testing.assert_allclose(a.log_likelihoods, b.log_likelihoods, rtol=1e-5)


def test_a_free_answer_is_scored(model):
    row = ROWS[0]
    free = EncodedRow(row.prompt, row.answer, (), 0, row.text, (), "")
    (found,) = score_rows(*model, [free], 1, EOS)
    (listed,) = score_rows(*model, [row], 1, EOS)
    assert found.loss_sum == pytest.approx(listed.loss_sum, rel=1e-5)


def test_rows_are_divided_over_the_devices(model):
    assert jax.device_count() == 8
    alone = score_rows(*model, ROWS, 1, EOS)  # does not divide: on every device
    divided = score_rows(*model, ROWS, 8, EOS)
    for a, b in zip(alone, divided, strict=True):
        np.testing.assert_allclose(a.log_likelihoods, b.log_likelihoods, rtol=1e-5)


def test_a_long_option_is_not_punished():
    row = EncodedRow((1,), (5,), ((5,), (6, 7)), 0, "Peru", ("Peru", "Western Sahara"), "")
    assert pick(row, OptionScores((-4.0, -7.0), 0.0, 1)) == 1  # -1 and -0.5 a byte
    assert pick(row, OptionScores((-1.0, -7.0), 0.0, 1)) == 0
    assert pick(row, OptionScores((-4.0, -14.0), 0.0, 1)) == 0  # equal: the first


def test_bytes_are_counted_not_letters():
    row = EncodedRow((1,), (5,), ((5,), (6,)), 0, "abc", ("abc", "éé"), "")
    assert pick(row, OptionScores((-3.0, -3.9), 0.0, 1)) == 1
