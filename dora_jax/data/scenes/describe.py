"""Words for objects: descriptions, when one means a single object, and their phrases."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dora_jax.data.scenes.families import Family
from dora_jax.data.scenes.sample import pick
from dora_jax.data.scenes.scene import DIGIT, Object

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# How the noun is chosen, and the properties named.
Template = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Description:
    """Some properties of objects; None where a property is not named.

    Attributes:
        noun: a shape, `digit`, a digit's value as "7", or `object` for whatever it is.
        colour: of the object.
        size: of the object.
        style: of a shape.
    """

    noun: str = "object"
    colour: str | None = None
    size: str | None = None
    style: str | None = None

    def matches(self, o: Object) -> bool:
        """Whether it is true of an object."""
        return (
            self.noun in ("object", o.kind, str(o.digit))
            and self.colour in (None, o.colour)
            and self.size in (None, o.size)
            and self.style in (None, o.style)
        )

    @property
    def phrase(self) -> str:
        """The words, without an article: "small red circle"."""
        return " ".join(filter(None, (self.size, self.style, self.colour, self.noun)))

    @property
    def plural(self) -> str:
        """The words for several: "small red crosses"."""
        return self.phrase + ("es" if self.phrase.endswith("s") else "s")


# What may be named, by how a noun is chosen: a digit has no style, and "the filled object" might
# mean a digit too.
_NAMED = {
    "object": ("colour", "size"),
    "shape": ("colour", "size", "style"),
    "digit": ("colour", "size"),
    "value": ("colour", "size"),
}
_NOUNS_THAT_TELL = {"kind": ("shape", "digit", "value"), "digit": ("object", "value")}


def templates(family: Family, least: int = 1) -> list[Template]:
    """Return the ways of naming an object.

    Args:
        family: says how many properties at most, and which ones tell objects apart.
        least: how many properties at least; a noun other than "object" is one.
    """
    several = {"colour": True, "size": len(family.sizes) > 1, "style": len(family.styles) > 1}
    found = []
    for noun, names in _NAMED.items():
        usable = [name for name in names if several[name]]
        own = int(noun != "object")
        for count in range(max(least - own, 0), family.difficulty - own + 1):
            found += [(noun, chosen) for chosen in itertools.combinations(usable, count)]
    return found


def described(o: Object, template: Template) -> Description | None:
    """Return a template's words for an object; None where they are not for one of its kind."""
    noun, names = template
    if noun != "object" and (noun == "shape") == (o.kind == DIGIT):
        return None
    word = {"object": "object", "shape": o.kind, "digit": DIGIT, "value": str(o.digit)}[noun]
    return Description(word, **{name: getattr(o, name) for name in names})


def refer(
    o: Object,
    objects: Iterable[Object],
    family: Family,
    rng: np.random.Generator,
    without: Iterable[str] = (),
) -> Description | None:
    """Return a description that is true of one object alone.

    Args:
        o: the one meant.
        objects: all that can be seen.
        family: says how many properties may be named.
        rng: chooses among what is possible.
        without: what must not be given away: `kind`, `digit` (what it is worth; that it is one is
            said), or a property's name.

    Returns:
        The description; None where there is none.
    """
    nouns = {noun for name in without for noun in _NOUNS_THAT_TELL.get(name, ())}
    found = []
    for noun, names in templates(family):
        description = described(o, (noun, names))
        if description is None or noun in nouns or set(without) & set(names):
            continue
        if sum(map(description.matches, objects)) == 1:
            found.append(description)
    return pick(found, rng) if found else None


def with_article(phrase: str) -> str:
    """Return "a red circle", "an outlined square", "an 8"."""
    return ("an " if phrase[0] in "aeiou8" else "a ") + phrase


def counted(count: int, description: Description) -> str:
    """Return "a red circle" for one, "two red circles" for more."""
    if count == 1:
        return with_article(description.phrase)
    return f"{NUMBERS[count]} {description.plural}"


def sentence(text: str) -> str:
    """Return the text with its first letter made large."""
    return text[0].upper() + text[1:]


def listed(phrases: list[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
