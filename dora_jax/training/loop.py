"""The training loop: step, log, validate, checkpoint; killed at any moment, it continues.

A batch is a pure function of (seed, step), and so is every random key: a run that was interrupted
and continued from a checkpoint computes the very same numbers as one that was not. What the loop
decides by itself (to stop early, to give up) it decides from the rows of the metrics, which a
checkpoint comes with.

The device is kept one step ahead of the host: a step's numbers are read while the next one runs.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dora_jax.adapters import kernel_sq_norms, magnitude_drift
from dora_jax.analysis.results import HistoryPoint
from dora_jax.checkpoint.store import CheckpointStore
from dora_jax.data.batches import Share
from dora_jax.errors import DoraError
from dora_jax.partition import Params, combine, count_parameters, partition, trainable_mask
from dora_jax.processes import first_decides
from dora_jax.sharding import run_mesh
from dora_jax.spec import AdapterRules
from dora_jax.training.config import TrainConfig
from dora_jax.training.metrics import (
    METRICS_FILE,
    Row,
    point,
    read_metrics,
    skipped_in_a_row,
)
from dora_jax.training.placement import optimizer_shardings, param_shardings, place
from dora_jax.training.preemption import Preempted, until_told
from dora_jax.training.reporting import Reporter, Watching
from dora_jax.training.shares import join_rows
from dora_jax.training.step import Batch, StepMetrics, TrainState, init_state, make_train_step

CHECKPOINTS = "checkpoints"
VALIDATION = "validation_loss"


class DivergedError(DoraError):
    """The loss or the gradient stopped being finite."""


class Batches(Protocol):
    """Where batches come from: a pure function of the step, of few shapes."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0, or this process's share of it."""
        ...


@dataclass(frozen=True)
class FitResult:
    """A finished training run; times in seconds, sizes in bytes.

    Attributes:
        params: all parameters, the trained ones in their places.
        history: one point a step.
        step_time_s: median time of a step, over interruptions.
        compile_s: time to trace and compile the steps.
        temp_bytes: temporary memory of the compiled step; None where the backend does not say.
        peak_memory_bytes: highest resident memory seen at a step (device memory on accelerators).
        train_seconds: time of all steps, over interruptions.
        trainable_parameters: number of scalars trained.
        magnitude_parameters: those of them that are magnitudes.
        best_step: the step that these parameters are of; None for the last one.
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
    best_step: int | None = None


class _Programs:
    """The compiled step for each shape of batch."""

    def __init__(self, step: Callable[..., Any]):
        self._jitted = jax.jit(step, donate_argnums=0)
        self._compiled: dict[Any, Any] = {}
        self.compile_s = 0.0
        self.temp_bytes: int | None = None

    def of(self, *arguments: Any, batch: Batch) -> Callable[..., tuple[TrainState, StepMetrics]]:
        """Return the program for a batch; the arguments are the step's."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self._compiled:
            started = time.perf_counter()
            compiled = self._jitted.lower(*arguments).compile()
            self.compile_s += time.perf_counter() - started
            memory = compiled.memory_analysis()
            if memory is not None:
                self.temp_bytes = max(self.temp_bytes or 0, int(memory.temp_size_in_bytes))
            self._compiled[shapes] = compiled
        program: Callable[..., tuple[TrainState, StepMetrics]] = self._compiled[shapes]
        return program


