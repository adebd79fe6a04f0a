"""The eight commonsense tasks of the paper's study, from the data sets that they come from.

Each task has a function from a row with its own fields to a row in the study's wording (that of
LLM-Adapters' data, which the paper trains on): an instruction that lists the options under labels,
and an output that names one of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dora_jax.errors import DoraError

Row = Mapping[str, Any]


class NoLabelError(Exception):
    """A sound row whose answer is not given, as in published test splits."""


@dataclass(frozen=True)
class CommonsenseTask:
    """One task.

    Attributes:
        name: as the study's folders and reports call it.
        hub: the data set on the Hugging Face hub.
        subset: its subset there; empty where it has one only.
        revision: where on the hub; other than `main` where that holds a script, which `datasets`
            does not run any more, instead of files.
        evaluation: the split that the study evaluates on: the labelled one of those not trained on.
        build: a row of the data set to (instruction, the word that answers it).
    """

    name: str
    hub: str
    subset: str
    evaluation: str
    build: Callable[[Row], tuple[str, str]]
    revision: str = "main"


def _text(row: Row, name: str) -> str:
    """Return a text as it stands: the study's rows keep the space around PIQA's solutions."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DoraError(f"field {name!r} must be a text, not empty; got {value!r}")
    return value


def _texts(row: Row, name: str, count: int | None = None) -> list[str]:
    value = row.get(name)
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(v, str) for v in value):  # type: ignore[union-attr]
        raise DoraError(f"field {name!r} must be a list of texts; got {value!r}")
    found = list(value)  # type: ignore[arg-type]
    if len(found) < 2 or (count is not None and len(found) != count):
        raise DoraError(f"field {name!r} must hold {count or 'at least 2'} texts; got {found!r}")
    return found


def _place(row: Row, name: str, count: int, first: int = 0) -> int:
    """Return the place, from 0, of a label that counts from `first`; labels may be texts."""
    value = row.get(name)
    if value in ("", -1, "-1", None):
        raise NoLabelError
    try:
        place = int(str(value)) - first
    except ValueError:
        raise DoraError(f"field {name!r} must be a number; got {value!r}") from None
    if not 0 <= place < count:
        raise DoraError(
            f"field {name!r} must be from {first} to {first + count - 1}; got {value!r}"
        )
    return place


def _listed(
    asked: str, word: str, options: Sequence[str], correct: int, between: str = " "
) -> tuple[str, str]:
    """Return an instruction that lists the options as Word1: ... Word2: ..., and the answer."""
    words = [f"{word}{n}" for n in range(1, len(options) + 1)]
    lines = [f"{w.capitalize()}: {text}" for w, text in zip(words, options, strict=True)]
    # WinoGrande's format follows its options on the same line, as in the study's data.
    end = " " if word == "option" else "\n\n"
    return f"{asked}\n\n{between.join(lines)}{end}Answer format: {'/'.join(words)}", words[correct]


_QUESTION = "Please choose the correct answer to the question: "


def _boolq(row: Row) -> tuple[str, str]:
    answer = row.get("answer")
    if not isinstance(answer, bool):
        raise DoraError(f"field 'answer' must be true or false; got {answer!r}")
    asked = _text(row, "question").rstrip("?")
    return (
        f"Please answer the following question with true or false, question: {asked}?\n\n"
        "Answer format: true/false",
        "true" if answer else "false",
    )


def _piqa(row: Row) -> tuple[str, str]:
    options = [_text(row, "sol1"), _text(row, "sol2")]
    asked = f"Please choose the correct solution to the question: {_text(row, 'goal')}"
    return _listed(asked, "solution", options, _place(row, "label", 2), "\n\n")


def _social_i_qa(row: Row) -> tuple[str, str]:
    options = [_text(row, f"answer{letter}") for letter in "ABC"]
    asked = f"{_QUESTION}{_text(row, 'context')} {_text(row, 'question')}"
    return _listed(asked, "answer", options, _place(row, "label", 3, first=1))


def _hellaswag(row: Row) -> tuple[str, str]:
    options = _texts(row, "endings", 4)
    asked = (
        "Please choose the correct ending to complete the given sentence: "
        f"{_text(row, 'activity_label')}: {_text(row, 'ctx')}"
    )
    return _listed(asked, "ending", options, _place(row, "label", 4))


def _winogrande(row: Row) -> tuple[str, str]:
    options = [_text(row, "option1"), _text(row, "option2")]
    asked = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{_text(row, 'sentence')}"
    )
    return _listed(asked, "option", options, _place(row, "answer", 2, first=1))


def _by_key(row: Row, question: str) -> tuple[str, str]:
    """ARC and OpenBookQA: choices with labels of their own (A to E, or 1 to 5) and a key."""
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise DoraError(f"field 'choices' must hold 'text' and 'label'; got {choices!r}")
    options, labels = _texts(choices, "text"), _texts(choices, "label")
    key = row.get("answerKey")
    if not key:
        raise NoLabelError
    if len(labels) != len(options) or key not in labels:
        raise DoraError(f"field 'answerKey' must be one of {', '.join(labels)}; got {key!r}")
    return _listed(f"{_QUESTION}{_text(row, question)}", "answer", options, labels.index(key))


def _arc(row: Row) -> tuple[str, str]:
    return _by_key(row, "question")


def _openbookqa(row: Row) -> tuple[str, str]:
    return _by_key(row, "question_stem")


# PIQA and Social IQa have no files on `main`; what the hub made of their scripts has.
_CONVERTED = "refs/convert/parquet"
TASKS: dict[str, CommonsenseTask] = {
    task.name: task
    for task in (
        CommonsenseTask("boolq", "google/boolq", "", "validation", _boolq),
        CommonsenseTask("piqa", "ybisk/piqa", "", "validation", _piqa, _CONVERTED),
        CommonsenseTask(
            "social_i_qa", "allenai/social_i_qa", "", "validation", _social_i_qa, _CONVERTED
        ),
        CommonsenseTask("hellaswag", "Rowan/hellaswag", "", "validation", _hellaswag),
        CommonsenseTask(
            "winogrande", "allenai/winogrande", "winogrande_xl", "validation", _winogrande
        ),
        CommonsenseTask("ARC-Easy", "allenai/ai2_arc", "ARC-Easy", "test", _arc),
        CommonsenseTask("ARC-Challenge", "allenai/ai2_arc", "ARC-Challenge", "test", _arc),
        CommonsenseTask("openbookqa", "allenai/openbookqa", "main", "test", _openbookqa),
    )
}


def build_row(task: CommonsenseTask, row: Row, where: str) -> dict[str, str]:
    """Return a row of a data set in the study's form.

    Args:
        task: whose.
        row: with the data set's own fields.
        where: names it in messages.

    Raises:
        NoLabelError: when it has no answer.
        DoraError: naming the place and the field, when it is not as the data set's rows are.
    """
    try:
        instruction, answer = task.build(row)
    except DoraError as error:
        raise DoraError(f"{where}: {error}") from None
    output = f"the correct answer is {answer}"
    return {
        "task": task.name,
        "instruction": instruction,
        "input": "",
        "output": output,
        "answer": answer,
    }
