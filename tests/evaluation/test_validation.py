"""What learning rates are chosen by, worked out by hand."""

import pytest

from dora_jax.data.encode import EncodedRow
from dora_jax.evaluation.likelihood import OptionScores
from dora_jax.evaluation.validation import validate_rows


def row(task, options=()):
    return EncodedRow((1,), (2,), ((2,), (3,))[: len(options)], 0, "a", tuple(options), task)


def answers(captions, words):
    """Scores of two captions of 60 tokens and two answers of two, by their losses per token."""
    long = [OptionScores((), 60 * loss, 60) for loss in captions]
    return long + [OptionScores((), 2 * loss, 2) for loss in words]


ROWS = [row("caption"), row("caption"), row("vqa"), row("vqa")]


def test_a_task_of_long_answers_counts_no_more_than_one_of_single_words():
    captioner, answerer = (
        validate_rows(ROWS, answers(*losses), False)
        for losses in (((1.0, 1.2), (3.0, 3.0)), ((1.3, 1.3), (1.0, 2.0)))
    )
    assert captioner.losses == pytest.approx({"caption": 1.1, "vqa": 3.0})
    assert answerer.losses == pytest.approx({"caption": 1.3, "vqa": 1.5})
    assert captioner.mean_over_tasks == pytest.approx(2.05)
    assert answerer.mean_over_tasks == pytest.approx(1.4)
    assert captioner.loss == pytest.approx((120 * 1.1 + 4 * 3.0) / 124)
    assert captioner.loss < answerer.loss


def test_of_one_task_the_loss_is_that_of_all_tokens():
    scores = answers((1.0, 1.5), (4.0, 2.0))
    found = validate_rows([row("")] * 4, scores, False)
    assert found.mean_over_tasks == found.loss == pytest.approx((60 + 90 + 8 + 4) / 124)


def test_the_accuracy_is_of_rows_with_options_alone():
    likely = [OptionScores((-1.0, -2.0), 1.0, 2), OptionScores((-3.0, -2.0), 3.0, 2)]
    chosen = [row("vqa", ("a", "b"))] * 2
    assert validate_rows(chosen, likely, True).accuracy == 0.5
    assert validate_rows(ROWS, answers((1.0, 1.0), (1.0, 1.0)), False).accuracy is None
