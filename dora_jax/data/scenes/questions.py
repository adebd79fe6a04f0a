"""Questions about one scene, whose answers cannot be told from their words.

Given a question's text each of its options is as likely as the others. Two ways lead there. Most
kinds come out even because scenes are drawn alike for all that the answer tells apart: exchanging
two colours, shapes, digits or sizes, or mirroring a scene, gives another scene as likely as the
first, with the same question and the other answer. For the rest something is drawn evenly
beforehand: the number of the group that counting asks about (`sample.py`), yes or no for `exists`,
and the sum of two digits by keeping rare sums more often than common ones.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dora_jax.data.scenes.describe import Description, described, refer, templates, with_article
from dora_jax.data.scenes.families import Family, Kind
from dora_jax.data.scenes.sample import pick
from dora_jax.data.scenes.scene import DIGIT, Object, Scene
from dora_jax.data.scenes.wordings import WORDINGS, Words

YES_NO = ("yes", "no")
_DIGITS = tuple(str(digit) for digit in range(10))
_SUMS = tuple(str(number) for number in range(19))
# How far two middles lie apart, as a share of the canvas, before one is called left of the other.
_APART = 0.1
# A direction is told where one way is this many times as far as the other.
_CLEARLY = 2.0
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Question:
    """A question, or a statement to be judged, about one picture or two.

    Attributes:
        question: the words.
        answer: one of the options.
        kind: of the question; scores are told apart by it.
        options: the answers that are possible, whatever the picture.
    """

    question: str
    answer: str
    kind: str
    options: tuple[str, ...]


class Found(NamedTuple):
    """What a scene has for one kind of question.

    Attributes:
        slots: of its words.
        answer: one of the options.
        options: that are possible, whatever the picture.
        wrong: the options that a false statement may claim; empty for all but the answer.
    """

    slots: dict[str, str]
    answer: str
    options: tuple[str, ...]
    wrong: tuple[str, ...] = ()


Asker = Callable[[Scene, Family, np.random.Generator], Found | None]


def ask(scene: Scene, family: Family, kind: Kind, rng: np.random.Generator) -> Question | None:
    """Return a question of one kind; None where the scene has none whose answer is plain.

    Args:
        scene: of the family.
        family: gives the words and the options.
        kind: of the question.
        rng: chooses among what can be asked.
    """
    found = find(scene, family, kind, rng)
    if found is None:
        return None
    text = pick(words(family, kind).questions, rng).format(**found.slots)
    return Question(text, found.answer, kind, found.options)


def find(scene: Scene, family: Family, kind: Kind, rng: np.random.Generator) -> Found | None:
    """Return what `ask` puts into words; arguments as there."""
    return _ASKERS[kind](scene, family, rng)


def words(family: Family, kind: Kind) -> Words:
    """Return the family's words for a kind of question."""
    return WORDINGS[family.wording][kind]


def _count(scene: Scene, family: Family, rng: np.random.Generator) -> Found:
    group = scene.group
    if group.by == "all":
        plural, least, most = "objects", *family.counts
    else:
        name = Description(group.value) if group.by == "kind" else Description(colour=group.value)
        plural, least, most = name.plural, 0, family.most_counted
    options = tuple(str(number) for number in range(least, most + 1))
    return Found({"group": plural}, str(group.count(scene.objects)), options)


