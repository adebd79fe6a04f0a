"""TVQA and How2QA: multiple-choice questions about clips, with what is said in them."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from dora_jax.data.fields import id_of, number_of, text_of, value_of, wrong
from dora_jax.data.jsonl import json_rows
from dora_jax.data.vl.row import Task, VLRow, choice_source
from dora_jax.data.vl.subtitles import NO_SUBTITLES, Span, Subtitles, span_of
from dora_jax.errors import DoraError

_SAMPLE = (
    '{"qid": 7, "q": "Who?", "a0": "Ann", "a1": "Ben", "answer_idx": 1, '
    '"vid_name": "s01e01_clip_02", "ts": "1.5-4.0"}'
)
_CSV_SAMPLE = "VIDEO,[7.2:18.0],wrong,wrong,wrong,question,right"


def read_clip_questions(
    path: Path,
    task: Literal["tvqa", "how2qa"],
    subtitles: Subtitles = NO_SUBTITLES,
    *,
    localised: bool = False,
) -> Iterator[VLRow]:
    """Yield questions, a JSON object a line as TVQA and the VALUE benchmark publish them.

    `qid`, `q`, the options `a0`, `a1`, ... (TVQA has five, How2QA four; two at least), `answer_idx`
    (missing in a hidden test), `vid_name` and `ts`. The source lists the options in their order,
    and what is said in the clip; the target is the right option's text.

    Args:
        path: the file.
        task: which of the two it is of.
        subtitles: what is said in the clips.
        localised: whether rows are about the part of the clip that people marked (`ts`), which is
            an easier task than the whole clip and reported apart.

    Raises:
        DoraError: naming the file, line and field.
    """
    for where, row in json_rows(path, _SAMPLE):
        options = [text_of(row, name, where) for name in ("a0", "a1")]
        while (name := f"a{len(options)}") in row:
            options.append(text_of(row, name, where))
        correct = None
        if "answer_idx" in row:
            correct = number_of(row, "answer_idx", where)
            if correct >= len(options):
                raise wrong("answer_idx", f"below {len(options)}", correct, where)
        name, asked = id_of(row, "qid", where), text_of(row, "q", where)
        clip = text_of(row, "vid_name", where)
        span = span_of(value_of(row, "ts", where), where) if localised else None
        yield _row(task, name, clip, span, asked, options, correct, subtitles, where)


def read_how2qa_csv(
    path: Path, subtitles: Subtitles = NO_SUBTITLES, *, localised: bool = False
) -> Iterator[VLRow]:
    """Yield How2QA's questions from the CSV files that it was first published as, without a head.

    Columns: the video, `[from:to]` in seconds, three wrong answers, the question, the right answer.
    The right one is always last there: options are listed in an order drawn by the row's words,
    the same for all readers, so that its place says nothing.

    Args:
        path: the file.
        subtitles: what is said in the videos.
        localised: see `read_clip_questions`.

    Raises:
        DoraError: naming the file and line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file, strict=True)
            for fields in table:
                if fields:
                    where = f"{path}, line {table.line_num}"
                    yield _csv_row(fields, where, subtitles, localised)
    except (OSError, UnicodeDecodeError) as error:
        raise DoraError(f"{path}: cannot be read ({error}); check the path and the file") from error
    except csv.Error as error:
        raise DoraError(
            f"{path}, line {table.line_num}: is not CSV ({error}); a row looks like {_CSV_SAMPLE}"
        ) from error


def _csv_row(fields: Sequence[str], where: str, subtitles: Subtitles, localised: bool) -> VLRow:
    if len(fields) != 7 or not all(field.strip() for field in fields):
        raise DoraError(
            f"{where}: must have seven columns, none empty; got {len(fields)}: a row looks like "
            f"{_CSV_SAMPLE}"
        )
    video, ts, *wrong_ones, asked, right = (field.strip() for field in fields)

    def drawn(option: str) -> str:
        return hashlib.sha256("\0".join((*fields, option)).encode()).hexdigest()

    options = sorted([*wrong_ones, right], key=drawn)
    name = f"{video}{ts}{asked}"
    span = span_of(ts, where) if localised else None
    correct = options.index(right)
    return _row("how2qa", name, video, span, asked, options, correct, subtitles, where)


def _row(
    task: Task,
    name: str,
    clip: str,
    span: Span | None,
    asked: str,
    options: Sequence[str],
    correct: int | None,
    subtitles: Subtitles,
    where: str,
) -> VLRow:
    answers = () if correct is None else (options[correct],)
    return VLRow(
        task,
        name,
        choice_source(asked, options, subtitles.text(clip, span)),
        answers,
        references=answers,
        options=tuple(options),
        visuals=(clip,),
        span=span,
        where=where,
    )
