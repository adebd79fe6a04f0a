"""Statements about one picture, to be judged: true as often as false, whatever they say."""

import numpy as np

from dora_jax.data.scenes.describe import sentence
from dora_jax.data.scenes.families import Family, Kind
from dora_jax.data.scenes.questions import YES_NO, Question, find, words
from dora_jax.data.scenes.sample import pick
from dora_jax.data.scenes.scene import Scene

TRUE_FALSE = ("true", "false")


def state(scene: Scene, family: Family, kind: Kind, rng: np.random.Generator) -> Question | None:
    """Return a statement that answers one kind of question, rightly or wrongly.

    Returns:
        The statement, of options true and false; None where the scene has none.
    """
    found = find(scene, family, kind, rng)
    if found is None:
        return None
    claimed, is_true = "yes", found.answer == "yes"
    if found.options != YES_NO:
        is_true = bool(rng.integers(2))
        wrong = found.wrong or tuple(o for o in found.options if o != found.answer)
        claimed = found.answer if is_true else pick(wrong, rng)
    rest = next(option for option in found.options if option != claimed)
    claim = words(family, kind).claim.format(answer=claimed, rest=rest, **found.slots)
    return judged(claim, is_true, kind)


def judged(claim: str, is_true: bool, kind: str) -> Question:
    """Return a statement, of options true and false, with its first letter made large."""
    return Question(sentence(claim), TRUE_FALSE[0 if is_true else 1], kind, TRUE_FALSE)
