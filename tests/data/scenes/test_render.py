"""Pixels against what is said to be in them, read off by colour and connected parts."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from sklearn.datasets import load_digits

from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B
from dora_jax.data.scenes.palette import BACKGROUNDS, COLOURS
from dora_jax.data.scenes.render import render, render_all
from dora_jax.data.scenes.rows import row
from dora_jax.data.scenes.sample import sample_scene
from dora_jax.data.scenes.scene import Group, Object, Scene
from tests.data.scenes.truth import pixel_components

PLAIN = replace(FAMILY_B, digits=False, styles=("filled",), kinds=("count",))


def alone(o, canvas=64, background="black"):
    return render(Scene((o,), background, canvas, Group("all"))).astype(float)


def painted(pixels):
    """How much paint there is of white on black, in pixels."""
    return pixels.sum() / 255 / 3


@pytest.fixture
def white(monkeypatch):
    monkeypatch.setitem(COLOURS, "red", (255, 255, 255))


@pytest.mark.parametrize("family", [PLAIN, replace(PLAIN, canvas=96)], ids=["64px", "96px"])
def test_colours_places_and_sizes_can_be_read_off_the_pixels(family):
    for index in range(60):
        scene = sample_scene(family, "train", index)
        found = pixel_components(render(scene), scene.background)
        assert len(found) == len(scene.objects)
        side = scene.canvas
        for o in scene.objects:
            away = [np.hypot(x / side - o.x, y / side - o.y) for _, x, y, _ in found]
            colour, _, _, height = found[int(np.argmin(away))]
            assert min(away) < 1.5 / side + 0.15 * o.radius
            assert colour == o.colour
            if o.kind in ("circle", "diamond"):
                assert abs(height - 2 * o.radius * side) <= 2


def test_counts_are_those_of_the_pixels():
    asked = 0
    for index in range(120):
        r = row("questions", PLAIN, "test", index)
        (question,), (scene,) = r.questions, r.scenes
        colours = [colour for colour, *_ in pixel_components(render(scene), scene.background)]
        if scene.group.by == "colour":
            assert question.answer == str(colours.count(scene.group.value))
            asked += 1
        if scene.group.by == "all":
            assert question.answer == str(len(colours))
            asked += 1
    assert asked > 50


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", 4 * 0.78**2),
        ("triangle", 0.9 * 1.62),
        ("diamond", 1.5),
        ("ring", np.pi * 0.7),
        ("cross", 4 * 0.64 - 0.64**2),
        # Of a five-pointed star: 5 R r sin 36 degrees.
        ("star", 5 * 0.45 * np.sin(np.pi / 5)),
    ],
)
@pytest.mark.parametrize("place", [0.5, 0.507, 0.43])
def test_the_paint_of_a_shape_is_its_area(white, shape, area, place):
    o = Object(shape, "red", "large", "filled", place, place)
    expected = area * (o.radius * 64) ** 2
    np.testing.assert_allclose(painted(alone(o)), expected, rtol=0.04)


def test_edges_are_anti_aliased(white):
    values = alone(Object("circle", "red", "large", "filled"))[..., 0]
    between = (values > 5) & (values < 250)
    # About one pixel of the border for each pixel of its length.
    assert 0.5 * 2 * np.pi * 8.64 < between.sum() < 2 * 2 * np.pi * 8.64


def test_an_outline_is_empty_inside_and_stripes_are_both(white):
    styles = {s: alone(Object("circle", "red", "large", s)) for s in ("filled", "outlined")}
    assert styles["filled"][32, 32, 0] == 255
    assert styles["outlined"][32, 32, 0] == 0
    assert styles["outlined"][32, 32 - 8, 0] > 200
    striped = alone(Object("circle", "red", "large", "striped"))[:, 32, 0]
    inner = striped[26:39]
    assert inner.max() > 230
    assert inner.min() < 130
    crossings = np.diff((inner > inner.mean()).astype(int))
    assert abs(crossings).sum() >= 4


@pytest.mark.parametrize("instance", [0, 5, 9])
def test_a_digit_is_the_handwritten_image(white, instance):
    digit = int(load_digits().target[instance])
    o = Object("digit", "red", "large", "written", 0.5, 0.5, digit, instance)
    pixels = alone(o, canvas=512)[..., 0]
    side = round(2 * o.radius * 512)
    start = 256 - side // 2
    blocks = np.array_split(np.arange(start, start + side), 8)
    seen = np.array([[pixels[np.ix_(r, c)].mean() for c in blocks] for r in blocks])
    ink = np.minimum(load_digits().images[instance] / 12, 1)
    assert np.corrcoef(seen.ravel(), ink.ravel())[0, 1] > 0.95
    # Upright and not mirrored: any other way round fits less.
    others = [ink.T, ink[::-1], ink[:, ::-1], ink[::-1, ::-1]]
    fits = [abs(seen / 255 - other).mean() for other in (ink, *others)]
    assert fits[0] == min(fits)


def test_what_lies_outside_the_picture_is_cut_off(white):
    whole = painted(alone(Object("circle", "red", "large", "filled")))
    half = painted(alone(Object("circle", "red", "large", "filled", 0.0, 0.5)))
    np.testing.assert_allclose(half, whole / 2, rtol=0.03)
    assert painted(alone(Object("circle", "red", "large", "filled", -0.5, 0.5))) == 0
    assert painted(alone(Object("circle", "red", "large", "filled", 0.5, 1.5))) == 0


def test_pictures_together_are_those_alone():
    scenes = [sample_scene(FAMILY_B, "train", index) for index in range(5)]
    together = render_all(scenes)
    assert together.dtype == np.uint8
    np.testing.assert_array_equal(together, [render(scene) for scene in scenes])


def test_colours_are_told_apart_from_each_other_and_from_their_backgrounds():
    for family in (FAMILY_A, FAMILY_B):
        values = [COLOURS[c] for c in family.colours] + [BACKGROUNDS[b] for b in family.backgrounds]
        values = np.array(values, float)
        for index, colour in enumerate(values[: len(family.colours)]):
            others = np.delete(values, index, 0)
            assert abs(others - colour).sum(-1).min() > 100
