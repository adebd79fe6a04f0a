"""The report's plots.

Each function returns a `Plot` for the page, or None where there is nothing to draw.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FormatStrFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from dora_jax.analysis import formatting as say
from dora_jax.analysis.results import METHOD_LABELS, HistoryPoint, RunResult
from dora_jax.analysis.statistics import Interval, difference_interval
from dora_jax.analysis.summary import MethodSummary, PairSummary, Summary
from dora_jax.analysis.svg import (
    BASE,
    INK,
    METHODS,
    MUTED,
    PAPER,
    VARIABLES,
    Plot,
    Table,
    make_plot,
    new_figure,
)

MAX_POINTS = 400  # a drawn line's; more only makes the page heavy
LABEL_LENGTH = 26  # letters of a name beside a plot; a longer one is cut


def page_colours(summary: Summary) -> dict[str, str]:
    """Return the CSS variable of each method's colour, by the order of display."""
    return {method: VARIABLES[colour] for method, colour in method_colours(summary).items()}


def accuracy_plot(summary: Summary) -> Plot:
    """Draw the scores: the base and each method with its interval, and a dot for each seed."""
    results, methods, words = summary.results, summary.methods, summary.words
    colours = method_colours(summary)
    figure, axes = new_figure(height=_rows_height(summary))
    _accuracy_row(axes, 0, results.base.accuracy, summary.base_interval, BASE)
    shown = [results.base.accuracy, summary.base_interval.low, summary.base_interval.high]
    for y, method in enumerate(methods, start=1):
        colour = colours[method.method]
        _accuracy_row(axes, y, method.accuracy, method.interval, colour)
        seeds = [run.accuracy for run in method.runs]
        if len(seeds) > 1:
            below = y + 0.26 + np.linspace(-0.09, 0.09, len(seeds))
            axes.plot(100 * np.array(seeds), below, "o", color=colour, markersize=3, alpha=0.65)
        shown += [method.interval.low, method.interval.high, *seeds]
    chance = results.data.chance
    if chance is not None:
        shown.append(chance)
        axes.axvline(100 * chance, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(
            "chance",
            (100 * chance, -0.62),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            size=8,
        )
    _category_axis(axes, ["Base model", *(_shortened(method.label) for method in methods)])
    axes.set_xlim(*_padded([100 * value for value in shown]))
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=words.symbol))
    axes.set_xlabel(words.axis)
    values = [f"{m.label} {words.value(m.accuracy)}" for m in methods]
    alt = f"{words.title}: base model {words.value(results.base.accuracy)}, "
    alt += say.listed(values) + ". Bars are 95 % intervals, small dots single seeds."
    lines: list[tuple[str, float, Interval, float | None]]
    lines = [("base", results.base.accuracy, summary.base_interval, None)]
    lines += [(m.method, m.accuracy, m.interval, m.spread) for m in methods]
    rows = [(name, value, i.low, i.high, spread) for name, value, i, spread in lines]
    table = Table(("arm", words.noun, "low", "high", "deviation over seeds"), tuple(rows))
    return make_plot(figure, words.noun, alt, table)


def difference_plot(summary: Summary) -> Plot | None:
    """Draw each pair's difference in points with its interval, against the line of none.

    A single pair is followed by its seeds, each with its own interval (over rows alone).
    """
    if not summary.pairs:
        return None
    rows, tests = difference_rows(summary), len(summary.pairs)
    figure, axes = new_figure(height=_rows_height(summary))
    axes.axvline(0, color=MUTED, linewidth=1.2)
    for y, (_, difference, interval) in enumerate(rows):
        overall = y < tests
        ends = [100 * interval.low, 100 * interval.high]
        axes.plot(ends, [y, y], color=INK if overall else MUTED, linewidth=2.4 if overall else 1.2)
        _mark(axes, 100 * difference, y, INK if overall else MUTED, 8 if overall else 5)
        _annotate(axes, 100 * difference, y, say.points(difference), bold=overall)
    _category_axis(axes, [row[0] for row in rows])
    bounds = [abs(end) for _, _, interval in rows for end in (interval.low, interval.high)]
    axes.set_xlim(-108 * max(bounds), 108 * max(bounds))
    axes.set_xlabel(summary.words.difference)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    words = [f"{label} {say.points(d)} ({say.points_interval(i)})" for label, d, i in rows]
    unit = summary.words.difference
    alt = f"Paired differences in {unit} with 95 % intervals: {'; '.join(words)}."
    table = Table(
        ("pair", "difference", "low", "high"),
        tuple((label.strip(), difference, i.low, i.high) for label, difference, i in rows),
    )
    return make_plot(figure, "difference", alt, table)


