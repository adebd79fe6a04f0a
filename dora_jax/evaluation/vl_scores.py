"""Each of VL-BART's tasks by its own metric: of each row, and of all as papers print it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dora_jax.data.vl.row import CAPTION_TASKS, Task, VLRow
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.normalise import normalise
from dora_jax.evaluation.benchmarks.vqav2 import vqa_accuracy
from dora_jax.evaluation.captioning import bleu_4, cider_d


@dataclass(frozen=True)
class VLScores:
    """What answers to rows of one task are worth.

    Attributes:
        each: of each row: from 0 to 1; of captions CIDEr-D, from 0 to 10. Their mean times 100 is
            the task's metric, so that paired tests over rows are about what is printed.
        metrics: as papers print them, times 100: `accuracy`; of captions `cider` and `bleu4`. The
            first is the task's.
    """

    each: tuple[float, ...]
    metrics: dict[str, float]

    @property
    def main(self) -> float:
        """The task's own metric."""
        return next(iter(self.metrics.values()))


def score_rows(task: Task, rows: Sequence[VLRow], answers: Sequence[str]) -> tuple[float, ...]:
    """Return the score of each row: see `VLScores.each`.

    VQA is scored by soft accuracy over people's answers, or by the labels' own scores where rows
    have these alone (Karpathy's split, as VL-T5 scores it); GQA, NLVR2, TVQA and How2QA by exact
    match, without regard to case, space and full stops at the end; captions by CIDEr-D, whose
    weights are of all rows given: give a whole set.

    Args:
        task: of all rows.
        rows: with references.
        answers: what was generated for each.

    Raises:
        DoraError: for other numbers of rows and answers, a row of another task, or one without
            anything to compare with.
    """
    _check(task, rows, answers)
    if task in CAPTION_TASKS:
        return cider_d(answers, [row.references for row in rows]).each
    rule: Callable[[VLRow, str], float] = _vqa if task == "vqa" else _exact
    return tuple(rule(row, answer) for row, answer in zip(rows, answers, strict=True))


def score_task(task: Task, rows: Sequence[VLRow], answers: Sequence[str]) -> VLScores:
    """Return the scores of a task's rows, and its metrics; arguments and errors as `score_rows`."""
    each = score_rows(task, rows, answers)
    mean = 100 * sum(each) / len(each)
    if task not in CAPTION_TASKS:
        return VLScores(each, {"accuracy": mean})
    bleu = bleu_4(answers, [row.references for row in rows])
    return VLScores(each, {"cider": mean, "bleu4": 100 * bleu})


def _check(task: Task, rows: Sequence[VLRow], answers: Sequence[str]) -> None:
    if not rows or len(rows) != len(answers):
        raise DoraError(
            f"{len(rows)} rows of {task} and {len(answers)} answers: give one for each row, and at "
            "least one"
        )
    for row in rows:
        named = row.where or f"row {row.id!r}"
        if row.task != task:
            raise DoraError(f"{named}: is of {row.task}, and is scored as {task}")
        if not row.references and not (task == "vqa" and row.targets):
            raise DoraError(
                f"{named}: has no reference, so that nothing can be scored: give the file that "
                "holds the answers"
            )


def _vqa(row: VLRow, answer: str) -> float:
    if row.references:
        return vqa_accuracy(answer, row.references)
    given = normalise(answer)
    scores = zip(row.targets, row.weights, strict=True)
    return max((score for target, score in scores if normalise(target) == given), default=0.0)


def _exact(row: VLRow, answer: str) -> float:
    return float(_plain(answer) in map(_plain, row.references))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(". ")
