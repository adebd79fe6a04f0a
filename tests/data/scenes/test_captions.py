"""Captions read back: they say what is there, all of it, and where."""

import re
from collections import Counter

import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from dora_jax.data.scenes.captions import caption, full_caption, place
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B
from dora_jax.data.scenes.rows import row
from dora_jax.data.scenes.sample import sample_scene
from dora_jax.data.scenes.scene import Group, Object, Scene

FAMILIES = pytest.mark.parametrize("family", [FAMILY_A, FAMILY_B], ids=lambda f: f.name)
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
NUMBERS["seven"] = 7
PLACE = r" (?:at the (?:top|bottom)(?: left| right)?|on the (?:left|right)|in the centre)"


def thing(o):
    return str(o.digit) if o.kind == "digit" else o.kind


def singular(noun, nouns):
    return next(n for n in nouns if noun in (n, n + "s", n + "es"))


@FAMILIES
def test_a_short_caption_says_how_many_of_what(family):
    for index in range(100):
        scene = sample_scene(family, "train", index)
        text = caption(scene, family.wording)
        match = re.fullmatch(
            r"(?:The (\w+) picture shows )?(.*?)(?: on a (\w+) background)?\.", text
        )
        assert scene.background in (match[1], match[3])
        nouns = {thing(o) for o in scene.objects}
        found = Counter()
        for part in re.split(r", | and ", match[2]):
            number, colour, noun = part.lower().split()
            found[colour, singular(noun, nouns)] += NUMBERS[number]
        assert found == Counter((o.colour, thing(o)) for o in scene.objects)


@FAMILIES
def test_a_full_caption_names_every_object_and_its_place(family):
    for index in range(100):
        scene = sample_scene(family, "train", index)
        opening, rest = full_caption(scene, family.wording).split(" From left to right: ")
        assert scene.background in opening
        (number,) = [NUMBERS[w] for w in re.findall(r"\w+(?= objects?\.)", opening)]
        assert number == len(scene.objects)
        parts = re.split(r"(?:, | and )(?=an? )", rest[:-1])
        assert len(parts) == len(scene.objects)
        for part, o in zip(parts, sorted(scene.objects, key=lambda o: o.x), strict=True):
            words = f"{o.size} {o.style} {o.colour} {thing(o)}"
            words = words.replace("filled ", "").replace("written ", "")
            assert re.fullmatch(rf"an? {words}{PLACE}", part)
            assert ("left" in part, "right" in part) == (o.x < 1 / 3, o.x > 2 / 3)
            assert ("top" in part, "bottom" in part) == (o.y < 1 / 3, o.y > 2 / 3)


def test_by_hand():
    three = Object("digit", "red", "large", "written", 0.5, 0.5, digit=8, instance=0)
    cross = Object("cross", "blue", "small", "outlined", 0.9, 0.1)
    scene = Scene((cross, three, cross), "white", 64, Group("all"))
    assert caption(scene) == "A red 8 and two blue crosses on a white background."
    assert full_caption(Scene((cross,), "white", 64, Group("all"))) == (
        "On a white background there is one object. "
        "From left to right: a small outlined blue cross at the top right."
    )
    assert place(three) == "in the centre"


@FAMILIES
def test_caption_rows_take_the_two_kinds_in_turn(family):
    for index in range(4):
        r = row("captions", family, "test", index)
        (question,) = r.questions
        make = (caption, full_caption)[index % 2]
        assert question.answer == make(r.scenes[0], family.wording)
        assert question.options == ()