def loss_plot(summary: Summary) -> Plot | None:
    """Draw the training loss of every run: raw thin, smoothed thick."""
    figure, axes = new_figure(height=2.75)
    drawn = []
    final: dict[str, list[float]] = {}
    for method, run, colour, width in _lines(summary):
        steps, losses = _series(run, lambda point: point.loss)
        if not len(steps):
            continue
        axes.plot(*_thinned(steps, losses), color=colour, linewidth=0.5, alpha=0.3)
        drawn.append(losses)
        smooth = smoothed(losses)
        axes.plot(*_thinned(steps, smooth), color=colour, linewidth=width)
        final.setdefault(method.method, []).append(float(smooth[-1]))
    if not final:
        return None
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss")
    # The fall of the first steps would press the rest, where methods differ, flat.
    axes.set_ylim(*_padded(np.concatenate([v[len(v) // 7 :] for v in drawn])))
    words = [f"{summary.label(name)} ends near {np.mean(v):.3g}" for name, v in final.items()]
    alt = f"Training loss by step: {say.listed(words)}."
    table = _history_table(summary, "loss", lambda point: point.loss)
    return make_plot(figure, "loss", alt, table, tuple(final))


def gradient_plot(summary: Summary) -> Plot | None:
    """Draw the norm of the gradient of every run, before clipping."""
    figure, axes = new_figure(height=2.75)
    last: dict[str, list[float]] = {}
    for method, run, colour, width in _lines(summary):
        steps, norms = _series(run, lambda point: point.grad_norm)
        if len(steps):
            axes.plot(*_thinned(steps, smoothed(norms)), color=colour, linewidth=width)
            last.setdefault(method.method, []).append(float(np.max(norms)))
    if not last:
        return None
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("gradient norm")
    words = [f"{summary.label(name)} at most {np.max(v):.3g}" for name, v in last.items()]
    table = _history_table(summary, "gradient norm", lambda point: point.grad_norm)
    alt = f"Norm of the gradient by step: {say.listed(words)}."
    return make_plot(figure, "gradient", alt, table, tuple(last))


def drift_plot(summary: Summary) -> Plot | None:
    """Draw how far magnitudes moved from where they began: mean |m / m0 - 1|, in percent."""
    return _history_plot(
        summary,
        "drift",
        f"mean |m / m₀ {say.MINUS} 1|",
        "Mean relative drift of the magnitudes by step",
        lambda point: point.magnitude_drift,
    )


def direction_plot(summary: Summary) -> Plot | None:
    """Draw how far directions turned: mean 1 - cos(W', W), in percent."""
    return _history_plot(
        summary,
        "direction",
        f"mean 1 {say.MINUS} cos(W', W)",
        "Mean change of direction of the adapted columns by step",
        lambda point: point.direction_change,
    )


def search_plot(summary: Summary) -> Plot | None:
    """Draw the validation score (else loss) of every learning rate tried, the chosen ringed."""
    trials = summary.results.search
    by_accuracy = any(trial.validation_accuracy is not None for trial in trials)
    colours = method_colours(summary)
    figure, axes = new_figure(height=2.75)
    rates: set[float] = set()
    chosen = []
    names = tuple(dict.fromkeys(trial.method for trial in trials))
    for name in names:
        colour = colours.get(name, MUTED)
        points = []
        for trial in trials:
            score = trial.validation_accuracy if by_accuracy else trial.validation_loss
            if trial.method != name or score is None or not math.isfinite(score):
                continue
            points.append((trial.learning_rate, 100 * score if by_accuracy else score))
            if trial.chosen:
                axes.plot(*points[-1], "o", markersize=11, color=colour, markerfacecolor="none")
                chosen.append(f"{summary.label(name)} {say.learning_rate(trial.learning_rate)}")
        if points:
            axes.plot(*zip(*sorted(points), strict=True), "-o", color=colour, markersize=4.5)
        rates |= {rate for rate, _ in points}
    if not rates:
        return None
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(rates), [say.learning_rate(rate) for rate in sorted(rates)])
    axes.set_xlabel("learning rate")
    words = summary.words
    axes.set_ylabel(f"validation {words.named_axis}" if by_accuracy else "validation loss")
    if by_accuracy:
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=None, symbol=words.symbol))
    alt = f"Learning-rate search on the validation rows. Chosen: {', '.join(chosen) or 'none'}."
    header = ("arm", "learning rate", f"validation {words.noun}", "validation loss", "chosen")
    rows = tuple(
        (t.method, t.learning_rate, t.validation_accuracy, t.validation_loss, int(t.chosen))
        for t in trials
    )
    return make_plot(figure, "search", alt, Table(header, rows), names)


def smoothed(values: np.ndarray, share: float = 0.08) -> np.ndarray:
    """Return the centred moving average of `values`, over `share` of their length.

    The window shrinks at both ends, so that the first and last values are not drawn towards zero.
    """
    half = int(len(values) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _history_plot(
    summary: Summary,
    name: str,
    label: str,
    title: str,
    value: Callable[[HistoryPoint], float | None],
) -> Plot | None:
    figure, axes = new_figure(height=2.75)
    final: dict[str, list[float]] = {}
    for method, run, colour, width in _lines(summary):
        steps, values = _series(run, value)
        if len(steps):
            axes.plot(*_thinned(steps, 100 * values), color=colour, linewidth=width)
            final.setdefault(method.method, []).append(float(values[-1]))
    if not final:
        return None
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=None))
    words = [f"{summary.label(name)} ends at {100 * np.mean(v):.3g} %" for name, v in final.items()]
    table = _history_table(summary, name, value)
    return make_plot(figure, name, f"{title}: {say.listed(words)}.", table, tuple(final))


def _history_table(
    summary: Summary, name: str, value: Callable[[HistoryPoint], float | None]
) -> Table:
    rows = [
        (run.method, run.seed, point.step, value(point))
        for run in summary.results.runs
        for point in run.history
    ]
    return Table(("arm", "seed", "step", name), tuple(rows))


def method_colours(summary: Summary) -> dict[str, str]:
    """A method keeps its colour in every report, at all points of a grid; others share the rest."""
    known = list(METHOD_LABELS)[:4]
    starts = dict.fromkeys(m.arm.start for m in summary.methods)
    others = [start for start in starts if start not in known]
    free = METHODS[len(known) :]
    of_start = dict(zip(known, METHODS, strict=False)) | {
        start: free[i % len(free)] for i, start in enumerate(others)
    }
    return {m.method: of_start[m.arm.start] for m in summary.methods}


def _lines(summary: Summary) -> list[tuple[MethodSummary, RunResult, str, float]]:
    """Every run with its colour and line width; later methods thinner, so that none is hidden."""
    colours = method_colours(summary)
    return [
        (method, run, colours[method.method], max(2.4 - 0.9 * i, 1.0))
        for i, method in enumerate(summary.methods)
        for run in method.runs
    ]


def _series(
    run: RunResult, value: Callable[[HistoryPoint], float | None]
) -> tuple[np.ndarray, np.ndarray]:
    """The steps and values of a run's history, without those missing or not finite."""
    pairs = [(point.step, value(point)) for point in run.history]
    kept = [(step, v) for step, v in pairs if v is not None and math.isfinite(v)]
    return np.array([step for step, _ in kept]), np.array([v for _, v in kept])


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(steps) <= MAX_POINTS:
        return steps, values
    kept = np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int)
    return steps[kept], values[kept]


