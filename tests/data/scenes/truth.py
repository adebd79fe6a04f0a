"""What is in a picture, found again from words and pixels alone: a reference of its own."""

import re
from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from dora_jax.data.scenes.palette import BACKGROUNDS, COLOURS

WORDS = {
    "size": ("small", "large"),
    "style": ("filled", "outlined", "striped"),
    "colour": tuple(COLOURS),
}


def things(scene):
    """A scene's objects as bare tuples of what can be named."""
    return [
        SimpleNamespace(
            size=o.size,
            style=o.style,
            colour=o.colour,
            x=o.x,
            y=o.y,
            noun=o.kind,
            value=o.digit,
        )
        for o in scene.objects
    ]


def named(phrase, objects):
    """The objects that "the small red circle", "red objects" or "7" speaks of."""
    words = re.sub(r"^([Tt]he|an?) ", "", phrase).split()
    for name, allowed in WORDS.items():
        objects = [o for o in objects if all(w == getattr(o, name) for w in words if w in allowed)]
    noun = words[-1]
    if noun in ("object", "objects"):
        return objects
    if noun.isdigit():
        return [o for o in objects if o.value == int(noun)]
    return [o for o in objects if noun in (o.noun, f"{o.noun}s", f"{o.noun}es")]


def one(phrase, objects):
    (found,) = named(phrase, objects)
    return found


def where(x, y):
    if abs(x.x - y.x) > abs(x.y - y.y):
        return "left of" if x.x < y.x else "right of"
    return "above" if x.y < y.y else "below"


def pixel_components(pixels, background):
    """(colour, x, y, height) of the connected parts of a picture, by its pixels alone."""
    names = list(COLOURS)
    ground = np.array(BACKGROUNDS[background], float)
    palette = np.array([COLOURS[name] for name in names], float)
    pixels = pixels.astype(float)
    parts, count = ndimage.label(abs(pixels - ground).sum(-1) > 60)
    found = []
    for part in range(1, count + 1):
        rows, columns = np.nonzero(parts == part)
        away = abs(pixels[rows, columns][:, None] - palette).sum(-1)
        votes = np.bincount(away.argmin(1)[away.min(1) < 10], minlength=len(names))
        x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
        found.append((names[votes.argmax()], x, y, np.ptp(rows) + 1))
    return found
