"""POPE (Li et al. 2023): is there such an object in the image? Yes or no, in three subsets.

Published as JSON lines, `coco_pope_random.json`, `coco_pope_popular.json` and
`coco_pope_adversarial.json`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dora_jax.data.fields import id_of, text_of, wrong
from dora_jax.data.jsonl import json_rows
from dora_jax.evaluation.benchmarks.answers import (
    Unmatched,
    check_questions,
    check_references,
    unmatched,
)
from dora_jax.evaluation.benchmarks.question import Question, short_prompt

_SAMPLE = (
    '{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in '
    'the image?", "label": "yes"}'
)


def read(files: Sequence[Path], images: Path) -> list[Question]:
    """Read subsets; each is named by what follows the last "_" of its file's name.

    The files number their questions from 1 each: a question's id is "SUBSET/NUMBER".

    Args:
        files: one a subset.
        images: the folder of COCO's `val2014`.

    Raises:
        DoraError: naming the file, line and field.
    """
    found = []
    for path in files:
        subset = path.stem.rpartition("_")[2]
        rows = [_question(subset, row, images, where) for where, row in json_rows(path, _SAMPLE)]
        check_questions(rows, path)
        found += rows
    check_questions(found, ", ".join(map(str, files)))
    return found


def _question(subset: str, row: Any, images: Path, where: str) -> Question:
    label = text_of(row, "label", where)
    if label not in ("yes", "no"):
        raise wrong("label", "'yes' or 'no'", label, where)
    return Question(
        id=f"{subset}/{id_of(row, 'question_id', where)}",
        image=images / text_of(row, "image", where),
        prompt=short_prompt(text_of(row, "text", where)),
        references=(label,),
        groups={"subset": subset},
    )


def says_no(text: str) -> bool:
    """Whether an answer says no: its first sentence has the word "No", "no" or "not".

    Any other text says yes. (Sentences end with a full stop, words are told by spaces, commas
    aside: POPE's own rule.)
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return any(word in ("No", "no", "not") for word in words)


@dataclass(frozen=True)
class Confusion:
    """How answers of yes and no fall beside what is right; "yes" is the positive class.

    Attributes:
        true_yes: yes, rightly.
        false_yes: yes, wrongly.
        true_no: no, rightly.
        false_no: no, wrongly.
    """

    true_yes: int
    false_yes: int
    true_no: int
    false_no: int

    def summary(self) -> dict[str, Any]:
        """Return the figures that POPE reports, in per cent; precision is None without any yes."""
        yes, positive = self.true_yes + self.false_yes, self.true_yes + self.false_no
        count = yes + self.true_no + self.false_no
        return {
            "questions": count,
            "accuracy": 100 * (self.true_yes + self.true_no) / count,
            "precision": 100 * self.true_yes / yes if yes else None,
            "recall": 100 * self.true_yes / positive if positive else None,
            "f1": 200 * self.true_yes / (yes + positive) if yes + positive else 0.0,
            "yes_ratio": 100 * yes / count,
        }


@dataclass(frozen=True)
class PopeReport:
    """What POPE's rule makes of answers.

    Attributes:
        subsets: by name.
        unmatched: what of the answers does not fit.
    """

    subsets: Mapping[str, Confusion]
    unmatched: Unmatched = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Return what is printed: `f1`, the mean of the subsets', in per cent, and the subsets."""
        subsets = {name: confusion.summary() for name, confusion in self.subsets.items()}
        return {
            "f1": sum(found["f1"] for found in subsets.values()) / len(subsets),
            "subsets": subsets,
            **self.unmatched.summary(),
        }


def score(questions: Sequence[Question], answers: Mapping[str, str]) -> PopeReport:
    """Score by yes and no; the figure that LLaVA-1.5 reports is the mean F1 of the three subsets.

    A question without an answer counts as one that is answered wrongly.
    """
    check_references(questions)
    counts: dict[str, Counter[tuple[str, bool]]] = {}
    for question in questions:
        right = question.references[0]
        answer = answers.get(question.id)
        is_right = answer is not None and says_no(answer) == (right == "no")
        counts.setdefault(question.groups["subset"], Counter())[right, is_right] += 1
    subsets = {
        name: Confusion(
            true_yes=found["yes", True],
            false_yes=found["no", False],
            true_no=found["no", True],
            false_no=found["yes", False],
        )
        for name, found in counts.items()
    }
    return PopeReport(subsets, unmatched((question.id for question in questions), answers))
