"""Draw scenes: any one alone, in any order, by (seed, split, index).

Everything is drawn alike for all colours, all shapes and all digits, and what counting asks about
has every number equally often: that is what keeps the answers balanced (`questions.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, get_args

import numpy as np

from dora_jax.data.scenes import digits
from dora_jax.data.scenes.families import Family
from dora_jax.data.scenes.scene import (
    DIGIT,
    Group,
    GroupBy,
    Object,
    Scene,
    Split,
    generator,
    split_of,
)

_T = TypeVar("_T")
DIGIT_SHARE = 0.35  # of the objects that are free to be one
_GAP = 0.04  # at least between two objects, and to the border, as a share of the canvas
_TRIES = 20


def sample_scene(family: Family, split: Split, index: int, seed: int = 0) -> Scene:
    """Return one scene of a split; another index or seed gives another one."""
    return draw(family, split, generator(family.name, split, seed, index))


def draw(family: Family, split: Split, rng: np.random.Generator) -> Scene:
    """Return the next scene of a generator."""
    while True:
        objects, group = _objects(family, rng)
        background = pick(family.backgrounds, rng)
        scene = Scene(objects, background, family.canvas, group)
        if split_of(scene.content.encode()) == split:
            break
    places = place([o.radius for o in objects], rng)
    written = digits.instances(split)
    found = []
    for o, (x, y) in zip(objects, places.tolist(), strict=True):
        instance = None if o.digit is None else pick(written[o.digit], rng)
        found.append(replace(o, x=x, y=y, instance=instance))
    return replace(scene, objects=tuple(found))


def pick(choices: Sequence[_T], rng: np.random.Generator) -> _T:
    """Return one of a sequence, each as likely as the others."""
    return choices[int(rng.integers(len(choices)))]


def _some(choices: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    """Return two or more of them, so that some scenes repeat themselves and others do not."""
    count = int(rng.integers(min(2, len(choices)), len(choices) + 1))
    return tuple(choices[i] for i in rng.permutation(len(choices))[:count].tolist())


def _objects(family: Family, rng: np.random.Generator) -> tuple[tuple[Object, ...], Group]:
    """Return objects without a place, and the group whose number was drawn first."""
    least, most = family.counts
    by: GroupBy = pick(get_args(GroupBy), rng)
    kinds = (*family.shapes, DIGIT) if family.digits else family.shapes
    if by == "all":
        group, counted = Group("all"), int(rng.integers(least, most + 1))
        total = counted
    else:
        group = Group(by, pick(kinds if by == "kind" else family.colours, rng))
        counted = int(rng.integers(family.most_counted + 1))
        total = int(rng.integers(max(counted, least), most + 1))
    shapes = _some(tuple(s for s in family.shapes if s != group.value), rng)
    colours = _some(tuple(c for c in family.colours if c != group.value), rng)
    digit_share = DIGIT_SHARE if family.digits and group.value != DIGIT else 0.0
    found = []
    for number in range(total):
        kind = DIGIT if rng.random() < digit_share else pick(shapes, rng)
        colour = pick(colours, rng)
        if number < counted:
            kind = group.value if by == "kind" else kind
            colour = group.value if by == "colour" else colour
        digit = int(rng.integers(10)) if kind == DIGIT else None
        style = "written" if kind == DIGIT else pick(family.styles, rng)
        found.append(Object(kind, colour, pick(family.sizes, rng), style, digit=digit))
    return tuple(found), group


def place(radii: list[float], rng: np.random.Generator) -> np.ndarray:
    """Return (x, y) of objects that do not overlap, (n, 2), as shares of the canvas.

    Args:
        radii: of the objects, as shares of the canvas.
        rng: draws the places.
    """
    sizes = np.array(radii)
    order = np.argsort(-sizes, kind="stable")  # large ones first, while there is room
    for _ in range(_TRIES):
        found = np.full((len(radii), 2), -9.0)
        for index in order:
            border = sizes[index] + _GAP
            tries = border + (1 - 2 * border) * rng.random((32, 2))
            away = np.linalg.norm(tries[:, None] - found, axis=-1)
            free = np.flatnonzero((away >= sizes + sizes[index] + _GAP).all(1))
            if not free.size:
                break
            found[index] = tries[free[0]]
        else:
            return found
    # Too full for chance: each in a field of its own, of three by three.
    fields = rng.permutation(9)[: len(radii)]
    room = 1 / 6 - sizes[:, None] - _GAP / 2
    middles = (np.stack([fields % 3, fields // 3], 1) * 2 + 1) / 6
    return middles + room * rng.uniform(-1, 1, (len(radii), 2))
