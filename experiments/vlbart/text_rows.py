"""Texts with gaps to be filled: what BART was pre-trained on, in small.

The paper's BART knows the words of every task before it sees a picture. So the miniature's base
reads texts about both families, of rows that are in no other file, beside its pictures of family
A: of family B it knows the words, and no picture.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dora_jax.analysis.atomic import write_text
from dora_jax.data.scenes.scene import generator
from experiments.vlbart.scene_rows import TASKS, WORLDS, Subject, scene_row

TASK = "text"
GAP = "<mask>"
# Of the words, in gaps of three on average (Lewis et al. 2020, section 3: "text infilling").
_SHARE, _LENGTH = 0.3, 3.0


def with_gaps(text: str, rng: np.random.Generator) -> str:
    """Return a text with gaps in the place of words, one mark for each, and a gap at least."""
    words: list[str | None] = list(text.split())
    while words.count(None) < _SHARE * len(words):
        length = min(max(1, int(rng.poisson(_LENGTH))), len(words))
        start = int(rng.integers(len(words) - length + 1))
        words[start : start + length] = [None] * length
    found: list[str] = []
    for word in words:
        if word is not None:
            found.append(word)
        elif not found or found[-1] != GAP:
            found.append(GAP)
    return " ".join(found)


def texts_of(subject: Subject, first: int, count: int) -> Iterator[str]:
    """Yield what is asked and answered about both families' training scenes.

    Args:
        subject: whose tasks.
        first: the number of the first row of each task.
        count: rows of each task and family.
    """
    for family in WORLDS.values():
        for task in TASKS[subject]:
            for number in range(first, first + count):
                row = scene_row(task, family, "train", number)
                yield f"{row.source} {row.targets[0]}".strip()


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write texts as rows of a task of its own, which has no pictures."""
    rows = [
        {
            "id": f"{TASK}-{number}",
            "task": TASK,
            "instruction": f"{TASK}: {with_gaps(text, generator(TASK, number))}",
            "output": text,
            "metric": "exact",
        }
        for number, text in enumerate(texts)
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
