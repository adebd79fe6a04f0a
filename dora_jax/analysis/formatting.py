"""Numbers as the report and the terminal write them.

A figure that was not measured is an en dash. The sign is always shown for differences, with a true
minus. Numbers and their units are held together by no-break spaces.

What depends on the metric, words and units, is chosen here: see `MetricWords`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from dora_jax.analysis.statistics import Interval

MISSING = "\N{EN DASH}"
NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class MetricWords:
    """How figures of a metric are called and written.

    Attributes:
        title: heads a column or a plot.
        noun: in a sentence, and in the names of files.
        symbol: after a value, as in "66.3 %"; points have none, their titles say it.
        axis: labels an axis of values.
        difference: what a difference of two values is in.
        scale: what values are in, as the first word of a sentence.
        binary: whether a row is right or wrong, and nothing between or above.
        wins: heads the counts of rows where one of two methods did better.
        note: what a reader must know of the values; may be empty.
    """

    title: str
    noun: str = "accuracy"
    symbol: str = "%"
    axis: str = ""
    difference: str = "percentage points"
    scale: str = "Percent"
    binary: bool = True
    wins: str = "Right alone"
    note: str = ""

    @property
    def named_axis(self) -> str:
        """The label of an axis that does not stand under a title."""
        return f"{self.noun}, {self.axis}" if self.axis else self.noun

    def value(self, mean: float | None, digits: int = 1) -> str:
        """A mean of marks: 0.663 -> "66.3 %", or in points "66.3"."""
        return _or_missing(mean, lambda m: _signed(100 * m, digits) + self._unit)

    def bounds(self, interval: Interval) -> str:
        """Without a unit: Interval(0.621, 0.702) -> "62.1 to 70.2"."""
        return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"

    def interval(self, interval: Interval) -> str:
        """Interval(0.621, 0.702) -> "62.1 to 70.2 %", or in points "62.1 to 70.2"."""
        return self.bounds(interval) + self._unit

    def mark(self, mark: float) -> str:
        """A row's mark after its answer: a tick where it is right, or its points."""
        if self.binary:
            return " ✓" if mark else ""
        return f" ({100 * mark:.1f} points)"

    @property
    def _unit(self) -> str:
        return NBSP + self.symbol if self.symbol else ""


METRIC_WORDS = {
    "accuracy": MetricWords("Accuracy"),
    "exact_match": MetricWords("Exact match"),
    "score": MetricWords(
        title="Score (points)",
        noun="score",
        symbol="",
        axis="points",
        difference="points",
        scale="Points",
        binary=False,
        wins="Higher score",
        note="The score is the mean over tasks, each counting alike; a task's is the mean of its "
        "rows' points by its own metric. A full mark is 100 points; metrics such as CIDEr-D may "
        "give more.",
    ),
}


def percent(share: float | None, digits: int = 1) -> str:
    """0.663 -> "66.3 %"."""
    return _or_missing(share, lambda value: f"{_signed(100 * value, digits)}{NBSP}%")


def percent_interval(interval: Interval) -> str:
    """Interval(0.621, 0.702) -> "62.1 to 70.2 %"."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}{NBSP}%"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, with its sign: 0.023 -> "+2.3"."""
    return _or_missing(difference, lambda value: _signed(100 * value, 1, plus="+"))


def points_interval(interval: Interval | None) -> str:
    """Interval(-0.004, 0.042) -> "-0.4 to +4.2", with a true minus."""
    return MISSING if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def p_value(value: float | None) -> str:
    """0.0214 -> "p = 0.021"; very small and large ones are bounded, not spelled out."""
    if value is None:
        return MISSING
    if value < 0.001:
        return f"p{NBSP}<{NBSP}0.001"
    if value > 0.995:
        return f"p{NBSP}>{NBSP}0.99"
    return f"p{NBSP}={NBSP}{value:.2f}" if value >= 0.1 else f"p{NBSP}={NBSP}{value:.3f}"


def count(number: int | None) -> str:
    """1234567 -> "1,234,567"."""
    return MISSING if number is None else f"{number:,}"


def number(value: float | None, digits: int = 3) -> str:
    """A loss and the like: 1.23456 -> "1.235"."""
    return _or_missing(value, lambda v: _signed(v, digits))


def tally(value: float | None) -> str:
    """A mean of counts: 3.0 -> "3", 2.6667 -> "2.67", 1234.5 -> "1,234"."""
    return _or_missing(value, lambda v: f"{v:.3g}" if v < 1000 else f"{v:,.0f}")


def learning_rate(value: float | None) -> str:
    """0.0005 -> "0.0005", 0.00002 -> "2e-05"."""
    return _or_missing(value, lambda v: f"{v:g}")


def ratio(value: float | None) -> str:
    """1.0366 -> "×1.04"."""
    return _or_missing(value, lambda v: f"{TIMES}{v:.2f}")


def byte_size(size: int | None) -> str:
    """Decimal units: 1310000000 -> "1.31 GB"."""
    if size is None:
        return MISSING
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if abs(size) >= 10**power:
            value = size / 10**power
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{NBSP}{unit}"
    return f"{size}{NBSP}B"


def speed(flops_per_s: float | None) -> str:
    """Operations a second: 512000000000 -> "512 GFLOP/s"."""
    if flops_per_s is None:
        return MISSING
    unit, power = ("TFLOP/s", 12) if flops_per_s >= 1e12 else ("GFLOP/s", 9)
    return f"{flops_per_s / 10**power:.3g}{NBSP}{unit}"


def duration(seconds: float | None) -> str:
    """From milliseconds to hours: "84.2 ms", "2.31 s", "3 min 20 s", "2 h 05 min"."""
    if seconds is None or not math.isfinite(seconds):
        return _or_missing(seconds, str)
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g}{NBSP}ms"
    if seconds < 99.95:
        return f"{seconds:.3g}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min{NBSP}{rest:02d}{NBSP}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{NBSP}h{NBSP}{minutes:02d}{NBSP}min"


def plural(number: int, one: str, many: str | None = None) -> str:
    """(1, "seed") -> "1 seed"; (3, "seed") -> "3 seeds"."""
    return f"{number:,}{NBSP}{one if number == 1 else many or one + 's'}"


def listed(words: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _or_missing(value: float | None, write: Callable[[float], str]) -> str:
    if value is None:
        return MISSING
    return write(value) if math.isfinite(value) else "not finite"


def _signed(value: float, digits: int, plus: str = "") -> str:
    """Write with a true minus and, where asked, a plus; what rounds to zero has no sign."""
    size = f"{abs(value):.{digits}f}"
    if float(size) == 0:
        return size
    return (MINUS if value < 0 else plus) + size
