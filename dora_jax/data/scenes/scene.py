"""What a picture holds, and which split it belongs to: plain frozen dataclasses, no pixels."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
Size = Literal["small", "large"]
GroupBy = Literal["kind", "colour", "all"]
DIGIT = "digit"  # the kind of an object that is no shape
SIZES: tuple[Size, ...] = ("small", "large")
# Half of an object's extent, as a share of the canvas. Digits need more pixels to be read.
_RADII = {"small": 0.08, "large": 0.135}
_DIGIT_RADII = {"small": 0.1, "large": 0.145}
# Shares of what there is in training and validation; the rest is for the test.
_TRAIN_SHARE, _VALIDATION_SHARE = 0.7, 0.1


@dataclass(frozen=True)
class Object:
    """One thing in a picture.

    Attributes:
        kind: the name of a shape, or `digit`.
        colour: a name in `palette.COLOURS`.
        size: small or large.
        style: filled, outlined or striped; a digit is `written`.
        x: of the middle, from the left, as a share of the canvas.
        y: of the middle, from the top.
        digit: 0 to 9 where `kind` is `digit`, else None.
        instance: which handwritten one: its index in scikit-learn's `load_digits`.
    """

    kind: str
    colour: str
    size: Size
    style: str
    x: float = 0.5
    y: float = 0.5
    digit: int | None = None
    instance: int | None = None

    @property
    def radius(self) -> float:
        """Half of its extent, as a share of the canvas."""
        return (_DIGIT_RADII if self.kind == DIGIT else _RADII)[self.size]


@dataclass(frozen=True)
class Group:
    """What counting asks about: the objects of one kind, of one colour, or all of them.

    Attributes:
        by: `kind`, `colour`, or `all`.
        value: the kind or colour; empty for all.
    """

    by: GroupBy
    value: str = ""

    def count(self, objects: tuple[Object, ...]) -> int:
        """Return how many of the objects belong to it."""
        return sum(self.by == "all" or getattr(o, self.by) == self.value for o in objects)


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn.

    Attributes:
        objects: in no order that says anything; they do not overlap.
        background: a name in `palette.BACKGROUNDS`.
        canvas: height and width in pixels.
        group: the one group whose number was drawn evenly, so that it may be asked for.
    """

    objects: tuple[Object, ...]
    background: str
    canvas: int
    group: Group

    @property
    def content(self) -> str:
        """What is in it, apart from where it lies and who wrote the digits."""
        things = (f"{o.size} {o.style} {o.colour} {o.kind} {o.digit}" for o in self.objects)
        return "; ".join([self.background, *sorted(things)])


def split_of(content: bytes) -> Split:
    """Return the split that a content belongs to, by a hash of it.

    No seed comes in: the test of one seed, or of one family, is in the training of no other.
    """
    share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    if share < _TRAIN_SHARE:
        return "train"
    return "validation" if share < _TRAIN_SHARE + _VALIDATION_SHARE else "test"


def generator(*key: object) -> np.random.Generator:
    """Return a generator of its own for a key, as (seed, split, index): alike in every process."""
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))