def _attribute(name: str, options: Callable[[Family], tuple[str, ...]]) -> Asker:
    def find(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
        objects = [o for o in scene.objects if _has(o, name)]
        for index in rng.permutation(len(objects)):
            x = refer(objects[index], scene.objects, family, rng, without=[name])
            if x is not None:
                answer = str(getattr(objects[index], name))
                return Found({"x": x.phrase}, answer, options(family))
        return None

    return find


def _has(o: Object, name: str) -> bool:
    """Whether an object can be asked for a property: a digit has no shape, a shape no value."""
    if name == "digit":
        return o.kind == DIGIT
    return o.kind != DIGIT or name not in ("kind", "style")


def _compare_number(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
    by = pick(("kind", "colour"), rng)
    present = sorted({getattr(o, by) for o in scene.objects} - {DIGIT})
    counts = {value: sum(getattr(o, by) == value for o in scene.objects) for value in present}
    pairs = [(a, b) for a, b in itertools.permutations(present, 2) if counts[a] != counts[b]]
    if not pairs:
        return None
    a, b = pick(pairs, rng)
    names = [Description(v) if by == "kind" else Description(colour=v) for v in (a, b)]
    more = counts[a] > counts[b]
    # The other wording asks for fewer.
    yes = more if family.wording == "plain" else not more
    slots = {"group": names[0].plural, "other_group": names[1].plural}
    return Found(slots, _yes_no(yes), YES_NO)


def _pair(
    scene: Scene,
    family: Family,
    rng: np.random.Generator,
    fits: Callable[[Object, Object], bool],
    without: tuple[str, ...] = (),
) -> tuple[Object, Object, str, str] | None:
    """Return two objects for which something holds, in a random order, with their phrases."""
    pairs = [pair for pair in itertools.permutations(scene.objects, 2) if fits(*pair)]
    for index in rng.permutation(len(pairs)):
        a, b = pairs[index]
        x = refer(a, scene.objects, family, rng, without)
        y = refer(b, scene.objects, family, rng, without)
        if x is not None and y is not None:
            return a, b, x.phrase, y.phrase
    return None


def _compare_size(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
    found = _pair(scene, family, rng, lambda a, b: a.size != b.size, ("size",))
    if found is None:
        return None
    a, _, x, y = found
    return _which(x, y, a.size == "large")


def _two_digits(
    scene: Scene, family: Family, rng: np.random.Generator
) -> tuple[int, int, str, str] | None:
    """Return the values of two digits, with their phrases."""
    are_digits = lambda a, b: a.kind == b.kind == DIGIT  # noqa: E731
    found = _pair(scene, family, rng, are_digits, ("digit",))
    if found is None:
        return None
    a, b, x, y = found
    return int(a.digit or 0), int(b.digit or 0), x, y


def _compare_digit(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
    found = _two_digits(scene, family, rng)
    if found is None or found[0] == found[1]:
        return None
    a, b, x, y = found
    return _which(x, y, a > b)


def _which(x: str, y: str, first: bool) -> Found:
    options = (f"the {x}", f"the {y}")
    return Found({"x": x, "y": y}, options[0 if first else 1], options)


def _digit_sum(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
    found = _two_digits(scene, family, rng)
    if found is None:
        return None
    a, b, x, y = found
    total = a + b
    ways = min(total, 18 - total) + 1  # of the hundred pairs of digits
    return Found({"x": x, "y": y}, str(total), _SUMS) if rng.random() < 1 / ways else None


def _relation(axis: str) -> Asker:
    def find(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
        apart = lambda a, b: abs(getattr(a, axis) - getattr(b, axis)) >= _APART  # noqa: E731
        found = _pair(scene, family, rng, apart)
        if found is None:
            return None
        a, b, x, y = found
        return Found({"x": x, "y": y}, _yes_no(getattr(a, axis) < getattr(b, axis)), YES_NO)

    return find


def _direction(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
    def clear(a: Object, b: Object) -> bool:
        across, down = abs(a.x - b.x), abs(a.y - b.y)
        return max(across, down) >= max(_CLEARLY * min(across, down), _APART)

    found = _pair(scene, family, rng, clear)
    if found is None:
        return None
    a, b, x, y = found
    across, down = a.x - b.x, a.y - b.y
    if abs(across) > abs(down):
        answer = "left of" if across < 0 else "right of"
    else:
        answer = "above" if down < 0 else "below"
    # What lies left of another may also lie a little above it: only the opposite is wrong.
    return Found({"x": x, "y": y}, answer, tuple(_OPPOSITE), (_OPPOSITE[answer],))


def _extreme(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
    side = pick(("left", "right"), rng)
    ordered = sorted(scene.objects, key=lambda o: o.x if side == "left" else -o.x)
    if len(ordered) < 2 or abs(ordered[0].x - ordered[1].x) < _APART:
        return None
    return Found({"side": side}, ordered[0].colour, family.colours)


def _exists(scene: Scene, family: Family, rng: np.random.Generator) -> Found | None:
    """Ask for something of the scene, or for something that differs in one property.

    The words' form is drawn first, and is one that both answers could have.
    """
    ways = [way for way in templates(family) if way[0] != "object"]
    for index in rng.permutation(len(ways)):
        present = {d for o in scene.objects if (d := described(o, ways[index])) is not None}
        absent = {d for p in present for d in _variants(p, family)} - present
        if present and absent:
            yes = bool(rng.integers(2))
            chosen = pick(sorted(present if yes else absent, key=repr), rng)
            return Found({"a": with_article(chosen.phrase)}, _yes_no(yes), YES_NO)
    return None


def _variants(d: Description, family: Family) -> list[Description]:
    """Return the descriptions of a family that differ in one property."""
    nouns: tuple[str, ...] = family.shapes if d.noun in family.shapes else ()
    if d.noun in _DIGITS:
        nouns = _DIGITS
    found = [Description(noun, d.colour, d.size, d.style) for noun in nouns]
    if d.colour is not None:
        found += [Description(d.noun, colour, d.size, d.style) for colour in family.colours]
    if d.size is not None:
        found += [Description(d.noun, d.colour, size, d.style) for size in family.sizes]
    if d.style is not None:
        found += [Description(d.noun, d.colour, d.size, style) for style in family.styles]
    return found


def _yes_no(yes: bool) -> str:
    return YES_NO[0 if yes else 1]


_ASKERS: dict[Kind, Asker] = {
    "count": _count,
    "attribute-colour": _attribute("colour", lambda family: family.colours),
    "attribute-shape": _attribute("kind", lambda family: family.shapes),
    "attribute-size": _attribute("size", lambda family: family.sizes),
    "attribute-style": _attribute("style", lambda family: family.styles),
    "attribute-digit": _attribute("digit", lambda family: _DIGITS),
    "compare-number": _compare_number,
    "compare-size": _compare_size,
    "compare-digit": _compare_digit,
    "digit-sum": _digit_sum,
    "relation-horizontal": _relation("x"),
    "relation-vertical": _relation("y"),
    "relation-direction": _direction,
    "relation-extreme": _extreme,
    "exists": _exists,
}
