"""Multiple-choice questions about clips, five options each; every other one needs its subtitle.

With a subtitle the question speaks of persons, and the subtitle alone says what they have to do
with the objects: words and pictures are both needed. Without one, pictures are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from dora_jax.data.scenes.clips import (
    ACTIONS,
    ACTORS,
    Action,
    Clip,
    Script,
    called_the,
    draw_clip,
)
from dora_jax.data.scenes.families import ClipKind, Family, Wording
from dora_jax.data.scenes.questions import Question
from dora_jax.data.scenes.sample import pick
from dora_jax.data.scenes.scene import Split

_T = TypeVar("_T")
_OPTIONS = 5


@dataclass(frozen=True)
class ClipQuestion(Question):
    """A question about a clip.

    Attributes:
        subtitle: what is said in the clip; empty where nothing is.
    """

    subtitle: str = ""


_NAMES: dict[Wording, tuple[str, ...]] = {
    "plain": ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace"),
    "other": ("Hugo", "Iris", "Jonas", "Kira", "Leo", "Mona", "Nils"),
}
_ACTION_WORDS: dict[str, str] = {
    "left": "moves to the left",
    "right": "moves to the right",
    "appears": "appears",
    "disappears": "disappears",
    "colour": "changes its colour",
}
_EFFECT_WORDS: dict[str, str] = {
    "away": "it moves away",
    "disappears": "it disappears",
    "colour": "it changes its colour",
    "shape": "it turns into something else",
    "nothing": "nothing",
}
# What can be counted: what it is called, and the actions that count.
_COUNTED: dict[str, tuple[Action, ...]] = {
    "move": ("left", "right"),
    "appear": ("appears",),
    "disappear": ("disappears",),
    "change their colour": ("colour",),
}
_CAUSED: dict[str, str] = {
    "away": "move",
    "disappears": "disappear",
    "colour": "change its colour",
    "shape": "turn into something else",
}
# Of each kind the question without a subtitle and the one with it.
_WORDS: dict[Wording, dict[ClipKind, tuple[str, str]]] = {
    "plain": {
        "clip-order": (
            "Which object is the {end} one to move, appear, disappear or change its colour?",
            "Whose object is the {end} one to move, appear, disappear or change its colour?",
        ),
        "clip-action": ("What does {x} do?", "What does the object that {person} likes do?"),
        "clip-count": ("How many objects {what}?", "How many objects does {person} count?"),
        "clip-effect": (
            "What happens to {x} when it is hit?",
            "What happens to the object that {person} likes when it is hit?",
        ),
        "clip-speed": ("Which object is the {end}?", "Whose object is the {end}?"),
        "clip-cause": ("What makes {x} {what}?", "Whose object makes {x} {what}?"),
    },
    "other": {
        "clip-order": (
            "Name the object to which something happens {end}.",
            "Name the person to whose object something happens {end}.",
        ),
        "clip-action": ("Say what {x} does.", "Say what the favourite of {person} does."),
        "clip-count": (
            "Count the objects that {what}.",
            "Which number is right for what {person} counts?",
        ),
        "clip-effect": (
            "Say what becomes of {x} after the collision.",
            "Say what becomes of the favourite of {person} after the collision.",
        ),
        "clip-speed": (
            "Of all objects, which one is the {end}?",
            "Of all persons, whose object is the {end}?",
        ),
        "clip-cause": (
            "Because of which object does {x} {what}?",
            "Because of whose object does {x} {what}?",
        ),
    },
}
_SAID = {
    "has": {"plain": "{person}: {it} is mine.", "other": "{person}: I own {it}."},
    "likes": {"plain": "{person}: I like {it}.", "other": "{person}: My favourite is {it}."},
    "counts": {
        "plain": "{person}: I count the objects that {it}.",
        "other": "{person}: I look out for objects that {it}.",
    },
}


class _Asking(NamedTuple):
    """What `ask_clip` was asked for."""

    family: Family
    split: Split
    kind: ClipKind
    with_subtitle: bool
    rng: np.random.Generator

    @property
    def words(self) -> str:
        return _WORDS[self.family.wording][self.kind][self.with_subtitle]

    def draw(self, script: Script, actions: tuple[Action, ...] | None = None) -> Clip:
        return draw_clip(self.family, self.split, script, self.rng, actions)

    def shuffled(self, items: Iterable[_T]) -> list[_T]:
        listed = list(items)
        return [listed[i] for i in self.rng.permutation(len(listed))]

    def persons(self, count: int) -> list[str]:
        return self.shuffled(_NAMES[self.family.wording])[:count]

    def say(self, what: str, person: str, slot: str) -> str:
        line = _SAID[what][self.family.wording].format(person=person, it=slot)
        return line.replace(": the", ": The")


_Made = tuple[Clip, ClipQuestion]


def ask_clip(
    family: Family, split: Split, kind: ClipKind, with_subtitle: bool, rng: np.random.Generator
) -> _Made:
    """Return a clip with a question of one kind.

    Args:
        family: what is drawn and which words ask.
        split: of the clip.
        kind: of the question.
        with_subtitle: whether the question needs a subtitle too.
        rng: draws all.
    """
    return _MAKERS[kind](_Asking(family, split, kind, with_subtitle, rng))


def _which_object(
    asking: _Asking, clip: Clip, right: int, choices: Iterable[int], **slots: str
) -> _Made:
    """Ask for one of the cast, by what it is called or by whose it is."""
    text = asking.words.format(**slots)
    called = {index: called_the(clip.cast[index]) for index in asking.shuffled(choices)}
    if not asking.with_subtitle:
        return clip, ClipQuestion(text, called[right], asking.kind, tuple(called.values()))
    owners = dict(zip(called, asking.persons(len(called)), strict=True))
    said = " ".join(asking.say("has", owners[index], name) for index, name in called.items())
    options = tuple(asking.shuffled(owners.values()))
    return clip, ClipQuestion(text, owners[right], asking.kind, options, said)


def _what_happens(
    asking: _Asking, clip: Clip, about: int, other: int, answer: str, options: Iterable[str]
) -> _Made:
    """Ask about one of the cast, called by what it is or by who likes it."""
    choices = tuple(asking.shuffled(options))
    if not asking.with_subtitle:
        text = asking.words.format(x=called_the(clip.cast[about]))
        return clip, ClipQuestion(text, answer, asking.kind, choices)
    likes = dict(zip((about, other), asking.persons(2), strict=True))
    said = " ".join(
        asking.say("likes", likes[index], called_the(clip.cast[index]))
        for index in asking.shuffled(likes)
    )
    text = asking.words.format(person=likes[about])
    return clip, ClipQuestion(text, answer, asking.kind, choices, said)


def _order(asking: _Asking) -> _Made:
    return _first_or_last(asking, asking.draw("acts"), ("first", "last"))


def _speed(asking: _Asking) -> _Made:
    return _first_or_last(asking, asking.draw("race"), ("slowest", "fastest"))


def _first_or_last(asking: _Asking, clip: Clip, ends: tuple[str, str]) -> _Made:
    end = int(asking.rng.integers(2))
    right = clip.events[-end].actor
    return _which_object(asking, clip, right, range(_OPTIONS), end=ends[end])


def _action(asking: _Asking) -> _Made:
    clip = asking.draw("acts")
    event, other = asking.shuffled(clip.events)[:2]
    answer, options = _ACTION_WORDS[event.action], _ACTION_WORDS.values()
    return _what_happens(asking, clip, event.actor, other.actor, answer, options)


def _count(asking: _Asking) -> _Made:
    what, decoy = asking.shuffled(_COUNTED)[:2]
    number = int(asking.rng.integers(ACTORS + 1))
    rest = [action for action in ACTIONS if action not in _COUNTED[what]]
    actions = [
        pick(_COUNTED[what] if actor < number else rest, asking.rng) for actor in range(ACTORS)
    ]
    clip = asking.draw("acts", tuple(actions))
    options = tuple(str(n) for n in range(_OPTIONS))
    if not asking.with_subtitle:
        text = asking.words.format(what=what)
        return clip, ClipQuestion(text, str(number), asking.kind, options)
    counts = dict(zip((what, decoy), asking.persons(2), strict=True))
    said = " ".join(asking.say("counts", counts[w], w) for w in asking.shuffled(counts))
    text = asking.words.format(person=counts[what])
    return clip, ClipQuestion(text, str(number), asking.kind, options, said)


def _effect(asking: _Asking) -> _Made:
    clip = asking.draw("collision")
    (_, target, effect), (_, other, _) = asking.shuffled(clip.hits)
    return _what_happens(asking, clip, target, other, _EFFECT_WORDS[effect], _EFFECT_WORDS.values())


def _cause(asking: _Asking) -> _Made:
    effect = "nothing"
    while effect not in _CAUSED:
        clip = asking.draw("collision")
        hitter, target, effect = pick(clip.hits, asking.rng)
    choices = [index for index in range(len(clip.cast)) if index != target]
    slots = {"x": called_the(clip.cast[target]), "what": _CAUSED[effect]}
    return _which_object(asking, clip, hitter, choices, **slots)


_MAKERS: dict[ClipKind, Callable[[_Asking], _Made]] = {
    "clip-order": _order,
    "clip-action": _action,
    "clip-count": _count,
    "clip-effect": _effect,
    "clip-speed": _speed,
    "clip-cause": _cause,
}
