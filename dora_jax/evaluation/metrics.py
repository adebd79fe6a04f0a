"""Written answers by the metric of their row: of each row a score, whose mean is what papers print.

| metric        | of a row                                                                |
|---------------|-------------------------------------------------------------------------|
| `exact`       | 1 for one of the references, whatever the case, space and full stop     |
| `vqa`         | VQA's soft accuracy over people's answers, or the targets' own weights  |
| `cider`       | CIDEr-D over the references, 0 to 10; its weights are of all rows given |
| `cider_share` | CIDEr-D / 10, so that an answer that is the only reference has 1        |

People's captions reach a CIDEr-D near 1, as much as other tasks' best. Captions by a template may
be the reference itself: by `cider_share` they count no more in a mean over tasks than the others.
"""

from collections.abc import Sequence
from typing import Protocol

from dora_jax.data.examples import Metric
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.normalise import normalise
from dora_jax.evaluation.benchmarks.vqav2 import vqa_accuracy
from dora_jax.evaluation.captioning import MOST, cider_d

METRIC_LABELS: dict[Metric, str] = {
    "exact": "exact match",
    "vqa": "VQA accuracy",
    "cider": "CIDEr-D",
    "cider_share": "share of the highest CIDEr-D",
}


class Judged(Protocol):
    """A row whose answer was written: what is known to be right."""

    @property
    def text(self) -> str:
        """The answer that is trained on."""
        ...

    @property
    def references(self) -> tuple[str, ...]:
        """What people answered; empty where `text` alone is right."""
        ...

    @property
    def target_texts(self) -> tuple[tuple[str, float], ...]:
        """Answers with their weights, where there are several to train on."""
        ...


def score_answers(
    metric: Metric, rows: Sequence[Judged], answers: Sequence[str]
) -> tuple[float, ...]:
    """Return the score of each answer: a full mark is 1, and CIDEr-D may give more.

    Args:
        metric: see the module.
        rows: all of a task, since CIDEr-D weighs words by how many rows have them.
        answers: what was written to each.

    Raises:
        DoraError: for other numbers of rows and answers.
    """
    if len(rows) != len(answers):
        raise DoraError(f"{len(answers)} answers to {len(rows)} rows: give one for each")
    if metric in ("cider", "cider_share"):
        most = 1.0 if metric == "cider" else MOST
        found = cider_d(answers, [_references(row) for row in rows]).each
        return tuple(score / most for score in found)
    rule = _vqa if metric == "vqa" else _exact
    return tuple(rule(row, answer) for row, answer in zip(rows, answers, strict=True))


def _references(row: Judged) -> tuple[str, ...]:
    return row.references or (row.text,)


def _vqa(row: Judged, answer: str) -> float:
    if row.references or not row.target_texts:
        return vqa_accuracy(answer, _references(row))
    given = normalise(answer)
    return max((w for text, w in row.target_texts if normalise(text) == given), default=0.0)


def _exact(row: Judged, answer: str) -> float:
    return float(plain_words(answer) in map(plain_words, _references(row)))


def plain_words(text: str) -> str:
    """Return what of a text counts where words are matched: no case, spare space or full stop."""
    return " ".join(text.lower().split()).rstrip(". ")
