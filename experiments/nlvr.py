"""NLVR for the miniatures: what people said about drawn pictures, no part of it in both splits."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from dora_jax.data.nlvr import convert
from dora_jax.errors import DoraError

FILES = ("train.jsonl", "train_images.zip", "dev.jsonl", "dev_images.zip")
Row = dict[str, Any]


def check_nlvr(folder: Path) -> None:
    """Check that NLVR is in a folder, before anything is made.

    Raises:
        DoraError: naming a file that is missing.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise DoraError(
                f"{folder / name}: no such file; --nlvr takes a folder with {', '.join(FILES)}"
            )


def nlvr_rows(folder: Path, split: str, out: Path) -> list[Row]:
    """Write the pictures of `train` or `dev`, and return their rows as `convert` makes them.

    Raises:
        DoraError: for a row or a picture that cannot be read, by file and line.
    """
    path = convert(folder / f"{split}.jsonl", folder / f"{split}_images.zip", out)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return rows


def unseen(
    rows: list[Row], pictures: Path, train_rows: list[Row], train_pictures: Path
) -> list[Row]:
    """Return the rows whose statement and whose boxes are in no row of training.

    Boxes may be in any order: some pictures are others with their boxes exchanged. Rows of one
    statement are alike, so that they come in turn: one for each statement, then the second ones.

    Args:
        rows: to choose from.
        pictures: the folder that their `images` are named from.
        train_rows: what is trained on.
        train_pictures: the folder that theirs are named from.
    """
    said = {row["question"] for row in train_rows}
    shown = {_boxes(train_pictures, row) for row in train_rows}
    found = [r for r in rows if r["question"] not in said and _boxes(pictures, r) not in shown]
    times: Counter[str] = Counter()
    turns = []
    for row in found:
        turns.append(times[row["question"]])
        times[row["question"]] += 1
    return [found[n] for n in sorted(range(len(found)), key=lambda n: turns[n])]


def _boxes(folder: Path, row: Row) -> tuple[bytes, ...]:
    files = (folder / image for image in row["images"])
    return tuple(sorted(hashlib.sha256(file.read_bytes()).digest() for file in files))
