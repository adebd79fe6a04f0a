"""Progress of a command made of many parts, with an estimate of the time left throughout.

Work is counted in token passes (one token once forward; a training token counts three times), so
that parts of different kinds add up. On a terminal a bar is redrawn; elsewhere a line is printed
every few seconds.
"""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

TRAIN_PASSES = 3
_LINE_EVERY_S = 10.0


def describe_seconds(seconds: float) -> str:
    """Return a duration in words: '45 s', '3 min 20 s', '2 h 5 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class WorkProgress:
    """Counts work done against all the work of a command; a context manager.

    Args:
        total: work of all parts, in token passes.
        console: where to show it; standard error by default, so that results can be piped.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self,
        total: float,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.console = console or Console(file=sys.stderr)
        self._clock = clock
        self._total, self._done = float(max(total, 1)), 0.0
        self._start = self._last_line = clock()
        self._label = ""
        self._bar = Progress(
            TextColumn("{task.percentage:3.0f}%"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=self._total, left="")

    def __enter__(self) -> "WorkProgress":
        self._start = self._last_line = self._clock()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def seconds_left(self) -> float | None:
        """Return the estimate, from the speed so far; None before any work is done."""
        if self._done <= 0:
            return None
        return (self._clock() - self._start) * max(0.0, self._total - self._done) / self._done

    def skip(self, work: float) -> None:
        """Take work that an earlier run has done out of the total."""
        self._total = max(1.0, self._total - work)
        self._bar.update(self._task, total=self._total)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def part(self, label: str) -> None:
        """Name what is being done now."""
        self._label = label
        self._show("", at_once=True)

    def advance(self, work: float, detail: str = "") -> None:
        """Count work as done; `detail` is shown after the part's name."""
        self._done += work
        self._show(detail)

    def _show(self, detail: str, at_once: bool = False) -> None:
        left = self.seconds_left()
        estimate = "estimating" if left is None else f"about {describe_seconds(left)} left"
        text = f"{self._label}  {detail}".rstrip()
        self._bar.update(self._task, completed=self._done, description=text, left=estimate)
        now = self._clock()
        if not self.console.is_terminal and (at_once or now - self._last_line > _LINE_EVERY_S):
            self._last_line = now
            share = min(1.0, self._done / self._total)
            self.say(f"[{share:4.0%}, {estimate}] {text}")
