"""What one `dora-jax compare` found, as it is stored in `results.json`.

Plain facts only: every interval, ratio and sentence of the report is computed from these, so that a
report can be written again, or with better statistics, from an old file.
"""

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dora_jax.analysis.atomic import write_text
from dora_jax.analysis.grid_words import point_text
from dora_jax.analysis.marks import METRICS, check_marks, checked_marks
from dora_jax.analysis.records import FieldError, decode, encode
from dora_jax.errors import DoraError

METHOD_LABELS = {
    "lora": "LoRA",
    "dora": "DoRA",
    "magnitude": "Magnitude only",
    "full": "Full fine-tuning",
    "bitfit": "BitFit",
    "norms": "Norms only",
}


@dataclass(frozen=True)
class ModelInfo:
    """The model that was tuned: its name, where its weights came from, its parameter count."""

    name: str
    source: str
    parameters: int


@dataclass(frozen=True)
class DataInfo:
    """The data: rows of each split, the score of guessing, and what was left out and why.

    Attributes:
        task: the task's name.
        train_rows: rows trained on.
        validation_rows: rows that chose the learning rates.
        eval_rows: rows that every method is scored on.
        metric: "accuracy" (of a choice between options), "exact_match" (of a written answer), or
            "score" (each task by a metric of its own, all tasks counting alike).
        chance: what guessing scores, 0 to 1, where there are options.
        skipped: rows left out, `{split: {reason: count}}`.
        cut: rows that were shortened, likewise.
        efficiency: share of the trained slots that hold a token, the rest being padding.
        task_metrics: with "score", the name of each evaluated task's metric for people, as in
            {"vqa": "VQA accuracy", "caption": "CIDEr-D"}.
    """

    task: str
    train_rows: int
    validation_rows: int
    eval_rows: int
    metric: str = "accuracy"
    chance: float | None = None
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    cut: dict[str, dict[str, int]] = field(default_factory=dict)
    efficiency: float | None = None
    task_metrics: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise FieldError("metric", f"must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if self.chance is not None:
            _check_fraction("chance", self.chance)
        if self.task_metrics and self.metric != "score":
            raise FieldError(
                "task_metrics",
                f"goes with the metric 'score' alone, whose tasks have their own, not with "
                f"{self.metric!r}",
            )


@dataclass(frozen=True)
class EvalRow:
    """One evaluated row, in the order of every `correct`."""

    task: str = ""


@dataclass(frozen=True)
class Sample:
    """An evaluated row that the report shows.

    Attributes:
        question: as the model read it, without its images.
        answer: the right one.
        row: its place among the evaluated ones.
        images: data URIs, small.
    """

    question: str
    answer: str
    row: int
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", tuple(self.images))


@dataclass(frozen=True)
class ProtocolResult:
    """The score by another protocol on the same rows.

    Attributes:
        accuracy: as `BaseResult` says.
        correct: likewise.
        unanswered: rows whose text holds no answer at all; they count as wrong.
    """

    accuracy: float
    correct: tuple[float, ...]
    unanswered: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "correct", checked_marks(self.correct, self.accuracy))


