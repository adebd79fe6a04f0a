"""What a model is given of a row's images or clip."""

import math

import numpy as np
from jaxtyping import Int

from dora_jax.data.features import check_features
from dora_jax.data.vl.feature_files import Features, Seen
from dora_jax.data.vl.row import VLRow
from dora_jax.errors import DoraError
from dora_jax.models.vlbart import VLBartConfig


def row_visuals(
    row: VLRow, features: Features | None, config: VLBartConfig, seconds: float | None = None
) -> list[Seen]:
    """Return a row's images, or the frames of its clip, in order: for batches and for `generate`.

    Of a clip with more frames than the model has tokens (`image_tokens`) as many are taken evenly:
    what the model sees does not depend on how long the other clips of a batch are.

    Args:
        row: names them, and the part of the clip that it is about.
        features: has them; None where rows have none.
        config: the model's shape.
        seconds: that one feature of a clip stands for, so that its part can be cut out; None gives
            the whole clip.

    Raises:
        DoraError: naming the row, for what is missing or does not fit.
    """
    if row.visuals and features is None:
        raise DoraError(f"{row.where or row.id}: names images, and no features are given")
    images: list[Seen] = []
    for name in row.visuals:
        assert features is not None, "checked above"
        seen = features.get(name)
        if config.layout == "frames":
            seen = _of_places(seen, _frames(row, len(seen.features), config, seconds))
        images.append(seen)
    check_features(images, config, row.where or row.id)
    return images


def _frames(
    row: VLRow, total: int, config: VLBartConfig, seconds: float | None
) -> Int[np.ndarray, "n"]:
    """Return which frames of a clip a row's model is given."""
    places = np.arange(total)
    if row.span is not None and seconds is not None:
        start, end = row.span
        first = min(int(start // seconds), total - 1)
        places = places[first : max(first + 1, math.ceil(end / seconds))]
    return places[even_places(len(places), config.image_tokens)]


def _of_places(seen: Seen, places: Int[np.ndarray, "n"]) -> Seen:
    boxes = None if seen.boxes is None else seen.boxes[places]
    return Seen(seen.features[places], boxes)


def even_places(total: int, count: int) -> Int[np.ndarray, "n"]:
    """Return which of `total` frames stand for a clip: at most `count`, in the middle of parts.

    Example:
        >>> even_places(8, 4).tolist(), even_places(3, 4).tolist()
        ([1, 3, 5, 7], [0, 1, 2])
    """
    if total <= count:
        return np.arange(total)
    return (2 * np.arange(count) + 1) * total // (2 * count)
