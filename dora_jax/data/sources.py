"""Where rows come from: files, folders and globs of them, `datasets` folders, and the hub.

| source                               | read as                                            |
|--------------------------------------|----------------------------------------------------|
| `a.jsonl`, `a.jsonl.gz`              | one JSON object a line                             |
| `a.json`, `a.json.gz`                | one array of objects, or one object a line         |
| `a.parquet`                          | rows of a table (needs pyarrow)                    |
| `data/*.jsonl`                       | all files that match, by name                      |
| a folder that `datasets` wrote       | `save_to_disk`; of several splits, `train`         |
| any other folder                     | all such files in it and below, by name            |
| several `TASK/test.json`             | rows without a `task` are of the folder's          |
| `hub:OWNER/NAME`, `...:SPLIT`, `...:SUBSET:SPLIT` | a dataset of the Hugging Face hub     |
"""

import dataclasses
import glob
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dora_jax.data.examples import Example
from dora_jax.data.formats import SAMPLE, Format, LeftOut, read_row, row_format
from dora_jax.data.jsonl import json_rows
from dora_jax.data.row_images import RowImages
from dora_jax.errors import DoraError

HUB = "hub:"
_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_DATASETS_FILES = ("dataset_dict.json", "state.json")
_SPLITS = ("train", "validation", "dev", "test")
_EXTRA = "pip install 'dora-jax[data]'"


def read_source(
    source: str | Path, images: RowImages | None = None
) -> tuple[list[Example], dict[str, int]]:
    """Read every row of a source.

    Args:
        source: see the module.
        images: how the rows' images are found; by default beside the rows' file.

    Returns:
        The examples in the source's order, and how many sound rows were left out, by reason.

    Raises:
        DoraError: naming file, line and field, for what cannot be read, a row of no known format or
            of another one than the file's first, or no row at all.
    """
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    images = images or RowImages()
    for folder, task, rows in _tables(source):
        first: tuple[Format, str] | None = None
        for where, row in rows:
            found = row_format(row, where)
            first = first or (found, where)
            if found != first[0]:
                raise DoraError(
                    f"{where}: is {found}, and {first[1]} is {first[0]}: a file holds one format; "
                    "give several files as a folder, or as data.mix"
                )
            try:
                example = images.add(read_row(row, where), row, where, folder)
                named = example.task or task
                examples.append(dataclasses.replace(example, task=named, where=where))
            except LeftOut as reason:
                left_out[str(reason)] += 1
    if not examples and images.broken:
        raise DoraError(
            f"{source}: no image of its rows can be read, of {images.broken:,}: name their folder "
            "(--data.image-folder)"
        )
    if not examples:
        reasons = "".join(f"; {n} rows {why}" for why, n in left_out.items())
        raise DoraError(
            f"{source}: holds no rows{reasons}; give one JSON object a line, such as {SAMPLE}"
        )
    return examples, dict(left_out)


def _tables(source: str | Path) -> Iterator[tuple[Path, str, Iterator[tuple[str, Any]]]]:
    """Yield each file of a source: its folder, the task of rows without one, their (where, row)."""
    name = str(source)
    if name.startswith(HUB):
        yield Path(), "", _hub(name.removeprefix(HUB))
        return
    files = source_files(source)
    for path in files:
        # Of `boolq/test.json` and `piqa/test.json` the folders say which task it is.
        is_split = len(files) > 1 and path.name.split(".")[0] in _SPLITS
        task = path.parent.name if is_split else ""
        if path.is_dir():
            yield path, task, _datasets_folder(path)
        elif path.suffix == ".parquet":
            yield path.parent, task, _parquet(path)
        else:
            yield path.parent, task, json_rows(path)


def source_files(source: str | Path) -> list[Path]:
    """Return the files that a local source stands for, or the one folder that `datasets` wrote.

    Raises:
        DoraError: when a glob or a folder has none.
    """
    path = Path(source)
    if path.is_dir():
        if any((path / name).is_file() for name in _DATASETS_FILES):
            return [path]
        found = sorted(p for p in path.rglob("*") if p.name.endswith(_ENDINGS) and p.is_file())
        if not found:
            raise DoraError(f"{path}: this folder holds no {', '.join(_ENDINGS)} file")
        return found
    if not path.exists() and glob.has_magic(str(source)):
        found = sorted(Path(name) for name in glob.glob(str(source), recursive=True))
        if not found:
            raise DoraError(f"{source}: no file matches; check the pattern")
        return [file for one in found for file in (source_files(one) if one.is_dir() else [one])]
    return [path]


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DoraError(f"{path}: reading Parquet needs pyarrow: {_EXTRA}") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise DoraError(f"{path}: cannot be read ({error}); check the path and the file") from error


def _datasets_folder(path: Path) -> Iterator[tuple[str, Any]]:
    datasets = _datasets(path)
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the files make Arrow and json raise
        raise DoraError(f"{path}: cannot be read by `datasets` ({error})") from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            raise DoraError(
                f"{path}: holds the splits {', '.join(loaded)}; name one of them, such as "
                f"{path / next(iter(loaded), 'train')}"
            )
        loaded = loaded["train"]
    for number, row in enumerate(loaded, 1):
        yield f"{path}, row {number}", row


def _hub(name: str) -> Iterator[tuple[str, Any]]:
    datasets = _datasets(HUB + name)
    repository, *parts = name.split(":")
    if len(parts) > 2 or not repository:
        raise DoraError(f"{HUB}{name}: give hub:OWNER/NAME, with :SPLIT or :SUBSET:SPLIT behind it")
    split = parts[-1] if parts else "train"
    subset = parts[0] if len(parts) == 2 else None
    try:
        loaded = datasets.load_dataset(repository, subset, split=split)
    except Exception as error:  # network, names, splits: each raises its own
        raise DoraError(
            f"{HUB}{name}: cannot be loaded ({error}); check the name, the split and the network"
        ) from error
    for number, row in enumerate(loaded, 1):
        yield f"{HUB}{name}, row {number}", row


def _datasets(source: str | Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DoraError(f"{source}: needs the library `datasets`: {_EXTRA}") from error
    return datasets
