"""VL-BART's tasks about scenes: what is asked is about the pictures that a row names."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")

from dora_jax.data.scenes.captions import caption
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B
from dora_jax.data.scenes.render import render
from dora_jax.data.scenes.rows import row
from experiments.vlbart.scene_rows import pictures, scene_row

BOTH_FAMILIES = pytest.mark.parametrize(
    "family", [FAMILY_A, FAMILY_B], ids=lambda family: family.name
)


@BOTH_FAMILIES
def test_the_left_picture_of_a_statement_is_the_one_that_it_calls_left(family):
    """A statement's first scene is its left one: tests of statements read it so."""
    for number in range(4):
        asked = scene_row("nlvr", family, "test", number)
        scenes = row("pairs", family, "test", number).scenes
        assert asked.source == row("pairs", family, "test", number).questions[0].question
        assert [name.rpartition("-")[2] for name in asked.visuals] == ["left", "right"]
        for name, scene in zip(asked.visuals, scenes, strict=True):
            (seen,) = pictures(name)
            np.testing.assert_array_equal(seen, render(scene))


@BOTH_FAMILIES
def test_every_caption_is_one_sentence_about_the_picture_of_its_row(family):
    told = set()
    for number in range(6):
        asked = scene_row("caption", family, "train", number)
        drawn = row("captions", family, "train", 2 * number)
        assert asked.targets == (caption(drawn.scenes[0], family.wording),)
        np.testing.assert_array_equal(pictures(asked.visuals[0]), [render(drawn.scenes[0])])
        told |= set(asked.targets)
    assert len(told) == 6
