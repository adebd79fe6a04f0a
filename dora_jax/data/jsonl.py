"""JSONL files and JSON arrays, plain or gzipped: their rows, each with the line that it is on."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dora_jax.data.examples import Example
from dora_jax.data.formats import SAMPLE, read_row
from dora_jax.errors import DoraError


def read_jsonl(path: Path) -> list[Example]:
    """Return a file's examples; every row must hold one.

    A row has `instruction` and `output`, and may have `input` (more of the question), `task`, and
    `options`: a list of possible outputs, `output` among them, to choose from by likelihood. Rows
    of the paper's commonsense data need no `options`: theirs follow from `answer` and from the
    "Answer format: a/b" at the end of the instruction. `formats` lists what else a row may be.

    Args:
        path: `.jsonl`, or `.gz` of one, in UTF-8. Blank lines are skipped.

    Raises:
        DoraError: naming the file, line and field; also when there is no row at all.
    """
    examples = [read_row(row, where) for where, row in json_rows(path)]
    if not examples:
        raise DoraError(f"{path}: holds no rows; give one JSON object a line, such as {SAMPLE}")
    return examples


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for each row of JSON lines, or of one JSON array.

    Raises:
        DoraError: naming the file and line, for what cannot be read or is not JSON.
    """
    try:
        with _open(path) as file:
            lines = _lines(file, path)
            for number, line in lines:
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                if line.lstrip().startswith("[") and ".jsonl" not in path.suffixes:
                    yield from _array(line + "".join(more for _, more in lines), path)
                    return
                yield where, _parse(line, where)
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or error
        raise DoraError(f"{path}: cannot be read ({what}); check the path and the file") from error


def _array(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parse(text, str(path))
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DoraError(
            f"{where}, {place}column {error.colno}: is not JSON ({error.msg}); a row looks like "
            f"{SAMPLE}"
        ) from error
    except RecursionError:
        raise DoraError(f"{where}: is nested too deeply; a row looks like {SAMPLE}") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def _lines(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        number += 1
        try:
            line = file.readline()
        except UnicodeDecodeError as error:
            raise DoraError(f"{path}, near line {number}: is not UTF-8 ({error})") from error
        if not line:
            return
        yield number, line
