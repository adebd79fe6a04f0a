"""The report of a comparison: one HTML file that needs nothing else, for screen and paper."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from dora_jax.analysis import formatting, plots, ways
from dora_jax.analysis.atomic import write_text
from dora_jax.analysis.conclusions import cautions, conclude, is_shown
from dora_jax.analysis.grid_plots import axis_plots, size_plot
from dora_jax.analysis.plots import Plot
from dora_jax.analysis.published import beside_published
from dora_jax.analysis.results import BaseResult, ComparisonResults, RunResult, Sample
from dora_jax.analysis.spread import spreads
from dora_jax.analysis.summary import Summary, summarize
from dora_jax.analysis.svg import save_plot, save_table
from dora_jax.analysis.task_table import task_table

PLOTS = "plots"
BY_TASK = "by_task.csv"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("dora_jax.analysis"),
    autoescape=True,  # names of models, tasks and methods are other people's text
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(results: ComparisonResults, path: str | Path) -> Path:
    """Write the report of `results` to `path`, in one step, and its plots into `plots` beside it.

    With several tasks the scores by task are in `plots` too, as `by_task.csv`.

    Args:
        results: what the comparison measured.
        path: the HTML file.

    Returns:
        The path written.

    Raises:
        DoraError: when the file cannot be written.
    """
    summaries = _summaries(results)
    summary = summaries[results.protocol]
    drawn, axes = _plots(summary), axis_plots(summary)
    folder = Path(path).parent / PLOTS
    for plot in (*drawn.values(), *(plot for _, plot in axes)):
        if plot is not None:
            save_plot(plot, folder)
    table = task_table(summaries)
    if table is not None:
        save_table(table, folder / BY_TASK)
    return write_text(path, _render(summaries, drawn, axes))


def render_report(results: ComparisonResults) -> str:
    """Return the report as a complete HTML document without outside references."""
    summaries = _summaries(results)
    summary = summaries[results.protocol]
    return _render(summaries, _plots(summary), axis_plots(summary))


def _summaries(results: ComparisonResults) -> dict[str, Summary]:
    """Return the summary by each protocol, the main one first."""
    return {protocol: summarize(results.by_protocol(protocol)) for protocol in results.protocols}


def _plots(summary: Summary) -> dict[str, Plot | None]:
    """Return the plots by name, but for those of the grid's axes."""
    return {
        "accuracy": plots.accuracy_plot(summary),
        "difference": plots.difference_plot(summary),
        "loss": plots.loss_plot(summary),
        "gradient": plots.gradient_plot(summary),
        "drift": plots.drift_plot(summary),
        "direction": plots.direction_plot(summary),
        "search": plots.search_plot(summary),
        "size": size_plot(summary),
    }


def _render(
    summaries: dict[str, Summary], drawn: dict[str, Plot | None], axes: list[tuple[str, Plot]]
) -> str:
    summary, *_ = summaries.values()
    results = summary.results
    template = _TEMPLATES.get_template("report.html.jinja")
    return template.render(
        say=formatting,
        results=results,
        summary=summary,
        conclusion=conclude(summary),
        cautions=cautions(summary),
        colours=plots.page_colours(summary),
        finished=_readable_time(results.finished),
        words=summary.words,
        metrics=_metrics(summary),
        plots=drawn,
        axes=axes,
        spreads=spreads(summary),
        start_label={m.method: m.arm.start_label for m in summary.methods}.__getitem__,
        protocols=list(summaries.items())[1:],
        published=beside_published(summary),
        settings=list(_flattened(results.settings)),
        environment=list(_flattened(results.environment)),
        not_as_they_were=[
            ("Rows left out", _counts(results.data.skipped)),
            ("Rows shortened", _counts(results.data.cut)),
        ],
        samples=_samples(summary),
        is_shown=is_shown,
        ways=ways,
        seeds_of_pairs=sorted({pair.comparison.seeds for pair in summary.pairs}),
        label=summary.label,
        last_drift=_last_drift,
        last_loss=_last_loss,
        drawn=_drawn,
    )


def _metrics(summary: Summary) -> str:
    """Return what the rows are scored by, with the tasks where each has its own."""
    own = [f"{name} ({task})" for task, name in summary.results.data.task_metrics.items()]
    return summary.words.title.lower() + (f": {', '.join(own)}" if own else "")


def _samples(summary: Summary) -> list[tuple[Sample, list[tuple[str, str, str]]]]:
    """Return each shown row with (who, what was said, its mark in words), the base model first.

    Of each arm the first run speaks.
    """
    results, mark = summary.results, summary.words.mark
    labels = {arm.name: arm.label for arm in results.arms}
    speakers: list[tuple[str, BaseResult | RunResult]] = [("Base model", results.base)]
    for name, label in labels.items():
        own = next((run for run in results.runs if run.method == name), None)
        speakers += [] if own is None else [(label, own)]
    return [
        (
            sample,
            [(w, s.answers[n], mark(s.correct[sample.row])) for w, s in speakers if s.answers],
        )
        for n, sample in enumerate(results.samples)
    ]


def _counts(rows: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, int]]:
    """Return (split, reason, count) of rows that were treated so."""
    return [
        (split, reason, count)
        for split, reasons in rows.items()
        for reason, count in reasons.items()
    ]


def _drawn(plot: Plot) -> Markup:
    """Mark a plot's SVG as markup; matplotlib has escaped the text in it."""
    return Markup(plot.svg)


def _readable_time(text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".rstrip()


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as ("optim.learning_rate", "0.001") pairs."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _written(value)


def _written(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_written(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) or "none"
    return str(value)


def _last_drift(run: RunResult) -> float | None:
    drifts = [p.magnitude_drift for p in run.history if p.magnitude_drift is not None]
    return drifts[-1] if drifts else None


def _last_loss(run: RunResult) -> float | None:
    return run.history[-1].loss if run.history else None
