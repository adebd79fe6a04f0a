"""The comparison's figures and conclusion on the terminal, readable at 80 columns."""

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dora_jax.analysis import formatting as say
from dora_jax.analysis.conclusions import cautions, conclude
from dora_jax.analysis.results import ComparisonResults
from dora_jax.analysis.summary import MethodSummary, Summary, summarize

# What the texts here use beyond ASCII, for a terminal that cannot show it.
_PLAIN = str.maketrans({say.MINUS: "-", say.MISSING: "-", say.NBSP: " ", say.TIMES: "x"})


def print_comparison(results: ComparisonResults, console: Console) -> None:
    """Print a table with a column for the base model and each method, then the conclusion.

    Args:
        results: what the comparison measured.
        console: where to print; one that is not UTF-8 gets plain ASCII signs.
    """
    summary = summarize(results)
    unicode = console.encoding.lower().startswith("utf")

    def plain(text: str, style: str = "") -> Text:
        # Text, not str: a name with square brackets is no markup.
        if not unicode:
            text = (
                text.translate(_PLAIN).encode(console.encoding, "replace").decode(console.encoding)
            )
        return Text(text, style=style)

    console.print(_table(summary, plain))
    console.print()
    conclusion = conclude(summary)
    console.print(plain(conclusion.headline, "bold red" if conclusion.void else "bold"))
    for sentence in conclusion.sentences:
        console.print(plain(sentence))
    for caution in cautions(summary):
        console.print(plain(f"! {caution.text}", "bold red" if caution.grave else "yellow"))


def _table(summary: Summary, plain: Callable[..., Text]) -> Table:
    results, reference, words = summary.results, summary.reference.label, summary.words
    rows: list[tuple[str, str | None, Callable[[MethodSummary], str]]] = [
        (
            words.title,
            words.value(results.base.accuracy),
            lambda m: words.value(m.accuracy),
        ),
        (
            f"95{say.NBSP}% interval",
            words.bounds(summary.base_interval),  # columns are narrow: without the unit
            lambda m: words.bounds(m.interval),
        ),
        ("Over base", None, lambda m: say.points(m.over_base.difference)),
        *(
            [("Unanswered", say.tally(results.base.unanswered), lambda m: say.tally(m.unanswered))]
            if results.protocol == "generate"
            else []
        ),
        ("Loss", say.number(results.base.loss), lambda m: say.number(m.loss)),
        ("Parameters", None, lambda m: say.count(m.trainable_parameters)),
        ("  magnitudes", None, lambda m: say.count(m.magnitude_parameters)),
        ("Median step", None, lambda m: say.duration(m.step_time_s)),
        (f"  to {reference}'s", None, lambda m: say.ratio(m.step_time_ratio)),
        ("Temp. memory", None, lambda m: say.byte_size(m.temp_bytes)),
        (f"  to {reference}'s", None, lambda m: say.ratio(m.temp_ratio)),
        ("Train time", None, lambda m: say.duration(m.train_seconds)),
        ("Drift", None, lambda m: say.percent(_mean_drift(summary, m), 3)),
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", style="dim", no_wrap=True, max_width=16)
    for name in ["Base model", *(method.label for method in summary.methods)]:
        table.add_column(plain(name), justify="right", overflow="fold")
    for i, (label, base, figure) in enumerate(rows):
        cells = [base or say.MISSING, *(figure(method) for method in summary.methods)]
        style = "bold" if i == 0 else ""
        table.add_row(plain(label), *(plain(cell, style) for cell in cells))
    return table


def _mean_drift(summary: Summary, method: MethodSummary) -> float | None:
    drifts = [
        evidence.drift
        for evidence in summary.magnitudes
        if evidence.run.method == method.method and evidence.drift is not None
    ]
    return sum(drifts) / len(drifts) if drifts else None
