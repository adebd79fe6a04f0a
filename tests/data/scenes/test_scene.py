"""Scenes: drawn alone, disjoint between splits, and moved by each knob as it says."""

import dataclasses
import hashlib
import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from sklearn.datasets import load_digits

from dora_jax.data.scenes import digits
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, MOST_OBJECTS
from dora_jax.data.scenes.render import render
from dora_jax.data.scenes.sample import place, sample_scene
from dora_jax.errors import DoraError

SPLITS = ("train", "validation", "test")
FAMILIES = pytest.mark.parametrize("family", [FAMILY_A, FAMILY_B], ids=lambda f: f.name)


def some(family, split="train", count=150, seed=0):
    return [sample_scene(family, split, index, seed) for index in range(count)]


def seen(scenes, field):
    return {getattr(o, field) for scene in scenes for o in scene.objects}


@FAMILIES
def test_any_scene_can_be_drawn_alone_in_any_order(family):
    forwards = some(family, count=20)
    assert [sample_scene(family, "train", index) for index in reversed(range(20))][::-1] == forwards
    assert len({repr(scene) for scene in forwards}) == 20
    assert some(family, count=20, seed=1) != forwards


def test_another_process_draws_the_same_pixels():
    code = (
        "import hashlib; from dora_jax.data.scenes.families import FAMILY_B;"
        "from dora_jax.data.scenes.sample import sample_scene;"
        "from dora_jax.data.scenes.render import render;"
        "print(hashlib.sha256(render(sample_scene(FAMILY_B, 'test', 7, 3))).hexdigest())"
    )
    here = hashlib.sha256(render(sample_scene(FAMILY_B, "test", 7, 3))).hexdigest()
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == here


def test_no_content_is_in_two_splits_whatever_the_seed():
    # A family so small that contents come again and again.
    tiny = replace(FAMILY_A, counts=(1, 2), most_counted=1, digits=False, kinds=("count",))

    def contents(split, seed):
        return {
            tuple(sorted((scene.background, o.kind, o.colour, o.size) for o in scene.objects))
            for scene in some(tiny, split, 300, seed)
        }

    train, test = contents("train", 0), contents("test", 1)
    assert len(contents("train", 0) & contents("train", 1)) > 50
    assert len(test) > 30
    assert not train & test
    assert not train & contents("validation", 1)


def test_no_handwritten_digit_is_in_two_splits():
    found = {split: np.concatenate(digits.instances(split)) for split in SPLITS}
    together = np.concatenate(list(found.values()))
    assert sorted(together) == list(range(1797))
    given = load_digits()
    pixels = {s: {given.images[i].tobytes() for i in found[s]} for s in SPLITS}
    assert not any(pixels[a] & pixels[b] for a, b in itertools.combinations(SPLITS, 2))
    for split in SPLITS:
        for value, indices in enumerate(digits.instances(split)):
            assert len(indices) >= 10
            assert set(given.target[list(indices)]) == {value}


@FAMILIES
def test_scenes_use_their_own_split_s_digits(family):
    for split in SPLITS:
        allowed = digits.instances(split)
        used = [o for s in some(family, split) for o in s.objects if o.kind == "digit"]
        assert len(used) > 20
        assert all(o.instance in allowed[o.digit] for o in used)


@FAMILIES
def test_objects_neither_overlap_nor_leave_the_picture(family):
    for scene in some(family):
        assert family.counts[0] <= len(scene.objects) <= family.counts[1]
        for o in scene.objects:
            assert o.radius < min(o.x, o.y, 1 - o.x, 1 - o.y)
        for a, b in itertools.combinations(scene.objects, 2):
            assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 > (a.radius + b.radius) ** 2


@pytest.mark.parametrize("radius", [0.08, 0.145])
def test_the_most_objects_find_room(radius):
    for seed in range(20):
        found = place([radius] * MOST_OBJECTS, np.random.default_rng(seed))
        away = [np.linalg.norm(a - b) for a, b in itertools.combinations(found, 2)]
        assert min(away) > 2 * radius
        assert radius < found.min() < found.max() < 1 - radius


KNOBS = [
    ("shapes", ("star", "heart"), lambda s: seen(s, "kind") - {"digit"} == {"star", "heart"}),
    ("colours", ("pink", "cyan"), lambda s: seen(s, "colour") == {"pink", "cyan"}),
    ("sizes", ("large",), lambda s: seen(s, "size") == {"large"}),
    ("styles", ("striped",), lambda s: seen(s, "style") == {"striped", "written"}),
    ("backgrounds", ("beige",), lambda s: {x.background for x in s} == {"beige"}),
    ("counts", (6, 7), lambda s: {len(x.objects) for x in s} == {6, 7}),
    ("most_counted", 1, lambda s: {count(x) for x in s if x.group.by != "all"} == {0, 1}),
    ("digits", False, lambda s: "digit" not in seen(s, "kind")),
    ("canvas", 96, lambda s: {render(x).shape for x in s[:5]} == {(96, 96, 3)}),
]


def count(scene):
    return sum(getattr(o, scene.group.by) == scene.group.value for o in scene.objects)


@pytest.mark.parametrize(("knob", "value", "moved"), KNOBS, ids=[knob for knob, *_ in KNOBS])
def test_a_knob_moves_what_it_says_and_starts_elsewhere(knob, value, moved):
    base = replace(FAMILY_A, kinds=("count",))
    assert moved(some(replace(base, **{knob: value}), count=100))
    assert not moved(some(base, count=100))


def test_family_b_is_shifted():
    for field in dataclasses.fields(FAMILY_A):
        same = getattr(FAMILY_A, field.name) == getattr(FAMILY_B, field.name)
        assert same == (field.name in ("sizes", "digits", "canvas")), field.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colours": ("red", "blu")}, r"colours: unknown 'blu' \(did you mean 'blue'\?\)"),
        ({"colours": ("red",)}, "colours must be 2 or more different names"),
        ({"shapes": ("circle", "circle")}, "shapes must be 2 or more different names"),
        ({"counts": (3, 2)}, "counts must be two numbers from 1 to 9"),
        ({"counts": (3, 10)}, "counts must be two numbers from 1 to 9"),
        ({"most_counted": 6}, "most_counted must be from 1 to the most of Family.counts, 5"),
        ({"difficulty": 4}, "difficulty must be from 1 to 3; got 4"),
        ({"canvas": 8}, "canvas must be from 32 to 1024"),
        ({"wording": "odd"}, "wording must be plain or other"),
        ({"styles": ("outlined",)}, "an outlined circle looks like a ring"),
        ({"kinds": ("attribute-style",)}, "kinds: attribute-style needs two styles"),
        ({"sizes": ("small",)}, "kinds: attribute-size needs two sizes"),
        ({"digits": False}, "kinds: attribute-digit needs digits"),
    ],
)
def test_a_wrong_family_is_refused(changes, message):
    with pytest.raises(DoraError, match=message):
        replace(FAMILY_A, **changes)
