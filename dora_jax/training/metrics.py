"""The metrics of a run: a row of JSON for each step, in a file that survives interruptions.

    step, loss, grad_norm, trained_norm, learning_rate, magnitude_drift     what is learned
    tokens, labels, step_time_s, wait_s                       the work, and how long it took
    tokens_per_s, rows_per_s, flops_per_s, mfu, memory_bytes  how well the machine is used
    validation_loss, validation_accuracy                      at the steps that are validated; the
                                                              second where options are chosen from
    skipped, rows                                             where the step was not finite

`loss` and `grad_norm` are null where they are not finite: JSON has no NaN.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO

import jax
import psutil

from dora_jax.analysis.atomic import write_text
from dora_jax.analysis.results import HistoryPoint
from dora_jax.errors import DoraError

METRICS_FILE = "metrics.jsonl"

# What no two runs share.
MEASURED = (
    "step_time_s",
    "wait_s",
    "tokens_per_s",
    "rows_per_s",
    "flops_per_s",
    "mfu",
    "memory_bytes",
)

Row = dict[str, Any]


def read_metrics(path: Path, before_step: int) -> list[Row]:
    """Return the rows of a metrics file for steps 1 to `before_step`; a torn last line is dropped.

    Raises:
        DoraError: when a row in between is missing or broken.
    """
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                break
            rows.append(row)
    rows = [row for row in rows if row["step"] <= before_step]
    if [row["step"] for row in rows] != list(range(1, before_step + 1)):
        raise DoraError(
            f"{path}: does not hold the steps 1 to {before_step} of its checkpoint; "
            f"delete {path.parent} to train this part again from its start"
        )
    return rows


class MetricsFile:
    """The rows so far, and the file that holds them; a context manager.

    Args:
        path: of the file.
        rows: of the steps before the checkpoint that training goes on from; no others are kept.
        writes: whether this process writes the file.
    """

    def __init__(self, path: Path, rows: list[Row], writes: bool = True):
        self.rows = rows
        self._file: TextIO | None = None
        if writes:
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    def add(self, row: Row) -> None:
        """Append a row; it may be lost until `sync`."""
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Return when all rows are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()


def finite(value: float) -> float | None:
    """Return a number, or None where it is not finite."""
    return value if math.isfinite(value) else None


def skipped_in_a_row(rows: list[Row]) -> list[Row]:
    """Return the last rows that are all of skipped steps."""
    count = next((n for n, row in enumerate(reversed(rows)) if not row.get("skipped")), len(rows))
    return rows[len(rows) - count :]


def point(row: Row) -> HistoryPoint:
    """Return a row as the results keep it."""
    values = {name: row[name] for name in ("grad_norm", "learning_rate", "magnitude_drift")}
    loss = math.nan if row["loss"] is None else row["loss"]
    return HistoryPoint(step=row["step"], loss=loss, **values)


def memory_in_use() -> int:
    """Return the process's resident bytes, or the device's peak bytes on an accelerator."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return int(psutil.Process().memory_info().rss)


# Dense bfloat16 operations a second of one device, by its makers' data sheets.
_PEAKS = {
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def device_peak(kind: str) -> float | None:
    """Return a device's bfloat16 operations a second; None where it is not known.

    Args:
        kind: JAX's `device_kind`. Kinds are told by their beginning: "NVIDIA H100 80GB HBM3".
    """
    named = [name for name in _PEAKS if kind == name or kind.startswith(f"{name} ")]
    return _PEAKS[max(named, key=len)] if named else None
