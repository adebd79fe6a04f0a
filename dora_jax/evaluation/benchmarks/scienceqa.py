"""ScienceQA (Lu et al. 2022): multiple choice from school books, about half of it with an image.

Published as `problems.json`, an object of all problems by their id, and `pid_splits.json`, the ids
of each split.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dora_jax.data.fields import (
    WAY_OUT,
    number_of,
    text_of,
    texts_of,
    value_of,
    wrong,
)
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.answers import Report, check_questions, mark
from dora_jax.evaluation.benchmarks.letters import scienceqa_letter
from dora_jax.evaluation.benchmarks.question import Question, letter_prompt
from dora_jax.json_file import read_json_object
from dora_jax.spec import nearest


def read(
    problems: Path,
    splits: Path,
    images: Path,
    split: str = "test",
    *,
    only_with_image: bool = False,
) -> list[Question]:
    """Read the questions of a split, with and without an image.

    Args:
        problems: `problems.json`.
        splits: `pid_splits.json`.
        images: the split's folder of images, with a folder for each problem.
        split: of those in `splits`.
        only_with_image: whether questions without one are left out.

    Raises:
        DoraError: naming the file, problem and field.
    """
    raw, named = read_json_object(problems, WAY_OUT), read_json_object(splits, WAY_OUT)
    if split not in named:
        raise DoraError(
            f"{splits}: has no split {split!r}{nearest(split, named)}; it has {', '.join(named)}"
        )
    found = []
    for name in texts_of(named, split, str(splits)):
        if name not in raw:
            raise DoraError(
                f"{problems}: has no problem {name}, which is in {split!r} of {splits}; {WAY_OUT}"
            )
        question = _question(name, raw[name], images, f"{problems}, problem {name}")
        if question.image is not None or not only_with_image:
            found.append(question)
    check_questions(found, f"{splits}, {split!r}")
    return found


def _question(name: str, row: Any, images: Path, where: str) -> Question:
    options = texts_of(row, "choices", where)
    right = number_of(row, "answer", where)
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise wrong("choices", "a list of two texts or more", list(options), where)
    if right >= len(options):
        raise wrong("answer", f"from 0 to {len(options) - 1}", right, where)
    hint, file = value_of(row, "hint", where), value_of(row, "image", where)
    if not isinstance(hint, str):
        raise wrong("hint", "a text", hint, where)
    asked = text_of(row, "question", where)
    if hint.strip():
        asked = f"Context: {hint}\n{asked}"
    return Question(
        id=name,
        image=None if file is None else images / name / text_of(row, "image", where),
        prompt=letter_prompt(asked, options),
        references=(ascii_uppercase[right],),
        options=options,
        groups={
            "image": "without" if file is None else "with",
            "subject": text_of(row, "subject", where),
        },
    )


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> Report:
    """Score by the letter, `scienceqa_letter`; a text without one is unread, and wrong.

    (Other evaluations draw an option at random for such a text.) What LLaVA-1.5 and the DoRA paper
    report as SQA is the accuracy by image, "with".
    """
    return mark(questions, answers, _rule)


def _rule(question: Question, answer: str) -> float | None:
    letter = scienceqa_letter(answer)
    return None if letter is None else float(letter == question.references[0])
