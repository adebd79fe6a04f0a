"""GQA (Hudson and Manning 2019): compositional questions about scenes, one answer each.

Published as `testdev_balanced_questions.json` and the like: an object of questions by their id.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dora_jax.data.fields import WAY_OUT, text_of, value_of
from dora_jax.evaluation.benchmarks.answers import Report, check_questions, mark
from dora_jax.evaluation.benchmarks.question import Question, short_prompt
from dora_jax.json_file import read_json_object

_TYPES = ("structural", "semantic", "detailed")


def read(questions: Path, images: Path) -> list[Question]:
    """Read the questions of a split.

    Args:
        questions: the split's file.
        images: the folder of images.

    Raises:
        DoraError: naming the file, question and field.
    """
    raw = read_json_object(questions, WAY_OUT)
    found = []
    for name, row in raw.items():
        where = f"{questions}, question {name}"
        asked = text_of(row, "question", where)
        # Without one in the splits whose answers are kept back.
        answered = "answer" in row
        found.append(
            Question(
                id=name,
                image=images / f"{text_of(row, 'imageId', where)}.jpg",
                prompt=short_prompt(asked),
                references=(text_of(row, "answer", where),) if answered else (),
                groups=_groups(row, where) if answered else {},
            )
        )
    check_questions(found, questions)
    return found


def _groups(row: Any, where: str) -> dict[str, str]:
    types = value_of(row, "types", where)
    named = f"{where}, 'types'"
    structural = text_of(types, "structural", named)
    # A question of few has no detailed type.
    groups = {n: text_of(types, n, named) for n in _TYPES if value_of(types, n, named) is not None}
    return groups | {"answers": "open" if structural == "query" else "binary"}


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> Report:
    """Score by exact match, of what LLaVA-1.5 hands to the official evaluation.

    That is the answer in lower case, without full stops at its end. Groups are GQA's own: the
    question's types, and whether it is open (of structural type "query") or binary.

    Raises:
        DoraError: when a question has no reference.
    """
    return mark(
        questions, answers, lambda q, answer: float(answer.rstrip(".").lower() == q.references[0])
    )
