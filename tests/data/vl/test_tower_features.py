"""What a frozen tower makes of pictures and clips."""

import jax
import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from dora_jax.data.images import ImageProcessor, as_image
from dora_jax.data.vl.feature_cache import MadeBy, cached_features
from dora_jax.data.vl.tower_features import TowerFeatures
from dora_jax.data.vl.visuals import even_places
from tests.data.vl.tiny import PICTURES, PROCESSOR, TOWER


@pytest.fixture(scope="module")
def params():
    return jax.jit(TOWER.init)(jax.random.key(0), np.zeros((1, 8, 8, 3)))["params"]


def expected(params, pictures):
    pixels = PROCESSOR([as_image(picture) for picture in pictures])
    found = jax.jit(TOWER.apply)({"params": params}, pixels)
    return np.asarray(found.layers[0][:, 1:]), np.asarray(found.pooled)


def test_images_are_grids_without_the_class_token(params):
    made = TowerFeatures(TOWER, params, PROCESSOR, batch_size=2).images(PICTURES)
    assert [grid.shape for grid in made] == [(4, 8)] * 5
    np.testing.assert_allclose(made, expected(params, PICTURES)[0], rtol=1e-5, atol=1e-6)


def test_clips_are_a_vector_for_each_frame_taken(params):
    clips = [PICTURES, PICTURES[:2], PICTURES[3:4]]
    made = TowerFeatures(TOWER, params, PROCESSOR, batch_size=4).clips(clips, frames=2)
    assert [vectors.shape for vectors in made] == [(2, 8), (2, 8), (1, 8)]
    pooled = expected(params, PICTURES)[1]
    np.testing.assert_allclose(made[0], pooled[[1, 3]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made[2][0], pooled[3], rtol=1e-5, atol=1e-6)


def test_of_an_earlier_layer_a_frame_is_the_mean_of_its_patches(params):
    """What the layers behind it pool to may never have been trained."""
    maker = TowerFeatures(TOWER, params, PROCESSOR, layer=0)
    (made,) = maker.clips([PICTURES[:3]], frames=3)
    grids = np.stack(maker.images(PICTURES[:3]))
    np.testing.assert_allclose(made, grids.mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [(8, 4, [1, 3, 5, 7]), (5, 2, [1, 3]), (3, 3, [0, 1, 2]), (2, 9, [0, 1]), (9, 1, [4])],
)
def test_frames_are_taken_evenly(total, count, places):
    assert even_places(total, count).tolist() == places


def test_another_tower_layer_or_processor_is_another_identity(params):
    other = jax.tree.map(np.array, params)
    other["embeddings"]["class_embedding"][0] += 1e-6
    made = [
        TowerFeatures(TOWER, params, PROCESSOR),
        TowerFeatures(TOWER, other, PROCESSOR),
        TowerFeatures(TOWER, params, PROCESSOR, layer=-2),
        TowerFeatures(TOWER, params, ImageProcessor(size=None, crop=None, mean=None)),
    ]
    told = [maker.identity("grid") for maker in made] + [made[0].identity("frames", 4)]
    assert all(a != b for n, a in enumerate(told) for b in told[:n])
    assert told[0] == TowerFeatures(TOWER, params, PROCESSOR, batch_size=9).identity("grid")


def test_they_are_kept(params, tmp_path):
    maker = TowerFeatures(TOWER, params, PROCESSOR)
    by = MadeBy(maker.identity("grid"), {"pictures": "five"}, "float32")
    names = [str(n) for n in range(5)]
    cached = cached_features(
        tmp_path, by, names, lambda some: maker.images([PICTURES[int(name)] for name in some])
    )
    np.testing.assert_array_equal(cached.get("3").features, maker.images(PICTURES)[3])
