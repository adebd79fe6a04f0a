"""The images that a row names, checked, and put where its text has them."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dora_jax.data.examples import BadImages, Example, Images
from dora_jax.data.formats import LeftOut
from dora_jax.data.images import BrokenImageError, open_image
from dora_jax.data.vision import IMAGE, ImageFile, with_marks
from dora_jax.data.vl.feature_files import Features
from dora_jax.errors import DoraError

OTHER_NUMBER = f"whose text has another number of {IMAGE} than the row has images"
NO_FEATURES = "with an image whose features are missing"
BAD_IMAGE = "with an image that is missing or cannot be read"
# Named one by one; all are counted.
_SHOWN = 20
_log = logging.getLogger(__name__)


@dataclass
class RowImages:
    """How the images of rows are found.

    Attributes:
        folder: where they are; None is the folder of the rows' file.
        images: whether they are used; left out, they are named alone, and not looked for.
        bad: what happens where one is missing or broken.
        whole: whether all of each file is read to tell; else its head and its end.
        broken: how many were, so far.
        features: of the images by their names, for models that read these and not the files.
        frame_seconds: of a clip that one of its features stands for; without it no row may be about
            a part of one.
    """

    folder: Path | None = None
    images: Images = "use"
    bad: BadImages = "skip"
    whole: bool = False
    broken: int = 0
    features: Features | None = None
    frame_seconds: float | None = None

    def add(self, example: Example, row: Any, where: str, folder: Path) -> Example:
        """Return an example with the images of its row.

        An image that a message has is put before the rest of it, as LLaVA was trained; where no
        message says where, the first question has them all.

        Args:
            example: the row's text.
            row: as it was read: `image` (a name) or `images` (names).
            where: file and line, named in errors.
            folder: of the rows' file.

        Raises:
            DoraError: when the row's fields are not as they should be, a part of a clip cannot be
                cut out, or an image is missing or broken where none may be.
            LeftOut: when they are skipped, or the text has another number of images.
        """
        names = image_names(row, where)
        if not names:
            return example
        if self.features is not None:
            span = self._span(row, where)
            found = tuple(self._features(self.features, name, span, where) for name in names)
            return dataclasses.replace(example, images=found)
        if self.images == "leave_out":
            # Named yet, since the same question about another image is another one.
            files = tuple(ImageFile(name, str((self.folder or folder) / name)) for name in names)
            blind = _changed(example, [_without(text) for text in _texts(example)])
            return dataclasses.replace(blind, images=files)
        texts = [_first(text) for text in _texts(example)]
        marks = sum(text.count(IMAGE) for text in texts)
        if not marks:
            asked = _first_question(example)
            texts[asked] = with_marks(texts[asked], len(names))
        elif marks != len(names):
            raise LeftOut(OTHER_NUMBER)
        files = tuple(self._file(name, folder, where) for name in names)
        return dataclasses.replace(_changed(example, texts), images=files)

    def _features(
        self, features: Features, name: str, span: tuple[float, float] | None, where: str
    ) -> ImageFile:
        stamp = features.stamp(name)
        if stamp is not None:
            return ImageFile(name, str(features.path), stamp, span)
        if self.bad == "error":
            raise DoraError(
                f"{where}: {features.path} has no features of {name!r}; make them, or skip such "
                "rows (--data.bad-images skip)"
            )
        self.broken += 1
        if self.broken <= _SHOWN:
            _log.warning("%s: left out: no features of %r", where, name)
        raise LeftOut(NO_FEATURES)

    def _span(self, row: Mapping[str, Any], where: str) -> tuple[float, float] | None:
        """Return the part of its clip that a row is about, in seconds; None is all of it."""
        given = row.get("span")
        if given is None:
            return None
        match given:
            case [int() | float() as start, int() | float() as end] if 0 <= start <= end < math.inf:
                # Of what is not looked at nothing is cut.
                if self.frame_seconds is None and self.images == "use":
                    raise DoraError(
                        f"{where}: 'span' is a part of a clip, and nothing says how many seconds "
                        "one of its features stands for: give data.frame_seconds (1.5 for those of "
                        "the VALUE benchmark), or take 'span' out of the rows for whole clips"
                    )
                return float(start), float(end)
        raise DoraError(f"{where}: 'span' must be two seconds, from and to; got {given!r:.80}")

    def _file(self, name: str, folder: Path, where: str) -> ImageFile:
        path = (self.folder or folder) / name
        try:
            open_image(path, self.whole)
            return ImageFile(name, str(path.absolute()), path.stat().st_size)
        except BrokenImageError as error:
            if self.bad == "error":
                raise DoraError(
                    f"{where}: {error}; mend it, name the images' folder (--data.image-folder), or "
                    "skip such rows (--data.bad-images skip)"
                ) from error
            self.broken += 1
            if self.broken <= _SHOWN:
                more = "; more of them are counted only" if self.broken == _SHOWN else ""
                _log.warning("%s: left out: %s%s", where, error, more)
            raise LeftOut(BAD_IMAGE) from error


def image_names(row: Mapping[str, Any], where: str) -> list[str]:
    """Return the names of a row's images: its `image`, or its `images`.

    Raises:
        DoraError: when it has both, or they are not names.
    """
    given = [row[field] for field in ("image", "images") if row.get(field) is not None]
    if not given:
        return []
    if len(given) > 1:
        raise DoraError(f"{where}: has both 'image' and 'images': give one of them")
    (named,) = given
    names: list[Any] = list(named) if isinstance(named, list | tuple) else [named]
    if not all(isinstance(name, str) and name for name in names):
        raise DoraError(
            f"{where}: its images must be the names of files, not {type(names[0]).__name__}: write "
            "them to a folder (--data.image-folder) and name them in the rows"
        )
    return names


def _texts(example: Example) -> list[str]:
    return [turn.text for turn in example.turns] or [example.prompt]


def _changed(example: Example, texts: Sequence[str]) -> Example:
    turns = tuple(
        dataclasses.replace(turn, text=text)
        for turn, text in zip(example.turns, texts, strict=False)
    )
    return dataclasses.replace(example, prompt=texts[-1], turns=turns)


def _first_question(example: Example) -> int:
    return next((n for n, turn in enumerate(example.turns) if turn.role == "user"), 0)


def _first(text: str) -> str:
    """Return a message with its one image before the rest of it."""
    if text.count(IMAGE) != 1:
        return text
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()


def _without(text: str) -> str:
    return text.replace(f"{IMAGE}\n", "").replace(IMAGE, "").strip()
