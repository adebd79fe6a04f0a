"""Which of the tasks that count alike moves their average more than all the others together.

The average gives every task one weight, but not one scale: CIDEr-D of short captions may be near
1000 points and differ from row to row by hundreds, exact match is within 0 and 100. What such a
task does is then what the average does, and what the test of it finds.
"""

from dataclasses import dataclass

import numpy as np

from dora_jax.analysis.summary import Summary, TaskSummary
from dora_jax.analysis.variance import by_task, variance_parts

LEAST_TASKS = 3  # of two, one always holds half or more


@dataclass(frozen=True)
class Dominance:
    """A task that holds more than half of the variance of the average of the tasks.

    Attributes:
        task: which.
        share: its part, above 0.5 to 1.
        of_difference: whether the variance is that of the headlines' differences; else it is that
            of the reference's score.
    """

    task: TaskSummary
    share: float
    of_difference: bool


def dominance(summary: Summary) -> Dominance | None:
    """Return the task that dominates the average of three tasks or more; None where none does.

    The variance is that over seeds and rows on which the interval rests, and not the size of the
    tasks' differences: of a few that are all noise, one is often larger than the rest.

    Rows that are pooled have no such average: see `Summary.dominant_task`.
    """
    strata, pairs = summary.results.strata, summary.headlines
    if strata is None or len(summary.tasks) < LEAST_TASKS:
        return None
    tables = [pair.differences for pair in pairs] or [summary.reference.scores]
    added = np.sum([variance_parts(by_task(table, strata)) for table in tables], axis=0)
    parts = np.maximum(added, 0)  # below zero are tasks that go against the others
    largest = int(np.argmax(parts))
    if 2 * parts[largest] <= parts.sum():
        return None
    share = float(parts[largest] / parts.sum())
    return Dominance(summary.tasks[largest], share, bool(pairs))
