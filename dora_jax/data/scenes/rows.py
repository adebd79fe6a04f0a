"""Rows of a task: pictures with what is asked about them, each by (seed, split, index) alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dora_jax.data.scenes.captions import caption, full_caption
from dora_jax.data.scenes.clip_captions import clip_caption, clip_steps
from dora_jax.data.scenes.clip_questions import ask_clip
from dora_jax.data.scenes.clips import Script, draw_clip
from dora_jax.data.scenes.conversations import converse
from dora_jax.data.scenes.families import Family, Wording
from dora_jax.data.scenes.pairs import pair_kinds, state_pair
from dora_jax.data.scenes.questions import Question, ask
from dora_jax.data.scenes.sample import draw, pick
from dora_jax.data.scenes.scene import Scene, Split, generator
from dora_jax.data.scenes.statements import state
from dora_jax.errors import DoraError

Task = Literal[
    "questions",
    "conversations",
    "captions",
    "statements",
    "pairs",
    "clip-questions",
    "clip-captions",
    "clip-steps",
]
CAPTION_PROMPTS: dict[Wording, dict[str, str]] = {
    "plain": {
        "caption": "Describe the image.",
        "full-caption": "Describe the image in detail.",
        "clip-captions": "Describe the video in one sentence.",
        "clip-steps": "Describe the video step by step.",
    },
    "other": {
        "caption": "Say in one sentence what the picture shows.",
        "full-caption": "Say in detail what the picture shows.",
        "clip-captions": "Say in one sentence what happens.",
        "clip-steps": "Say one by one what happens.",
    },
}
_TRIES = 2000


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        scenes: one picture, two for `pairs`, or the frames of a clip.
        questions: one, or several turns for `conversations`; of `clip-questions` they are
            `ClipQuestion`s, which have a subtitle; captions have no options.
    """

    scenes: tuple[Scene, ...]
    questions: tuple[Question, ...]


def row(task: Task, family: Family, split: Split, index: int, seed: int = 0) -> Row:
    """Return one row of a task; kinds of questions come in turn, first without subtitles.

    Args:
        task: what is asked.
        family: what the scenes are drawn from.
        split: whose scenes and handwritten digits; none is in two of them, whatever the seed.
        index: which row; each can be made alone.
        seed: of the draws.

    Raises:
        DoraError: when scenes of the family have nothing to be asked of that kind.
    """
    rng = generator(task, family.name, split, seed, index)
    if task == "clip-questions":
        turn, kind_index = divmod(index, len(family.clip_kinds))
        clip_kind = family.clip_kinds[kind_index]
        clip, question = ask_clip(family, split, clip_kind, turn % 2 == 1, rng)
        return Row(clip.scenes, (question,))
    if task in ("clip-captions", "clip-steps"):
        return _clip_caption(task, family, split, rng)
    make, kinds = _MAKERS[task], _kinds(task, family)
    kind = kinds[index % len(kinds)]
    for _ in range(_TRIES):
        scenes = tuple(draw(family, split, rng) for _ in range(2 if task == "pairs" else 1))
        questions = make(scenes, family, kind, rng)
        if questions:
            return Row(scenes, questions)
    raise DoraError(
        f"Family {family.name}: none of {_TRIES} scenes has a question of kind {kind}: leave it "
        "out of Family.kinds, or set Family.counts or Family.difficulty higher"
    )


def _kinds(task: Task, family: Family) -> tuple[str, ...]:
    if task == "captions":
        return ("caption", "full-caption")
    return pair_kinds(family) if task == "pairs" else family.kinds


_Maker = Callable[[tuple[Scene, ...], Family, str, np.random.Generator], tuple[Question, ...]]


def _captions(
    scenes: tuple[Scene, ...], family: Family, kind: str, rng: np.random.Generator
) -> tuple[Question, ...]:
    words = (caption if kind == "caption" else full_caption)(scenes[0], family.wording)
    return (Question(CAPTION_PROMPTS[family.wording][kind], words, kind, ()),)


def _clip_caption(task: Task, family: Family, split: Split, rng: np.random.Generator) -> Row:
    scripts: tuple[Script, ...] = ("acts", "collision")
    clip = draw_clip(family, split, pick(scripts, rng), rng)
    if task == "clip-captions":
        told = clip_caption(clip, family.wording)
    else:
        told = " ".join(clip_steps(clip, family.wording))
    return Row(clip.scenes, (Question(CAPTION_PROMPTS[family.wording][task], told, task, ()),))


def _single(asked: Callable[..., Question | None]) -> _Maker:
    def make(
        scenes: tuple[Scene, ...], family: Family, kind: str, rng: np.random.Generator
    ) -> tuple[Question, ...]:
        found = asked(*scenes, family, kind, rng)
        return () if found is None else (found,)

    return make


_MAKERS: dict[Task, _Maker] = {
    "questions": _single(ask),
    "conversations": lambda scenes, family, kind, rng: converse(scenes[0], family, rng),
    "captions": _captions,
    "statements": _single(state),
    "pairs": _single(state_pair),
}
