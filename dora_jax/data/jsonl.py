"""JSONL files and JSON arrays, plain or gzipped: their rows, each with the line that it is on."""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dora_jax.data.formats import SAMPLE
from dora_jax.errors import DoraError

_DECODER = json.JSONDecoder()
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_PIECE = 1 << 20  # characters of an array that are read at a time


def json_rows(path: Path, sample: str = SAMPLE) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for each row of JSON lines, or of one JSON array; blank lines are skipped.

    Args:
        path: `.jsonl` or `.json`, or `.gz` of one, in UTF-8.
        sample: what a row looks like, shown in errors.

    Raises:
        DoraError: naming the file and line, for what cannot be read or is not JSON.
    """
    if ".jsonl" not in path.suffixes and _begins_array(path):
        rows = enumerate(_array(path, sample), 1)
        yield from ((f"{path}, row {number}", row) for number, row in rows)
        return
    for number, line in _pieces(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(line, where, sample)


def _begins_array(path: Path) -> bool:
    texts = (text.lstrip() for _, text in _pieces(path, _PIECE))
    return next(filter(None, texts), "").startswith("[")


def _array(path: Path, sample: str) -> Iterator[Any]:
    """Yield the rows of one JSON array, of which never more than a row and a piece is in memory.

    (LLaVA's mixture is one line of a gigabyte.)
    """
    array = _Array(path, sample)
    array.skip("[")
    is_first = True
    while array.next_character() != "]":
        if not is_first:
            array.skip(",")
        is_first = False
        yield array.row()
    array.skip("]")
    if array.next_character():
        raise array.wrong("Extra data behind the array")


class _Array:
    """A JSON array as it is read: a piece of its text, and where in it and in the file one is."""

    def __init__(self, path: Path, sample: str):
        self._path, self._sample = path, sample
        self._pieces = _pieces(path, _PIECE)
        self._text, self._at = "", 0
        self._line, self._column = 1, 1
        self._has_rows = False

    def _grow(self) -> bool:
        """Read on; return whether there was more."""
        # A piece may end within a character.
        more = next((text for _, text in self._pieces if text), "")
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)

    def _go(self, to: int) -> None:
        breaks = self._text.count("\n", self._at, to)
        if breaks:
            self._column = to - self._text.rindex("\n", self._at, to)
        else:
            self._column += to - self._at
        self._line += breaks
        self._at = to

    def next_character(self) -> str:
        """Go to the next character that is no space, and return it; nothing at the end."""
        while True:
            found = _NO_SPACE.search(self._text, self._at)
            self._go(found.start() if found else len(self._text))
            if found:
                return found[0]
            if not self._grow():
                return ""

    def skip(self, expected: str) -> None:
        """Go behind the next character.

        Raises:
            DoraError: when it is another one.
        """
        found = self.next_character()
        if found != expected:
            raise self.wrong(f"Expecting {expected!r}", is_cut=not found)
        self._go(self._at + 1)

    def row(self) -> Any:
        """Return the next row, and go behind it.

        Raises:
            DoraError: when it is not JSON.
        """
        self.next_character()
        while True:
            try:
                row, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                at = error.pos - self._at
                if not self._grow():
                    # A text that does not end has run to the end of the file.
                    is_cut = "Unterminated" in error.msg or not self._text[at:].strip()
                    self._go(self._at + at)
                    raise self.wrong(error.msg, is_cut) from error
            except RecursionError:
                raise self.wrong("it is nested too deeply") from None
            else:
                if end < len(self._text):
                    self._go(end)
                    self._has_rows = True
                    return row
                # A number may go on in the next piece; an array ends with its bracket.
                if not self._grow():
                    raise self.wrong("the file ends within the array", is_cut=True)

    def wrong(self, problem: str, is_cut: bool = False) -> DoraError:
        """Return what is to be said of the place where one is.

        Args:
            problem: what is wrong there.
            is_cut: whether it is that the file ends.
        """
        way_out = f"a row looks like {self._sample}"
        if is_cut:
            way_out = "the file is cut short: fetch or write it again"
        elif self._has_rows:
            way_out = "mend it there: what stands before it can be read"
        return DoraError(
            f"{self._path}, line {self._line}, column {self._column}: is not JSON ({problem}); "
            f"{way_out}"
        )


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


def _pieces(path: Path, limit: int = -1) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of each line, or of pieces of it that are no longer than a limit.

    As bytes first: that tells which line is not UTF-8.
    """
    number = 1
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while piece := file.readline(limit):
                yield number, decoder.decode(piece)
                number += piece.endswith(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DoraError(
            f"{path}, line {number}, byte {error.start + 1}: is not UTF-8 ({error.reason}); save "
            "the file as UTF-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DoraError(
            f"{path}, after line {number - 1}: cannot be unpacked ({error}); it is damaged or cut "
            "short: fetch or write it again"
        ) from error
    except OSError as error:
        what = error.strerror or error
        raise DoraError(f"{path}: cannot be read ({what}); check the path and the file") from error
