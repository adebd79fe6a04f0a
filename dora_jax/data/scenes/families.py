"""Families of scenes: what may be in them and what is asked. B is A's world shifted.

Each knob can be set by itself: `dataclasses.replace(FAMILY_A, colours=FAMILY_B.colours)`.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from dora_jax.data.scenes.palette import BACKGROUNDS, COLOURS
from dora_jax.data.scenes.scene import SIZES, Size
from dora_jax.data.scenes.shapes import SHAPES, STYLES
from dora_jax.errors import DoraError
from dora_jax.spec import nearest

Kind = Literal[
    "count",
    "attribute-colour",
    "attribute-shape",
    "attribute-size",
    "attribute-style",
    "attribute-digit",
    "compare-number",
    "compare-size",
    "compare-digit",
    "digit-sum",
    "relation-horizontal",
    "relation-vertical",
    "relation-direction",
    "relation-extreme",
    "exists",
]
ClipKind = Literal[
    "clip-order", "clip-action", "clip-count", "clip-effect", "clip-speed", "clip-cause"
]
Wording = Literal["plain", "other"]
MOST_OBJECTS = 9  # more large ones do not find room


@dataclass(frozen=True)
class Family:
    """What scenes are drawn from. Each field is a knob of the shift.

    Attributes:
        name: goes into file names and seeds.
        shapes: names in `shapes.SHAPES`; two at least.
        colours: names in `palette.COLOURS`; two at least.
        sizes: small, large or both.
        styles: names in `shapes.STYLES`.
        backgrounds: names in `palette.BACKGROUNDS`.
        counts: the fewest and the most objects in a scene.
        most_counted: the largest answer to how many there are of one kind or colour, 0 the least.
        digits: whether there are handwritten digits.
        kinds: of questions.
        difficulty: how many properties name an object at most, from 1 ("the circle") to 3 ("the
            small red circle").
        wording: which words ask: of two sets that have no question in common.
        canvas: height and width of the pictures in pixels.
        frames: how many pictures a clip has, from 8 to 16.
        clip_kinds: of questions about clips.

    Raises:
        DoraError: naming the field, what was given and what is allowed.
    """

    name: str
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[Size, ...] = SIZES
    styles: tuple[str, ...] = ("filled",)
    backgrounds: tuple[str, ...] = ("black",)
    counts: tuple[int, int] = (2, 5)
    most_counted: int = 4
    digits: bool = True
    kinds: tuple[Kind, ...] = ("count",)
    difficulty: int = 2
    wording: Wording = "plain"
    canvas: int = 64
    frames: int = 8
    clip_kinds: tuple[ClipKind, ...] = ("clip-order", "clip-action", "clip-count", "clip-effect")

    def __post_init__(self) -> None:
        self._check_names("shapes", SHAPES, 2)
        self._check_names("colours", COLOURS, 2)
        self._check_names("sizes", SIZES)
        self._check_names("styles", STYLES)
        self._check_names("backgrounds", BACKGROUNDS)
        self._check_names("kinds", get_args(Kind))
        self._check_names("clip_kinds", get_args(ClipKind))
        least, most = self.counts
        if not 1 <= least <= most <= MOST_OBJECTS:
            raise DoraError(
                f"Family.counts must be two numbers from 1 to {MOST_OBJECTS}, the smaller first; "
                f"got {self.counts}"
            )
        if not 1 <= self.most_counted <= most:
            raise DoraError(
                f"Family.most_counted must be from 1 to the most of Family.counts, {most}; got "
                f"{self.most_counted}"
            )
        self._check_range("difficulty", 1, 3)
        self._check_range("canvas", 32, 1024)
        self._check_range("frames", 8, 16)
        if self.wording not in get_args(Wording):
            raise DoraError(f"Family.wording must be plain or other; got {self.wording!r}")
        if "ring" in self.shapes and "outlined" in self.styles:
            raise DoraError(
                "Family.shapes has the ring and Family.styles has outlined: an outlined circle "
                "looks like a ring; take one of the two away"
            )
        self._check_kinds()

    def _check_names(self, field: str, allowed: Any, least: int = 1) -> None:
        given = getattr(self, field)
        for name in given:
            if name not in allowed:
                raise DoraError(
                    f"Family.{field}: unknown {name!r}{nearest(name, allowed)}; there are "
                    f"{', '.join(allowed)}"
                )
        if len(set(given)) != len(given) or len(given) < least:
            raise DoraError(f"Family.{field} must be {least} or more different names; got {given}")

    def _check_range(self, field: str, least: int, most: int) -> None:
        if not least <= getattr(self, field) <= most:
            raise DoraError(
                f"Family.{field} must be from {least} to {most}; got {getattr(self, field)}"
            )

    def _check_kinds(self) -> None:
        two_sizes, two_styles = len(self.sizes) > 1, len(self.styles) > 1
        needs = {
            "attribute-size": (two_sizes, "two sizes"),
            "compare-size": (two_sizes, "two sizes"),
            "attribute-style": (two_styles, "two styles"),
            "attribute-digit": (self.digits, "digits"),
            "compare-digit": (self.digits, "digits"),
            "digit-sum": (self.digits, "digits"),
        }
        for kind in self.kinds:
            has, what = needs.get(kind, (True, ""))
            if not has:
                raise DoraError(f"Family.kinds: {kind} needs {what}; add them or leave it out")


FAMILY_A = Family(
    name="A",
    shapes=("circle", "square", "triangle", "cross", "ring"),
    colours=("red", "green", "blue", "yellow"),
    backgrounds=("black", "grey"),
    kinds=(
        "count",
        "attribute-colour",
        "attribute-shape",
        "attribute-size",
        "attribute-digit",
        "compare-number",
        "relation-horizontal",
        "relation-vertical",
        "exists",
    ),
)
FAMILY_B = Family(
    name="B",
    shapes=("circle", "square", "star", "diamond", "heart", "arrow"),
    colours=("red", "blue", "orange", "purple", "cyan", "pink"),
    styles=STYLES,
    backgrounds=("white", "beige"),
    counts=(3, 7),
    most_counted=5,
    kinds=(
        "count",
        "attribute-colour",
        "attribute-shape",
        "attribute-style",
        "attribute-digit",
        "compare-number",
        "compare-size",
        "compare-digit",
        "digit-sum",
        "relation-direction",
        "relation-extreme",
        "exists",
    ),
    difficulty=3,
    wording="other",
    frames=12,
    clip_kinds=get_args(ClipKind),
)
FAMILIES = {family.name: family for family in (FAMILY_A, FAMILY_B)}
