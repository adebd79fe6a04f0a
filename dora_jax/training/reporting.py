"""From a dispatched step to its row in the metrics, while the next step runs."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from dora_jax.processes import is_first
from dora_jax.training.metrics import MetricsFile, Row, device_peak, finite, memory_in_use
from dora_jax.training.profile import Profile
from dora_jax.training.step import Batch, StepMetrics
from dora_jax.training.trackers import TrackerName, Trackers


@dataclass(frozen=True)
class Watching:
    """Who looks on while a model is trained; nothing of it changes what is learned.

    Attributes:
        on_row: called after each step with its row of the metrics.
        track: where metrics go beside the file.
        profile: number of steps to write a trace of; 0 is none.
        flops: operations of a step on a batch, for `flops_per_s` and `mfu`; None if not counted.
        settings: shown by the trackers.
    """

    on_row: Callable[[Row], None] = lambda row: None
    track: tuple[TrackerName, ...] = ()
    profile: int = 0
    flops: Callable[[Batch], float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Running:
    """A step that the device is at; `drift` is None without magnitudes."""

    index: int
    metrics: StepMetrics
    drift: jax.Array | None
    batch: Batch
    wait_s: float


class Reporter:
    """Reads the numbers of each step and tells them; a context manager.

    Args:
        folder: of the run's part.
        path: of the metrics file.
        rows: of the steps that were done before.
        schedule: learning rate by step.
        watching: who looks on.
        row_ids: names the rows of a step's batch, for steps that are skipped.
    """

    def __init__(
        self,
        folder: Path,
        path: Path,
        rows: list[Row],
        schedule: optax.Schedule,
        watching: Watching,
        row_ids: Callable[[int], Any] | None,
    ):
        self._schedule, self._watching, self._row_ids = schedule, watching, row_ids
        self._stack = contextlib.ExitStack()
        enter = self._stack.enter_context
        track = watching.track if is_first() else ()
        self._trackers = enter(Trackers(track, folder, watching.settings, len(rows)))
        self._profile = enter(Profile(folder, len(rows), watching.profile))
        self._file = enter(MetricsFile(path, rows, is_first()))
        self._running: _Running | None = None
        self._clock = 0.0

    @property
    def rows(self) -> list[Row]:
        """The rows so far; the step that runs is not among them."""
        return self._file.rows

    def starts(self, index: int) -> None:
        """Say that a step, counted from 0, is about to be dispatched."""
        self._profile.before(index)
        if self._running is None:
            self._clock = time.perf_counter()

    def stepped(
        self,
        index: int,
        metrics: StepMetrics,
        drift: jax.Array | None,
        batch: Batch,
        wait_s: float,
    ) -> None:
        """Take a step that was dispatched, and tell of the one before."""
        before, self._running = self._running, _Running(index, metrics, drift, batch, wait_s)
        if before is not None:
            self._tell(self._read(before))

    def settle(self, validate: Callable[[], Mapping[str, float]] | None = None) -> None:
        """Wait for the step that runs, and for its row to be on the disk.

        Args:
            validate: returns what else is to be in its row.
        """
        if self._running is not None:
            row = self._read(self._running)
            self._running = None
            self._tell(row | (dict(validate()) if validate is not None else {}))
        self._file.sync()

    def _read(self, step: _Running) -> Row:
        metrics = jax.tree.map(float, step.metrics)
        now = time.perf_counter()
        took, self._clock = now - self._clock, now
        self._profile.after(step.index)
        source = step.batch.source
        tokens = int(np.size(step.batch.tokens)) + int(np.size(source.tokens) if source else 0)
        # The optimizer counts the steps that it took.
        skipped = sum(1 for row in self.rows if row.get("skipped"))
        row: Row = {
            "step": step.index + 1,
            "loss": finite(metrics.loss),
            "grad_norm": finite(metrics.grad_norm),
            "trained_norm": finite(metrics.trained_norm),
            "learning_rate": float(self._schedule(step.index - skipped)),
            "magnitude_drift": None if step.drift is None else finite(float(step.drift)),
            "tokens": tokens,
            "labels": finite(metrics.labels),
            "step_time_s": took,
            "wait_s": step.wait_s,
            "tokens_per_s": tokens / took,
            "rows_per_s": step.batch.tokens.shape[0] / took,
            "memory_bytes": memory_in_use(),
        }
        if self._watching.flops is not None:
            speed = self._watching.flops(step.batch) / took
            peak = device_peak(jax.devices()[0].device_kind)
            row["flops_per_s"] = speed
            row["mfu"] = None if peak is None else speed / (peak * jax.device_count())
        if row["loss"] is None or row["grad_norm"] is None:
            row["skipped"] = True
            row["rows"] = None if self._row_ids is None else self._row_ids(step.index)
        return row

    def _tell(self, row: Row) -> None:
        self._file.add(row)
        self._trackers.log(row)
        self._watching.on_row(row)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
