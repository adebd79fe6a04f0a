"""One row of VL-BART's eight tasks, and how it becomes the text that the encoder reads."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dora_jax.spec import nearest

Task = Literal["vqa", "gqa", "nlvr", "caption", "tvqa", "how2qa", "tvc", "yc2c"]
TASKS: tuple[Task, ...] = get_args(Task)
CAPTION_TASKS: tuple[Task, ...] = ("caption", "tvc", "yc2c")
# What stands before a source, so that one head knows what is wanted (VL-T5, Table 1; VL-Adapter).
PROMPTS: dict[Task, str] = {task: f"{task}:" for task in TASKS}


@dataclass(frozen=True)
class VLRow:
    """One row.

    Attributes:
        task: which one it is of.
        id: as the published file names it, as a text.
        source: what the encoder reads, without the task's prompt; empty for captions of images.
        targets: what may be generated, at least one in training; a test split has none.
        weights: how good each target is, as VQA's soft scores; all 1 by default.
        references: what the scorer compares with: people's answers or captions; empty where a
            server keeps them. VQA may have targets alone, whose weights are then the scores.
        options: of a multiple choice, in the order that the source has them.
        visuals: names of the images, or of the clip, in order.
        span: of the clip in seconds, from and to; None is all of it.
        where: file and line, named in errors.

    Raises:
        ValueError: for another task, or weights that are not positive or not one a target.
    """

    task: Task
    id: str
    source: str
    targets: tuple[str, ...]
    weights: tuple[float, ...] = ()
    references: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    visuals: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
    where: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(
                f"task must be one of {', '.join(TASKS)}; got {self.task!r}"
                f"{nearest(self.task, TASKS)}"
            )
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * len(self.targets))
        if len(self.weights) != len(self.targets):
            raise ValueError(f"{len(self.weights)} weights of {len(self.targets)} targets")
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be positive numbers; got {self.weights}")


def source_text(row: VLRow) -> str:
    """Return what the encoder reads of a row: the task's prompt, and the source.

    Example:
        >>> source_text(VLRow("vqa", "1", "What is it?", ("a dog",)))
        'vqa: What is it?'
    """
    return f"{PROMPTS[row.task]} {row.source}".rstrip()


def choice_source(question: str, options: Sequence[str], subtitle: str = "") -> str:
    """Return the source of a multiple-choice question.

    The target is the text of the right option, not its letter: the model writes words it has read.
    What is said stands last, since truncation takes from the end.

    Args:
        question: as asked.
        options: in the order that they are listed in.
        subtitle: what is said in the clip; empty where nothing is.

    Example:
        >>> choice_source("Who?", ["Ann", "Ben"], "Ann: I.")
        'Who? Options: (A) Ann (B) Ben Subtitles: Ann: I.'
    """
    listed = " ".join(f"({chr(ord('A') + n)}) {text}" for n, text in enumerate(options))
    said = f" Subtitles: {subtitle}" if subtitle else ""
    return f"{question} Options: {listed}{said}"
