"""A benchmark's questions as rows of prompts, which `dora-jax generate --prompts` answers."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dora_jax.analysis.atomic import write_bytes, write_text
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.question import Question

_NAMED = 3


def write_prompts(questions: Sequence[Question], path: Path) -> dict[str, Any]:
    """Write a JSON line for each question: `question_id`, `prompt`, and `image` where it has one.

    An image is named from the folder of the rows, where `dora-jax generate` looks for it. One that
    is bytes is written to a folder beside the rows, `mmbench_images` beside `mmbench.jsonl`, once
    for all questions about it, and kept where it is there already.

    Args:
        questions: as a benchmark's `read` returns them.
        path: the file to write.

    Returns:
        What is printed: the file, and the number of questions and of images.

    Raises:
        DoraError: before anything is written, when images are missing: how many, and the first of
            them; also when a file cannot be written.
    """
    images = dict.fromkeys(q.image for q in questions if q.image is not None)
    _check(image for image in images if isinstance(image, Path))
    folder = path.with_name(f"{path.stem}_images")
    files = {
        image: image if isinstance(image, Path) else _written(image, folder) for image in images
    }
    # Links are followed first: ".." of a folder that is a link is not where it seems to be.
    here = os.path.realpath(path.parent)
    names = {
        image: os.path.relpath(os.path.join(os.path.realpath(file.parent), file.name), here)
        for image, file in files.items()
    }
    rows: list[dict[str, Any]] = []
    for question in questions:
        row = {"question_id": question.id, "prompt": question.prompt}
        rows.append(row if question.image is None else row | {"image": names[question.image]})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    check_free(path, text)
    write_text(path, text)
    return {"prompts": str(path), "questions": len(rows), "images": len(images)}


def check_free(path: Path, text: str | None = None) -> None:
    """Check that a file may be written: that nothing else is there.

    Args:
        path: the file.
        text: what is to be written, where that may be there already.

    Raises:
        DoraError: when something is there.
    """
    if not path.exists() or (text is not None and path.is_file() and path.read_text() == text):
        return
    raise DoraError(f"{path}: exists, with something else in it; choose another name, or delete it")


def _check(images: Iterable[Path]) -> None:
    found = list(images)
    missing = [str(image) for image in found if not image.is_file()]
    if missing:
        more = ", ..." if len(missing) > _NAMED else ""
        raise DoraError(
            f"{len(missing)} of {len(found)} images are missing: {', '.join(missing[:_NAMED])}"
            f"{more}; name the folder that holds them with --images"
        )


def _written(image: bytes, folder: Path) -> Path:
    # Named by its content, so that a file that is there is the same one. (MMBench's are JPEG.)
    path = folder / f"{hashlib.sha256(image).hexdigest()[:16]}.jpg"
    return path if path.is_file() else write_bytes(path, image)
