"""How a model does on validation rows, by which learning rates and checkpoints are chosen.

Both are chosen by losses, so that no answers are written to these rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from dora_jax.data.encode import EncodedRow
from dora_jax.evaluation.likelihood import OptionScores, loss_per_token, pick


@dataclass(frozen=True)
class Validation:
    """How a model did on the validation rows.

    Losses are mean negative log-likelihoods of the right answers' tokens, end token included, nats.

    Attributes:
        loss: of the tokens of all rows together, as training's is.
        losses: of each task's, by the tasks' names.
        accuracy: share of the rows of which the right option is the likeliest; None where answers
            are written.
    """

    loss: float
    losses: dict[str, float]
    accuracy: float | None

    @property
    def mean_over_tasks(self) -> float:
        """The mean of `losses`: a task of long answers counts no more than one of single words."""
        return fmean(self.losses.values())


def validate_rows(
    rows: Sequence[EncodedRow], scores: Sequence[OptionScores], by_choice: bool
) -> Validation:
    """Return what the rows' scores come to.

    Args:
        rows: the validation rows, at least one.
        scores: of each, in the same order.
        by_choice: whether rows are answered by choosing an option.
    """
    of_task: dict[str, list[OptionScores]] = {}
    for row, found in zip(rows, scores, strict=True):
        of_task.setdefault(row.task, []).append(found)
    accuracy = None
    if by_choice:
        picked = [pick(row, found) for row, found in zip(rows, scores, strict=True)]
        accuracy = fmean(n == row.correct for n, row in zip(picked, rows, strict=True))
    losses = {task: loss_per_token(own) for task, own in of_task.items()}
    return Validation(loss_per_token(scores), losses, accuracy)
