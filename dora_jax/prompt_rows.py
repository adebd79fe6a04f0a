"""Rows that are to be answered, with their images: one JSON object a line, checked."""

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dora_jax.answer import check_text
from dora_jax.data.chat_template import plain_message
from dora_jax.data.images import open_image
from dora_jax.data.row_images import image_names
from dora_jax.data.vision import ImageFile
from dora_jax.errors import DoraError

_SAMPLE = '{"prompt": "What is the capital of France?"}'
# What an answered row has beside its own fields.
_WRITTEN = ("completion", "finish_reason", "log_prob", "tokens", "sample")


@dataclass(frozen=True)
class Row:
    """One line of prompts.

    Attributes:
        fields: as it stands, with `prompt` or `messages`.
        where: file and line, named in errors.
    """

    fields: dict[str, Any]
    where: str


def read_rows(path: Path) -> list[Row]:
    """Read a file of prompts: every line an object with `prompt`, or `messages`: a conversation.

    Args:
        path: `.jsonl`, or `.gz` of one, in UTF-8. Blank lines are skipped.

    Raises:
        DoraError: naming file, line and field; also when there is no row at all.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or error
        raise DoraError(f"{path}: cannot be read ({what}); check the path and the file") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows = [
        _row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not rows:
        raise DoraError(f"{path}: holds no rows; give one JSON object a line, such as {_SAMPLE}")
    return rows


def _row(line: bytes, where: str) -> Row:
    try:
        fields = json.loads(line.decode("utf-8"))
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise DoraError(f"{where}: is not UTF-8 ({error})") from None
    except UnicodeEncodeError as error:
        raise DoraError(f"{where}: holds half a character ({error.reason})") from None
    except json.JSONDecodeError as error:
        raise DoraError(
            f"{where}, column {error.colno}: is not JSON ({error.msg}); a row looks like {_SAMPLE}"
        ) from None
    except RecursionError:
        raise DoraError(f"{where}: is nested too deeply; a row looks like {_SAMPLE}") from None
    if not isinstance(fields, dict):
        raise DoraError(f"{where}: must be a JSON object such as {_SAMPLE}; got {str(fields)[:60]}")
    if ("prompt" in fields) == ("messages" in fields):
        given = ", ".join(map(repr, fields)) or "none"
        raise DoraError(f"{where}: must have 'prompt' or 'messages', one of them; it has {given}")
    taken = [name for name in _WRITTEN if name in fields]
    if taken:
        raise DoraError(f"{where}: {taken[0]!r} would be written over; give it another name")
    if "prompt" in fields:
        if not isinstance(fields["prompt"], str):
            raise DoraError(f"{where}: 'prompt' must be a text; got {fields['prompt']!r}")
        check_text(fields["prompt"], f"{where}: 'prompt'")
    else:
        _check_messages(fields["messages"], where)
    return Row(fields, where)


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise DoraError(f"{where}: 'messages' must be a list of messages, not empty")
    for number, message in enumerate(messages, 1):
        try:
            plain_message(message, number)
        except DoraError as error:
            raise DoraError(f"{where}: {error}") from None
    if messages[-1]["role"] == "assistant":
        raise DoraError(
            f"{where}: the last of 'messages' is an answer already; end with a question"
        )


def find_images(rows: Sequence[Row], folder: Path, first: int) -> list[list[ImageFile]]:
    """Return the images of each row; each can be opened.

    Args:
        rows: that name them.
        folder: where they are.
        first: the first row that is to be answered: from it on all of each file is read, once.

    Raises:
        DoraError: for an image that cannot be read, with its line.
    """
    found: list[list[ImageFile]] = []
    seen: set[Path] = set()
    for number, row in enumerate(rows):
        found.append([])
        for name in image_names(row.fields, row.where):
            path = folder / name
            try:
                if path not in seen:
                    open_image(path, whole=number >= first)
            except DoraError as error:
                raise DoraError(f"{row.where}: {error}") from None
            if number >= first:
                seen.add(path)
            found[-1].append(ImageFile(name, str(path), path.stat().st_size))
    return found
