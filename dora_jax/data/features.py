"""Features of images and clips, as rows have them, to arrays of a batch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dora_jax.errors import DoraError
from dora_jax.models.source import Visual
from dora_jax.models.vlbart import VLBartConfig


def _parts(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return an image's features and boxes; zeros where it has none."""
    features, boxes = image if isinstance(image, tuple) else (image, None)
    features = np.asarray(features)
    return features, np.zeros((len(features), 4)) if boxes is None else np.asarray(boxes)


def check_features(images: Sequence[Any], config: VLBartConfig, where: str) -> None:
    """Check that a model takes a row's images.

    Args:
        images: of the row: each features (K, F), or a tuple of those and boxes (K, 4).
        config: the model's shape.
        where: named in the error.

    Raises:
        DoraError: for more images than the model tells apart, another shape, a grid that is no
            square, or more regions than the model has tokens for.
    """
    if len(images) > config.max_images:
        raise DoraError(f"{where} has {len(images)} images; the model takes {config.max_images}")
    for number, image in enumerate(images, 1):
        features, boxes = _parts(image)
        if features.ndim != 2 or features.shape[1] != config.feature_size or not len(features):
            raise DoraError(
                f"{where}, image {number}: its features have shape {features.shape}; the model "
                f"takes (any number, {config.feature_size})"
            )
        if boxes.shape != (len(features), 4):
            raise DoraError(
                f"{where}, image {number}: its boxes have shape {boxes.shape}; there must be one "
                f"for each of {len(features)} features, of 4 numbers"
            )
        count, most = len(features), config.image_tokens
        if config.layout == "grid" and math.isqrt(count) ** 2 != count:
            raise DoraError(
                f"{where}, image {number}: its {count} features are no square; the model takes the "
                "cells of a square grid (layout 'grid')"
            )
        if config.layout == "regions" and count > most:
            raise DoraError(
                f"{where}, image {number}: has {count} regions; the model takes {most} "
                f"(image_tokens): keep the best {most}"
            )


def stack_features(
    rows: Sequence[Sequence[Any]], config: VLBartConfig, images: int = 0
) -> Visual | None:
    """Return the images of a batch's rows, filled up; None where no row has any.

    Args:
        rows: of each row its images, as `check_features` takes them. Frames and regions are filled
            up to `image_tokens`, so that all batches have one shape.
        config: the model's shape.
        images: places for images in a row, at least.

    Raises:
        DoraError: where one image is a grid of another size than another one.
    """
    parts = [[_parts(image) for image in row] for row in rows]
    counts = {len(features) for row in parts for features, _ in row}
    if not counts:
        return None
    if config.layout == "grid" and len(counts) > 1:
        raise DoraError(
            f"grids of {', '.join(map(str, sorted(counts)))} features are in one batch; make all "
            "images' features alike"
        )
    most = max(counts) if config.layout == "grid" else max(config.image_tokens, *counts)
    shape = (len(rows), max(images, *(len(row) for row in parts)), most)
    features = np.zeros((*shape, config.feature_size), np.float32)
    boxes, is_real = np.zeros((*shape, 4), np.float32), np.zeros(shape, bool)
    for number, row in enumerate(parts):
        for place, (own, own_boxes) in enumerate(row):
            count = len(own)
            features[number, place, :count], boxes[number, place, :count] = own, own_boxes
            is_real[number, place, :count] = True
    return Visual(features, boxes, is_real)
