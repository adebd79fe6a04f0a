"""Statements, of one picture and of two, judged by readings of their own."""

import re
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, Kind
from dora_jax.data.scenes.pairs import PAIR_KINDS, pair_kinds, state_pair
from dora_jax.data.scenes.rows import row
from dora_jax.data.scenes.scene import Group, Object, Scene
from tests.data.scenes.truth import named, one, things

KINDS = get_args(Kind)
FAMILIES = [
    replace(FAMILY_A, kinds=tuple(k for k in KINDS if k != "attribute-style")),
    replace(FAMILY_B, kinds=KINDS),
]
BOTH_FAMILIES = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
MANY = r"((?:\w+ )?\w+)"


def noun_is(name):
    return lambda objects, x, value: str(getattr(one(x, objects), name)) == value


# Each pattern with what makes it true; the last one reads sizes, colours, styles and digits.
SINGLE = [
    (
        r"(?:The number of|Of) (.*) (?:is|one counts) (\d)\.",
        lambda objects, group, count: len(named(group, objects)) == int(count),
    ),
    (r"The shape of (the .*) is: (.*)\.", noun_is("noun")),
    (r"(The .*) has this shape: (.*)\.", noun_is("noun")),
    (r"(The .*) is painted in (.*)\.", noun_is("colour")),
    (r"The size of (the .*) is (.*)\.", noun_is("size")),
    (r"(The .*) is drawn (.*)\.", noun_is("style")),
    (r"(The .*) shows (\d)\.", noun_is("value")),
    (
        r"(?:There are|The picture has) (more|fewer) (.*) than (.*)\.",
        lambda objects, word, a, b: (
            len(named(a, objects)) > len(named(b, objects))
            if word == "more"
            else len(named(a, objects)) < len(named(b, objects))
        ),
    ),
    (
        r"(The .*) is (?:larger|bigger) than (the .*)\.",
        lambda objects, a, b: (one(a, objects).size, one(b, objects).size) == ("large", "small"),
    ),
    (
        r"(The .*) (?:is a greater number|has a higher value) than (the .*)\.",
        lambda objects, a, b: one(a, objects).value > one(b, objects).value,
    ),
    (
        r"(?:The sum of )?([Tt]he .*) and (the .*) (?:is|make) (\d+)(?: together)?\.",
        lambda objects, a, b, total: one(a, objects).value + one(b, objects).value == int(total),
    ),
    (
        r"One finds (the .*) on the left side of (the .*)\.",
        lambda objects, a, b: one(a, objects).x < one(b, objects).x,
    ),
    (
        r"One finds (the .*) higher up than (the .*)\.",
        lambda objects, a, b: one(a, objects).y < one(b, objects).y,
    ),
    (
        r"(?:One finds )?([Tt]he .*?)(?: is)? (left of|right of|above|below) (the .*)\.",
        lambda objects, a, way, b: {
            "left of": one(a, objects).x < one(b, objects).x,
            "right of": one(a, objects).x > one(b, objects).x,
            "above": one(a, objects).y < one(b, objects).y,
            "below": one(a, objects).y > one(b, objects).y,
        }[way],
    ),
    (
        r"The (?:object that is furthest to the )?(left|right)(?:most object has the colour| is) "
        r"(.*)\.",
        lambda objects, side, colour: (
            sorted(objects, key=lambda o: o.x)[0 if side == "left" else -1].colour == colour
        ),
    ),
    (r"(?:There is|The picture shows) (an? .*)\.", lambda objects, a: bool(named(a, objects))),
    (
        r"(The .*) is (\w+)\.",
        lambda objects, a, b: (
            b in (str(getattr(one(a, objects), n)) for n in ("colour", "size", "style", "value"))
        ),
    ),
]


def judged(patterns, statement, *pictures):
    """Whether a statement is true, by the first pattern that reads it."""
    for pattern, is_true in patterns:
        if match := re.fullmatch(pattern, statement):
            return is_true(*pictures, *match.groups())
    raise AssertionError(f"no pattern reads {statement!r}")


