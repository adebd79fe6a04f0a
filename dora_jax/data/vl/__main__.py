"""`python -m dora_jax.data.vl`: published annotations to rows that every command reads."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import tyro

from dora_jax.data.vl.captions import (
    KarpathySplit,
    read_clip_captions,
    read_coco_captions,
    read_karpathy,
)
from dora_jax.data.vl.clip_questions import read_clip_questions, read_how2qa_csv
from dora_jax.data.vl.nlvr2 import read_nlvr2
from dora_jax.data.vl.questions import read_gqa, read_labelled, read_vqa
from dora_jax.data.vl.row import CAPTION_TASKS, TASKS, Task, VLRow
from dora_jax.data.vl.rows_file import write_rows
from dora_jax.data.vl.subtitles import NO_SUBTITLES, read_subtitles
from dora_jax.errors import DoraError
from dora_jax.json_file import starts_with_list


@dataclass(frozen=True)
class Arguments:
    """Write rows of one task of VL-BART, from its published files; see docs/vl_data.md."""

    task: tyro.conf.Positional[Task]
    """Which one."""
    file: tyro.conf.Positional[Path]
    """Its questions, statements or captions."""
    out: Path
    """The file to write, JSON lines."""
    use: Literal["train", "eval"] = "train"
    """Captions become a row each to train on, or one row with all of them to be scored by."""
    annotations: Path | None = None
    """Of VQAv2: people's answers."""
    split: KarpathySplit | None = None
    """Of Karpathy's dataset_coco.json: which images."""
    subtitles: Path | None = None
    """Of clips: what is said in them."""
    localised: bool = False
    """Of questions about clips: ask about the part that people marked."""


_CLIP_QUESTIONS: tuple[Task, ...] = ("tvqa", "how2qa")
# Which tasks an option is for.
_OPTION_OF: dict[str, tuple[Task, ...]] = {
    "use": CAPTION_TASKS,
    "annotations": ("vqa",),
    "split": ("caption",),
    "subtitles": (*_CLIP_QUESTIONS, "tvc", "yc2c"),
    "localised": _CLIP_QUESTIONS,
}


def _check_options(given: Arguments) -> None:
    """Refuse what the task would not look at.

    Raises:
        DoraError: naming the option, and its tasks.
    """
    for option in fields(Arguments):
        tasks = _OPTION_OF.get(option.name, TASKS)
        if given.task not in tasks and getattr(given, option.name) != option.default:
            raise DoraError(
                f"--{option.name} is of {', '.join(tasks)}: leave it out for {given.task}"
            )


def read(given: Arguments) -> Iterator[VLRow]:
    """Return the rows that the arguments ask for.

    Raises:
        DoraError: naming file, line and field of what is not as it should be; or an option that is
            missing, or that the task has not.
    """
    _check_options(given)
    task, file, each = given.task, given.file, given.use == "train"
    said = NO_SUBTITLES if given.subtitles is None else read_subtitles(given.subtitles)
    match task:
        case "vqa" if given.annotations is not None:
            return read_vqa(file, given.annotations)
        case "vqa" if ".jsonl" not in file.suffixes and not starts_with_list(file):
            raise DoraError(
                f"{file}: holds no list of questions with their answers: of VQAv2's own questions, "
                "give the file of people's answers too (--annotations)"
            )
        case "vqa":
            return read_labelled(file, task)
        case "gqa":
            return read_labelled(file, task) if starts_with_list(file) else read_gqa(file)
        case "nlvr":
            return read_nlvr2(file)
        case "caption" if given.split is not None:
            return read_karpathy(file, given.split, each_caption=each)
        case "caption":
            return read_coco_captions(file, each_caption=each)
        case "how2qa" if file.suffix == ".csv":
            return read_how2qa_csv(file, said, localised=given.localised)
        case "tvqa" | "how2qa":
            return read_clip_questions(file, task, said, localised=given.localised)
        case "tvc" | "yc2c":
            return read_clip_captions(file, task, said, each_caption=each)


def main(argv: Sequence[str] | None = None) -> None:
    """Write what the command line asks for, and say how many rows there are."""
    given = tyro.cli(Arguments, args=argv, prog="python -m dora_jax.data.vl")
    try:
        written = write_rows(given.out, read(given), given.file)
    except DoraError as error:
        raise SystemExit(f"error: {error}") from error
    left = f", {written.unanswered:,} without an answer left out" if written.unanswered else ""
    alike = f", {written.alike:,} of them with two options alike" if written.alike else ""
    print(f"{given.out}: {written.rows:,} rows{alike}{left}")


if __name__ == "__main__":
    main(sys.argv[1:])