def difference_rows(summary: Summary) -> list[tuple[str, float, Interval]]:
    """Every pair; a single pair of several seeds is followed by each seed."""
    rows = [
        (_versus(pair), pair.comparison.difference, pair.comparison.interval)
        for pair in summary.pairs
    ]
    if len(rows) != 1 or summary.pairs[0].comparison.seeds == 1:
        return rows
    pair, tasks = summary.pairs[0], summary.results.strata
    first, second = (
        {run.seed: run.correct for run in method.runs} for method in (pair.first, pair.second)
    )
    shared = sorted(set(first) & set(second))
    for seed, difference in zip(shared, pair.comparison.by_seed.differences, strict=True):
        table = np.subtract([first[seed]], [second[seed]]).astype(np.float64)
        rows.append((f"seed {seed}", difference, difference_interval(table, tasks)))
    return rows


def _versus(pair: PairSummary) -> str:
    names = [_shortened(method.label, 16) for method in (pair.first, pair.second)]
    return f" {say.MINUS} ".join(names)


def _rows_height(summary: Summary) -> float:
    """One height for the two plots that stand side by side."""
    return 0.95 + 0.5 * max(len(summary.methods) + 1, len(difference_rows(summary)), 3)


def _accuracy_row(axes: Axes, y: float, accuracy: float, interval: Interval, colour: str) -> None:
    axes.plot([100 * interval.low, 100 * interval.high], [y, y], color=colour, linewidth=2.4)
    _mark(axes, 100 * accuracy, y, colour, 8)
    _annotate(axes, 100 * accuracy, y, f"{100 * accuracy:.1f}", bold=True)


def _mark(axes: Axes, x: float, y: float, colour: str, size: float) -> None:
    axes.plot(x, y, "o", color=colour, markersize=size, markeredgecolor=PAPER, markeredgewidth=1.2)


def _annotate(axes: Axes, x: float, y: float, text: str, bold: bool) -> None:
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        color=INK if bold else MUTED,
        weight="bold" if bold else "normal",
    )


def _category_axis(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9.5)
    axes.set_ylim(len(labels) - 0.45, -0.8)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _shortened(label: str, length: int = LABEL_LENGTH) -> str:
    label = " ".join(label.split())
    return label if len(label) <= length else label[: length - 1] + "…"


def _padded(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The range of `values` with some room on both sides."""
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room
