"""CIDEr-D and BLEU-4 against values worked by hand, in the comments."""

import math

import pytest

from dora_jax.errors import DoraError
from dora_jax.evaluation.captioning import bleu_4, cider_d

BOX = ["blue box"]


def first_cider(caption, people, others=(("x", BOX),)):
    """CIDEr-D of a caption in a set whose other images are these."""
    captions = [caption, *(c for c, _ in others)]
    return cider_d(captions, [people, *(p for _, p in others)]).each[0]


def test_cider_of_two_images():
    found = cider_d(["Red ball.", "blue ball"], [["a red ball"], ["a blue box"]])
    # "a" is of both images and weighs nothing; any other word or pair weighs log 2.
    # First: words (red, ball) = (red, ball): 1. Pairs: (red ball) to (a red, red ball):
    # 1 / sqrt 2. One word shorter.
    first = 10 * math.exp(-1 / 72) * (1 + 1 / math.sqrt(2)) / 4
    # Second: words (blue, ball) to (blue, box): 1/2. No pair.
    second = 10 * math.exp(-1 / 72) * 0.5 / 4
    assert found.each == (pytest.approx(first), pytest.approx(second))
    assert found.mean == pytest.approx((first + second) / 2)


def test_cider_weighs_a_word_by_the_images_that_have_it():
    # Of three images: "ball" is in two, log 3/2, whatever its captions; "red" in one, log 3.
    others = (("x", ["green ball", "ball ball"]), ("x", ["blue ball"]))
    ball, red = math.log(3 / 2), math.log(3)
    expected = red**2 / (math.hypot(red, ball) * math.hypot(red, red))
    assert first_cider("red ball", ["red cube"], others) == pytest.approx(10 * expected / 4)


def test_cider_cuts_what_is_said_too_often():
    # (red: 2) to (red, ball): min(2, 1) * 1 / (2 * sqrt 2).
    expected = 10 / (2 * math.sqrt(2)) / 4
    assert first_cider("red red", ["red ball"]) == pytest.approx(expected)


def test_cider_is_the_mean_over_references_and_orders():
    # Four words alike: 1 at each order. The other reference shares nothing.
    assert first_cider("a b c d", ["a b c d"]) == pytest.approx(10)
    assert first_cider("a b c d", ["a b c d", "e f g h"]) == pytest.approx(5)
    # Three words have no 4-gram.
    assert first_cider("a b c", ["a b c"]) == pytest.approx(7.5)


def test_cider_of_longer_and_shorter_captions():
    # Two words too many. Words: 2 of 4 are the reference's, 1 / sqrt 2; pairs: 1 of 3, 1 / sqrt 3.
    expected = 10 * math.exp(-4 / 72) * (1 / math.sqrt(2) + 1 / math.sqrt(3)) / 4
    assert first_cider("a b c d", ["a b"]) == pytest.approx(expected)
    assert first_cider("a b", ["a b c d"]) == pytest.approx(expected)


def test_cider_of_nothing_in_common_or_a_single_image():
    assert first_cider("a b", BOX) == 0.0
    assert first_cider("", ["a b"]) == 0.0
    assert cider_d(["a b"], [["a b"]]).mean == 0.0


def test_bleu_of_one_caption():
    # 5 of 6 words ("the" counts once), 3 of 5 pairs, 2 of 4 triples, 1 of 3.
    found = bleu_4(["The cat sat on the mat."], [["the cat sat on a mat"]])
    assert found == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))


def test_bleu_counts_up_to_the_most_of_any_reference():
    caption, people = "a b c d a b c d", ["a b c d", "a b c d d x y z"]
    # Words: a, b, c once, d twice: 5 of 8; pairs: ab, bc, cd of 7; abc, bcd of 6; abcd of 5.
    expected = (5 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** (1 / 4)
    assert bleu_4([caption], [people]) == pytest.approx(expected)


def test_bleu_sums_over_images_before_it_divides():
    found = bleu_4(["a b c d", "u v w x y z"], [["a b c d"], ["p q r s"]])
    # 4 of 10, 3 of 8, 2 of 6, 1 of 4; longer than the references.
    assert found == pytest.approx((4 * 3 * 2 * 1 / (10 * 8 * 6 * 4)) ** (1 / 4))


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        (["a b c d e f"], math.exp(1 - 6 / 4)),
        (["a b c d e f", "q r s t u"], math.exp(1 - 5 / 4)),  # the nearest length
        (["a b c", "a b c d e"], 1.0),  # of two that are as near, the shorter
        (["a b c d", "a b c d e f g"], 1.0),
    ],
)
def test_bleu_s_penalty_for_short_captions(people, expected):
    assert bleu_4(["a b c d"], [people]) == pytest.approx(expected)


def test_bleu_without_a_match_of_four():
    assert bleu_4(["a b c x"], [["a b c d"]]) == 0.0
    assert bleu_4(["", "a"], [["a b"], ["a"]]) == 0.0


@pytest.mark.parametrize("score", [cider_d, bleu_4])
@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        ([], [], "0 captions, and references of 0 images"),
        (["a"], [["a"], ["b"]], "1 captions, and references of 2 images"),
        (["a", "b"], [["a"], []], r"the image at 1 \(from 0\) has no reference"),
    ],
)
def test_what_does_not_fit_is_refused(score, captions, references, message):
    with pytest.raises(DoraError, match=message):
        score(captions, references)
