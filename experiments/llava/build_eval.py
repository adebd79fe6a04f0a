"""Rows that a LLaVA is compared on by likelihood, of POPE's and ScienceQA's files.

    python -m experiments.llava.build_eval --pope coco_pope_*.json --coco val2014 \
        --problems problems.json --splits pid_splits.json --scienceqa scienceqa/test \
        --out data/llava/eval.jsonl

The seven benchmarks are scored by their own rules with `python -m dora_jax.evaluation.benchmarks`
(docs/benchmarks.md); these two have options, so that a comparison can follow them as it goes on.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from dora_jax.analysis.atomic import write_text
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks import pope, scienceqa
from dora_jax.evaluation.benchmarks.question import Question


def rows(questions: Sequence[Question], task: str) -> Iterator[dict[str, Any]]:
    """Yield questions with an image as rows with options: letters, or yes and no."""
    for question in questions:
        if not isinstance(question.image, Path):
            continue
        letters = [*ascii_uppercase[: len(question.options)]]
        options = letters or ["Yes", "No"]
        answer = question.references[0]
        yield {
            "question": question.prompt,
            "answer": answer if letters else answer.capitalize(),
            "options": options,
            "image": str(question.image.absolute()),
            "task": task,
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Write the rows, and say where."""
    parser = argparse.ArgumentParser(prog="python -m experiments.llava.build_eval")
    parser.add_argument("--pope", type=Path, nargs="+", required=True)
    parser.add_argument("--coco", type=Path, required=True, help="folder of val2014's images")
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--scienceqa", type=Path, required=True, help="folder of its images")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    try:
        asked = pope.read(given.pope, given.coco)
        science = scienceqa.read(given.problems, given.splits, given.scienceqa)
        found = [*rows(asked, "POPE"), *rows(science, "SQA")]
        write_text(given.out, "".join(json.dumps(row) + "\n" for row in found))
    except DoraError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{len(found)} rows written to {given.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
