"""VQAv2 (Goyal et al. 2017): open questions about COCO's images, ten answers each.

Published as `v2_OpenEnded_mscoco_*_questions.json` and, but for the test splits,
`v2_mscoco_*_annotations.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dora_jax.analysis.atomic import write_text
from dora_jax.data.fields import (
    WAY_OUT,
    id_of,
    number_of,
    people_of,
    rows_of,
    text_of,
    value_of,
)
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.answers import (
    Report,
    Unmatched,
    check_questions,
    mark,
    unmatched,
)
from dora_jax.evaluation.benchmarks.normalise import evalai, normalise, single_line
from dora_jax.evaluation.benchmarks.question import Question, short_prompt
from dora_jax.evaluation.benchmarks.soft_accuracy import soft_accuracy
from dora_jax.json_file import read_json_object


def read(questions: Path, images: Path, annotations: Path | None = None) -> list[Question]:
    """Read the questions of a split.

    Args:
        questions: the file of questions.
        images: the folder of the split's images.
        annotations: the file of answers; None for a test split.

    Raises:
        DoraError: naming the file, row and field; also when the two are of different splits.
    """
    raw = read_json_object(questions, WAY_OUT)
    # The questions of test-dev are about test's images.
    split = text_of(raw, "data_subtype", str(questions)).replace("-dev", "")
    answered = {} if annotations is None else _annotations(annotations)
    found = []
    for where, row in rows_of(value_of(raw, "questions", str(questions)), questions):
        asked, image = id_of(row, "question_id", where), number_of(row, "image_id", where)
        if annotations is not None and asked not in answered:
            raise DoraError(
                f"{annotations}: has no answers to question {asked} of {questions}; give both "
                "files of one split"
            )
        references, groups = answered.pop(asked, ((), {}))
        found.append(
            Question(
                id=asked,
                image=images / f"COCO_{split}_{image:012d}.jpg",
                prompt=short_prompt(text_of(row, "question", where)),
                references=references,
                groups=groups,
            )
        )
    check_questions(found, questions)
    if answered:
        raise DoraError(
            f"{questions}: has no question {next(iter(answered))}, which {annotations} answers; "
            "give both files of one split"
        )
    return found


def _annotations(path: Path) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    rows = rows_of(value_of(read_json_object(path, WAY_OUT), "annotations", str(path)), path)
    return {
        id_of(row, "question_id", where): (
            people_of(row, where),
            {name: text_of(row, name, where) for name in ("answer_type", "question_type")},
        )
        for where, row in rows
    }


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> Report:
    """Score by soft accuracy, see `vqa_accuracy`.

    Raises:
        DoraError: when a question has no reference.
    """
    return mark(questions, answers, lambda q, answer: vqa_accuracy(answer, q.references))


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Return an answer's soft accuracy, from 0 to 1, as the official evaluation has it.

    Answer and references are normalised where the people do not all agree word for word, and
    compared as they stand where they do.

    Args:
        answer: the model's.
        people: what people answered, at least one.
    """
    references, given = [single_line(reference) for reference in people], single_line(answer)
    if len(set(references)) > 1:
        references, given = [normalise(text) for text in references], normalise(given)
    return soft_accuracy(given, references)


def write_submission(
    questions: Sequence[Question], answers: Mapping[str, str], path: Path
) -> Unmatched:
    """Write what the server takes for a test split, its answers as LLaVA-1.5 submits them.

    The server wants every question of `test2015`, whichever of them are scored: one without an
    answer gets an empty one.

    Returns:
        Which questions and answers do not go together.

    Raises:
        DoraError: when the file cannot be written.
    """
    rows: list[dict[str, Any]] = [
        {
            "question_id": int(question.id) if question.id.isdigit() else question.id,
            "answer": evalai(answers.get(question.id, "")),
        }
        for question in questions
    ]
    write_text(path, json.dumps(rows))
    return unmatched((question.id for question in questions), answers)
