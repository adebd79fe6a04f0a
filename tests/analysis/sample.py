"""Small invented results whose figures can be worked out by hand."""

from collections.abc import Mapping, Sequence

from dora_jax.analysis import formatting as say
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


def run(method: str, seed: int, correct: Sequence[int], **changes) -> RunResult:
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
