"""Short clips: things move, appear, disappear, change and collide, each in a lane of its own.

Who does what is drawn independently of what they look like, and those who only stand among the
answers look like the others: looks cannot tell an answer.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from dora_jax.data.scenes import digits
from dora_jax.data.scenes.families import Family
from dora_jax.data.scenes.sample import DIGIT_SHARE, pick
from dora_jax.data.scenes.scene import DIGIT, Group, Object, Scene, Split, split_of
from dora_jax.errors import DoraError

Script = Literal["acts", "race", "collision"]
Action = Literal["left", "right", "appears", "disappears", "colour"]
Effect = Literal["away", "disappears", "colour", "shape", "nothing"]
ACTIONS, EFFECTS = get_args(Action), get_args(Effect)
ACTORS = 4  # in a clip, as many as lanes
_CAST = 6  # looks: the actors', and those of others to choose from
# How far objects of a race go, as shares of the canvas; others go this far in so many frames.
_RACE = (0.12, 0.3, 0.48, 0.66)
_STEPS, _DISTANCE = 3, 0.3
_BORDER = 0.13  # no middle comes nearer to the left or right


@dataclass(frozen=True)
class Event:
    """What one actor does.

    Attributes:
        actor: who, as an index into the cast.
        action: one of `ACTIONS`, or `hits`: runs into `other`.
        frame: the first one that shows it.
        steps: how many frames a movement takes.
        distance: that a movement goes, as a share of the canvas.
        becomes: the new colour or kind of whoever changes.
        other: who is hit, as an index into the cast.
        effect: what becomes of them: one of `EFFECTS`.
    """

    actor: int
    action: str
    frame: int
    steps: int = _STEPS
    distance: float = _DISTANCE
    becomes: str | None = None
    other: int | None = None
    effect: str | None = None


@dataclass(frozen=True)
class Clip:
    """A clip before it is drawn.

    Attributes:
        cast: six objects that differ in what they are called; the first `ACTORS` are in the clip.
        events: one for each actor but for who is hit, in order of time; of a race, the slowest
            first.
        scenes: the frames.
    """

    cast: tuple[Object, ...]
    events: tuple[Event, ...]
    scenes: tuple[Scene, ...]

    @property
    def hits(self) -> list[tuple[int, int, str]]:
        """Who hits whom, as indices into the cast, and what becomes of the other."""
        found = ((e.actor, e.other, e.effect) for e in self.events)
        return [(a, b, effect) for a, b, effect in found if b is not None and effect is not None]


def draw_clip(
    family: Family,
    split: Split,
    script: Script,
    rng: np.random.Generator,
    actions: tuple[Action, ...] | None = None,
) -> Clip:
    """Return the next clip of a generator.

    Args:
        family: what looks are drawn from, and how many frames there are.
        split: by what the cast looks like and does; digits are written by the split's own hands.
        script: `acts`, one after another; `race`, all move at once at different speeds;
            `collision`, two are hit by two others.
        rng: draws it.
        actions: of the actors of `acts`; drawn evenly if not given.

    Raises:
        DoraError: when the family has too few colours and shapes to tell a cast apart.
    """
    names = len(family.colours) * (len(family.shapes) + (10 if family.digits else 0))
    if names < 2 * _CAST:
        raise DoraError(
            f"clips need {2 * _CAST} pairs of a colour and a shape to choose from; Family.colours "
            f"and Family.shapes make {names}: add some"
        )
    while True:
        cast = _cast(family, rng)
        if script == "acts":
            events = _acts(cast, family, rng, actions)
        else:
            events = _race(family, rng) if script == "race" else _collision(cast, family, rng)
        if events is None:
            continue
        background = pick(family.backgrounds, rng)
        if split_of(_content(background, cast, events).encode()) == split:
            break
    written = digits.instances(split)
    cast = tuple(
        o if o.digit is None else replace(o, instance=pick(written[o.digit], rng)) for o in cast
    )
    tracks = _tracks(cast, events, family.frames, rng)
    scenes = []
    for frame in range(family.frames):
        seen = tuple(o for track in tracks if (o := track[frame]) is not None)
        scenes.append(Scene(seen, background, family.canvas, Group("all")))
    return Clip(cast, events, tuple(scenes))


def name_of(o: Object) -> tuple[str, str]:
    """Return (colour, noun), by which an object of a clip is called."""
    return o.colour, o.kind if o.digit is None else str(o.digit)


def called_the(o: Object) -> str:
    """Return "the red circle", "the blue 7"."""
    return "the " + " ".join(name_of(o))


def _content(background: str, cast: tuple[Object, ...], events: tuple[Event, ...]) -> str:
    """Return who does what in which order, apart from when and where."""
    told = [
        (
            called_the(cast[e.actor]),
            (e.action, e.distance, e.becomes, e.effect),
            None if e.other is None else called_the(cast[e.other]),
        )
        for e in events
    ]
    return repr((background, told))


def _cast(family: Family, rng: np.random.Generator) -> tuple[Object, ...]:
    found: dict[tuple[str, str], Object] = {}
    while len(found) < _CAST:
        is_digit = family.digits and rng.random() < DIGIT_SHARE
        o = Object(
            kind=DIGIT if is_digit else pick(family.shapes, rng),
            colour=pick(family.colours, rng),
            size="small",
            style="written" if is_digit else pick(family.styles, rng),
            digit=int(rng.integers(10)) if is_digit else None,
        )
        found.setdefault(name_of(o), o)
    return tuple(found.values())


def _other_name(
    actor: int, by: str, cast: tuple[Object, ...], family: Family, rng: np.random.Generator
) -> str | None:
    """Return a new colour or kind that makes an actor look like nobody else; None without one."""
    o, taken = cast[actor], {name_of(other) for other in cast}
    if by == "colour":
        free = [c for c in family.colours if (c, name_of(o)[1]) not in taken]
    else:
        free = [shape for shape in family.shapes if (o.colour, shape) not in taken]
    return pick(free, rng) if free else None


_Events = tuple[Event, ...] | None


def _acts(
    cast: tuple[Object, ...],
    family: Family,
    rng: np.random.Generator,
    actions: tuple[Action, ...] | None,
) -> _Events:
    starts = sorted((1 + rng.permutation(family.frames - _STEPS)[:ACTORS]).tolist())
    found = []
    for actor, start in zip(rng.permutation(ACTORS).tolist(), starts, strict=True):
        action: Action = pick(ACTIONS, rng) if actions is None else actions[actor]
        becomes = None
        if action == "colour":
            becomes = _other_name(actor, "colour", cast, family, rng)
            if becomes is None:
                return None
        found.append(Event(actor, action, start, becomes=becomes))
    return tuple(found)


def _race(family: Family, rng: np.random.Generator) -> _Events:
    return tuple(
        Event(actor, pick(("left", "right"), rng), 1, family.frames - 1, distance)
        for actor, distance in zip(rng.permutation(ACTORS).tolist(), _RACE, strict=True)
    )


def _collision(cast: tuple[Object, ...], family: Family, rng: np.random.Generator) -> _Events:
    """Let two of the cast be hit by two others, one after another."""
    found = []
    frames = (family.frames // 2 - 1 + rng.permutation(3)[:2]).tolist()
    for hitter, target, frame in zip((0, 2), (1, 3), frames, strict=True):
        effect: Effect = pick(EFFECTS, rng)
        becomes = None
        if effect in ("colour", "shape"):
            becomes = _other_name(target, effect, cast, family, rng)
            if becomes is None:
                return None
        hit = Event(hitter, "hits", frame, becomes=becomes, other=target, effect=effect)
        found.append(hit)
    return tuple(sorted(found, key=lambda event: event.frame))


_Track = list[Object | None]


def _tracks(
    cast: tuple[Object, ...], events: tuple[Event, ...], frames: int, rng: np.random.Generator
) -> list[_Track]:
    """Return what is seen of each actor in each frame."""
    lanes = ((rng.permutation(ACTORS)[: len(events)] + 0.5) / ACTORS).tolist()
    found = []
    for event, lane in zip(events, lanes, strict=True):
        o = replace(cast[event.actor], y=lane)
        if event.other is None:
            found.append(_act(o, event, frames, rng))
        else:
            found += _collide(o, replace(cast[event.other], y=lane), event, frames, rng)
    return found


def _act(o: Object, event: Event, frames: int, rng: np.random.Generator) -> _Track:
    moves = {"left": -1, "right": 1}.get(event.action, 0) * event.distance
    least, most = _BORDER - min(moves, 0), 1 - _BORDER - max(moves, 0)
    o = replace(o, x=rng.uniform(least, most))
    before: _Track = [o] * event.frame
    if event.action == "appears":
        before = [None] * event.frame
    return before + _after(o, event.action, moves, event, frames)


def _after(o: Object, what: str, moves: float, event: Event, frames: int) -> _Track:
    """Return an object from the event's frame on."""
    left = frames - event.frame
    if what == "disappears":
        return [None] * left
    if what == "colour":
        o = replace(o, colour=event.becomes or o.colour)
    if what == "shape":
        style = "filled" if o.kind == DIGIT else o.style
        o = replace(o, kind=event.becomes or o.kind, style=style, digit=None, instance=None)
    done = [min((step + 1) / event.steps, 1) for step in range(left)]
    return [replace(o, x=o.x + moves * share) for share in done]


def _collide(
    hitter: Object, target: Object, event: Event, frames: int, rng: np.random.Generator
) -> list[_Track]:
    """Return the tracks of who runs into another, and of the other."""
    way = pick((-1, 1), rng)
    middle = rng.uniform(0.46, 0.54)
    target = replace(target, x=middle)
    contact = middle - way * (hitter.radius + target.radius)
    start = 0.5 - way * (0.5 - _BORDER)
    last = event.frame - 1  # when they touch; the frame after it shows what comes of it
    xs = [start + (contact - start) * min(frame / last, 1) for frame in range(frames)]
    effect = event.effect or "nothing"
    moves = way * _DISTANCE if effect == "away" else 0.0
    after = _after(target, effect, moves, event, frames)
    before: _Track = [target] * event.frame
    return [[replace(hitter, x=x) for x in xs], before + after]
