"""VQAv2's questions and people's answers, as they are published: one reader for all that use them.

`v2_OpenEnded_mscoco_*_questions.json` and, but for the test splits, `v2_mscoco_*_annotations.json`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
from dora_jax.json_file import read_json_object


class Asked(NamedTuple):
    """A question about an image of COCO.

    Attributes:
        id: of the question, as a text.
        text: the question.
        image: its name without an ending, `COCO_{split}_{12 digits}`.
        people: what people answered; empty of a test split.
        groups: what was asked for of the answers' fields, by name.
        where: file and row, named in errors.
    """

    id: str
    text: str
    image: str
    people: tuple[str, ...]
    groups: Mapping[str, str]
    where: str


def read_vqa_files(
    questions: Path, annotations: Path | None = None, groups: Sequence[str] = ()
) -> Iterator[Asked]:
    """Yield the questions of a split, in their order.

    Args:
        questions: the file of questions.
        annotations: the file of answers; None for a test split.
        groups: fields of the answers that are wanted too, such as `answer_type`.

    Raises:
        DoraError: naming the file, row and field; also for a question that is there twice, and when
            the two files are of different splits.
    """
    raw = read_json_object(questions, WAY_OUT)
    # The questions of test-dev are about test's images.
    split = text_of(raw, "data_subtype", str(questions)).replace("-dev", "")
    answered = {} if annotations is None else _answers(annotations, groups)
    seen: set[str] = set()
    for where, row in rows_of(value_of(raw, "questions", str(questions)), questions):
        asked, image = id_of(row, "question_id", where), number_of(row, "image_id", where)
        if asked in seen:
            raise DoraError(f"{questions}: has question {asked!r} twice; {WAY_OUT}")
        seen.add(asked)
        if annotations is not None and asked not in answered:
            raise DoraError(
                f"{annotations}: has no answers to question {asked} of {questions}; give both "
                "files of one split"
            )
        people, own = answered.pop(asked, ((), {}))
        name = f"COCO_{split}_{image:012d}"
        yield Asked(asked, text_of(row, "question", where), name, people, own, where)
    if answered:
        raise DoraError(
            f"{questions}: has no question {next(iter(answered))}, which {annotations} answers; "
            "give both files of one split"
        )


def _answers(
    path: Path, groups: Sequence[str]
) -> dict[str, tuple[tuple[str, ...], dict[str, str]]]:
    rows = rows_of(value_of(read_json_object(path, WAY_OUT), "annotations", str(path)), path)
    return {
        id_of(row, "question_id", where): (
            people_of(row, where),
            {name: text_of(row, name, where) for name in groups},
        )
        for where, row in rows
    }
