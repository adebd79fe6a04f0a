"""Rows of VL-BART's tasks as JSON lines that every command reads."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dora_jax.analysis.atomic import write_text
from dora_jax.data.examples import Metric
from dora_jax.data.vl.row import CAPTION_TASKS, VLRow, source_text
from dora_jax.errors import DoraError
from dora_jax.evaluation.metrics import plain_words


class Written(NamedTuple):
    """What became of rows.

    Attributes:
        rows: that were written.
        unanswered: that have no answer and were left out.
        alike: of those written, that have two options of the same words: where one of them is
            right, both are, since answers are judged by their words.
    """

    rows: int
    unanswered: int
    alike: int = 0


def write_rows(path: Path, rows: Iterable[VLRow], source: Path | None = None) -> Written:
    """Write rows in the data's own format, see `record`.

    Args:
        path: the file to write, whole or not at all.
        rows: of one or several tasks; those without a target, as of a hidden test, are left out.
        source: the file that they are read from, where there is one; named in errors.

    Raises:
        DoraError: when there are no rows, or none has a target; or the file cannot be written.
    """
    lines, unanswered, alike = [], 0, 0
    for row in rows:
        if row.targets:
            lines.append(json.dumps(record(row), ensure_ascii=False) + "\n")
            alike += len(set(map(plain_words, row.options))) < len(row.options)
        else:
            unanswered += 1
    if not lines:
        what = f"none of {unanswered} rows has an answer" if unanswered else "there are no rows"
        raise DoraError(
            f"{source or path}: {what}, so that there is nothing to write; give a file that holds "
            "rows with their answers"
        )
    write_text(path, "".join(lines))
    return Written(len(lines), unanswered, alike)


def record(row: VLRow) -> dict[str, Any]:
    """Return a row as a JSON object: see docs/data.md, `metric`, `references` and `targets`.

    Example:
        >>> record(VLRow("nlvr", "7", "Both are red.", ("true",), visuals=("a", "b")))["images"]
        ['a', 'b']
    """
    weights: dict[str, float] = {}
    for text, weight in zip(row.targets, row.weights, strict=True):
        weights[text.strip()] = max(weight, weights.get(text.strip(), 0.0))
    found = {
        "id": row.id,
        "task": row.task,
        "instruction": source_text(row),
        "output": max(weights, key=lambda text: weights[text]),
        "images": list(row.visuals),
        "span": None if row.span is None else list(row.span),
        "metric": metric_of(row),
        "references": list(row.references),
        "targets": weights if len(weights) > 1 or row.task == "vqa" else None,
    }
    return {name: value for name, value in found.items() if value not in (None, [])}


def metric_of(row: VLRow) -> Metric:
    """Return what a row's task is scored by."""
    if row.task in CAPTION_TASKS:
        return "cider"
    return "vqa" if row.task == "vqa" else "exact"
