"""`dora-jax evaluate`: the base model, or an adapter, on the evaluation rows of an experiment."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.analysis.formatting import METRIC_WORDS
from dora_jax.analysis.statistics import accuracy_interval, score_interval
from dora_jax.checkpoint.adapter import AdapterInfo, load_model
from dora_jax.comparison.workbench import rounded, task_of
from dora_jax.data.splits import read_examples
from dora_jax.errors import DoraError
from dora_jax.evaluation.task import Task
from dora_jax.models.build import SHARDING, build_model
from dora_jax.sharding import run_mesh
from dora_jax.training.config import ExperimentConfig
from dora_jax.training.placement import weight_sharding
from dora_jax.training.progress import WorkProgress


def evaluate(config: ExperimentConfig, adapter: Path | None) -> list[str]:
    """Score the base model, or an adapter, on the config's evaluation rows.

    Returns:
        Lines for the terminal: the whole, then each task where there are several.

    Raises:
        DoraError: when the adapter was trained with another prompt template.
    """
    with jax.set_mesh(config.mesh.build()):
        return _evaluate(config, adapter)


def _evaluate(config: ExperimentConfig, adapter: Path | None) -> list[str]:
    examples = read_examples(config.data)
    where = weight_sharding(run_mesh(), SHARDING)
    loaded = load_model(config.model.name, adapter, where)
    if loaded.info is not None and loaded.info.prompt != config.data.prompt:
        raise DoraError(
            f"{adapter}: was trained with the prompt template {loaded.info.prompt!r}, not "
            f"{config.data.prompt!r}: give --data.prompt {loaded.info.prompt}"
        )
    pretrained = loaded.pretrained
    params = rounded(loaded.merged(), config.model)
    task = task_of(config, examples, pretrained)
    plain = build_model(pretrained.config, dtype=jnp.dtype(config.model.dtype))
    with WorkProgress(task.tokens("evaluation")) as progress:
        progress.part("evaluation")
        score = task.score(plain, params, progress.advance)
    main, *others = task.protocols
    lines = [
        f"{task.info.metric} {task.figure(score.accuracy)} of {len(score.correct)} rows, "
        f"loss {score.loss:.4f}"
        + (f", {score.unanswered} unanswered" if main == "generate" else "")
    ]
    lines += _by_task(task, score.correct)
    for protocol in others:
        found = score.other[protocol]
        lines.append(f"by {protocol}: {found.accuracy:.1%}, {found.unanswered} unanswered")
        lines += _by_task(task, found.correct)
    if loaded.info is not None:
        lines += _doubts(config, loaded.info)
    return lines


def _by_task(task: Task, correct: tuple[float, ...]) -> list[str]:
    """Return a line for each task of several, and their average, as the paper gives it."""
    by_task: dict[str, list[float]] = {}
    for row, is_right in zip(task.eval_rows, correct, strict=True):
        by_task.setdefault(row.task, []).append(is_right)
    if len(by_task) < 2:
        return []
    lines, shares = [], []
    for name, values in by_task.items():
        shares.append(sum(values) / len(values))
        table, metric = np.array([values]), task.task_metrics.get(name)
        found = score_interval(table, [name] * len(values)) if metric else accuracy_interval(table)
        interval = METRIC_WORDS[task.info.metric].interval(found)
        by = f", {metric}" if metric else ""
        lines.append(f"  {name}{by}: {task.figure(shares[-1])} of {len(values)} ({interval})")
    return [*lines, f"  average of the tasks: {task.figure(sum(shares) / len(shares))}"]


def _doubts(config: ExperimentConfig, info: AdapterInfo) -> list[str]:
    """Return a warning where the rows may be among those that the adapter was trained on."""
    before, now = info.data, config.settings()["data"]
    if before is None or before["train"] is not None or now["train"] is not None:
        return []  # not the embedded task
    # The seed decides which of its entities are held out.
    if before["seed"] == now["seed"]:
        return []
    return [
        f"warning: the adapter was trained with data.seed {before['seed']}, not {now['seed']}: "
        "some of these rows are about what it was trained on"
    ]