def fit(
    model: nn.Module,
    rules: AdapterRules,
    params: Params,
    batches: Batches,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: TrainConfig,
    *,
    steps: int,
    seed: int,
    folder: Path,
    noise: bool = False,
    ema: float = 0.0,
    validate: Callable[[Params], Mapping[str, float]] | None = None,
    identity: Mapping[str, Any] | None = None,
    share: Share = Share(),  # noqa: B008 - immutable
    watching: Watching = Watching(),  # noqa: B008 - immutable
) -> FitResult:
    """Train the leaves that the rules name, for `steps` steps, in a run folder.

    Args:
        model: see `make_train_step`; with `sharding_rules` it can be divided over a mesh.
        rules: what is tuned.
        params: the adapted model's parameters at the start.
        batches: the data.
        tx: the optimizer, for trainable leaves.
        schedule: its learning rate by step, for the log.
        config: how often to validate and to write checkpoints, and when to stop before the end.
        steps: total number of optimizer steps, at least 1.
        seed: of the dropout keys.
        folder: gets `metrics.jsonl` and `checkpoints/`; if an earlier run of the same settings
            was interrupted there, training continues from its last checkpoint.
        noise: see `make_train_step`.
        ema: decay of the mean over steps that is validated and returned; 0 keeps none.
        validate: returns `validation_loss`, and what else is to be logged, of all parameters;
            needed where the config asks for it.
        identity: what the run is, as plain JSON, beside its rules and seed: a checkpoint of
            another base model, other data or settings is refused.
        share: which rows of a batch `batches` gives, see `row_share`.
        watching: who looks on.

    Raises:
        DoraError: when too many steps in a row are not finite, the folder's checkpoint or metrics
            are damaged or not this run's, or a checkpoint cannot be written.
    """
    validates = _validated_steps(config, steps) if validate is not None else frozenset()
    saves = {*range(config.checkpoint_every, steps, config.checkpoint_every), *validates, steps}
    state, frozen = _placed(model, rules, params, tx, ema > 0)
    magnitudes = _magnitudes(state.trainable)
    has_magnitudes = bool(jax.tree.leaves(magnitudes))
    initial = jax.tree.map(jnp.copy, magnitudes)  # the first step takes the state's own arrays
    whole_identity = {"rules": str(rules), "seed": seed, **(identity or {})}
    with CheckpointStore(
        folder / CHECKPOINTS, whole_identity, keep_best=config.select == "best"
    ) as store:
        state, rows = _resume(store, state, folder / METRICS_FILE, steps)
        sq_norms = jax.jit(lambda p: kernel_sq_norms(p, rules))(combine(state.trainable, frozen))
        key = jax.random.key(seed)
        programs = _Programs(
            make_train_step(
                model,
                rules,
                tx,
                micro_batches=config.micro_batches,
                noise=noise,
                label_smoothing=config.label_smoothing,
                ema=ema,
            )
        )
        row_ids = getattr(batches, "row_ids", None)
        with (
            until_told() as is_stop_due,
            Reporter(folder, folder / METRICS_FILE, rows, schedule, watching, row_ids) as reporter,
        ):
            rows = reporter.rows
            _check_finite(rows, config.bad_steps, folder)
            for index in range(len(rows), steps):
                if _is_enough(rows, config):
                    break
                asked = time.perf_counter()
                part = batches.batch(index)
                batch = join_rows(part, part.tokens.shape[0] * share.processes, share)
                wait_s = time.perf_counter() - asked
                step = programs.of(state, frozen, sq_norms, batch, key, batch=batch)
                reporter.starts(index)
                state, metrics = step(state, frozen, sq_norms, batch, key)
                moved = _drift(state.trainable, initial) if has_magnitudes else None
                reporter.stepped(index, metrics, moved, batch, wait_s)
                _check_finite(rows, config.bad_steps, folder)
                stops = is_stop_due(index + 1)
                if not (stops or index + 1 in saves):
                    continue
                metric = None
                if validate is not None and index + 1 in validates:
                    reporter.settle(functools.partial(validate, combine(state.result, frozen)))
                    metric = rows[-1][VALIDATION]
                else:
                    reporter.settle()
                _check_finite(rows, config.bad_steps, folder)
                store.save(index + 1, state, metric)
                if stops:
                    store.wait()
                    raise Preempted(f"stopped after step {index + 1} of {steps}")
        best = None
        if config.select == "best":
            best = min((row for row in rows if VALIDATION in row), key=lambda row: row[VALIDATION])
            store.wait()
            state = _restored(store, state, best["step"])
    times = [row["step_time_s"] for row in rows]
    return FitResult(
        params=combine(state.result, frozen),
        history=tuple(point(row) for row in rows),
        step_time_s=statistics.median(times),
        compile_s=programs.compile_s,
        temp_bytes=programs.temp_bytes,
        peak_memory_bytes=max(row["memory_bytes"] for row in rows),
        train_seconds=sum(times),
        trainable_parameters=count_parameters(state.trainable),
        magnitude_parameters=count_parameters(magnitudes),
        best_step=None if best is None else best["step"],
    )


