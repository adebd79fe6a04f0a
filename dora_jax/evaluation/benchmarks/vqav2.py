"""VQAv2 (Goyal et al. 2017): open questions about COCO's images, ten answers each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dora_jax.analysis.atomic import write_text
from dora_jax.data.vqa_files import read_vqa_files
from dora_jax.evaluation.benchmarks.answers import Report, Unmatched, mark, unmatched
from dora_jax.evaluation.benchmarks.normalise import evalai, normalise, single_line
from dora_jax.evaluation.benchmarks.question import Question, short_prompt
from dora_jax.evaluation.benchmarks.soft_accuracy import soft_accuracy


def read(questions: Path, images: Path, annotations: Path | None = None) -> list[Question]:
    """Read the questions of a split.

    Args:
        questions: the file of questions.
        images: the folder of the split's images.
        annotations: the file of answers; None for a test split.

    Raises:
        DoraError: see `read_vqa_files`.
    """
    return [
        Question(
            id=asked.id,
            image=images / f"{asked.image}.jpg",
            prompt=short_prompt(asked.text),
            references=asked.people,
            groups=asked.groups,
        )
        for asked in read_vqa_files(questions, annotations, ("answer_type", "question_type"))
    ]


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
