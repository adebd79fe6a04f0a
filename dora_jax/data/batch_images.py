"""The images of training batches: opened when their batch is made, a broken one told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dora_jax.data.broken_images import BrokenImages
from dora_jax.data.examples import BadImages
from dora_jax.data.images import BrokenImageError
from dora_jax.data.train_rows import TrainRow
from dora_jax.data.vision import Sight, Vision, fill_up
from dora_jax.data.vl.visuals import FeatureVision
from dora_jax.errors import DoraError
from dora_jax.models.source import Visual


class OpensImages(Protocol):
    """How a batch's images are opened: `BatchImages`, or `BatchFeatures`."""

    def open(
        self, places: Sequence[Sequence[TrainRow]], most: int
    ) -> tuple[Sequence[Sequence[TrainRow]], Any]:
        """Return the sequences and, with as many places for images in a row, what was opened."""
        ...

    def note_broken(self, path: Path) -> None:
        """Name in a file what cannot be read from now on."""
        ...


def batch_images(vision: Sight, bad: BadImages) -> OpensImages:
    """Return how the images of training batches are opened, by what the model takes for one."""
    if isinstance(vision, FeatureVision):
        return BatchFeatures(vision)
    assert isinstance(vision, Vision)
    return BatchImages(vision, bad)


class BatchFeatures(NamedTuple):
    """How a batch's features are opened; all of them were looked for when the rows were read."""

    vision: FeatureVision

    def open(
        self, places: Sequence[Sequence[TrainRow]], most: int
    ) -> tuple[Sequence[Sequence[TrainRow]], Visual]:
        """Open the features of a batch; a row without images has places that hold nothing."""
        rows = [[f for row in own for f in self.vision.pictures(row.images)] for own in places]
        return places, self.vision.stack(rows, most)

    def note_broken(self, path: Path) -> None:
        """Nothing is broken that was found."""


@dataclass(frozen=True)
class BatchImages:
    """How a batch's images are opened.

    Attributes:
        vision: the model's.
        bad: what happens where an image cannot be read: `skip` trains on nothing of its row, and
            says so; `error` ends the run.
        broken: notes those that were skipped.
    """

    vision: Vision
    bad: BadImages = "skip"
    broken: BrokenImages = field(default_factory=BrokenImages)

    def note_broken(self, path: Path) -> None:
        """Name the images that cannot be read in a file: see `BrokenImages`."""
        self.broken.path = path

    def open(
        self, places: Sequence[Sequence[TrainRow]], most: int
    ) -> tuple[list[list[TrainRow]], np.ndarray]:
        """Open the images of a batch.

        Args:
            places: the sequences in each row of the batch.
            most: images of a row of the batch.

        Returns:
            The sequences, those without labels whose images cannot be read, and the images (rows,
            most, height, width, channels), float32.

        Raises:
            DoraError: naming the image, where none may be broken.
        """
        kept: list[list[TrainRow]] = []
        images: list[list[np.ndarray]] = []
        for rows in places:
            kept.append([])
            images.append([])
            for row in rows:
                row, pixels = self._open(row)
                kept[-1].append(row)
                images[-1] += pixels
        return kept, fill_up(images, self.vision.shape, most)

    def _open(self, row: TrainRow) -> tuple[TrainRow, list[np.ndarray]]:
        pixels = []
        for image in row.images:
            try:
                pixels.append(self.vision.pixels(image.path))
            except BrokenImageError as error:
                if self.bad == "error":
                    raise DoraError(
                        f"{error}; mend it, or let --data.bad-images skip what is on it"
                    ) from error
                self.broken.note(image.path, error)
        if len(pixels) == len(row.images):
            return row, pixels
        nothing = np.zeros(self.vision.shape, np.float32)
        unlabelled = row._replace(positions=row.positions[:0], targets=row.targets[:0])
        return unlabelled, [nothing] * len(row.images)
