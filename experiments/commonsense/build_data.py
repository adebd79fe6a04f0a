"""Make the commonsense study's data of the eight tasks' own data sets, in the authors' layout.

    python -m experiments.commonsense.build_data --out data/commonsense_170k

writes `commonsense_170k.json` (all train splits, shuffled), `TASK/test.json` for each task, and
`manifest.json`, which says where each came from. Needs the `data` extra and the network.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dora_jax.analysis.atomic import write_text
from dora_jax.data.commonsense import TASKS, CommonsenseTask, NoLabelError, build_row
from dora_jax.errors import DoraError
from dora_jax.training.checks import require_count

TRAIN_FILE, MANIFEST_FILE = "commonsense_170k.json", "manifest.json"
_SEED = 42
Loader = Callable[[CommonsenseTask, str], Iterable[Mapping[str, Any]]]


def load_split(task: CommonsenseTask, split: str) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a split from the hub.

    Raises:
        DoraError: naming the data set, when it cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise DoraError("this needs `datasets`: pip install 'dora-jax[data]'") from error
    try:
        return datasets.load_dataset(
            task.hub, task.subset or None, split=split, revision=task.revision
        )
    except Exception as error:  # network, names, splits: each raises its own
        raise DoraError(
            f"{task.hub}, split {split}: cannot be loaded ({error}); check the network, or leave "
            f"it out by --tasks"
        ) from error


def build(
    out: Path,
    tasks: Sequence[str] = tuple(TASKS),
    limit: int | None = None,
    load: Loader = load_split,
) -> dict[str, Any]:
    """Write the data, and return the manifest.

    Args:
        out: the folder; made if need be.
        tasks: which of the eight.
        limit: rows of each split, at most, and at least 1; None takes all.
        load: returns the rows of a task's split.

    Raises:
        DoraError: for a limit below 1, a task that is unknown, a data set that cannot be had, or a
            bad row.
    """
    if limit is not None:
        require_count("limit", limit)
    unknown = [name for name in tasks if name not in TASKS]
    if unknown:
        raise DoraError(f"unknown task {unknown[0]!r}; there are {', '.join(TASKS)}")
    train: list[dict[str, str]] = []
    manifest: dict[str, Any] = {}
    for name in dict.fromkeys(tasks):
        task = TASKS[name]
        own, unlabelled = _rows(task, "train", limit, load)
        test, more = _rows(task, task.evaluation, limit, load)
        if not own or not test:
            raise DoraError(f"{task.hub}: has no labelled row in train or {task.evaluation}")
        train += own
        _write(out / name / "test.json", test)
        manifest[name] = {
            "hub": task.hub,
            "subset": task.subset,
            "revision": task.revision,
            "train": len(own),
            "test": len(test),
            "test_split": task.evaluation,
            "left_out_without_answer": unlabelled + more,
        }
    order = np.random.default_rng(_SEED).permutation(len(train))
    _write(out / TRAIN_FILE, [train[i] for i in order])
    write_text(out / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _rows(
    task: CommonsenseTask, split: str, limit: int | None, load: Loader
) -> tuple[list[dict[str, str]], int]:
    found, unlabelled = [], 0
    for number, row in enumerate(load(task, split), 1):
        if limit is not None and len(found) == limit:
            break
        try:
            found.append(build_row(task, row, f"{task.hub}, split {split}, row {number}"))
        except NoLabelError:
            unlabelled += 1
    return found, unlabelled


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_text(path, f"[\n{lines}\n]\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(prog="build_data", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--limit", type=int, help="rows of each split, at most; 1 or more")
    args = parser.parse_args(argv)
    try:
        manifest = build(args.out, args.tasks, args.limit)
    except DoraError as error:
        sys.exit(f"error: {error}")
    for name, counts in manifest.items():
        left_out = counts["left_out_without_answer"]
        print(
            f"{name}: {counts['train']:,} to train on, {counts['test']:,} to evaluate"
            + (f"; {left_out:,} left out, which have no answer" if left_out else "")
        )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
