"""Rows as files: PNG pictures, and JSON in the format of `llava_v1_5_mix665k.json`."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.analysis.atomic import write_bytes, write_text
from dora_jax.data.scenes.clip_questions import ClipQuestion
from dora_jax.data.scenes.families import Family
from dora_jax.data.scenes.questions import Question
from dora_jax.data.scenes.render import render_all
from dora_jax.data.scenes.rows import Row, Task, row
from dora_jax.data.scenes.scene import Split
from dora_jax.errors import DoraError

# What is added to the first question, so that a language model knows what is wanted.
_SHORTLY = "Answer the question using a single word or phrase."
_JUDGE = "Is the statement true or false?"
INSTRUCTIONS: dict[Task, str] = {
    "questions": _SHORTLY,
    "conversations": _SHORTLY,
    "captions": "",
    "statements": _JUDGE,
    "pairs": _JUDGE,
    "clip-questions": "",
    "clip-captions": "",
    "clip-steps": "",
}


def write(
    folder: Path, family: Family, split: Split, rows: int, seed: int = 0, task: Task = "questions"
) -> Path:
    r"""Write rows of one task; what is already there is not written again.

    Training rows go to `train.json`, a list of `{"id", "image", "conversations": [{"from":
    "human", "value": "<image>\n..."}, {"from": "gpt", "value": "..."}]}`. Those of the other
    splits go to `validation.jsonl` or `test.jsonl`, a line for each question, in the same words:
    `{"id", "image", "question", "answer", "options", "task"}`, the task being the kind of question.
    `image` is a path from the folder, or a list of two for `pairs`. A clip is one picture, its
    frames side by side from left to right; its subtitle stands before the question, and its
    options behind it.

    Args:
        folder: to write to; made if it is missing.
        family: what the scenes are drawn from.
        split: which rows.
        rows: how many.
        seed: of the draws.
        task: what is asked.

    Returns:
        The JSON file. A file of the same name that holds other rows is replaced; pictures of other
        settings have other names, and stay.

    Raises:
        DoraError: when Pillow is missing, a file cannot be written, or the family's scenes have
            nothing to be asked of a kind.
    """
    if rows < 1:
        raise DoraError(f"rows must be at least 1; got {rows}")
    settings = repr((family, task, seed))
    stem = f"{family.name}-{split}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    records: list[dict[str, Any]] = []
    for index in range(rows):
        name = f"{stem}-{index:06d}"
        found = row(task, family, split, index, seed)
        images = _write_images(folder, name, found, task)
        image = images[0] if len(images) == 1 else images
        if split == "train":
            records.append({"id": name, "image": image, "conversations": _turns(found, task)})
            continue
        for number, asked in enumerate(found.questions):
            turn = f"-{number}" if len(found.questions) > 1 else ""
            fields = {"question": _asked(asked, task), "answer": asked.answer}
            choice = {"options": asked.options} if asked.options else {}
            identity = {"id": name + turn, "image": image}
            records.append({**identity, **fields, **choice, "task": asked.kind})
    if split == "train":
        path, text = folder / "train.json", json.dumps(records, indent=1)
    else:
        path = folder / f"{split}.jsonl"
        text = "".join(json.dumps(record) + "\n" for record in records)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def _turns(found: Row, task: Task) -> list[dict[str, str]]:
    """Return the messages of a conversation about a row's pictures."""
    turns = []
    for number, asked in enumerate(found.questions):
        value = asked.question
        if number == 0:
            value = "<image>\n" * (2 if task == "pairs" else 1) + _asked(asked, task)
        turns.append({"from": "human", "value": value})
        turns.append({"from": "gpt", "value": asked.answer})
    return turns


def _asked(asked: Question, task: Task) -> str:
    """Return all that is said about the pictures in a first question."""
    parts = [asked.question, INSTRUCTIONS[task]]
    if isinstance(asked, ClipQuestion):
        parts = [asked.subtitle, asked.question, f"Options: {'; '.join(asked.options)}."]
    return "\n".join(filter(None, parts))


def _write_images(folder: Path, name: str, found: Row, task: Task) -> list[str]:
    """Write a row's pictures that are not there; return their paths from the folder."""
    names = (name, f"{name}-right") if task == "pairs" else (name,)
    paths = [f"images/{each}.png" for each in names]
    if not all((folder / path).exists() for path in paths):
        pictures = list(render_all(found.scenes))
        if task.startswith("clip-"):
            pictures = [np.concatenate(pictures, axis=1)]
        for path, picture in zip(paths, pictures, strict=True):
            write_bytes(folder / path, _png(picture))
    return paths


def _png(pixels: np.ndarray) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise DoraError("pictures need Pillow: pip install 'dora-jax[scenes]'") from error
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
