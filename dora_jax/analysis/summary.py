"""The figures of a comparison, computed once for the report and for the terminal."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dora_jax.analysis.formatting import METRIC_WORDS, MetricWords
from dora_jax.analysis.results import METHOD_LABELS, Arm, ComparisonResults, RunResult
from dora_jax.analysis.statistics import (
    Differences,
    Interval,
    PairedComparison,
    Scores,
    accuracy_interval,
    compare_paired,
    difference_interval,
    holm,
    score_interval,
)
from dora_jax.analysis.variance import by_task, mean

AVERAGE = "Average of the tasks"


@dataclass(frozen=True)
class OverBase:
    """A method's score above the untuned model's, with its interval."""

    difference: float
    interval: Interval


@dataclass(frozen=True)
class MethodSummary:
    """One arm over its seeds; a figure that no run has is None. `method` is the arm's name.

    `accuracy` is the mean over rows, or, for tasks with metrics of their own, the mean over tasks.
    `loss`, `train_seconds` and `compile_s` are means over seeds, `step_time_s` is the median of the
    runs' medians, memory the largest, `spread` the standard deviation of the seeds' accuracies.
    Ratios are to the reference (LoRA where there is one).
    """

    method: str
    label: str
    arm: Arm
    runs: tuple[RunResult, ...]
    accuracy: float
    interval: Interval
    over_base: OverBase
    loss: float | None
    trainable_parameters: int
    magnitude_parameters: int
    step_time_s: float | None
    step_time_ratio: float | None
    temp_bytes: int | None
    temp_ratio: float | None
    peak_rss_bytes: int | None
    compile_s: float | None
    train_seconds: float | None
    flops_per_s: float | None
    mfu: float | None
    spread: float | None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def scores(self) -> Scores:
        """The rows' marks, (seeds, rows), the seeds in order."""
        return _scores(list(self.runs))

    @property
    def unanswered(self) -> float | None:
        """Rows a run whose text held no answer; None where they were not counted."""
        counts = [run.unanswered for run in self.runs if run.unanswered is not None]
        return statistics.fmean(counts) if counts else None


@dataclass(frozen=True)
class PairSummary:
    """`first` against `second` on the seeds that both have; positive means that `first` is better.

    `p_value` is the comparison's own, adjusted by Holm's method for the number of pairs.
    """

    first: MethodSummary
    second: MethodSummary
    comparison: PairedComparison
    p_value: float

    @property
    def differences(self) -> Differences:
        """The marks of `first` less those of `second`, (seeds, rows), of the seeds of both."""
        shared = set(self.first.seeds) & set(self.second.seeds)
        first, second = (
            _scores([run for run in method.runs if run.seed in shared])
            for method in (self.first, self.second)
        )
        return (first - second).astype(np.float64)


@dataclass(frozen=True)
class MagnitudeEvidence:
    """Whether a run that should train magnitudes did.

    Attributes:
        run: the run.
        parameters: magnitudes trained.
        drift: the last recorded mean of |m / m0 - 1|; None where none was recorded.
        moved: whether any recorded drift is above zero (and finite); None where none was recorded.
    """

    run: RunResult
    parameters: int
    drift: float | None
    moved: bool | None

    @property
    def off(self) -> bool:
        """Whether the run shows that its magnitudes were not trained."""
        return self.parameters == 0 or self.moved is False


@dataclass(frozen=True)
class TaskSummary:
    """One task of the evaluated rows, or the average of all; `difference` is the headline pair's.

    `metric` is the name of its own metric; empty where all rows have one. `accuracies` and
    `intervals` are by arm, `interval` is that of `difference`.
    """

    task: str
    metric: str
    rows: int
    base: float
    base_interval: Interval
    accuracies: dict[str, float]
    intervals: dict[str, Interval]
    difference: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Summary:
    """All figures of one comparison, methods (its arms that have runs) in the order of display.

    Baselines come last. `pairs` holds the pairs that are compared: see `_is_pair`. `headlines` are
    those of DoRA against LoRA, one at each point of the grid; where there are none, the first pair.
    `average` is the mean of the tasks, each counting alike, as the paper gives it.
    """

    results: ComparisonResults
    base_interval: Interval
    methods: tuple[MethodSummary, ...]
    reference: MethodSummary
    pairs: tuple[PairSummary, ...]
    headlines: tuple[PairSummary, ...]
    magnitudes: tuple[MagnitudeEvidence, ...]
    tasks: tuple[TaskSummary, ...]
    average: TaskSummary

    @property
    def words(self) -> MetricWords:
        """How the metric's figures are called and written."""
        return METRIC_WORDS[self.results.data.metric]

    @property
    def headline(self) -> PairSummary | None:
        """The first of `headlines`."""
        return self.headlines[0] if self.headlines else None

    @property
    def compared(self) -> tuple[MethodSummary, ...]:
        """The methods that are no baselines: what may be in a pair."""
        return tuple(method for method in self.methods if not method.arm.baseline)

    @property
    def baselines(self) -> tuple[MethodSummary, ...]:
        """The methods that are shown beside those that are compared."""
        return tuple(method for method in self.methods if method.arm.baseline)

    @property
    def dominant_task(self) -> TaskSummary | None:
        """The task with more than half of the rows, where rows are pooled: it decides for all."""
        if self.results.strata is not None:
            return None
        total = len(self.results.eval_rows)
        return next((task for task in self.tasks if 2 * task.rows > total), None)

    def label(self, name: str) -> str:
        """Return an arm's name as people write it."""
        return next((arm.label for arm in self.results.arms if arm.name == name), name)