def _validated_steps(config: TrainConfig, steps: int) -> frozenset[int]:
    if not config.validate_every:
        return frozenset()
    return frozenset({*range(config.validate_every, steps, config.validate_every), steps})


def _is_enough(rows: list[Row], config: TrainConfig) -> bool:
    """Whether the latest validations, as many as `patience`, were no better than one before."""
    losses = [row[VALIDATION] for row in rows if VALIDATION in row]
    best = min(range(len(losses)), key=losses.__getitem__, default=0)
    return 0 < config.patience <= len(losses) - 1 - best


def _check_finite(rows: list[Row], most: int, folder: Path) -> None:
    bad = skipped_in_a_row(rows)
    if len(bad) < most:
        return
    last = bad[-1]
    named = f"; its batch: {last['rows']}" if last.get("rows") else ""
    raise DivergedError(
        f"{folder}: loss or gradient were not finite for {len(bad)} steps in a row, up to step "
        f"{last['step']}{named}; try a lower learning rate (--optim.learning-rate or "
        "--compare.learning-rates); --train.bad-steps allows more of them"
    )


def _magnitudes(trainable: Params) -> Params:
    """Return the tree with its magnitudes alone, None in the place of everything else."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path[-1].key == "magnitude" else None, trainable
    )


@jax.jit
def _drift(trainable: Params, initial: Params) -> jax.Array:
    return magnitude_drift(_magnitudes(trainable), initial)


def _placed(
    model: nn.Module,
    rules: AdapterRules,
    params: Params,
    tx: optax.GradientTransformation,
    ema: bool,
) -> tuple[TrainState, Params]:
    """Return the state at the start and the frozen parameters, in their places on the mesh.

    The state's arrays are new: a step takes them for its own.
    """
    mesh, mask = run_mesh(), trainable_mask(params, rules)
    sharding_rules = getattr(model, "sharding_rules", ())
    where = param_shardings(mesh, params, sharding_rules, rules)
    trainable, frozen = partition(place(params, where), mask)
    kept, _ = partition(where, mask)
    everywhere = NamedSharding(mesh, PartitionSpec())
    begin = functools.partial(init_state, tx=tx, ema=ema)
    shapes = jax.eval_shape(begin, trainable)
    shardings = shapes._replace(
        step=everywhere,
        trainable=kept,
        opt_state=optimizer_shardings(mesh, tx, trainable, kept),
        ema=kept if ema else None,
    )
    return jax.jit(begin, out_shardings=shardings)(trainable), frozen


def _resume(
    store: CheckpointStore, state: TrainState, metrics_path: Path, steps: int
) -> tuple[TrainState, list[Row]]:
    """Return the newest checkpoint, or the given state if there is none, and its metrics."""
    newest = max(store.steps(), default=0)
    if newest > steps:
        raise DoraError(
            f"{store.folder}: holds a run of {newest} steps or more, not one of {steps}; "
            f"delete {metrics_path.parent} to train this part again from its start"
        )
    found = store.restore(state)
    state, done = (state, 0) if found is None else (found[0], found[1].step)
    return state, first_decides(lambda: read_metrics(metrics_path, done))


def _restored(store: CheckpointStore, state: TrainState, step: int) -> TrainState:
    found = store.restore(state, step)
    if found is None:
        raise DoraError(
            f"{store.folder}: the best checkpoint, of step {step}, is not there any more; delete "
            f"{store.folder.parent} to train this part again from its start"
        )
    restored: TrainState = found[0]
    return restored
