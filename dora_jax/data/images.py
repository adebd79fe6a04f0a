"""Images as a vision tower takes them: opened, padded, resized, cropped and normalised.

What is done is told by `preprocessor_config.json`, in the words of `transformers`' processors of
CLIP, SigLIP and LLaVA, and done by Pillow as they do it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from jaxtyping import Float, UInt8

from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "preprocessor_config.json"
# Where transformers 5 writes it, as a part.
PROCESSOR_FILE = "processor_config.json"
_PART = "image_processor"
_AGAIN = "Download the folder again, or take another one."
_BICUBIC = 3
# What a whole file has near its end, whatever some programs put behind it.
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_LAST = 4096
# Of CLIP's training images.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Settings that are told by another one, or say nothing of the numbers.
_SILENT = ("image_processor_type", "processor_class", "feature_extractor_type", "data_format")
_KNOWN = (
    "do_convert_rgb",
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_center_crop",
    "do_pad",
    "size",
    "crop_size",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
)


@dataclass(frozen=True)
class ImageProcessor:
    """How an image becomes what a tower takes.

    Attributes:
        size: (height, width) to resize to, or one number for the shorter edge; None keeps it.
        crop: (height, width) cut from the middle, filled up with zeros where the image is smaller;
            None keeps all.
        pad: whether the image is first made square, on a ground of the mean colour (LLaVA-1.5).
        mean: of each channel, subtracted; None does not normalise.
        std: of each channel, divided by.
        rescale: what a pixel's value, 0 to 255, is multiplied by; None leaves it.
        resample: Pillow's filter for resizing.
    """

    size: tuple[int, int] | int | None = 224
    crop: tuple[int, int] | None = (224, 224)
    pad: bool = False
    mean: tuple[float, ...] | None = _MEAN
    std: tuple[float, ...] = _STD
    rescale: float | None = 1 / 255
    resample: int = _BICUBIC

    @classmethod
    def load(cls, folder: Path) -> "ImageProcessor":
        """Read a folder's `preprocessor_config.json`, or what `processor_config.json` has of it.

        Raises:
            DoraError: when it is missing or broken, or holds a setting that is not known.
        """
        path = folder / FILE
        if path.is_file() or not cls.is_told(folder):
            raw = read_json_object(path, _AGAIN, ". ")
        else:
            path = folder / PROCESSOR_FILE
            raw = read_json_object(path, _AGAIN, ". ")[_PART]
        try:
            return cls.from_dict(raw)
        except (ValueError, TypeError, KeyError) as error:
            raise DoraError(f"{path}: {error}. {_AGAIN}") from None

    @staticmethod
    def is_told(folder: Path) -> bool:
        """Whether a folder says how images are processed."""
        if (folder / FILE).is_file():
            return True
        path = folder / PROCESSOR_FILE
        given = read_json_object(path, _AGAIN, ". ") if path.is_file() else {}
        return isinstance(given.get(_PART), dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "ImageProcessor":
        """Return the processor of a `preprocessor_config.json`'s settings.

        Raises:
            ValueError: for a setting that is not known and not empty.
        """
        unknown = [n for n, v in raw.items() if n not in (*_KNOWN, *_SILENT) and v is not None]
        if unknown:
            raise ValueError(f"settings that are not supported: {', '.join(unknown)}")
        normalises = raw.get("do_normalize", True)
        return cls(
            size=_size(raw.get("size", 224)) if raw.get("do_resize", True) else None,
            crop=_square(raw.get("crop_size", 224)) if raw.get("do_center_crop") else None,
            pad=bool(raw.get("do_pad")),
            mean=tuple(raw.get("image_mean") or _MEAN) if normalises else None,
            std=tuple(raw.get("image_std") or _STD),
            rescale=float(raw.get("rescale_factor", 1 / 255))
            if raw.get("do_rescale", True)
            else None,
            resample=int(raw.get("resample", _BICUBIC)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of a `preprocessor_config.json`."""
        size: Any = None
        if isinstance(self.size, int):
            size = {"shortest_edge": self.size}
        elif self.size is not None:
            size = {"height": self.size[0], "width": self.size[1]}
        crop = None if self.crop is None else {"height": self.crop[0], "width": self.crop[1]}
        fields = {
            "do_convert_rgb": True,
            "do_resize": size is not None,
            "size": size,
            "resample": self.resample,
            "do_center_crop": crop is not None,
            "crop_size": crop,
            "do_pad": self.pad,
            "do_rescale": self.rescale is not None,
            "rescale_factor": self.rescale,
            "do_normalize": self.mean is not None,
            "image_mean": None if self.mean is None else list(self.mean),
            "image_std": list(self.std),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def __call__(self, images: "Sequence[Image]") -> Float[np.ndarray, "b h w c"]:
        """Return images of one size as one float32 array.

        Raises:
            ValueError: when what is done leaves them of different sizes.
        """
        found = [self._one(image) for image in images]
        if len({array.shape for array in found}) > 1:
            raise ValueError(
                "the images are of different sizes: resize to height and width, or crop"
            )
        return np.stack(found)

    def _one(self, image: "Image") -> np.ndarray:
        image = image.convert("RGB")
        if self.pad:
            image = self._squared(image)
        if self.size is not None:
            image = image.resize(_new_size(image, self.size), _pillow().Resampling(self.resample))
        pixels = np.asarray(image)
        if self.crop is not None:
            pixels = _cropped(pixels, self.crop)
        values: np.ndarray = pixels.astype(np.float32)
        if self.rescale is not None:
            values = (pixels.astype(np.float64) * self.rescale).astype(np.float32)
        if self.mean is not None:
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return values

    def _squared(self, image: "Image") -> "Image":
        side = max(image.size)
        if image.width == image.height:
            return image
        ground = tuple(int(255 * m) for m in self.mean or (0.0, 0.0, 0.0))
        square = _pillow().new("RGB", (side, side), ground)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise DoraError("images need Pillow: pip install 'dora-jax[vision]'") from error
    return PIL.Image


class BrokenImageError(DoraError):
    """A file that is missing, or no image that can be read."""


def open_image(path: "str | Path | BinaryIO", whole: bool = True) -> "Image":
    """Open an image file.

    Args:
        path: the file, or one that is open.
        whole: whether to read all of it; else its head and its end, which show a file that is cut
            short, but not every damage.

    Raises:
        BrokenImageError: naming the file, when it is missing or no image that can be read.
    """
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            if not whole:
                _check_end(image)
                return image
            image.load()
            return image.convert("RGB")
    # Of a file that is damaged, any of these.
    except (OSError, ValueError, SyntaxError, EOFError, pillow.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BrokenImageError(f"{path}: is no image that can be read ({reason})") from error


def as_image(pixels: UInt8[np.ndarray, "h w 3"]) -> "Image":
    """Return pixels, red first, as an image that a processor takes."""
    image: Image = _pillow().fromarray(pixels)
    return image


def _check_end(image: "Image") -> None:
    """Check that an open file ends as its format does.

    Raises:
        OSError: when it does not.
    """
    mark = _ENDS.get(image.format or "")
    file: Any = image.fp  # type: ignore[attr-defined]  # of an image file
    if mark is None or file is None:
        return
    place = file.tell()
    end = file.seek(0, 2)
    file.seek(max(0, end - _LAST))
    is_whole = mark in file.read(_LAST)
    file.seek(place)
    if not is_whole:
        raise OSError("it is cut short")


def _size(given: Any) -> tuple[int, int] | int:
    if isinstance(given, dict) and "shortest_edge" in given:
        return int(given["shortest_edge"])
    if isinstance(given, int):
        return given
    return _square(given)


def _square(given: Any) -> tuple[int, int]:
    if isinstance(given, int):
        return given, given
    return int(given["height"]), int(given["width"])


def _new_size(image: "Image", size: tuple[int, int] | int) -> tuple[int, int]:
    """Return (width, height), as Pillow takes it."""
    if not isinstance(size, int):
        return size[1], size[0]
    width, height = image.size
    longer = int(size * max(width, height) / min(width, height))
    return (size, longer) if width <= height else (longer, size)


def _cropped(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut the middle out; where the image is smaller it stands in the middle of zeros."""
    height, width = size
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    room = (max(height, pixels.shape[0]), max(width, pixels.shape[1]))
    filled = np.zeros((*room, pixels.shape[2]), pixels.dtype)
    # As transformers: what is odd goes before.
    above = -(-(room[0] - pixels.shape[0]) // 2)
    before = -(-(room[1] - pixels.shape[1]) // 2)
    filled[above : above + pixels.shape[0], before : before + pixels.shape[1]] = pixels
    top, left = top + above, left + before
    return filled[max(0, top) : top + height, max(0, left) : left + width]
