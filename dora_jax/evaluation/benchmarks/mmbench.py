"""MMBench (Liu et al. 2023): multiple choice, each question once for every rotation of its options.

Published as `mmbench_dev_20230712.tsv` and the like: a table with the images in it. Rotation k of
question n is the row of index n + k * 1,000,000.
"""

import base64
import binascii
import csv
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dora_jax.data.fields import WAY_OUT, text_of, wrong
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.answers import (
    Report,
    Unmatched,
    check_questions,
    mark,
    named,
)
from dora_jax.evaluation.benchmarks.letters import option_letter
from dora_jax.evaluation.benchmarks.question import Question, letter_prompt

ROTATION = 1_000_000
_LETTERS = ("A", "B", "C", "D")
_ABSENT = ("", "NA", "N/A", "n/a", "NULL", "null")


def read(table: Path) -> list[Question]:
    """Read a split: a question for each rotation, its id the row's index.

    Args:
        table: the split's file.

    Raises:
        DoraError: naming the file, row and field; also for an image that is none, or not there.
    """
    rows = list(table_rows(table))
    # A row may name, in place of an image, the row that holds it.
    images = {row["index"]: row.get("image", "") for _, row in rows}
    decoded: dict[str, bytes] = {}
    found = []
    for where, row in rows:
        text = text_of(row, "image", where)
        if text.isdecimal():
            if text not in images:
                raise wrong("image", "an image in base64, or the index of a row", text, where)
            text = images[text]
        if text not in decoded:
            decoded[text] = _image(text, where)
        options = _options(row, where)
        right = row.get("answer", "")
        if right and right not in _LETTERS[: len(options)]:
            raise wrong("answer", f"one of {', '.join(_LETTERS[: len(options)])}", right, where)
        asked, hint = text_of(row, "question", where), row.get("hint", "")
        found.append(
            Question(
                id=row["index"],
                image=decoded[text],
                prompt=letter_prompt(asked if _is_absent(hint) else f"{hint}\n{asked}", options),
                references=(right,) if right else (),
                options=options,
                groups={n: text_of(row, n, where) for n in ("category", "l2-category") if n in row},
            )
        )
    check_questions(found, table)
    return found


def table_rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where, row) of a table, texts by column.

    Raises:
        DoraError: naming the file, and the row where there is one.
    """
    limit = csv.field_size_limit(sys.maxsize)  # an image is longer than the module's limit
    where = str(table)
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            for number, cells in enumerate(csv.DictReader(file, delimiter="\t"), 1):
                where = f"{table}, row {number}"
                if None in cells or None in cells.values():
                    raise DoraError(f"{where}: has not as many cells as the header; {WAY_OUT}")
                row = dict(cells)
                if not text_of(row, "index", where).isdecimal():
                    raise wrong("index", "a whole number", row["index"], where)
                yield where, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DoraError(f"{where}: cannot be read ({error}); {WAY_OUT}") from error
    finally:
        csv.field_size_limit(limit)


def _image(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong("image", f"an image in base64 ({error})", text, where) from None


def _options(row: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Return a row's options: up to the first that is absent, as LLaVA-1.5 takes them."""
    options: list[str] = []
    for letter in _LETTERS:
        if _is_absent(row.get(letter, "")):
            break
        options.append(row[letter])
    if len(options) < 2:
        raise wrong("B", "an option, and 'A' too", row.get("B"), where)
    return tuple(options)


def _is_absent(cell: str) -> bool:
    """Whether a cell says nothing, to pandas or to LLaVA-1.5, which read the table elsewhere."""
    return cell in _ABSENT or cell.lower() in ("nan", "none")


@dataclass(frozen=True)
class CircularReport:
    """What the circular rule makes of answers.

    Attributes:
        whole: of questions: right where every rotation is.
        rotations: of each rotation by itself.
        incomplete: questions of which the table has fewer rotations than options.
    """

    whole: Report
    rotations: Report = field(repr=False)
    incomplete: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return what is printed; ids of what is missing and so on are those of rotations."""
        return {
            **self.whole.summary(),
            "rotations": len(self.rotations.questions),
            **self.rotations.unmatched.summary(),
            "incomplete": named(self.incomplete),
        }


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> CircularReport:
    """Score by CircularEval: a question is right if every rotation of its options is.

    The option is told by `option_letter`.

    Raises:
        DoraError: when a question has no reference, as in the test split.
    """
    each = mark(questions, answers, _rule)
    rotations: dict[int, list[Question]] = defaultdict(list)
    for question in questions:
        rotations[int(question.id) % ROTATION].append(question)
    firsts = [min(turns, key=lambda q: int(q.id)) for turns in rotations.values()]
    marks = {
        first.id: min(each.marks[q.id] for q in turns)
        for first, turns in zip(firsts, rotations.values(), strict=True)
    }
    incomplete = tuple(
        first.id
        for first, turns in zip(firsts, rotations.values(), strict=True)
        if len(turns) < len(first.options)
    )
    return CircularReport(Report(firsts, marks, Unmatched()), each, incomplete)


def _rule(question: Question, answer: str) -> float | None:
    letter = option_letter(answer, question.options)
    return None if letter is None else float(letter == question.references[0])
