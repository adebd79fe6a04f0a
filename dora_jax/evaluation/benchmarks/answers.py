"""A model's answers to a benchmark, and the share of right ones: whole, and by groups.

Nothing is left out silently: a report says how many answers are missing, blank, of no question, or
without anything that the benchmark's rule could read, and names the first of them.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dora_jax.data.fields import WAY_OUT, id_of, value_of, wrong
from dora_jax.data.jsonl import json_rows
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.question import Question

_SAMPLE = '{"question_id": 262148000, "text": "down"}'
_NAMED = 20


def read_answers(path: Path) -> dict[str, str]:
    """Read JSON lines of `question_id` and `text`: question to what the model wrote.

    Lines of `dora-jax generate` have it as `completion`; other fields say nothing here.

    Raises:
        DoraError: naming the file, line and field; also for a question that is answered twice.
    """
    answers: dict[str, str] = {}
    for where, row in json_rows(path, _SAMPLE):
        asked = id_of(row, "question_id", where)
        # Beside a completion, a text would be the question.
        name = "completion" if "completion" in row else "text"
        text = value_of(row, name, where)
        if not isinstance(text, str):
            raise wrong(name, "a text", text, where)
        if asked in answers:
            raise DoraError(f"{where}: answers question {asked!r} again; keep one line of each")
        answers[asked] = text
    if not answers:
        raise DoraError(f"{path}: holds no answers; give one a line, such as {_SAMPLE}")
    return answers


@dataclass(frozen=True)
class Unmatched:
    """What of answers and questions does not go together, by id.

    Attributes:
        missing: questions without an answer: they count as wrong.
        blank: questions whose answer is blank: judged by the benchmark's rule.
        extra: answers to no question: they count for nothing.
        unread: questions whose answer says nothing that the rule can read: they count as wrong.
    """

    missing: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return the number of each, and the first of them by name."""
        return {name: named(ids) for name, ids in vars(self).items()}


@dataclass(frozen=True)
class Report:
    """What a benchmark's rule makes of answers.

    Attributes:
        questions: all that were asked.
        marks: of each question by id, from 0 (wrong) to 1 (right).
        unmatched: what of the answers does not fit.
    """

    questions: Sequence[Question]
    marks: Mapping[str, float]
    unmatched: Unmatched = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Return what is printed: accuracies in per cent, whole and by each group, and counts."""
        groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for question in self.questions:
            for name, value in question.groups.items():
                groups[f"by_{name}"][value].append(self.marks[question.id])
        return {
            "questions": len(self.questions),
            "accuracy": percent(self.marks[question.id] for question in self.questions),
            **{
                name: {value: percent(marks) for value, marks in sorted(found.items())}
                for name, found in groups.items()
            },
            **self.unmatched.summary(),
        }


def named(ids: Sequence[str]) -> dict[str, Any]:
    """Return how many ids there are, and the first of them."""
    return {"count": len(ids), "first": list(ids[:_NAMED])}


def percent(marks: Iterable[float]) -> float:
    """Return the mean of marks from 0 to 1, in per cent."""
    found = list(marks)
    return 100 * sum(found) / len(found)


def unmatched(asked: Iterable[str], answers: Mapping[str, str]) -> Unmatched:
    """Return which questions have no answer, or a blank one, and which answers no question.

    Args:
        asked: the questions' ids.
        answers: by question.

    Raises:
        DoraError: when no answer is to any of them.
    """
    ids = dict.fromkeys(asked)
    if answers and ids.keys().isdisjoint(answers):
        called, given = (", ".join(list(names)[:2]) for names in (ids, answers))
        raise DoraError(
            f"none of the {len(answers)} answers is to one of the {len(ids)} questions: these are "
            f"called {called}, ..., the answers {given}, ...: are they of another file or split?"
        )
    return Unmatched(
        missing=tuple(one for one in ids if one not in answers),
        blank=tuple(one for one in ids if one in answers and not answers[one].strip()),
        extra=tuple(one for one in answers if one not in ids),
    )


def check_references(questions: Sequence[Question]) -> None:
    """Refuse questions that cannot be scored here.

    Raises:
        DoraError: when a question has no reference.
    """
    for question in questions:
        if not question.references:
            raise DoraError(
                f"question {question.id!r} has no reference answer, so that nothing can be scored: "
                "give the file that holds the answers, or write a submission for the server that "
                "keeps them"
            )


def mark(
    questions: Sequence[Question],
    answers: Mapping[str, str],
    rule: Callable[[Question, str], float | None],
) -> Report:
    """Judge every answer by a rule.

    Args:
        questions: with references.
        answers: by question.
        rule: a question and what was answered, without space around it, to the answer's mark, from
            0 to 1; None where the text holds no answer.

    Raises:
        DoraError: when a question has no reference.
    """
    check_references(questions)
    found = unmatched((question.id for question in questions), answers)
    marks: dict[str, float] = dict.fromkeys(found.missing, 0.0)
    unread = []
    for question in questions:
        if question.id in answers:
            given = rule(question, answers[question.id].strip())
            marks[question.id] = given or 0.0
            if given is None:
                unread.append(question.id)
    return Report(questions, marks, dataclasses.replace(found, unread=tuple(unread)))


def check_questions(questions: Sequence[Question], source: object) -> None:
    """Refuse a file without questions, or with two of one id.

    Raises:
        DoraError: naming the file, and the id.
    """
    if not questions:
        raise DoraError(f"{source}: holds no questions; {WAY_OUT}")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DoraError(f"{source}: has question {question.id!r} twice; {WAY_OUT}")
        seen.add(question.id)
