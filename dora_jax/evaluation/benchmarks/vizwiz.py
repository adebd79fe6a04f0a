"""VizWiz (Gurari et al. 2018): questions and pictures of blind people, some without an answer.

Published as `train.json`, `val.json` and, without answers, `test.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dora_jax.analysis.atomic import write_text
from dora_jax.data.fields import WAY_OUT, people_of, rows_of, text_of
from dora_jax.evaluation.benchmarks.answers import (
    Report,
    Unmatched,
    check_questions,
    mark,
    unmatched,
)
from dora_jax.evaluation.benchmarks.normalise import evalai, normalise
from dora_jax.evaluation.benchmarks.question import Question, short_prompt
from dora_jax.evaluation.benchmarks.soft_accuracy import soft_accuracy
from dora_jax.json_file import read_json

_INSUFFICIENT = "When the provided information is insufficient, respond with 'Unanswerable'."


def read(annotations: Path, images: Path) -> list[Question]:
    """Read the questions of a split; a question's id is the name of its image.

    LLaVA-1.5 asks them with one capital letter, the first.

    Args:
        annotations: the file of the split.
        images: the folder of its images.

    Raises:
        DoraError: naming the file, row and field.
    """
    found = []
    for where, row in rows_of(read_json(annotations, WAY_OUT), annotations):
        image = text_of(row, "image", where)
        asked = text_of(row, "question", where).capitalize()
        answered = "answers" in row
        found.append(
            Question(
                id=image,
                image=images / image,
                prompt=short_prompt(f"{asked}\n{_INSUFFICIENT}"),
                references=people_of(row, where) if answered else (),
                groups={"answer_type": text_of(row, "answer_type", where)} if answered else {},
            )
        )
    check_questions(found, annotations)
    return found


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> Report:
    """Score by soft accuracy, as VizWiz's evaluation does: VQA's, but references as they stand.

    Raises:
        DoraError: when a question has no reference.
    """
    return mark(
        questions, answers, lambda q, answer: soft_accuracy(normalise(answer), q.references)
    )


def write_submission(
    questions: Sequence[Question], answers: Mapping[str, str], path: Path
) -> Unmatched:
    """Write what the server takes for the test split, its answers as LLaVA-1.5 submits them.

    A question without an answer gets an empty one.

    Returns:
        Which questions and answers do not go together.

    Raises:
        DoraError: when the file cannot be written.
    """
    rows = [{"image": q.id, "answer": evalai(answers.get(q.id, ""))} for q in questions]
    write_text(path, json.dumps(rows))
    return unmatched((question.id for question in questions), answers)