@BOTH_FAMILIES
def test_statements_about_one_picture_are_judged_rightly(family):
    answers = Counter()
    for index in range(420):
        r = row("statements", family, "train", index)
        (question,) = r.questions
        assert question.options == ("true", "false")
        truth = judged(SINGLE, question.question, things(r.scenes[0]))
        assert question.answer == ("true" if truth else "false"), question.question
        answers[question.kind, question.answer] += 1
    assert set(answers) == {(kind, a) for kind in family.kinds for a in ("true", "false")}


def has(phrase, picture):
    return bool(named(phrase, picture))


def number(group, picture):
    return len(named(group, picture))


def digit(picture):
    (found,) = (o.value for o in picture if o.value is not None)
    return found


def sided(left, right, side):
    return (left, right) if side == "left" else (right, left)


def compare(measure):
    def is_true(left, right, side, *group):
        here, there = sided(left, right, side)
        return measure(*group, here) > measure(*group, there)

    return is_true


PAIRS = [
    (
        r"(?:There is|Each picture shows) (an? .*?)(?: in both images)?\.",
        lambda left, right, a: has(a, left) and has(a, right),
    ),
    (
        r"(?:Only one of the two images contains|One picture shows) (an? .*?)"
        r"(?:, the other one does not)?\.",
        lambda left, right, a: has(a, left) != has(a, right),
    ),
    (r"The (left|right) image contains more (.*) than the other one\.", compare(number)),
    (r"In the picture on the (left|right) one counts more (.*) than in .*\.", compare(number)),
    (
        r"(?:The two images contain the same number of|One counts as many) (.*?)"
        r"(?: on the left as on the right)?\.",
        lambda left, right, group: number(group, left) == number(group, right),
    ),
    (r"The digit in the (left|right) image is greater than .*\.", compare(digit)),
    (r"The picture on the (left|right) holds the higher digit\.", compare(digit)),
]


@BOTH_FAMILIES
def test_statements_about_two_pictures_are_judged_rightly(family):
    answers = Counter()
    for index in range(200):
        r = row("pairs", family, "test", index)
        (question,) = r.questions
        left, right = (things(scene) for scene in r.scenes)
        truth = judged(PAIRS, question.question, left, right)
        assert question.answer == ("true" if truth else "false"), question.question
        answers[question.kind, question.answer] += 1
    assert set(answers) == {(kind, a) for kind in PAIR_KINDS for a in ("true", "false")}


@BOTH_FAMILIES
def test_what_both_pictures_may_show_is_told_by_two_properties_or_more(family):
    for index in range(60):
        (question,) = row("pairs", family, "train", index).questions
        if question.kind in ("pair-both", "pair-one"):
            phrase = re.search(r"\ban? (.*?)(?: in both images)?[.,]", question.question)[1]
            assert len(phrase.removesuffix(" object").split()) >= 2, phrase


def test_numbers_that_tell_by_what_is_counted_are_not_compared():
    """Here shapes are as many in both pictures, and colours are not."""

    def scene(*colours):
        things = zip(("circle", "square"), colours, (0.2, 0.8), strict=True)
        objects = (Object(kind, c, "large", "filled", x, 0.5) for kind, c, x in things)
        return Scene(tuple(objects), "white", 64, Group("all"))

    left, right = scene("red", "green"), scene("blue", "yellow")
    for seed in range(8):
        rng = np.random.default_rng(seed)
        assert state_pair(left, right, FAMILY_A, "pair-same", rng) is None


@BOTH_FAMILIES
def test_one_picture_of_two_does_not_tell(family):
    """Whoever sees the left picture alone, and guesses by its counts, is right in few more."""
    right_guesses = 0
    rows = [row("pairs", family, "train", 2 + 5 * index) for index in range(200)]
    for r in rows:
        (question,) = r.questions
        assert question.kind == "pair-number"
        side, group = re.search(r"(left|right).*more (.*) than", question.question).groups()
        many = number(group, things(r.scenes[0])) >= 2
        right_guesses += (many == (side == "left")) == (question.answer == "true")
    assert 100 < right_guesses < 190


def test_pairs_fit_the_family():
    assert "pair-digit" not in pair_kinds(replace(FAMILY_A, digits=False, kinds=("count",)))
    assert pair_kinds(replace(FAMILY_A, difficulty=1))[0] == "pair-number"
    assert pair_kinds(FAMILY_B) == PAIR_KINDS
