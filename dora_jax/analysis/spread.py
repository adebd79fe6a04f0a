"""How steady a method is: over the seeds, and over the points of a grid."""

import statistics
from dataclasses import dataclass

from dora_jax.analysis.summary import Summary


@dataclass(frozen=True)
class Spread:
    """A method, or variant, over all of its points.

    Attributes:
        label: for people.
        points: points of the grid with a result.
        best: its best mean accuracy or score.
        worst: its worst.
        over_points: standard deviation of the points' means; None for one point.
        over_seeds: root mean square of the points' deviations over seeds; None for one seed.
        diverged: runs that diverged.
        trials_diverged: trials of the search that did.
    """

    label: str
    points: int
    best: float
    worst: float
    over_points: float | None
    over_seeds: float | None
    diverged: int
    trials_diverged: int


def spreads(summary: Summary) -> tuple[Spread, ...]:
    """Return the spread of each method or variant, in the order of display."""
    start_of = {arm.name: arm.start for arm in summary.results.arms}
    lost = [start_of[f.method] for f in summary.results.failures if f.diverged]
    trials = [
        start_of.get(trial.method, trial.method)
        for trial in summary.results.search
        if trial.validation_loss is None and trial.validation_accuracy is None
    ]
    found = []
    for start in dict.fromkeys(m.arm.start for m in summary.methods):
        own = [m for m in summary.methods if m.arm.start == start]
        accuracies = [m.accuracy for m in own]
        by_seed = [m.spread for m in own if m.spread is not None]
        squares = [deviation**2 for deviation in by_seed]
        found.append(
            Spread(
                label=own[0].arm.start_label,
                points=len(own),
                best=max(accuracies),
                worst=min(accuracies),
                over_points=statistics.stdev(accuracies) if len(own) > 1 else None,
                over_seeds=statistics.fmean(squares) ** 0.5 if squares else None,
                diverged=lost.count(start),
                trials_diverged=trials.count(start),
            )
        )
    return tuple(found)
