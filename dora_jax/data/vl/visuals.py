"""What a model that reads features is given of a row's images or clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from dora_jax.data.features import check_features, stack_features
from dora_jax.data.vision import ImageFile
from dora_jax.data.vl.feature_files import Features, Seen
from dora_jax.errors import DoraError
from dora_jax.models.source import Visual
from dora_jax.models.vlbart import VLBartConfig


@dataclass(frozen=True)
class FeatureVision:
    """What a model takes for an image: its features, by the image's name.

    Attributes:
        features: of all images.
        config: the model's shape.
        seconds: that one feature of a clip stands for, by which its part is cut out; may be None
            where no row is about a part.
    """

    features: Features
    config: VLBartConfig
    seconds: float | None = None

    def pictures(self, images: Sequence[ImageFile]) -> Sequence[Seen]:
        """Return a row's images, each to be opened when it is looked at."""
        return _Opened(self, tuple(images))

    def open(self, image: ImageFile) -> Seen:
        """Return an image, or the frames of a clip, as `generate` takes it.

        Of a clip with more frames than the model has tokens (`image_tokens`) as many are taken
        evenly: what the model sees does not depend on how long the other clips of a batch are.

        Raises:
            DoraError: naming the image, for what is missing or does not fit the model.
        """
        where = f"{self.features.path}, {image.name!r}"
        seen = self.features.get(image.name)
        if self.config.layout == "frames":
            seen = _of_places(seen, self._frames(image, len(seen.features), where))
        elif image.span is not None:
            raise DoraError(
                f"{where}: a row is about a part of it ('span'), and the model reads "
                f"{self.config.layout}, not frames: name a model of clips, or take 'span' out"
            )
        check_features([seen], self.config, where)
        return seen

    def stack(self, rows: Sequence[Sequence[Any]], images: int) -> Visual:
        """Return the images of a batch's rows with places for so many, see `stack_features`."""
        visual = stack_features(rows, self.config, images)
        assert visual is not None, "a batch has places for images where a row has one"
        return visual

    def _frames(self, image: ImageFile, total: int, where: str) -> Int[np.ndarray, "n"]:
        """Return which frames of a clip the model is given."""
        places = np.arange(total)
        if image.span is not None:
            if self.seconds is None:
                raise DoraError(
                    f"{where}: a row is about a part of it ('span'): say how many seconds one of "
                    "its features stands for (data.frame_seconds)"
                )
            start, end = image.span
            first = min(int(start // self.seconds), total - 1)
            places = places[first : max(first + 1, math.ceil(end / self.seconds))]
        return places[even_places(len(places), self.config.image_tokens)]


class _Opened(Sequence[Seen]):
    """A row's images, read each time they are looked at: of many rows few are in memory."""

    def __init__(self, vision: FeatureVision, images: tuple[ImageFile, ...]):
        self._vision, self._images = vision, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, place: Any) -> Any:
        return self._vision.open(self._images[place])


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
