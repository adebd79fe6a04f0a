"""Scenes as pixels, by numpy alone.

A shape's coverage of pixels is worked out once for each place between two pixels and kept; a scene
is then a few small blends.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from dora_jax.data.scenes import digits
from dora_jax.data.scenes.palette import BACKGROUNDS, COLOURS
from dora_jax.data.scenes.scene import Object, Scene
from dora_jax.data.scenes.shapes import paint

_SAMPLES = 4  # a pixel is sampled this many times each way, and places are rounded to as much


def render(scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
    """Return a scene's picture, from 0 to 255, red first; height and width are its canvas."""
    side = scene.canvas
    image = np.full((side, side, 3), BACKGROUNDS[scene.background], np.float32)
    for o in scene.objects:
        _blend(image, o)
    return np.rint(image).astype(np.uint8)


def render_all(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "n h w 3"]:
    """Return the pictures of scenes of one canvas."""
    return np.stack([render(scene) for scene in scenes])


def _blend(image: np.ndarray, o: Object) -> None:
    """Paint one object; what lies outside the picture is cut off."""
    side = len(image)
    row, row_part = divmod(round(o.y * side * _SAMPLES), _SAMPLES)
    column, column_part = divmod(round(o.x * side * _SAMPLES), _SAMPLES)
    covered = _coverage(o.kind, o.style, o.instance, o.radius * side, row_part, column_part)
    top, left = row - len(covered) // 2, column - len(covered) // 2
    rows, rows_cut = _overlap(top, len(covered), side)
    columns, columns_cut = _overlap(left, len(covered), side)
    patch = image[rows, columns]
    patch += covered[rows_cut, columns_cut, None] * (
        np.array(COLOURS[o.colour], np.float32) - patch
    )


def _overlap(start: int, length: int, side: int) -> tuple[slice, slice]:
    """Return where a patch lies in the picture, and which part of the patch that is."""
    first, last = max(start, 0), max(min(start + length, side), 0)
    return slice(first, last), slice(first - start, max(last - start, 0))


@functools.lru_cache(maxsize=8192)
def _coverage(
    kind: str, style: str, instance: int | None, radius: float, row_part: int, column_part: int
) -> np.ndarray:
    """Return how much of each pixel is painted, (side, side) from 0 to 1.

    Args:
        kind: of the object.
        style: of a shape.
        instance: of a digit.
        radius: in pixels.
        row_part: how many samples the middle lies below a pixel's upper edge.
        column_part: the same to the right.
    """
    side = 2 * math.ceil(radius) + 2
    points = np.arange(side * _SAMPLES) + 0.5 - side // 2 * _SAMPLES
    x = (points - column_part) / (radius * _SAMPLES)
    y = (points - row_part) / (radius * _SAMPLES)
    if instance is not None:
        return _means(_pixel_weights(y)) @ digits.images()[instance] @ _means(_pixel_weights(x)).T
    painted = paint(kind, style, x[None, :], y[:, None])
    return _means(_means(painted).T).T


def _means(samples: np.ndarray) -> np.ndarray:
    """Return the means of each pixel's samples along the first axis."""
    return samples.reshape(-1, _SAMPLES, samples.shape[1]).mean(1)


def _pixel_weights(points: np.ndarray) -> np.ndarray:
    """Return how much each of a digit's 8 pixels counts at points from -1 to 1: linear between."""
    away = (points[:, None] + 1) * 4 - 0.5 - np.arange(8)
    return np.maximum(1 - abs(away), 0).astype(np.float32)
