"""Plots of a comparison on a grid: the score along each axis, and against what is trained."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter, NullLocator, PercentFormatter

from dora_jax.analysis import formatting as say
from dora_jax.analysis.grid_words import axis_title
from dora_jax.analysis.plots import method_colours
from dora_jax.analysis.summary import MethodSummary, Summary
from dora_jax.analysis.svg import MUTED, Plot, Table, make_plot, new_figure

_WIDE = 4.0  # largest to smallest value of an axis, from which on it is drawn in powers
_STYLES = ("-", "--", ":", "-.")  # of lines of one method, where other axes tell them apart


def axis_plots(summary: Summary) -> list[tuple[str, Plot]]:
    """Draw the score along every axis of the grid that is made of numbers.

    Returns:
        The title and the plot of each; arms that do not depend on the axis are level lines, runs
        that diverged are crosses at the bottom.
    """
    points = [method.arm.point for method in summary.methods]
    found = []
    for axis in dict.fromkeys(axis for point in points for axis in point):
        values = [point[axis] for point in points if axis in point]
        if all(_is_number(value) for value in values) and len(set(values)) > 1:
            title = f"{summary.words.noun.capitalize()} by {axis_title(axis)}"
            found.append((title, _axis_plot(summary, axis)))
    return found


def size_plot(summary: Summary) -> Plot | None:
    """Draw the score against the number of trained parameters; None where all are alike."""
    sizes = [m.trainable_parameters for m in summary.methods]
    if len(set(sizes)) < 3:
        return None
    figure, axes = new_figure(height=3.0)
    colours = method_colours(summary)
    for start in dict.fromkeys(m.arm.start for m in summary.methods):
        own = sorted(
            (m for m in summary.methods if m.arm.start == start),
            key=lambda m: m.trainable_parameters,
        )
        points = [(float(m.trainable_parameters), m) for m in own]
        _line(axes, points, colours[own[0].method], "-")
    if max(sizes) / min(sizes) >= _WIDE:
        axes.set_xscale("log")
    # In plain words: in powers matplotlib would write mathematics.
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trained parameters")
    _value_axis(axes, summary.words)
    words = [
        f"{m.label} {summary.words.value(m.accuracy)} with {say.count(m.trainable_parameters)}"
        for m in summary.methods
    ]
    table = _table(summary, summary.methods, "trained parameters", lambda m: m.trainable_parameters)
    names = _key(summary.methods)
    alt = f"{summary.words.noun.capitalize()} by number of trained parameters: {say.listed(words)}."
    return make_plot(figure, "size", alt, table, names)


def _axis_plot(summary: Summary, axis: str) -> Plot:
    figure, axes = new_figure(height=3.0)
    colours = method_colours(summary)
    on_axis = [m for m in summary.methods if axis in m.arm.point]
    lines: dict[tuple[str, str], list[MethodSummary]] = {}
    for method in on_axis:
        others = {name: value for name, value in method.arm.point.items() if name != axis}
        lines.setdefault((method.arm.start, repr(others)), []).append(method)
    rest = list(dict.fromkeys(other for _, other in lines))
    for (_, other), methods in lines.items():
        points = sorted((float(m.arm.point[axis]), m) for m in methods)
        style = _STYLES[rest.index(other) % len(_STYLES)]
        _line(axes, points, colours[methods[0].method], style)
    level = [m for m in summary.methods if axis not in m.arm.point]
    for method in level:
        axes.axhline(
            100 * method.accuracy,
            color=colours[method.method],
            linewidth=1.2,
            linestyle=(0, (5, 3)),
        )
    _diverged(axes, summary, axis)
    values = sorted({float(m.arm.point[axis]) for m in on_axis})
    if values[0] > 0 and values[-1] / values[0] >= _WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_xlabel(axis_title(axis))
    _value_axis(axes, summary.words)
    words = [f"{m.label} {summary.words.value(m.accuracy)}" for m in (*on_axis, *level)]
    alt = f"{summary.words.noun.capitalize()} by {axis_title(axis)}: {say.listed(words)}. "
    alt += "Bars are 95 % intervals."
    name = f"by-{axis_title(axis).replace(' ', '-')}"
    table = _table(summary, (*on_axis, *level), axis, lambda m: m.arm.point.get(axis))
    return make_plot(figure, name, alt, table, _key((*on_axis, *level)))


def _line(
    axes: Axes, points: Sequence[tuple[float, MethodSummary]], colour: str, style: str
) -> None:
    places = [x for x, _ in points]
    axes.plot(places, [100 * m.accuracy for _, m in points], style, color=colour, linewidth=1.6)
    for x, method in points:
        axes.plot(
            [x, x],
            [100 * method.interval.low, 100 * method.interval.high],
            color=colour,
            linewidth=1.0,
            alpha=0.7,
        )
        axes.plot(x, 100 * method.accuracy, "o", color=colour, markersize=5)
        seeds = [100 * run.accuracy for run in method.runs]
        if len(seeds) > 1:
            axes.plot([x] * len(seeds), seeds, "_", color=colour, markersize=6, alpha=0.8)


def _diverged(axes: Axes, summary: Summary, axis: str) -> None:
    points = {arm.name: arm.point for arm in summary.results.arms}
    for failure in summary.results.failures:
        if failure.diverged and axis in points[failure.method]:
            axes.plot(
                float(points[failure.method][axis]),
                0.02,
                "x",
                color=MUTED,
                transform=axes.get_xaxis_transform(),
            )


def _table(
    summary: Summary,
    methods: Sequence[MethodSummary],
    name: str,
    value: Callable[[MethodSummary], float | None],
) -> Table:
    return Table(
        ("arm", name, summary.words.noun, "low", "high", "deviation over seeds"),
        tuple(
            (m.method, value(m), m.accuracy, m.interval.low, m.interval.high, m.spread)
            for m in methods
        ),
    )


def _key(methods: Sequence[MethodSummary]) -> tuple[str, ...]:
    """One arm for each colour."""
    first: dict[str, str] = {}
    for method in methods:
        first.setdefault(method.arm.start, method.method)
    return tuple(first.values())


def _value_axis(axes: Axes, words: say.MetricWords) -> None:
    axes.set_ylabel(words.named_axis)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=None, symbol=words.symbol))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
