"""Images in rows of text: where they stand, and what a model that sees is given of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dora_jax.data.images import ImageProcessor, open_image
from dora_jax.errors import DoraError

# In a text, where an image stands.
IMAGE = "<image>"


class ImageFile(NamedTuple):
    """An image of a row.

    Attributes:
        name: as the row gives it.
        path: where it is.
        size: of the file, in bytes: the same name with other contents shows by it, mostly. Of
            features their stamp, see `Features`.
        span: of a clip the part that the row is about, from and to, in seconds; None is all of it.
    """

    name: str
    path: str
    size: int = 0
    span: tuple[float, float] | None = None


def with_marks(text: str, images: int) -> str:
    """Return a text in which images stand before it, where it does not say itself where."""
    return text if IMAGE in text else f"{IMAGE}\n" * images + text


@dataclass(frozen=True)
class Vision:
    """What a model that sees takes for an image.

    Attributes:
        processor: makes numbers of it.
        token_id: the token at whose places it stands.
        tokens: how many of them one image is.
        shape: (height, width, channels) of the numbers.
    """

    processor: ImageProcessor
    token_id: int
    tokens: int
    shape: tuple[int, int, int]

    def count(self, ids: Sequence[int]) -> int:
        """Return the number of images in a text that was not expanded yet."""
        return sum(token == self.token_id for token in ids)

    def expand(
        self, ids: Sequence[int], spans: Sequence[tuple[int, int]] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Give each image as many tokens as it is: see `expand`."""
        return expand(ids, self.token_id, self.tokens, spans)

    def pictures(self, images: Sequence[ImageFile]) -> list["Picture"]:
        """Return a row's images, each to be opened when it is needed."""
        return [Picture(self, Path(image.path)) for image in images]

    def pixels(self, path: str | Path) -> np.ndarray:
        """Return the numbers of an image file, `shape`, float32.

        Raises:
            BrokenImageError: when it is missing or no image that can be read.
            DoraError: when the processor makes images of another shape than the model takes.
        """
        found = self.processor([open_image(path)])[0]
        if found.shape != self.shape:
            raise DoraError(
                f"the model's image processor (size {self.processor.size}, crop "
                f"{self.processor.crop}) makes an image {found.shape}, and its vision tower takes "
                f"{self.shape}: mend preprocessor_config.json"
            )
        return found


def expand(
    ids: Sequence[int], token_id: int, tokens: int, spans: Sequence[tuple[int, int]] = ()
) -> tuple[list[int], list[tuple[int, int]]]:
    """Give each image as many tokens as it is.

    Args:
        ids: of a text, with one token for each image.
        token_id: that token.
        tokens: how many of them an image is.
        spans: parts (first, end) of the text.

    Returns:
        The ids, and where the parts are now.
    """
    lengths = [tokens if token == token_id else 1 for token in ids]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    longer = [token for token, n in zip(ids, lengths, strict=True) for _ in range(n)]
    return longer, [(int(starts[first]), int(starts[end])) for first, end in spans]


class Sight(Protocol):
    """What a row's images become: `Vision`, or `FeatureVision`."""

    def pictures(self, images: Sequence[ImageFile]) -> Sequence[Any]:
        """Return images as generation and scoring take them, to be opened when needed."""
        ...


def pictures(images: Sequence[ImageFile], vision: Sight | None) -> Sequence[Any]:
    """Return a row's images, each to be opened when it is needed."""
    if not images:
        return []
    assert vision is not None, "rows are encoded for a model that sees their images"
    return vision.pictures(images)


@dataclass(frozen=True)
class Picture:
    """An image file that numpy takes for an array: of many, few are in memory at once."""

    vision: Vision
    path: Path

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        pixels = self.vision.pixels(self.path)
        return pixels if dtype is None else pixels.astype(dtype, copy=False)


def fill_up(
    images: Sequence[Sequence[Any]], shape: tuple[int, int, int], most: int | None = None
) -> np.ndarray:
    """Return the images of rows as one array (rows, most, height, width, channels), float32.

    Args:
        images: of each row, arrays or what numpy takes for such.
        shape: of one of them.
        most: images of a row; None is as many as the fullest has. Rows with fewer get zeros.
    """
    most = max(map(len, images)) if most is None else most
    filled = np.zeros((len(images), most, *shape), np.float32)
    for row, given in enumerate(images):
        for place, image in enumerate(given):
            filled[row, place] = np.asarray(image)
    return filled
