"""Statements about two pictures, to be judged: true as often as false, whatever they say."""

from collections.abc import Callable

import numpy as np

from dora_jax.data.scenes.describe import Description, described, templates, with_article
from dora_jax.data.scenes.families import Family, Wording
from dora_jax.data.scenes.questions import Question
from dora_jax.data.scenes.sample import pick
from dora_jax.data.scenes.scene import DIGIT, Scene
from dora_jax.data.scenes.statements import judged

_Slots = tuple[dict[str, str], bool]  # of the words, and whether they are true
_WORDS: dict[Wording, dict[str, str]] = {
    "plain": {
        "pair-both": "There is {a} in both images.",
        "pair-one": "Only one of the two images contains {a}.",
        "pair-number": "The {side} image contains more {group} than the other one.",
        "pair-same": "The two images contain the same number of {group}.",
        "pair-digit": "The digit in the {side} image is greater than the digit in the other one.",
    },
    "other": {
        "pair-both": "Each picture shows {a}.",
        "pair-one": "One picture shows {a}, the other one does not.",
        "pair-number": "In the picture on the {side} one counts more {group} than in the other.",
        "pair-same": "One counts as many {group} on the left as on the right.",
        "pair-digit": "The picture on the {side} holds the higher digit.",
    },
}


def state_pair(
    left: Scene, right: Scene, family: Family, kind: str, rng: np.random.Generator
) -> Question | None:
    """Return a statement about two pictures.

    Args:
        left: the first picture.
        right: the second one, of the same family.
        family: gives the words.
        kind: one of `PAIR_KINDS`.
        rng: chooses among what can be said, and whether it is true.

    Returns:
        The statement, of options true and false; None where the two scenes have none.
    """
    found = _CLAIMS[kind](left, right, family, rng)
    if found is None:
        return None
    slots, is_true = found
    return judged(_WORDS[family.wording][kind].format(**slots), is_true, kind)


def _shared(
    left: Scene, right: Scene, family: Family, rng: np.random.Generator
) -> tuple[str, bool] | None:
    """Return what one or both pictures hold, and whether both do; both could have been found."""
    ways = [way for way in templates(family, least=2) if way[0] != "object"]
    for index in rng.permutation(len(ways)):
        seen = [
            {d for o in scene.objects if (d := described(o, ways[index])) is not None}
            for scene in (left, right)
        ]
        in_both, in_one = seen[0] & seen[1], seen[0] ^ seen[1]
        if in_both and in_one:
            both = bool(rng.integers(2))
            chosen = pick(sorted(in_both if both else in_one, key=repr), rng)
            return with_article(chosen.phrase), both
    return None


def _both(left: Scene, right: Scene, family: Family, rng: np.random.Generator) -> _Slots | None:
    found = _shared(left, right, family, rng)
    return None if found is None else ({"a": found[0]}, found[1])


def _one(left: Scene, right: Scene, family: Family, rng: np.random.Generator) -> _Slots | None:
    found = _shared(left, right, family, rng)
    return None if found is None else ({"a": found[0]}, not found[1])


def _numbers(left: Scene, right: Scene) -> list[tuple[str, int, int]]:
    """Return the plurals of shapes and colours that either picture holds, and how many each."""
    found = []
    for by in ("kind", "colour"):
        values = {getattr(o, by) for scene in (left, right) for o in scene.objects} - {DIGIT}
        for value in sorted(values):
            name = Description(value) if by == "kind" else Description(colour=value)
            counts = [sum(map(name.matches, scene.objects)) for scene in (left, right)]
            found.append((name.plural, counts[0], counts[1]))
    return found


def _number(left: Scene, right: Scene, family: Family, rng: np.random.Generator) -> _Slots | None:
    differ = [entry for entry in _numbers(left, right) if entry[1] != entry[2]]
    if not differ:
        return None
    group, here, there = pick(differ, rng)
    side = pick(("left", "right"), rng)
    return {"group": group, "side": side}, (here > there) == (side == "left")


def _same(left: Scene, right: Scene, family: Family, rng: np.random.Generator) -> _Slots | None:
    """Compare numbers of one property, drawn first, where both answers could have been found."""
    found = _numbers(left, right)
    by_colour = bool(rng.integers(2))
    found = [entry for entry in found if entry[0].endswith(" objects") == by_colour]
    same = [entry[0] for entry in found if entry[1] == entry[2]]
    differ = [entry[0] for entry in found if entry[1] != entry[2]]
    if not (same and differ):
        return None
    is_true = bool(rng.integers(2))
    return {"group": pick(same if is_true else differ, rng)}, is_true


def _digit(left: Scene, right: Scene, family: Family, rng: np.random.Generator) -> _Slots | None:
    values = [[o.digit or 0 for o in s.objects if o.kind == DIGIT] for s in (left, right)]
    if [len(value) for value in values] != [1, 1] or values[0] == values[1]:
        return None
    side = pick(("left", "right"), rng)
    return {"side": side}, (values[0] > values[1]) == (side == "left")


_CLAIMS: dict[str, Callable[[Scene, Scene, Family, np.random.Generator], _Slots | None]] = {
    "pair-both": _both,
    "pair-one": _one,
    "pair-number": _number,
    "pair-same": _same,
    "pair-digit": _digit,
}
PAIR_KINDS = tuple(_CLAIMS)


def pair_kinds(family: Family) -> tuple[str, ...]:
    """Return the kinds of statements that a family's pairs can have."""
    few = family.difficulty < 2
    return tuple(
        kind
        for kind in PAIR_KINDS
        if (family.digits or kind != "pair-digit")
        and not (few and kind in ("pair-both", "pair-one"))
    )
