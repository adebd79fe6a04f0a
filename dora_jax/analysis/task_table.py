"""The scores by task as one table of figures, to be kept beside the plots."""

from collections.abc import Mapping

from dora_jax.analysis.summary import Summary
from dora_jax.analysis.svg import Table


def task_table(summaries: Mapping[str, Summary]) -> Table | None:
    """Return the score of the base model and each arm on each task and on their average.

    Args:
        summaries: of one comparison, by protocol.

    Returns:
        A table with a row for each protocol, task and arm; None where there is one task.
    """
    noun = ""
    rows = []
    for protocol, summary in summaries.items():
        if len(summary.tasks) < 2:
            return None
        noun = summary.words.noun
        for task in (*summary.tasks, summary.average):
            found = [("base", task.base, task.base_interval)]
            found += [
                (m.method, task.accuracies[m.method], task.intervals[m.method])
                for m in summary.methods
            ]
            rows += [
                (arm, task.task, task.rows, mean, i.low, i.high, protocol) for arm, mean, i in found
            ]
    return Table(("arm", "task", "rows", noun, "low", "high", "protocol"), tuple(rows))
