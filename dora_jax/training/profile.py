"""A trace of a few steps, for TensorBoard's profiler, XProf or Perfetto."""

from pathlib import Path

import jax

FOLDER = "profile"
# Steps before the trace begins: the first ones compile and fill caches.
_SKIPPED = 2


class Profile:
    """Traces some steps of a run's part; a context manager.

    Args:
        folder: of the part; the trace goes into `profile/`.
        first: the first step of this run, counted from 0.
        steps: how many are traced; 0 is none.
    """

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder = folder / FOLDER
        self._start, self._stop = first + _SKIPPED, first + _SKIPPED + steps
        self._runs = False

    def before(self, step: int) -> None:
        """Say that a step, counted from 0, is about to be dispatched."""
        if self._start <= step < self._stop and not self._runs:
            jax.profiler.start_trace(str(self._folder))
            self._runs = True

    def after(self, step: int) -> None:
        """Say that a step's numbers have been read."""
        if self._runs and step >= self._stop - 1:
            self._end()

    def _end(self) -> None:
        jax.profiler.stop_trace()
        self._runs, self._stop = False, 0

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._runs:
            self._end()
