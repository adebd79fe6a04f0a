"""Captions that are true of their scene: one sentence, or all that can be seen."""

from collections import Counter

from dora_jax.data.scenes.describe import Description, counted, listed, sentence, with_article
from dora_jax.data.scenes.families import Wording
from dora_jax.data.scenes.scene import DIGIT, Object, Scene

_ACROSS = ("left", "", "right")
_DOWN = ("top", "", "bottom")


def caption(scene: Scene, wording: Wording = "plain") -> str:
    """Return one sentence: how many of what kind and colour, on which background."""
    names = Counter(_name(o) for o in sorted(scene.objects, key=lambda o: (o.x, o.y)))
    things = listed([counted(count, name) for name, count in names.items()])
    if wording == "plain":
        return f"{sentence(things)} on a {scene.background} background."
    return f"The {scene.background} picture shows {things}."


def full_caption(scene: Scene, wording: Wording = "plain") -> str:
    """Return every object with its size, style and place, from left to right, in sentences."""
    ordered = sorted(scene.objects, key=lambda o: (o.x, o.y))
    number = "one object" if len(ordered) == 1 else counted(len(ordered), Description())
    opening = {
        "plain": f"On a {scene.background} background there {_is(len(ordered))} {number}.",
        "other": f"The picture, painted on {scene.background}, holds {number}.",
    }[wording]
    things = [with_article(_name(o, fully=True).phrase) + f" {place(o)}" for o in ordered]
    return f"{opening} From left to right: {listed(things)}."


def place(o: Object) -> str:
    """Return where in the picture an object's middle lies: "at the top left", "in the centre"."""
    across, down = _ACROSS[int(o.x * 3)], _DOWN[int(o.y * 3)]
    if across and down:
        return f"at the {down} {across}"
    if across:
        return f"on the {across}"
    return f"at the {down}" if down else "in the centre"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _name(o: Object, fully: bool = False) -> Description:
    noun = str(o.digit) if o.kind == DIGIT else o.kind
    if not fully:
        return Description(noun, o.colour)
    # Of a digit's style and of the usual one nothing is said.
    style = o.style if o.style not in ("filled", "written") else None
    return Description(noun, o.colour, o.size, style)
