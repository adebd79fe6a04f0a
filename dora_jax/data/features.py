"""Features of images and clips, as rows have them, to arrays of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dora_jax.data.vision import ImageFile
from dora_jax.errors import DoraError
from dora_jax.models.source import Visual
from dora_jax.models.vlbart import VLBartConfig, pooled


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
        DoraError: for more images than the model tells apart, or another shape.
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


class Features(Protocol):
    """Features by the name of an image or clip; where they are kept is its own affair."""

    path: Path
    size: int
    """Bytes: other features under the same names show by it, mostly."""

    def __contains__(self, name: object) -> bool: ...

    def get(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return features (K, F) and boxes (K, 4), if there are any, (left, right, top, bottom)."""
        ...


@dataclass(frozen=True)
class FeatureVision:
    """What a model that reads features takes for an image.

    Attributes:
        features: of all images, by name.
        config: the model's shape.
    """

    features: Features
    config: VLBartConfig

    def pictures(self, images: Sequence[ImageFile]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return a row's images as `generate` takes them: features and boxes.

        Raises:
            DoraError: naming the image whose features are not what the model takes.
        """
        found = []
        for image in images:
            given = self.features.get(image.name)
            check_features([given], self.config, f"{self.features.path}, {image.name}")
            found.append(_shortened(*_parts(given), self.config))
        return found

    def stack(self, rows: Sequence[Sequence[Any]], images: int) -> Visual:
        """Return the images of a batch's rows with places for so many, see `stack_features`."""
        visual = stack_features(rows, self.config, images)
        assert visual is not None, "a batch has places for images where a row has one"
        return visual


def _shortened(
    features: np.ndarray, boxes: np.ndarray, config: VLBartConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return a clip of no more frames than the model reads.

    The model pools as many windows as it reads of all places of a batch; a clip beside a longer one
    would be pooled otherwise than alone.
    """
    if config.layout != "frames" or len(features) <= config.image_tokens:
        return features, boxes
    whole = Visual(features[None, None], boxes[None, None], np.ones((1, 1, len(features)), bool))
    short = pooled(config, whole)
    return np.asarray(short.features[0, 0]), np.asarray(short.boxes[0, 0])


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
