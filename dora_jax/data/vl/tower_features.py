"""Features of pictures and clips by a frozen vision tower: what `cached_features` makes.

images: every patch of the last layer, a square grid (P, D), row by row
clips:  one vector of each frame, frames taken evenly (T, D)
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dora_jax.data.images import ImageProcessor, as_image
from dora_jax.data.vl.visuals import even_places
from dora_jax.models.vit import VisionTower

Picture = UInt8[np.ndarray, "h w 3"]
Kind = Literal["grid", "frames"]


class TowerFeatures:
    """A frozen tower.

    Args:
        tower: the plain tower.
        params: its parameters.
        processor: makes what the tower takes of a picture.
        layer: whose outputs are an image's features, see `VisionTower`.
        batch_size: pictures that the tower sees at once; one program, the last batch filled up.
    """

    def __init__(
        self,
        tower: VisionTower,
        params: Any,
        processor: ImageProcessor,
        layer: int = -1,
        batch_size: int = 64,
    ):
        self._tower, self._params, self._processor = tower, params, processor
        self._layer, self._batch_size = layer, batch_size

    def identity(self, kind: Kind, frames: int | None = None) -> dict[str, Any]:
        """Return what the features depend on, for `MadeBy.maker`.

        Args:
            kind: whether of images or of clips.
            frames: of a clip, at most.
        """
        return {
            "kind": kind,
            "frames": frames,
            "tower": vars(self._tower.config),
            "dtype": jnp.dtype(self._tower.dtype).name,
            "layer": self._layer,
            "processor": self._processor.to_dict(),
            "params": _digest(self._params),
        }

    def images(self, pictures: Sequence[Picture]) -> list[Float[np.ndarray, "p d"]]:
        """Return the grid of each picture, without the class token."""
        return [grid for grid, _ in self._seen(pictures)]

    def clips(
        self, clips: Sequence[Sequence[Picture]], frames: int
    ) -> list[Float[np.ndarray, "t d"]]:
        """Return a vector for each frame: what the tower pools to, or else the mean of the patches.

        Of an earlier layer it is the mean too: pooling is of the last one.

        Args:
            clips: the frames of each, in order.
            frames: that are taken of a clip at most, evenly.
        """
        chosen = [[clip[place] for place in even_places(len(clip), frames)] for clip in clips]
        vectors = iter(self._seen([frame for clip in chosen for frame in clip]))
        return [np.stack([next(vectors)[1] for _ in clip]) for clip in chosen]

    def _seen(self, pictures: Sequence[Picture]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yield the grid and the vector of each picture."""
        for start in range(0, len(pictures), self._batch_size):
            part = [as_image(picture) for picture in pictures[start:][: self._batch_size]]
            pixels = self._processor(part)
            spare = [(0, self._batch_size - len(part)), (0, 0), (0, 0), (0, 0)]
            grids, vectors = _look(self._tower, self._layer, self._params, np.pad(pixels, spare))
            yield from zip(np.asarray(grids)[: len(part)], np.asarray(vectors), strict=False)


def _digest(params: Any) -> str:
    """Return a digest of every number: a cache must not be taken for another tower's."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(tower: VisionTower, layer: int, params: Any, pixels: Array) -> tuple[Array, Array]:
    is_last = layer in (-1, tower.config.num_hidden_layers)
    found: Any = tower.apply({"params": params}, pixels, layers=(layer,), pool=is_last)
    grid = found.layers[0][:, int(tower.config.class_token) :].astype(jnp.float32)
    vector = grid.mean(axis=1) if found.pooled is None else found.pooled.astype(jnp.float32)
    return grid, vector