@dataclass(frozen=True)
class BaseResult:
    """The untuned model's score.

    `correct` holds a mark for each evaluated row: 0 or 1, whose mean is `accuracy`; with the metric
    "score" any number from 0 up (1 is a full mark, CIDEr-D may give more), and `accuracy` is the
    mean over tasks of the mean of the task's rows.

    `loss` is the mean over all tokens of the right answers, nats, whatever the rows' tasks.

    `other` holds the scores by other protocols than the main one, by name; `answers` what it said
    to the rows of `ComparisonResults.samples`; `unanswered` counts the rows whose text holds no
    answer at all, which are wrong (None where it was not counted).
    """

    accuracy: float
    correct: tuple[float, ...]
    loss: float | None = None
    other: dict[str, ProtocolResult] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    unanswered: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "correct", checked_marks(self.correct, self.accuracy))
        object.__setattr__(self, "answers", tuple(self.answers))


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared: what every seed of it has in common.

    Attributes:
        name: as `RunResult.method` and the folders give it.
        label: for people.
        method: what it tunes by.
        point: its values on the axes of the grid, by field; without those that its method does
            not depend on.
        start: the method or variant that it is at this point of the grid; by default the name.
        baseline: whether it is shown beside the others and is in no pair.
    """

    name: str
    label: str
    method: str
    point: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    baseline: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.start or self.name)

    @property
    def start_label(self) -> str:
        """The method or variant that it is, for people: its label without the point."""
        return self.label.removesuffix(point_text(self.point))


@dataclass(frozen=True)
class Failure:
    """A run that came to no result.

    Attributes:
        method: the arm's name.
        seed: its seed.
        learning_rate: the rate it had.
        diverged: whether training diverged, which is a finding; else something else went wrong.
        message: what went wrong.
    """

    method: str
    seed: int
    learning_rate: float
    diverged: bool
    message: str


@dataclass(frozen=True)
class Published:
    """A published row to stand beside the report's own, scores in points (accuracies: percent).

    Attributes:
        label: model and method, as published.
        source: where: paper and table.
        scores: by task, as the evaluated rows name them.
        average: over the tasks, as published.
        arm: the name of the arm that it is to be held against; none without one.
    """

    label: str
    source: str
    scores: dict[str, float]
    average: float
    arm: str = ""


@dataclass(frozen=True)
class SearchTrial:
    """One learning rate tried for one arm (`method` is its name) on the validation split.

    `validation_loss` is what the rate is chosen by; without one the trial diverged. Where the rows
    are of several tasks, `validation_losses` holds the loss per token of each, and it is their
    mean; in files of before that was so it is the loss per token of all rows together.
    `validation_accuracy` is None where answers are written: rates are chosen by the loss alone.
    """

    method: str
    learning_rate: float
    steps: int
    chosen: bool
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    validation_losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise FieldError("learning_rate", f"must be above 0, got {self.learning_rate!r}")
        score = self.validation_accuracy
        if score is not None and not (math.isfinite(score) and score >= 0):
            raise FieldError("validation_accuracy", f"must be 0 or above and finite, got {score!r}")
        loss, losses = self.validation_loss, self.validation_losses.values()
        if loss is None or not losses or not math.isfinite(loss):
            return
        mean = statistics.fmean(losses)
        if not math.isclose(loss, mean, rel_tol=1e-6):
            raise FieldError(
                "validation_loss", f"is {loss!r}, but the mean of validation_losses is {mean!r}"
            )


@dataclass(frozen=True)
class HistoryPoint:
    """Training at one step.

    Attributes:
        step: optimizer steps done.
        loss: training loss of the step.
        grad_norm: global norm of the gradient.
        learning_rate: the schedule's value.
        magnitude_drift: mean over all magnitudes of |m / m0 - 1|; None where none are trained.
        direction_change: mean over columns of 1 - cos(W', W); None where it was not measured.
    """

    step: int
    loss: float
    grad_norm: float | None = None
    learning_rate: float | None = None
    magnitude_drift: float | None = None
    direction_change: float | None = None


@dataclass(frozen=True)
class RunResult:
    """One arm (`method` is its name) trained with one seed, then scored on the evaluated rows.

    Times are in seconds, sizes in bytes; `step_time_s` is the median step, `temp_bytes` the
    compiled step's temporary memory, `peak_rss_bytes` the largest that the process ever held,
    `flops_per_s` the median step's speed, `mfu` that of the device's peak where it is known;
    `broken_images` counts the images met in training that could not be read, and nothing of whose
    rows was trained on; `accuracy`, `correct`, `loss`, `answers` and `unanswered` are as
    `BaseResult` says.
    """

    method: str
    seed: int
    learning_rate: float
    accuracy: float
    correct: tuple[float, ...]
    trainable_parameters: int
    magnitude_parameters: int
    loss: float | None = None
    step_time_s: float | None = None
    temp_bytes: int | None = None
    peak_rss_bytes: int | None = None
    compile_s: float | None = None
    train_seconds: float | None = None
    flops_per_s: float | None = None
    mfu: float | None = None
    history: tuple[HistoryPoint, ...] = ()
    other: dict[str, ProtocolResult] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    unanswered: int | None = None
    broken_images: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "correct", checked_marks(self.correct, self.accuracy))
        for name in ("history", "answers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


@dataclass(frozen=True)
class ComparisonResults:
    """Everything that one comparison measured; see the module's docstring.

    Attributes:
        name: the experiment's name.
        command: the command line that made it, to run it again.
        finished: when it ended, ISO 8601.
        settings: the resolved config, nested.
        environment: versions, devices, git commit and the like.
        model: the model.
        data: the data.
        eval_rows: the evaluated rows, in order.
        base: the untuned model's score.
        runs: each arm with each seed.
        search: the learning rates tried.
        arms: what is compared; by default the methods of the runs.
        failures: runs without a result.
        pairs: arms to be held against each other beside those that the grid gives, by name.
        published: rows to show beside them.
        protocol: how `correct` was found: "likelihood", "generate" (first match) or, of free
            answers, "exact_match".
        samples: evaluated rows to show, with what the base model and the first run of each arm
            said to them.

    Raises:
        ValueError: when the parts contradict each other (a `FieldError`, naming the field).
    """

    name: str
    command: str
    finished: str
    model: ModelInfo
    data: DataInfo
    eval_rows: tuple[EvalRow, ...]
    base: BaseResult
    runs: tuple[RunResult, ...]
    search: tuple[SearchTrial, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    failures: tuple[Failure, ...] = ()
    pairs: tuple[tuple[str, ...], ...] = ()
    published: tuple[Published, ...] = ()
    protocol: str = ""
    samples: tuple[Sample, ...] = ()

    def __post_init__(self) -> None:
        for name in ("eval_rows", "runs", "search", "arms", "failures", "published", "samples"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_arms()
        rows = len(self.eval_rows)
        if rows == 0:
            raise FieldError("eval_rows", "is empty: nothing was evaluated")
        if self.data.eval_rows != rows:
            raise FieldError(
                "data.eval_rows", f"is {self.data.eval_rows}, but eval_rows has {rows} rows"
            )
        if not self.runs:
            raise FieldError("runs", "is empty: no method was trained")
        self._check_scores()
        seen: dict[tuple[str, int], int] = {}
        for i, run in enumerate(self.runs):
            first = seen.setdefault((run.method, run.seed), i)
            if first != i:
                raise FieldError(
                    f"runs[{i}]",
                    f"repeats method {run.method!r} with seed {run.seed}, as runs[{first}] has",
                )

        for i, sample in enumerate(self.samples):
            if not 0 <= sample.row < rows:
                raise FieldError(f"samples[{i}].row", f"must be a row, from 0; got {sample.row}")

    def _check_scores(self) -> None:
        metric, tasks = self.data.metric, [row.task for row in self.eval_rows]
        if metric == "score":
            self._check_task_metrics()
        else:
            for i, trial in enumerate(self.search):
                if trial.validation_accuracy is not None:
                    _check_fraction(f"search[{i}].validation_accuracy", trial.validation_accuracy)
        parts = {"base": self.base} | {f"runs[{i}]": run for i, run in enumerate(self.runs)}
        for name, part in parts.items():
            check_marks(name, part, metric, tasks)
            for protocol, other in part.other.items():
                check_marks(f"{name}.other.{protocol}", other, metric, tasks)

    def _check_task_metrics(self) -> None:
        named = self.data.task_metrics
        for task in dict.fromkeys(row.task for row in self.eval_rows):
            if task not in named:
                known = ", ".join(map(repr, named)) or "none"
                raise FieldError(
                    "data.task_metrics",
                    f"must name the metric of every task of eval_rows; it has none for {task!r}, "
                    f"only for {known}",
                )

    def _check_arms(self) -> None:
        used = dict.fromkeys(run.method for run in self.runs)
        if not self.arms:
            arms = tuple(Arm(name, METHOD_LABELS.get(name, name), name) for name in used)
            object.__setattr__(self, "arms", arms)
        known = [arm.name for arm in self.arms]
        for field_name, names in (("runs", used), ("pairs", sum(self.pairs, ()))):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise FieldError(
                    field_name, f"names {unknown[0]!r}, which is not an arm: {', '.join(known)}"
                )
        for arm in self.arms:
            if arm.baseline and any(arm.name in pair for pair in self.pairs):
                raise FieldError("pairs", f"names {arm.name!r}, a baseline, which is in no pair")

    @property
    def strata(self) -> tuple[str, ...] | None:
        """The task of each row where every task counts alike; None where rows are pooled."""
        tasks = tuple(row.task for row in self.eval_rows)
        return tasks if self.data.metric == "score" else None

    @property
    def protocols(self) -> tuple[str, ...]:
        """How the rows were scored, the main one first."""
        return (self.protocol, *self.base.other)

    def by_protocol(self, protocol: str) -> "ComparisonResults":
        """Return the same comparison by another of its `protocols`."""
        if protocol == self.protocol:
            return self

        def other(result: Any) -> Any:
            found = result.other[protocol]
            return dataclasses.replace(
                result,
                accuracy=found.accuracy,
                correct=found.correct,
                unanswered=found.unanswered,
                loss=None,
                other={},
            )

        return dataclasses.replace(
            self,
            protocol=protocol,
            base=other(self.base),
            runs=tuple(map(other, self.runs)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values.

        Raises:
            FieldError: when settings or environment hold something that JSON cannot.
        """
        return encode(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ComparisonResults":
        """Build it from plain JSON values.

        Raises:
            FieldError: naming the field that is missing, unknown, mistyped or contradictory.
        """
        return decode(cls, values)

    def to_json(self, path: str | Path) -> Path:
        """Write it to `path` in one step: a reader never sees half a file.

        Raises:
            FieldError: as `to_dict`.
            DoraError: when the file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        return write_text(path, text + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> "ComparisonResults":
        """Read it from `path`.

        Raises:
            DoraError: naming the file, and the line or field at fault.
        """
        path = Path(path)
        again = "Run `dora-jax compare` again to make it anew."
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DoraError(
                f"{path}: could not be read ({error.strerror or error}). It is the file that "
                "`dora-jax compare` leaves in its run folder: check the path."
            ) from error
        except UnicodeDecodeError as error:
            raise DoraError(f"{path}: is not a text file in UTF-8 ({error}). {again}") from error
        except json.JSONDecodeError as error:
            raise DoraError(
                f"{path}, line {error.lineno}, column {error.colno}: is not complete JSON "
                f"({error.msg}). {again}"
            ) from error
        try:
            return cls.from_dict(values)
        except FieldError as error:
            where = f"field {error.field}" if error.field else "the top level"
            raise DoraError(f"{path}: {where} {error.problem}. {again}") from error


def _check_fraction(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise FieldError(name, f"must be between 0 and 1, got {value!r}")
