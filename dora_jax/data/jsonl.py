"""JSONL files and JSON arrays, plain or gzipped: their rows, each with the line that it is on."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dora_jax.data.formats import SAMPLE
from dora_jax.errors import DoraError


def json_rows(path: Path, sample: str = SAMPLE) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for each row of JSON lines, or of one JSON array; blank lines are skipped.

    Args:
        path: `.jsonl` or `.json`, or `.gz` of one, in UTF-8.
        sample: what a row looks like, shown in errors.

    Raises:
        DoraError: naming the file and line, for what cannot be read or is not JSON.
    """
    lines = _lines(path)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("[") and ".jsonl" not in path.suffixes:
            text = "\n" * (number - 1) + line + "".join(more for _, more in lines)
            rows = _parse(text, path, sample)
            yield from ((f"{path}, row {n}", row) for n, row in enumerate(rows, 1))
            return
        where = f"{path}, line {number}"
        yield where, _parse(line, where, sample)


def _parse(text: str, where: object, sample: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DoraError(
            f"{where}, {place}column {error.colno}: is not JSON ({error.msg}); a row looks like "
            f"{sample}"
        ) from error
    except RecursionError:
        raise DoraError(f"{where}: is nested too deeply; a row looks like {sample}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line. As bytes first: that tells which line is not UTF-8."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8" if number > 1 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DoraError(
            f"{path}, line {number}, byte {error.start + 1}: is not UTF-8 ({error.reason}); save "
            "the file as UTF-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DoraError(
            f"{path}, after line {number}: cannot be unpacked ({error}); it is damaged or cut "
            "short: fetch or write it again"
        ) from error
    except OSError as error:
        what = error.strerror or error
        raise DoraError(f"{path}: cannot be read ({what}); check the path and the file") from error