def trains_magnitudes(method: str) -> bool:
    """Whether a method of this name is one that trains magnitudes."""
    return method == "magnitude" or "dora" in method.lower()


def summarize(results: ComparisonResults) -> Summary:
    """Compute every figure that the report and the terminal show."""
    grouped = {
        arm.name: [run for run in results.runs if run.method == arm.name] for arm in results.arms
    }
    known = list(METHOD_LABELS)

    def place(arm: Arm) -> tuple[bool, int]:
        # LoRA first, since the others are held against it; unknown methods as they came.
        return arm.baseline, known.index(arm.method) if arm.method in known else len(known)

    arms = sorted((arm for arm in results.arms if grouped[arm.name]), key=place)
    base = np.array([results.base.correct])
    reference_runs = grouped[arms[0].name]
    tasks = results.strata
    methods = tuple(_method(arm, grouped[arm.name], base, reference_runs, tasks) for arm in arms)
    compared = tuple(method for method in methods if not method.arm.baseline)
    pairs = _pairs(compared, results.pairs, tasks)
    headlines = tuple(
        p
        for p in pairs
        if (p.first.arm.method, p.second.arm.method) == ("dora", "lora")
        and p.first.arm.point == p.second.arm.point
    )
    headline = (headlines or pairs or (None,))[0]
    magnitudes = [
        _evidence(run)
        for method in methods
        if trains_magnitudes(method.arm.method)
        for run in method.runs
    ]
    return Summary(
        results=results,
        base_interval=_interval(base, tasks),
        methods=methods,
        reference=methods[0],
        pairs=pairs,
        headlines=headlines or pairs[:1],
        magnitudes=tuple(magnitudes),
        tasks=_tasks(results, methods, headline),
        average=_average(results, methods, headline),
    )


def _method(
    arm: Arm,
    runs: list[RunResult],
    base: Scores,
    reference: list[RunResult],
    tasks: Sequence[str] | None,
) -> MethodSummary:
    runs = sorted(runs, key=lambda run: run.seed)
    correct = _scores(runs)
    over_base = (correct - base).astype(np.float64)
    step_time = _over(statistics.median, (run.step_time_s for run in runs))
    temp_bytes = _over(max, (run.temp_bytes for run in runs))
    peak = _over(max, (run.peak_rss_bytes for run in runs))
    return MethodSummary(
        method=arm.name,
        label=arm.label,
        arm=arm,
        runs=tuple(runs),
        accuracy=mean(by_task(correct, tasks)),
        interval=_interval(correct, tasks),
        over_base=OverBase(mean(by_task(over_base, tasks)), difference_interval(over_base, tasks)),
        loss=_over(statistics.fmean, (run.loss for run in runs)),
        trainable_parameters=max(run.trainable_parameters for run in runs),
        # The smallest: one run without magnitudes must not hide behind the others.
        magnitude_parameters=min(run.magnitude_parameters for run in runs),
        step_time_s=step_time,
        step_time_ratio=_ratio(
            step_time, _over(statistics.median, (run.step_time_s for run in reference))
        ),
        temp_bytes=None if temp_bytes is None else int(temp_bytes),
        temp_ratio=_ratio(temp_bytes, _over(max, (run.temp_bytes for run in reference))),
        peak_rss_bytes=None if peak is None else int(peak),
        compile_s=_over(statistics.fmean, (run.compile_s for run in runs)),
        train_seconds=_over(statistics.fmean, (run.train_seconds for run in runs)),
        flops_per_s=_over(statistics.median, (run.flops_per_s for run in runs)),
        mfu=_over(statistics.median, (run.mfu for run in runs)),
        spread=statistics.stdev(run.accuracy for run in runs) if len(runs) > 1 else None,
    )


