"""Ask a model the questions of a benchmark of LLaVA-1.5, and score what it answers.

python -m dora_jax.evaluation.benchmarks gqa --prompts gqa.jsonl --images images --questions Q.json
dora-jax generate --prompts gqa.jsonl --out answers.jsonl --model MODEL --template vicuna
python -m dora_jax.evaluation.benchmarks gqa --answers answers.jsonl --questions Q.json
"""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from dora_jax.evaluation.benchmarks.prompts import check_free, write_prompts
from dora_jax.evaluation.benchmarks.question import Question

_Answers = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Benchmark(ABC):
    """How a benchmark is read and scored; its fields are the options of its command."""

    answers: Path | None = None
    """Score these: JSON lines of question_id and text, or what dora-jax generate writes."""
    prompts: Path | None = None
    """Or write the questions to this JSONL file, for dora-jax generate."""

    @staticmethod
    @abstractmethod
    def score(questions: Sequence[Question], answers: _Answers) -> Any:
        """Return a report, with `summary()`."""

    @abstractmethod
    def read(self) -> list[Question]:
        """Read the published files."""

    def judge(self, questions: Sequence[Question], answers: _Answers) -> dict[str, Any]:
        """Return what is printed of answers."""
        found: dict[str, Any] = self.score(questions, answers).summary()
        return found

    def run(self) -> dict[str, Any]:
        """Do what is asked, and return what is printed."""
        if self.prompts is not None and self.answers is None:
            return write_prompts(self.read(), self.prompts)
        if self.answers is not None and self.prompts is None:
            return self.judge(self.read(), read_answers(self.answers))
        raise DoraError(
            "give --prompts FILE, to write the questions, or --answers FILE, to score answers: one "
            "of the two"
        )


@dataclass(frozen=True, kw_only=True)
class _Submitted(_Benchmark):
    """A benchmark whose answers a server keeps: how they are submitted, too."""

    submission: Path | None = None
    """With --answers: write this file for the server instead of scoring."""

    @abstractmethod
    def submit(self, questions: Sequence[Question], answers: _Answers, path: Path) -> Unmatched:
        """Write what the server takes."""

    def judge(self, questions: Sequence[Question], answers: _Answers) -> dict[str, Any]:
        if self.submission is None:
            return super().judge(questions, answers)
        check_free(self.submission)
        unmatched = self.submit(questions, answers, self.submission)
        return {"submission": str(self.submission), **unmatched.summary()}

    def run(self) -> dict[str, Any]:
        if self.submission is not None and self.answers is None:
            raise DoraError("--submission needs the answers that it is made of: give --answers")
        return super().run()


@dataclass(frozen=True, kw_only=True)
class _Vqav2(_Submitted):
    """VQAv2: soft accuracy, by type of answer and question."""

    questions: Path
    """v2_OpenEnded_mscoco_*_questions.json."""
    annotations: Path | None = None
    """v2_mscoco_*_annotations.json."""
    images: Path = Path()
    """With --prompts: COCO's folder of the split, such as val2014."""

    score = staticmethod(vqav2.score)
    submit = staticmethod(vqav2.write_submission)

    def read(self) -> list[Question]:
        return vqav2.read(self.questions, self.images, self.annotations)


@dataclass(frozen=True, kw_only=True)
class _Gqa(_Benchmark):
    """GQA: exact match, by types of question."""

    questions: Path
    """*_balanced_questions.json."""
    images: Path = Path()
    """With --prompts: the folder of images."""

    score = staticmethod(gqa.score)

    def read(self) -> list[Question]:
        return gqa.read(self.questions, self.images)


@dataclass(frozen=True, kw_only=True)
class _VizWiz(_Submitted):
    """VizWiz: soft accuracy, by type of answer; question_id is the name of the image."""

    annotations: Path
    """val.json or test.json."""
    images: Path = Path()
    """With --prompts: the split's folder of images."""

    score = staticmethod(vizwiz.score)
    submit = staticmethod(vizwiz.write_submission)

    def read(self) -> list[Question]:
        return vizwiz.read(self.annotations, self.images)


@dataclass(frozen=True, kw_only=True)
class _ScienceQA(_Benchmark):
    """ScienceQA: accuracy of the letter, by subject, and with and without an image."""

    problems: Path
    """problems.json."""
    splits: Path
    """pid_splits.json."""
    split: str = "test"
    """Which of them."""
    images: Path = Path()
    """With --prompts: the split's folder, in which each problem has its own."""
    only_with_image: bool = False
    """Leave out the questions without an image."""

    score = staticmethod(scienceqa.score)

    def read(self) -> list[Question]:
        return scienceqa.read(
            self.problems,
            self.splits,
            self.images,
            self.split,
            only_with_image=self.only_with_image,
        )


@dataclass(frozen=True, kw_only=True)
class _TextVQA(_Benchmark):
    """TextVQA: soft accuracy as M4C's evaluation computes it."""

    annotations: Path
    """TextVQA_0.5.1_val.json."""
    images: Path = Path()
    """With --prompts: the folder of images, train_images for val."""
    ocr: Path | None = None
    """With --prompts: TextVQA_Rosetta_OCR_v0.2_val.json; LLaVA-1.5 is asked with its tokens."""

    score = staticmethod(textvqa.score)

    def read(self) -> list[Question]:
        return textvqa.read(self.annotations, self.images, self.ocr)


@dataclass(frozen=True, kw_only=True)
class _Pope(_Benchmark):
    """POPE: the mean F1, and the figures of each subset; question_id is SUBSET/NUMBER."""

    questions: tuple[Path, ...]
    """coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json."""
    images: Path = Path()
    """With --prompts: COCO's val2014."""

    score = staticmethod(pope.score)

    def read(self) -> list[Question]:
        return pope.read(self.questions, self.images)


@dataclass(frozen=True, kw_only=True)
class _MMBench(_Submitted):
    """MMBench: accuracy where every rotation is right, by category; question_id is the index."""

    table: Path
    """mmbench_dev_*.tsv; with --prompts, its images go to a folder beside these."""

    score = staticmethod(mmbench.score)

    def read(self) -> list[Question]:
        return mmbench.read(self.table)

    def submit(self, questions: Sequence[Question], answers: _Answers, path: Path) -> Unmatched:
        return mmbench_sheet.write_submission(self.table, answers, path)


_BENCHMARKS: dict[str, Callable[..., _Benchmark]] = {
    "vqav2": _Vqav2,
    "gqa": _Gqa,
    "vizwiz": _VizWiz,
    "scienceqa": _ScienceQA,
    "textvqa": _TextVQA,
    "pope": _Pope,
    "mmbench": _MMBench,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; bad input ends it with one clear message and exit code 1."""
    benchmark: _Benchmark = tyro.extras.subcommand_cli_from_dict(
        _BENCHMARKS,
        prog="python -m dora_jax.evaluation.benchmarks",
        description="Write a benchmark's questions for a model, or score what it answered.",
        args=argv,
    )
    try:
        found = benchmark.run()
    except DoraError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
