"""Small invented results whose figures can be worked out by hand."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from dora_jax.analysis import formatting as say
from dora_jax.analysis.marks import task_means
from dora_jax.analysis.results import (
    BaseResult,
    ComparisonResults,
    DataInfo,
    EvalRow,
    HistoryPoint,
    ModelInfo,
    RunResult,
    SearchTrial,
)

ROWS = 40
_ASCII = str.maketrans(
    {
        say.NBSP: " ",
        say.MINUS: "-",
        say.MISSING: "~",
        say.TIMES: "x",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    }
)
TASK_METRICS = {
    "vqa": "VQA accuracy",
    "gqa": "exact match",
    "nlvr": "exact match",
    "caption": "CIDEr-D",
}
SCORED_TASKS = ("vqa",) * 12 + ("gqa",) * 10 + ("nlvr",) * 10 + ("caption",) * 8
BASE = [1] * 8 + [0] * 32


def plain(text: str) -> str:
    """The text with its typographic signs in ASCII; a dash for what is missing becomes ~."""
    return text.translate(_ASCII)


def first(count: int, rows: int = ROWS) -> list[int]:
    """`count` correct rows, then wrong ones."""
    return [1] * count + [0] * (rows - count)


def history(drift: float | None, loss: float = 2.0, steps: int = 20) -> tuple[HistoryPoint, ...]:
    return tuple(
        HistoryPoint(
            step=step,
            loss=loss / step,
            grad_norm=1.0,
            learning_rate=1e-3,
            magnitude_drift=None if drift is None else drift * step / steps,
        )
        for step in range(1, steps + 1)
    )


def run(method: str, seed: int, correct: Sequence[float], **changes) -> RunResult:
    trains = method in ("dora", "magnitude")
    values = {
        "method": method,
        "seed": seed,
        "learning_rate": 1e-3,
        "accuracy": sum(correct) / len(correct),
        "correct": tuple(correct),
        "loss": 0.75,
        "trainable_parameters": 1200 if trains else 1000,
        "magnitude_parameters": 200 if trains else 0,
        "step_time_s": 0.55 if trains else 0.5,
        "temp_bytes": 2_200_000 if trains else 2_000_000,
        "peak_rss_bytes": 3_000_000_000,
        "compile_s": 12.0,
        "train_seconds": 200.0,
        "history": history(0.004 if trains else None, loss=2.0 + seed + (0.1 if trains else 0)),
    }
    return RunResult(**{**values, **changes})


def results(
    correct: Mapping[str, Sequence[Sequence[int]]] | None = None, **changes
) -> ComparisonResults:
    """Results of `{method: [correct of seed 0, of seed 1, ...]}`."""
    if correct is None:
        correct = {"lora": [first(24)], "dora": [first(26)]}
    rows = len(next(iter(correct.values()))[0])
    values = {
        "name": "sample",
        "command": "dora-jax compare experiments/sample.py",
        "finished": "2026-01-02T03:04:05+00:00",
        "settings": {"optim": {"steps": 20, "learning_rates": [1e-4, 1e-3, 1e-2]}, "rank": 16},
        "environment": {"jax": "0.10.2", "devices": ["cpu:0"]},
        "model": ModelInfo("tiny-llama", "a local folder", 100_000),
        "data": DataInfo("capitals", 600, 60, rows, chance=0.125, skipped={"train": {"long": 3}}),
        "eval_rows": tuple(EvalRow("even" if i % 2 == 0 else "odd") for i in range(rows)),
        "base": BaseResult(8 / rows, tuple(first(8, rows)), 2.5),
        "search": tuple(
            SearchTrial(method, rate, 10, rate == 1e-3, accuracy, 1.5 - accuracy)
            for method in correct
            for rate, accuracy in ((1e-4, 0.25), (1e-3, 0.5), (1e-2, 0.375))
        ),
        "runs": tuple(
            run(method, seed, scores)
            for method, seeds in correct.items()
            for seed, scores in enumerate(seeds)
        ),
    }
    return ComparisonResults(**{**values, **changes})


def marks(gain: float, seed: int) -> tuple[float, ...]:
    """Marks of the rows of `SCORED_TASKS`, better by about `gain` of a full mark."""
    random = np.random.default_rng(seed)
    rows = np.arange(len(SCORED_TASKS))
    skill = (0.4 + 0.5 * np.sin(1.7 * rows) + gain + random.normal(0, 0.1, len(rows))).clip(0, 1)
    scales = {"vqa": lambda x: min(0.3 * round(x / 0.3), 1.0), "caption": lambda x: 2.5 * x}
    found = (scales.get(task, round)(float(x)) for task, x in zip(SCORED_TASKS, skill, strict=True))
    return tuple(round(mark, 4) for mark in found)


def mean_of_tasks(correct: Sequence[float], tasks: Sequence[str] = SCORED_TASKS) -> float:
    return statistics.fmean(task_means(correct, tasks).values())


def scored(
    correct: Mapping[str, Sequence[Sequence[float]]] | None = None,
    tasks: Sequence[str] = SCORED_TASKS,
    base: Sequence[float] | None = None,
    **changes,
) -> ComparisonResults:
    """Results of tasks that each have a metric of their own: see `results`."""
    if correct is None:
        gains = {"lora": 0.2, "dora": 0.3}
        correct = {
            name: [marks(gain, 3 * n + seed) for seed in range(3)]
            for n, (name, gain) in enumerate(gains.items())
        }
    base = marks(0.0, 100) if base is None else base
    named = dict.fromkeys(tasks, "exact match") | {
        task: metric for task, metric in TASK_METRICS.items() if task in tasks
    }
    plain = results({name: [first(1)] * len(seeds) for name, seeds in correct.items()})
    values = {
        "data": DataInfo("four tasks", 600, 60, len(tasks), "score", task_metrics=named),
        "eval_rows": tuple(map(EvalRow, tasks)),
        "base": BaseResult(mean_of_tasks(base, tasks), tuple(base), 2.5),
        "runs": tuple(
            run(method, seed, scores, accuracy=mean_of_tasks(scores, tasks))
            for method, seeds in correct.items()
            for seed, scores in enumerate(seeds)
        ),
    }
    return dataclasses.replace(plain, **{**values, **changes})
