"""JSONL files of `instruction` / `output` rows, plain or gzipped; every bad row is named."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dora_jax.data.examples import Example
from dora_jax.errors import DoraError

_OPTIONAL_TEXTS = ("input", "task")
# How the paper's data lists what may be answered: "Answer format: answer1/answer2".
_ANSWER_FORMAT = re.compile(r"Answer format:\s*([^\s/]+(?:/[^\s/]+)+)\s*$")


def read_jsonl(path: Path) -> list[Example]:
    """Read a file of rows.

    A row has `instruction` and `output`, and may have `input` (more of the question), `task`, and
    `options`: a list of possible outputs, `output` among them, to choose from by likelihood. Rows
    of the paper's commonsense data need no `options`: theirs follow from `answer` and from the
    "Answer format: a/b" at the end of the instruction. Other fields are left alone.

    Args:
        path: `.jsonl`, or `.gz` of one, in UTF-8. Blank lines are skipped.

    Raises:
        DoraError: naming the file, line and field; also when there is no row at all.
    """
    examples = []
    try:
        with _open(path) as file:
            for number, line in _lines(file, path):
                if line.strip():
                    examples.append(_example(line, f"{path}, line {number}"))
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or error
        raise DoraError(f"{path}: cannot be read ({what}); check the path and the file") from error
    if not examples:
        raise DoraError(f"{path}: holds no rows; give one JSON object a line, such as {_SAMPLE}")
    return examples


_SAMPLE = '{"instruction": "What is the capital of France?", "output": "Paris"}'


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


def _example(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DoraError(
            f"{where}, column {error.colno}: is not JSON ({error.msg}); a row looks like {_SAMPLE}"
        ) from error
    except RecursionError:
        raise DoraError(f"{where}: is nested too deeply; a row looks like {_SAMPLE}") from None
    if not isinstance(row, dict):
        shown = line.strip()[:60]
        raise DoraError(f"{where}: must be a JSON object such as {_SAMPLE}; got {shown}")
    for name in ("instruction", "output"):
        if name not in row:
            given = ", ".join(map(repr, row)) or "none"
            raise DoraError(f"{where}: has no field {name!r} (its fields: {given})")
        if not isinstance(row[name], str) or not row[name].strip():
            raise DoraError(f"{where}: {name!r} must be a text, not empty; got {row[name]!r}")
    for name in _OPTIONAL_TEXTS:
        if row.get(name) is None:
            row[name] = ""
        if not isinstance(row[name], str):
            raise DoraError(f"{where}: {name!r} must be a text; got {row[name]!r}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DoraError(f"{where}: holds half a character ({error.reason})") from None
    prompt = row["instruction"].strip()
    if row["input"].strip():
        prompt += "\n\n" + row["input"].strip()
    return Example(prompt, row["output"].strip(), _options(row, where), row["task"])


def _options(row: dict[str, Any], where: str) -> tuple[str, ...]:
    output = row["output"].strip()
    if "options" in row:
        options = row["options"]
        if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
            raise DoraError(f"{where}: 'options' must be a list of texts; got {options!r}")
        options = tuple(dict.fromkeys(o.strip() for o in options))
        if output not in options or len(options) < 2:
            raise DoraError(
                f"{where}: 'options' must be at least two, with the output {output!r} among them; "
                f"got {list(options)!r}"
            )
        return options
    listed = _ANSWER_FORMAT.search(row["instruction"])
    answer = str(row.get("answer", "")).strip()
    words = listed.group(1).split("/") if listed else []
    if not answer or answer not in words or not output.endswith(answer):
        return ()
    stem = output[: len(output) - len(answer)]
    return tuple(stem + word for word in dict.fromkeys(words))
