"""Conversations: several questions about one picture, as LLaVA is tuned on."""

import numpy as np

from dora_jax.data.scenes.families import Family
from dora_jax.data.scenes.questions import Question, ask
from dora_jax.data.scenes.scene import Scene

TURNS = 4


def converse(scene: Scene, family: Family, rng: np.random.Generator) -> tuple[Question, ...]:
    """Return up to `TURNS` questions of different kinds; none where the scene has none of them.

    The kinds are drawn before it is known which of them the scene has: a kind that stepped in for
    others would be asked of unusual scenes more often, and its answers would say so.
    """
    kinds = [family.kinds[i] for i in rng.permutation(len(family.kinds))[:TURNS]]
    asked = (ask(scene, family, kind, rng) for kind in kinds)
    return tuple(question for question in asked if question is not None)
