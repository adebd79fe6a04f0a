"""TextVQA (Singh et al. 2019): questions that need the text in the image, ten answers each.

Published as `TextVQA_0.5.1_val.json` and the like; beside it `TextVQA_Rosetta_OCR_v0.2_val.json`
holds the tokens that an OCR system found, which LLaVA-1.5's prompt gives.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dora_jax.data.fields import (
    WAY_OUT,
    id_of,
    rows_of,
    text_of,
    texts_of,
    value_of,
    wrong,
)
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.answers import Report, check_questions, mark
from dora_jax.evaluation.benchmarks.normalise import evalai
from dora_jax.evaluation.benchmarks.question import Question, short_prompt
from dora_jax.evaluation.benchmarks.soft_accuracy import soft_accuracy
from dora_jax.json_file import read_json_object

_PEOPLE = 10


def read(annotations: Path, images: Path, ocr: Path | None = None) -> list[Question]:
    """Read the questions of a split.

    LLaVA-1.5 asks them with one capital letter, the first.

    Args:
        annotations: the file of the split.
        images: the folder of images.
        ocr: the file of OCR tokens; None asks without them, which is another task than the one
            that LLaVA-1.5 reports.

    Raises:
        DoraError: naming the file, row and field; also for an image without OCR tokens.
    """
    tokens = None if ocr is None else _tokens(ocr)
    found = []
    raw = value_of(read_json_object(annotations, WAY_OUT), "data", str(annotations))
    for where, row in rows_of(raw, annotations):
        image = text_of(row, "image_id", where)
        asked = text_of(row, "question", where).capitalize()
        if tokens is not None:
            if image not in tokens:
                raise DoraError(
                    f"{ocr}: has no OCR tokens of image {image} of {annotations}; give both files "
                    "of one split"
                )
            asked = f"{asked}\nReference OCR token: {', '.join(tokens[image])}"
        references = texts_of(row, "answers", where) if "answers" in row else ()
        if references and len(references) != _PEOPLE:
            raise wrong("answers", f"a list of {_PEOPLE} texts", list(references), where)
        found.append(
            Question(
                id=id_of(row, "question_id", where),
                image=images / f"{image}.jpg",
                prompt=short_prompt(asked),
                references=references,
            )
        )
    check_questions(found, annotations)
    return found


def _tokens(path: Path) -> dict[str, tuple[str, ...]]:
    raw = value_of(read_json_object(path, WAY_OUT), "data", str(path))
    return {
        text_of(row, "image_id", where): texts_of(row, "ocr_tokens", where)
        for where, row in rows_of(raw, path)
    }


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> Report:
    """Score by soft accuracy, answer and references by EvalAI's processor, as M4C's evaluation.

    Raises:
        DoraError: when a question has no reference.
    """
    return mark(
        questions,
        answers,
        lambda q, answer: soft_accuracy(evalai(answer), [evalai(text) for text in q.references]),
    )
