"""Score a model's answers to a benchmark of LLaVA-1.5, or write them down for its server.

python -m dora_jax.evaluation.benchmarks gqa --answers answers.jsonl --questions questions.json
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import (
    gqa,
    mmbench,
    mmbench_sheet,
    pope,
    scienceqa,
    textvqa,
    vizwiz,
    vqav2,
)
from dora_jax.evaluation.benchmarks.answers import Unmatched, read_answers

# No image is opened to score answers.
_NO_IMAGES = Path()


def _vqav2(
    answers: Path,
    questions: Path,
    annotations: Path | None = None,
    submission: Path | None = None,
) -> dict[str, Any]:
    """VQAv2: soft accuracy, by type of answer and question.

    Args:
        answers: JSON lines of question_id and text.
        questions: v2_OpenEnded_mscoco_*_questions.json.
        annotations: v2_mscoco_*_annotations.json.
        submission: write this file for the server instead of scoring.
    """
    asked, given = vqav2.read(questions, _NO_IMAGES, annotations), read_answers(answers)
    if submission is not None:
        return _written(submission, vqav2.write_submission(asked, given, submission))
    return vqav2.score(asked, given).summary()


def _gqa(answers: Path, questions: Path) -> dict[str, Any]:
    """GQA: exact match, by types of question.

    Args:
        answers: JSON lines of question_id and text.
        questions: *_balanced_questions.json.
    """
    return gqa.score(gqa.read(questions, _NO_IMAGES), read_answers(answers)).summary()


def _vizwiz(answers: Path, annotations: Path, submission: Path | None = None) -> dict[str, Any]:
    """VizWiz: soft accuracy, by type of answer; question_id is the name of the image.

    Args:
        answers: JSON lines of question_id and text.
        annotations: val.json or test.json.
        submission: write this file for the server instead of scoring.
    """
    asked, given = vizwiz.read(annotations, _NO_IMAGES), read_answers(answers)
    if submission is not None:
        return _written(submission, vizwiz.write_submission(asked, given, submission))
    return vizwiz.score(asked, given).summary()


def _scienceqa(answers: Path, problems: Path, splits: Path, split: str = "test") -> dict[str, Any]:
    """ScienceQA: accuracy of the letter, by subject, and with and without an image.

    Args:
        answers: JSON lines of question_id and text.
        problems: problems.json.
        splits: pid_splits.json.
        split: which of them.
    """
    asked = scienceqa.read(problems, splits, _NO_IMAGES, split)
    return scienceqa.score(asked, read_answers(answers)).summary()


def _textvqa(answers: Path, annotations: Path) -> dict[str, Any]:
    """TextVQA: soft accuracy as M4C's evaluation computes it.

    Args:
        answers: JSON lines of question_id and text.
        annotations: TextVQA_0.5.1_val.json.
    """
    return textvqa.score(textvqa.read(annotations, _NO_IMAGES), read_answers(answers)).summary()


def _pope(answers: Path, questions: tuple[Path, ...]) -> dict[str, Any]:
    """POPE: the mean F1, and the figures of each subset; question_id is SUBSET/NUMBER.

    Args:
        answers: JSON lines of question_id and text.
        questions: coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json.
    """
    return pope.score(pope.read(questions, _NO_IMAGES), read_answers(answers)).summary()


def _mmbench(answers: Path, table: Path, submission: Path | None = None) -> dict[str, Any]:
    """MMBench: accuracy where every rotation is right, by category; question_id is the index.

    Args:
        answers: JSON lines of question_id and text.
        table: mmbench_dev_*.tsv.
        submission: write this .xlsx file for the server instead of scoring.
    """
    given = read_answers(answers)
    if submission is not None:
        return _written(submission, mmbench_sheet.write_submission(table, given, submission))
    return mmbench.score(mmbench.read(table), given).summary()


def _written(path: Path, unmatched: Unmatched) -> dict[str, Any]:
    return {"submission": str(path), **unmatched.summary()}


_BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "scienceqa": _scienceqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mmbench": _mmbench,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; bad input ends it with one clear message and exit code 1."""
    try:
        found: dict[str, Any] = tyro.extras.subcommand_cli_from_dict(
            _BENCHMARKS,
            prog="python -m dora_jax.evaluation.benchmarks",
            description="Score a model's answers, or write them down for a benchmark's server.",
            args=argv,
        )
    except DoraError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
