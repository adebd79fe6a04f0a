"""Scores of VL-BART's tasks, worked by hand."""

import math

import pytest

from dora_jax.data.vl.row import VLRow
from dora_jax.errors import DoraError
from dora_jax.evaluation.captioning import bleu_4, cider_d
from dora_jax.evaluation.vl_scores import score_rows, score_task


def row(task, *references, **more):
    return VLRow(task, "1", "Text.", more.pop("targets", ()), references=references, **more)


def test_vqa_by_what_people_answered():
    people = ["2 dogs"] * 2 + ["dogs"] * 5 + ["animals"] * 3
    rows = [row("vqa", *people)] * 4
    found = score_task("vqa", rows, ["The two dogs.", "Dogs", "animals", "cats"])
    assert found.each == pytest.approx((0.6, 1.0, 0.9, 0.0))
    assert found.metrics == {"accuracy": pytest.approx(100 * 2.5 / 4)}
    assert found.main == found.metrics["accuracy"]


def test_vqa_by_labels_where_there_are_no_people():
    given = row("vqa", targets=("yes", "two"), weights=(0.3, 0.9))
    assert score_rows("vqa", [given] * 3, ["Yes!", "2", "no"]) == (0.3, 0.9, 0.0)


@pytest.mark.parametrize("task", ["gqa", "nlvr", "tvqa", "how2qa"])
def test_exact_match_is_of_the_words(task):
    rows = [row(task, "She left.")] * 4
    answers = ["she  left", "She left..", "she", "(A) She left."]
    assert score_rows(task, rows, answers) == (1.0, 1.0, 0.0, 0.0)
    assert score_task(task, rows, answers).metrics == {"accuracy": 50.0}


@pytest.mark.parametrize("task", ["caption", "tvc", "yc2c"])
def test_captions_by_cider_and_bleu(task):
    references = [("a red dog runs fast",), ("two cats sleep on it", "cats sleep")]
    rows = [row(task, *own) for own in references]
    answers = ["a red dog runs fast", "one bird"]
    found = score_task(task, rows, answers)
    # The first is its reference, whose n-grams no other image has: cosines of 1, times 10.
    assert found.each == pytest.approx((10.0, 0.0))
    assert found.each == cider_d(answers, references).each
    # Precisions: 5/7, 4/5, 3/3, 2/2; 7 words, and references of 5 and 2 that are nearest.
    bleu = (5 / 7 * 4 / 5) ** 0.25
    assert found.metrics == {"cider": pytest.approx(500.0), "bleu4": pytest.approx(100 * bleu)}
    assert math.isclose(100 * bleu_4(answers, references), found.metrics["bleu4"])
    assert found.main == pytest.approx(500.0)


def test_what_cannot_be_scored_is_named():
    good = row("gqa", "yes")
    with pytest.raises(DoraError, match="1 rows of gqa and 2 answers"):
        score_rows("gqa", [good], ["a", "b"])
    with pytest.raises(DoraError, match="0 rows of gqa and 0 answers"):
        score_rows("gqa", [], [])
    with pytest.raises(DoraError, match="row '1': is of gqa, and is scored as vqa"):
        score_rows("vqa", [good], ["a"])
    hidden = row("gqa", where="gqa.json, question 7")
    with pytest.raises(DoraError, match=r"gqa\.json, question 7: has no reference"):
        score_rows("gqa", [hidden], ["a"])
