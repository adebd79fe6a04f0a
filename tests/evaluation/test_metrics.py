"""Scores of written answers, worked by hand."""

import dataclasses

import pytest

from dora_jax.data.encode import Target
from dora_jax.errors import DoraError
from dora_jax.evaluation.captioning import cider_d
from dora_jax.evaluation.metrics import score_answers
from tests.data.rows import random_row


def row(*references, targets=(), text="yes"):
    made = dataclasses.replace(random_row(0, 3, [2]), text=text, options=())
    found = tuple(Target((1,), answer, weight) for answer, weight in targets)
    return dataclasses.replace(made, references=references, targets=found)


def test_vqa_by_what_people_answered():
    people = ["2 dogs"] * 2 + ["dogs"] * 5 + ["animals"] * 3
    answers = ["The two dogs.", "Dogs", "animals", "cats"]
    found = score_answers("vqa", [row(*people)] * 4, answers)
    assert found == pytest.approx((0.6, 1.0, 0.9, 0.0))


def test_vqa_by_the_targets_weights_where_there_are_no_people():
    given = row(targets=(("yes", 0.3), ("two", 0.9)))
    assert score_answers("vqa", [given] * 3, ["Yes!", "2", "no"]) == (0.3, 0.9, 0.0)


def test_exact_match_is_of_the_words():
    answers = ["she  left", "She left..", "she", "(A) She left."]
    assert score_answers("exact", [row("She left.")] * 4, answers) == (1.0, 1.0, 0.0, 0.0)
    # Any of several references is as good as the first.
    several = [row("She left.", "She went.", "Gone")] * 4
    assert score_answers("exact", several, ["she went", "Gone.", "she left", "he went"]) == (
        1,
        1,
        1,
        0,
    )
    # Without references the answer that is trained on is the one that is right.
    assert score_answers("exact", [row(text="No")] * 2, ["no", "yes"]) == (1.0, 0.0)


def test_captions_by_cider_over_all_of_them():
    references = [("a red dog runs fast",), ("two cats sleep on it", "cats sleep")]
    answers = ["a red dog runs fast", "one bird"]
    found = score_answers("cider", [row(*own) for own in references], answers)
    # The first is its reference, whose n-grams no other image has: cosines of 1, times 10.
    assert found == pytest.approx((10.0, 0.0))
    assert found == cider_d(answers, references).each
    shares = score_answers("cider_share", [row(*own) for own in references], answers)
    assert shares == pytest.approx((1.0, 0.0))


def test_an_answer_for_each_row():
    with pytest.raises(DoraError, match="2 answers to 1 rows"):
        score_answers("exact", [row("yes")], ["a", "b"])
