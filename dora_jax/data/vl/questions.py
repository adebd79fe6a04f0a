"""VQAv2 and GQA: open questions about one image each, in the forms that they are published in."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from dora_jax.data.fields import WAY_OUT, id_of, text_of, wrong
from dora_jax.data.jsonl import json_rows
from dora_jax.data.vl.row import VLRow
from dora_jax.data.vqa_files import read_vqa_files
from dora_jax.evaluation.benchmarks.normalise import normalise
from dora_jax.evaluation.benchmarks.soft_accuracy import soft_accuracy
from dora_jax.json_file import read_json_object

_SAMPLE = (
    '{"question_id": 1, "img_id": "COCO_val2014_000000000042", "sent": "Is it a dog?", '
    '"label": {"yes": 1.0}}'
)


def read_vqa(questions: Path, annotations: Path | None = None) -> Iterator[VLRow]:
    """Yield VQAv2's rows from its files of questions and answers.

    An image is called `COCO_{split}_{12 digits}`, as published features call it. Targets are
    people's answers as VQA's evaluation normalises them, each weighted by its soft accuracy;
    answers that are empty then are left out.

    Args:
        questions: the file of questions.
        annotations: the file of answers; None for a test split, whose rows have no targets.

    Raises:
        DoraError: see `read_vqa_files`.
    """
    for asked in read_vqa_files(questions, annotations):
        label = _soft_scores(asked.people)
        yield VLRow(
            "vqa",
            asked.id,
            asked.text,
            tuple(label),
            tuple(label.values()),
            references=asked.people,
            visuals=(asked.image,),
            where=asked.where,
        )


def _soft_scores(people: tuple[str, ...]) -> dict[str, float]:
    alike = [normalise(answer) for answer in people]
    return {text: soft_accuracy(text, alike) for text in dict.fromkeys(alike) if text}


def read_labelled(path: Path, task: Literal["vqa", "gqa"]) -> Iterator[VLRow]:
    """Yield rows of the list that LXMERT published and VL-T5 goes on with (Karpathy's split too).

    A JSON array of `question_id`, `img_id`, `sent` and `label`, an object of answers and their
    scores; without `label` in a test split. An empty label is a question that no frequent answer
    fits: it has no target, and is left out by training.

    Args:
        path: the file.
        task: which of the two it is of.

    Raises:
        DoraError: naming the file, row and field.
    """
    for where, row in json_rows(path, _SAMPLE):
        label = _label(row, where) if isinstance(row, dict) and "label" in row else {}
        yield VLRow(
            task,
            id_of(row, "question_id", where),
            text_of(row, "sent", where),
            tuple(label),
            tuple(label.values()),
            references=tuple(label) if task == "gqa" else (),
            visuals=(id_of(row, "img_id", where),),
            where=where,
        )


def _label(row: Mapping[str, Any], where: str) -> dict[str, float]:
    found = row["label"]
    if not isinstance(found, dict) or not all(map(_is_score, found.values())):
        raise wrong("label", "an object of answers and scores from 0 to 1", found, where)
    return {answer: float(score) for answer, score in found.items() if score > 0 and answer}


def _is_score(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= 1


def read_gqa(questions: Path) -> Iterator[VLRow]:
    """Yield GQA's rows from `*_balanced_questions.json`, an object of questions by their id.

    Raises:
        DoraError: naming the file, question and field.
    """
    for name, row in read_json_object(questions, WAY_OUT).items():
        where = f"{questions}, question {name}"
        asked, image = text_of(row, "question", where), id_of(row, "imageId", where)
        # Without one in the splits whose answers are kept back.
        answers = (text_of(row, "answer", where),) if "answer" in row else ()
        yield VLRow("gqa", name, asked, answers, references=answers, visuals=(image,), where=where)
