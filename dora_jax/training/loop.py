"""The training loop: compile once, step, log, checkpoint; killed at any moment, it continues.

A batch is a pure function of (seed, step), and so is every random key: a run that was interrupted
and continued from a checkpoint computes the very same numbers as one that was not.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil

from dora_jax.adapters import kernel_sq_norms, magnitude_drift
from dora_jax.analysis.atomic import write_text
from dora_jax.analysis.results import HistoryPoint
from dora_jax.checkpoint.state import CheckpointStore
from dora_jax.errors import DoraError
from dora_jax.partition import Params, combine, count_parameters, partition, trainable_mask
from dora_jax.sharding import replicate, split_rows
from dora_jax.spec import AdapterRules
from dora_jax.training.step import Batch, TrainState, init_state, make_train_step

METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class DivergedError(DoraError):
    """The loss or the gradient stopped being finite."""


class Batches(Protocol):
    """Where batches come from: a pure function of the step, all of the same shapes."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        ...


@dataclass(frozen=True)
class FitResult:
    """A finished training run; times in seconds, sizes in bytes.

    Attributes:
        params: all parameters, the trained ones in their places.
        history: one point a step.
        step_time_s: median time of a step, over interruptions.
        compile_s: time to trace and compile the step.
        temp_bytes: temporary memory of the compiled step; None where the backend does not say.
        peak_memory_bytes: highest resident memory seen at a step (device memory on accelerators).
        train_seconds: time of all steps, over interruptions.
        trainable_parameters: number of scalars trained.
        magnitude_parameters: those of them that are magnitudes.
    """

    params: Params
    history: tuple[HistoryPoint, ...]
    step_time_s: float
    compile_s: float
    temp_bytes: int | None
    peak_memory_bytes: int
    train_seconds: float
    trainable_parameters: int
    magnitude_parameters: int


def memory_in_use() -> int:
    """Return the process's resident bytes, or the device's peak bytes on an accelerator."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return int(psutil.Process().memory_info().rss)


def read_metrics(path: Path, before_step: int) -> list[dict[str, Any]]:
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


def fit(
    model: nn.Module,
    rules: AdapterRules,
    params: Params,
    batches: Batches,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    steps: int,
    seed: int,
    folder: Path,
    checkpoint_every: int,
    micro_batches: int = 1,
    dropout: bool = False,
    on_step: Callable[[HistoryPoint], None] = lambda point: None,
) -> FitResult:
    """Train the leaves that the rules name, for `steps` steps, in a run folder.

    Args:
        model: see `make_train_step`.
        rules: what is tuned.
        params: the adapted model's parameters at the start.
        batches: the data.
        tx: the optimizer, for trainable leaves.
        schedule: its learning rate by step, for the log.
        steps: total number of optimizer steps, at least 1.
        seed: of the dropout keys.
        folder: gets `metrics.jsonl` and `checkpoints/`; if an earlier run of the same settings
            was interrupted there, training continues from its last checkpoint.
        checkpoint_every: steps between checkpoints.
        micro_batches: see `make_train_step`.
        dropout: see `make_train_step`.
        on_step: called after each step with its point of the history.

    Raises:
        DoraError: when the loss or its gradient stops being finite, the folder's checkpoint or
            metrics are damaged or not this run's, or a checkpoint cannot be written.
    """
    mask = trainable_mask(params, rules)
    trainable, frozen = partition(params, mask)
    initial = trainable
    # The first step donates its state: the arrays that came in stay the caller's.
    state = init_state(jax.tree.map(jnp.array, trainable), tx)
    metrics_path = folder / METRICS_FILE
    with CheckpointStore(folder / CHECKPOINTS) as store:
        state, rows = _resume(store, state, metrics_path, steps)
        done = len(rows)
        state, frozen = replicate(state), replicate(frozen)
        sq_norms = jax.jit(lambda p: kernel_sq_norms(p, rules))(combine(state.trainable, frozen))
        key = jax.random.key(seed)
        step_fn = make_train_step(model, rules, tx, micro_batches=micro_batches, dropout=dropout)
        first = split_rows(batches.batch(min(done, steps - 1)))
        started = time.perf_counter()
        jitted = jax.jit(step_fn, donate_argnums=0)
        compiled = jitted.lower(state, frozen, sq_norms, first, key).compile()
        compile_s = time.perf_counter() - started
        drift = jax.jit(lambda now: magnitude_drift(now, initial))
        magnitudes = _count_magnitudes(trainable)

        peak = 0
        with open(metrics_path, "a", encoding="utf-8") as log:
            for index in range(done, steps):
                batch = split_rows(batches.batch(index))
                started = time.perf_counter()
                state, metrics = compiled(state, frozen, sq_norms, batch, key)
                loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
                step_time = time.perf_counter() - started
                if not (np.isfinite(loss) and np.isfinite(grad_norm)):
                    raise DivergedError(
                        f"{folder}: the loss is {loss} and the gradient's norm {grad_norm} at step "
                        f"{index + 1}; try a lower learning rate (--optim.learning-rate or "
                        "--compare.learning-rates)"
                    )
                row: dict[str, Any] = {
                    "step": index + 1,
                    "loss": loss,
                    "grad_norm": grad_norm,
                    "learning_rate": float(schedule(index)),
                    "magnitude_drift": float(drift(state.trainable)) if magnitudes else None,
                    "tokens": int(np.size(batch.tokens)),
                    "step_time_s": step_time,
                }
                rows.append(row)
                log.write(json.dumps(row) + "\n")
                log.flush()
                peak = max(peak, memory_in_use())
                if (index + 1) % checkpoint_every == 0 or index + 1 == steps:
                    os.fsync(log.fileno())  # no checkpoint without its metrics
                    store.save(index + 1, state)
                on_step(_point(row))
    times = [row["step_time_s"] for row in rows]
    memory = compiled.memory_analysis()
    return FitResult(
        params=combine(state.trainable, frozen),
        history=tuple(_point(row) for row in rows),
        step_time_s=statistics.median(times),
        compile_s=compile_s,
        temp_bytes=None if memory is None else int(memory.temp_size_in_bytes),
        peak_memory_bytes=peak or memory_in_use(),
        train_seconds=sum(times),
        trainable_parameters=count_parameters(params, mask),
        magnitude_parameters=magnitudes,
    )


def _resume(
    store: CheckpointStore, state: TrainState, metrics_path: Path, steps: int
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Return the newest checkpoint, or the given state if there is none, and its metrics.

    The metrics file then holds the rows of the steps before the checkpoint, and no others.
    """
    done = store.latest_step() or 0
    if done > steps:
        raise DoraError(
            f"{store.folder}: holds a run of {done} steps or more, not one of {steps}; "
            f"delete {metrics_path.parent} to train this part again from its start"
        )
    rows = read_metrics(metrics_path, done)
    if done:
        state = store.restore(state)
    write_text(metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
    return state, rows


def _point(row: dict[str, Any]) -> HistoryPoint:
    names = ("step", "loss", "grad_norm", "learning_rate", "magnitude_drift")
    return HistoryPoint(**{name: row[name] for name in names})


def _count_magnitudes(trainable: Params) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    return sum(int(leaf.size) for path, leaf in leaves if path[-1].key == "magnitude")
