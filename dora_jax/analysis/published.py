"""Published rows beside the arms that they are to be held against."""

from dataclasses import dataclass

from dora_jax.analysis.results import Published
from dora_jax.analysis.summary import MethodSummary, Summary


@dataclass(frozen=True)
class Beside:
    """A table of published figures and our own, in points (accuracies: percent).

    Attributes:
        tasks: the columns.
        rows: label, source, the score of each task (None where there is none) and their average;
            a published row is followed by our arm's, where there is one, without an average where
            it would be over other tasks than the published one.
    """

    tasks: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[float | None, ...], float | None], ...]


def beside_published(summary: Summary) -> Beside | None:
    """Return the published rows with our own below each; None where none are given."""
    published = summary.results.published
    if not published:
        return None
    named = [task for row in published for task in row.scores]
    tasks = tuple(dict.fromkeys([*named, *(task.task for task in summary.tasks if task.task)]))
    rows: list[tuple[str, str, tuple[float | None, ...], float | None]] = []
    for number, row in enumerate(published):
        scores = tuple(row.scores.get(task) for task in tasks)
        rows.append((row.label, row.source, scores, row.average))
        arm = _arm(summary, row)
        again = any(later.arm == row.arm for later in published[number + 1 :])
        if arm is not None and not again:
            rows.append(_own(summary, arm, row, tasks))
    return Beside(tasks, tuple(rows))


def _arm(summary: Summary, row: Published) -> MethodSummary | None:
    return next((m for m in summary.methods if row.arm in (m.method, m.label)), None)


def _own(
    summary: Summary, arm: MethodSummary, row: Published, tasks: tuple[str, ...]
) -> tuple[str, str, tuple[float | None, ...], float | None]:
    by_task = {task.task: 100 * task.accuracies[arm.method] for task in summary.tasks}
    scores = tuple(by_task.get(task) for task in tasks)
    # Of a published average alone, its tasks are not known.
    is_alike = not row.scores or set(row.scores) == set(by_task)
    average = 100 * summary.average.accuracies[arm.method] if is_alike else None
    return (f"{arm.label}, {summary.results.model.name}", "this report", scores, average)