def _is_pair(first: Arm, second: Arm, grid: bool) -> bool:
    """Whether two arms are compared by themselves: what differs between them is one thing.

    With a grid, two methods (or variants) at one point of it; where one of them does not depend on
    an axis it is compared at every place of it. One method on a grid: all its points. Every further
    pair would cost the others power, since p-values are corrected for their number.
    """
    if not grid:
        return True
    shared = first.point.keys() & second.point.keys()
    return all(first.point[axis] == second.point[axis] for axis in shared)


def _pairs(
    methods: tuple[MethodSummary, ...],
    asked: tuple[tuple[str, ...], ...],
    tasks: Sequence[str] | None,
) -> tuple[PairSummary, ...]:
    starts = {method.arm.start for method in methods}
    grid = len(starts) > 1 and any(method.arm.point for method in methods)
    wanted = {frozenset(pair) for pair in asked}
    found = []
    for i, second in enumerate(methods):
        for first in methods[i + 1 :]:
            shared = sorted(set(first.seeds) & set(second.seeds))
            is_asked = {first.method, second.method} in wanted
            # On a grid two points of one start are no pair: it is the methods that are compared.
            alike = grid and first.arm.start == second.arm.start
            if shared and (is_asked or (not alike and _is_pair(first.arm, second.arm, grid))):
                own, others = (
                    _scores([run for run in method.runs if run.seed in shared])
                    for method in (first, second)
                )
                found.append((first, second, compare_paired(own, others, tasks)))
    adjusted = holm([comparison.p_value for _, _, comparison in found])
    return tuple(PairSummary(*pair, p) for pair, p in zip(found, adjusted, strict=True))


def _evidence(run: RunResult) -> MagnitudeEvidence:
    drifts = [p.magnitude_drift for p in run.history if p.magnitude_drift is not None]
    moved = any(math.isfinite(drift) and drift > 0 for drift in drifts) if drifts else None
    return MagnitudeEvidence(run, run.magnitude_parameters, drifts[-1] if drifts else None, moved)


def _tasks(
    results: ComparisonResults, methods: tuple[MethodSummary, ...], headline: PairSummary | None
) -> tuple[TaskSummary, ...]:
    tasks = np.array([row.task for row in results.eval_rows])
    found = []
    for task in dict.fromkeys(tasks.tolist()):
        rows = np.flatnonzero(tasks == task)
        strata = None if results.strata is None else [task] * len(rows)
        found.append(_over_rows(results, methods, headline, rows, strata, task))
    return tuple(found)


def _average(
    results: ComparisonResults, methods: tuple[MethodSummary, ...], headline: PairSummary | None
) -> TaskSummary:
    tasks = [row.task for row in results.eval_rows]
    return _over_rows(results, methods, headline, np.arange(len(tasks)), tasks, AVERAGE)


def _over_rows(
    results: ComparisonResults,
    methods: tuple[MethodSummary, ...],
    headline: PairSummary | None,
    rows: Int[np.ndarray, " rows"],
    strata: Sequence[str] | None,
    name: str,
) -> TaskSummary:
    """Summarize some of the rows, their tasks counting alike where `strata` gives them."""
    base = np.array([results.base.correct])[:, rows]
    scores = {method.method: method.scores[:, rows] for method in methods}
    end = 1.0 if METRIC_WORDS[results.data.metric].binary else math.inf
    difference = interval = None
    if headline is not None:
        table = headline.differences[:, rows]
        difference, interval = mean(by_task(table, strata)), difference_interval(table, strata)
    return TaskSummary(
        task=name,
        metric=results.data.task_metrics.get(name, ""),
        rows=len(rows),
        base=mean(by_task(base, strata)),
        base_interval=_interval(base, strata, end),
        accuracies={arm: mean(by_task(table, strata)) for arm, table in scores.items()},
        intervals={arm: _interval(table, strata, end) for arm, table in scores.items()},
        difference=difference,
        interval=interval,
    )


def _interval(scores: Scores, tasks: Sequence[str] | None, end: float = math.inf) -> Interval:
    if tasks is None:
        return accuracy_interval(scores)
    return score_interval(scores, tasks, end=end)


def _scores(runs: list[RunResult]) -> Scores:
    return np.array([run.correct for run in sorted(runs, key=lambda run: run.seed)])


def _over(reduce: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return reduce(present) if present else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
