"""What the evaluated rows may score, and that the figure over all of them follows from theirs.

A part of a comparison (the base model's score, a run) does not know its rows' tasks or metric, so
that only what holds for every metric is checked there; the whole checks the rest.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Protocol

from dora_jax.analysis.records import FieldError

BINARY_METRICS = ("accuracy", "exact_match")
METRICS = (*BINARY_METRICS, "score")

_ROUNDING = 1e-6  # float32 agrees to about 1e-7; one row more or less moves a mean by 1e-5


class Marked(Protocol):
    """A result with a mark for every row, and the figure over all of them."""

    @property
    def accuracy(self) -> float: ...
    @property
    def correct(self) -> tuple[float, ...]: ...


def checked_marks(correct: Iterable[float], accuracy: float) -> tuple[float, ...]:
    """Return the rows' marks as Python numbers, whole ones as ints.

    Args:
        correct: the marks: 0 is nothing, 1 a full mark; a metric such as CIDEr-D may give more.
        accuracy: the figure over all rows: a mean of marks, or a mean of the tasks' means.

    Raises:
        FieldError: for a mark that is not finite or below zero, and for a figure that is below the
            least or above the largest mark, which no mean is.
    """
    marks = []
    for i, mark in enumerate(correct):
        if not (math.isfinite(mark) and mark >= 0):
            raise FieldError(f"correct[{i}]", f"must be 0 or above and finite, got {mark!r}")
        marks.append(int(mark) if mark == int(mark) else float(mark))
    low, high = min(marks, default=0), max(marks, default=0)
    slack = _ROUNDING * max(1.0, high)
    if not (math.isfinite(accuracy) and low - slack <= accuracy <= high + slack):
        raise FieldError(
            "accuracy",
            f"must be between {low:g} and {high:g}, as the rows' marks are, got {accuracy!r}",
        )
    return tuple(marks)


def check_marks(name: str, part: Marked, metric: str, tasks: Sequence[str]) -> None:
    """Check a part's marks and its figure against the metric and the rows' tasks.

    Args:
        name: the part's field, for messages.
        part: its marks and figure.
        metric: one of `METRICS`.
        tasks: the task of each row.

    Raises:
        FieldError: when there are not as many marks as rows; with a metric of right and wrong, when
            a mark is neither 0 nor 1; and when the figure is not the mean that the metric asks for.
    """
    if metric in BINARY_METRICS:
        _check_share(name, part)
        check_length(name, part.correct, len(tasks))
        return
    check_length(name, part.correct, len(tasks))
    mean = statistics.fmean(task_means(part.correct, tasks).values())
    if not math.isclose(mean, part.accuracy, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        raise FieldError(
            f"{name}.accuracy",
            f"is {part.accuracy!r}, but the mean over tasks of their rows' means is {mean!r}",
        )


def task_means(marks: Sequence[float], tasks: Sequence[str]) -> dict[str, float]:
    """Return the mean mark of each task's rows, the tasks in the order of their first rows.

    Example:
        >>> task_means([1, 0, 2.5], ["vqa", "vqa", "caption"])
        {'vqa': 0.5, 'caption': 2.5}
    """
    of_task: dict[str, list[float]] = {}
    for mark, task in zip(marks, tasks, strict=True):
        of_task.setdefault(task, []).append(mark)
    return {task: statistics.fmean(values) for task, values in of_task.items()}


def check_length(name: str, correct: Sequence[float], rows: int) -> None:
    """Check that there is a mark for each of the evaluated rows.

    Raises:
        FieldError: when there are more or fewer.
    """
    if len(correct) != rows:
        raise FieldError(
            f"{name}.correct", f"has {len(correct)} values, but eval_rows has {rows} rows"
        )


def _check_share(name: str, part: Marked) -> None:
    for i, mark in enumerate(part.correct):
        if mark not in (0, 1):
            raise FieldError(f"{name}.correct[{i}]", f"must be 0 or 1, got {mark!r}")
    right, rows = sum(part.correct), len(part.correct)
    if abs((right / rows if rows else 0.0) - part.accuracy) > _ROUNDING:
        raise FieldError(
            f"{name}.accuracy", f"is {part.accuracy!r}, but {right} of {rows} rows are correct"
        )
