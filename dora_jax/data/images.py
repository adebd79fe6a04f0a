"""Images as a vision tower takes them: opened, padded, resized, cropped and normalised.

What is done is told by `preprocessor_config.json`, in the words of `transformers`' processors of
CLIP, SigLIP and LLaVA, and done by Pillow as they do it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from jaxtyping import Float, UInt8

from dora_jax.analysis.records import is_instance
from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "preprocessor_config.json"
# Where transformers 5 writes it, as a part.
PROCESSOR_FILE = "processor_config.json"
_PART = "image_processor"
_AGAIN = "Mend it, or download the folder again."
_BICUBIC = 3
# Pillow's filters, by their numbers.
_FILTERS = range(6)
_CHANNELS = 3
# What a whole file has near its end, whatever some programs put behind it.
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_LAST = 4096
# Of CLIP's training images.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Settings that are told by another one, or say nothing of the numbers.
_SILENT = (
    "image_processor_type",
    "processor_class",
    "feature_extractor_type",
    "data_format",
    "device",
    "disable_grouping",
    "image_seq_length",
    "return_tensors",
)
_KNOWN = (
    "do_convert_rgb",
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_center_crop",
    "do_pad",
    "size",
    "default_to_square",
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
        resample: Pillow's filter for resizing, by its number.

    Raises:
        ValueError: for a value of another kind, or one that no image can be made by.
    """

    size: tuple[int, int] | int | None = 224
    crop: tuple[int, int] | None = (224, 224)
    pad: bool = False
    mean: tuple[float, ...] | None = _MEAN
    std: tuple[float, ...] = _STD
    rescale: float | None = 1 / 255
    resample: int = _BICUBIC

    def __post_init__(self) -> None:
        if isinstance(self.size, tuple):
            _check_pair("size", self.size)
        elif self.size is not None:
            _check(_is_count(self.size), "size", self.size, "a whole number of at least 1")
        if self.crop is not None:
            _check_pair("crop_size", self.crop)
        if self.mean is not None:
            _check_channels("image_mean", self.mean, "numbers", -math.inf)
        _check_channels("image_std", self.std, "numbers more than 0", 0)
        scales = self.rescale is None or (_is_number(self.rescale) and self.rescale > 0)
        _check(scales, "rescale_factor", self.rescale, "a number more than 0")
        is_filter = is_instance(self.resample, (int,)) and self.resample in _FILTERS
        numbers = f"the number of one of Pillow's filters, 0 to {_FILTERS[-1]}"
        _check(is_filter, "resample", self.resample, numbers)

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
        except ValueError as error:
            raise DoraError(f"{path}: {error}. {_AGAIN}") from None
        except DoraError as error:
            raise DoraError(f"{path}: {error}") from None

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

        Settings that are null are as if they were not there, and so are those whose name begins
        with an underscore: they are transformers' own notes.

        Raises:
            DoraError: for a setting that is not known; it might change the pixels.
            ValueError: for a setting whose value cannot be.
        """
        given = {n: v for n, v in raw.items() if v is not None and not n.startswith("_")}
        unknown = [f"{n} ({json.dumps(v)})" for n, v in given.items() if n not in _KNOWN + _SILENT]
        if unknown:
            raise DoraError(
                f"settings that are not supported: {', '.join(unknown)}; remove them if they "
                "change no pixel, else take another model"
            )

        def does(name: str, default: bool = True) -> bool:
            does_it: bool = given.get(name, default)
            _check(isinstance(does_it, bool), name, does_it, "true or false")
            return does_it

        is_square = does("default_to_square", False)
        return cls(
            size=_size(given.get("size", 224), is_square) if does("do_resize") else None,
            crop=_pair("crop_size", given.get("crop_size", 224))
            if does("do_center_crop", False)
            else None,
            pad=does("do_pad", False),
            mean=_channels(given.get("image_mean", _MEAN)) if does("do_normalize") else None,
            std=_channels(given.get("image_std", _STD)),
            rescale=given.get("rescale_factor", 1 / 255) if does("do_rescale") else None,
            resample=given.get("resample", _BICUBIC),
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


def _check(condition: bool, name: str, value: object, allowed: str) -> None:
    """Check a setting's value.

    Raises:
        ValueError: naming the setting, what it is and what it may be.
    """
    if not condition:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")


def _is_number(value: object) -> bool:
    return is_instance(value, (int, float)) and math.isfinite(value)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return is_instance(value, (int,)) and value >= 1  # type: ignore[operator]


def _check_pair(name: str, given: tuple[Any, ...]) -> None:
    allowed = "a height and a width, whole numbers of at least 1"
    _check(len(given) == 2 and all(map(_is_count, given)), name, given, allowed)


def _check_channels(name: str, given: tuple[Any, ...], allowed: str, above: float) -> None:
    fits = len(given) == _CHANNELS and all(_is_number(value) and value > above for value in given)
    _check(fits, name, given, f"{_CHANNELS} {allowed}, one of each channel")


def _size(given: Any, is_square: bool) -> Any:
    """Return what an image is resized to; a number alone is the shorter edge, or both."""
    if isinstance(given, dict) and set(given) == {"shortest_edge"}:
        return given["shortest_edge"]
    return _pair("size", given) if isinstance(given, dict | list) or is_square else given


def _pair(name: str, given: Any) -> tuple[Any, ...]:
    """Return (height, width); a number alone is both."""
    if isinstance(given, dict):
        other = ' or {"shortest_edge"}' if name == "size" else ""
        allowed = f'a number, [height, width], {{"height", "width"}}{other}'
        _check(set(given) == {"height", "width"}, name, given, allowed)
        return given["height"], given["width"]
    return tuple(given) if isinstance(given, list) else (given, given)


def _channels(given: Any) -> tuple[Any, ...]:
    """Return a number for each channel; one alone is of them all."""
    return tuple(given) if isinstance(given, list | tuple) else (given,) * _CHANNELS


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
