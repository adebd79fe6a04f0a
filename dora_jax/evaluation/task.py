"""A task ready to train and score on: rows of three splits, encoded, with what was left out."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np

from dora_jax.analysis.marks import task_means
from dora_jax.analysis.results import DataInfo, EvalRow, ProtocolResult, Sample
from dora_jax.data.batches import Share, StepBatches
from dora_jax.data.encode import (
    SOURCE_ALONE,
    WHOLE_TEXT,
    Encoded,
    EncodedRow,
    Policy,
    digest_rows,
    encode_all,
)
from dora_jax.data.examples import Metric, Split
from dora_jax.data.prompts import get_template
from dora_jax.data.read_ahead import ReadAhead
from dora_jax.data.splits import Examples
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vision import Sight
from dora_jax.data.ways import make_batches
from dora_jax.errors import DoraError
from dora_jax.evaluation.exact_match import is_match, new_tokens
from dora_jax.evaluation.first_match import judge
from dora_jax.evaluation.likelihood import (
    OptionScores,
    loss_per_token,
    pick,
    row_length,
    score_rows,
)
from dora_jax.evaluation.metrics import METRIC_LABELS, score_answers
from dora_jax.evaluation.samples import sample_places, show
from dora_jax.evaluation.validation import Validation, validate_rows
from dora_jax.evaluation.writing import write_answers
from dora_jax.generation import Sampling
from dora_jax.models.build import Writer
from dora_jax.training.config import DataConfig, EvaluationConfig, Protocol, TrainConfig


@dataclass(frozen=True)
class Score:
    """How a model did on the rows to evaluate.

    Attributes:
        accuracy: share of the rows answered right; of rows with metrics the mean over tasks of the
            rows' mean score.
        correct: 0 or 1 for each row, in the split's order, or its score by its metric.
        loss: mean negative log-likelihood of the right answers' tokens, end token included, nats;
            of the tokens of all rows together, whatever their tasks.
        unanswered: rows whose text holds no answer at all, by the main protocol; they count as
            wrong.
        other: the scores by the other protocols, by name.
        answers: what it said, by the main protocol, to the rows that a report shows.
    """

    accuracy: float
    correct: tuple[float, ...]
    loss: float
    unanswered: int
    other: dict[str, ProtocolResult] = field(default_factory=dict)
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Rows of three splits and how they are scored.

    Attributes:
        name: for reports.
        rows: encoded rows of each split.
        tokenizer: the model's.
        batch_size: rows scored at once.
        skipped: rows left out, `{split: {reason: count}}`.
        cut: rows that were shortened, likewise.
        data: the config that they were read and encoded by.
        evaluation: by which protocols rows with options are scored.
        vision: the model's, where it sees.
        start: of an encoder-decoder the token that its texts begin behind, else None.
    """

    name: str
    rows: dict[Split, tuple[EncodedRow, ...]]
    tokenizer: Tokenizer
    batch_size: int
    skipped: dict[str, dict[str, int]]
    cut: dict[str, dict[str, int]] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    vision: Sight | None = None
    start: int | None = None

    def chooses(self, split: Split) -> bool:
        """Whether a split's rows are answered by choosing; else answers are written freely."""
        return all(row.options for row in self.rows[split])

    @functools.cached_property
    def task_metrics(self) -> dict[str, str]:
        """The metric of each task's written answers, for people; empty where no row names one.

        Raises:
            DoraError: when rows of one task name several, or some name none.
        """
        found: dict[str, Metric | None] = {}
        for row in self.rows["evaluation"]:
            if found.setdefault(row.task, row.metric) != row.metric:
                raise DoraError(
                    f"rows of task {row.task!r} are scored by {found[row.task] or 'no metric'} and "
                    f"by {row.metric or 'none'}: give all of a task the same 'metric'"
                )
        if not any(found.values()):
            return {}
        return {task: METRIC_LABELS[metric or "exact"] for task, metric in found.items()}

    @functools.cached_property
    def info(self) -> DataInfo:
        """What the report says of the data."""
        evaluation = self.rows["evaluation"]
        chance = None
        if self.chooses("evaluation"):
            chance = float(np.mean([1 / len(row.options) for row in evaluation]))
        return DataInfo(
            task=self.name,
            train_rows=len(self.rows["train"]),
            validation_rows=len(self.rows["validation"]),
            eval_rows=len(evaluation),
            metric=(
                "score" if self.task_metrics else "exact_match" if chance is None else "accuracy"
            ),
            task_metrics=self.task_metrics,
            chance=chance,
            skipped=self.skipped,
            cut=self.cut,
            efficiency=self._one_row_batches.efficiency,
        )

    def figure(self, mean: float) -> str:
        """Return a mean of marks for the terminal: 0.663 is "66.3%", of scores "66.3 points"."""
        return f"{100 * mean:.1f} points" if self.task_metrics else f"{mean:.1%}"

    @property
    def eval_rows(self) -> tuple[EvalRow, ...]:
        """The evaluated rows, in the order of `Score.correct`."""
        return tuple(EvalRow(row.task) for row in self.rows["evaluation"])

    @functools.cached_property
    def digest(self) -> str:
        """A short name of all rows: other data give another one."""
        return digest_rows([row for split in self.rows.values() for row in split])

    @functools.cached_property
    def evaluation_digest(self) -> str:
        """A short name of the evaluated rows."""
        return digest_rows(self.rows["evaluation"])

    @functools.cached_property
    def evaluation_names(self) -> str:
        """A short name of which rows are evaluated, whatever is read of them."""
        rows = self.rows["evaluation"]
        named = repr([(row.where, row.text, row.option_texts, row.task) for row in rows])
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    def describe(self) -> list[str]:
        """Return lines for the terminal: the rows, how they are scored, what was left out."""
        info = self.info
        how = "free answers, exact match" if info.chance is None else f"chance {info.chance:.1%}"
        if info.task_metrics:
            named = [f"{task} {metric}" for task, metric in info.task_metrics.items()]
            how = f"written answers, {', '.join(named)}"
        lines = [
            f"data: {info.task}; {info.train_rows:,} rows to train on, "
            f"{info.validation_rows:,} set aside to choose learning rates, "
            f"{info.eval_rows:,} to evaluate; {how}"
        ]
        with_options = sum(bool(row.options) for row in self.rows["evaluation"])
        if 0 < with_options < info.eval_rows:
            lines.append(
                f"{with_options:,} of the {info.eval_rows:,} rows to evaluate have options and the "
                "rest have none: all are scored as free answers"
            )
        asked = [(row.prompt, row.images) for row in self.rows["evaluation"]]
        repeated = len(asked) - len(set(asked))
        if repeated:
            what = "prompt and images" if any(images for _, images in asked) else "prompt"
            lines.append(f"{repeated:,} of the rows to evaluate repeat the {what} of another one")
        for split, reasons in self.skipped.items():
            lines += [f"left out of {split}: {n:,} rows, {why}" for why, n in reasons.items()]
        for split, reasons in self.cut.items():
            lines += [f"shortened in {split}: {n:,} rows, {why}" for why, n in reasons.items()]
        return [*lines, self._efficiency_line()]

    def _efficiency_line(self) -> str:
        made = self._one_row_batches
        line = (
            f"packing {self.data.packing}: an epoch fills {made.places_an_epoch:,} rows of "
            f"batches; {made.efficiency:.1%} of their slots hold a token"
        )
        if self.data.packing == "none":
            return line
        padded = self._make_batches(1, 0, data=dataclasses.replace(self.data, packing="none"))
        return f"{line}, and {padded.efficiency:.1%} if padded to the longest"

    def batches(
        self,
        config: TrainConfig,
        seed: int,
        share: Share = Share(),  # noqa: B008 - immutable
    ) -> ReadAhead:
        """Return the training batches of a seed: the same for every method.

        Args:
            config: says how many rows are in a batch.
            seed: of the order.
            share: which rows of each batch this process makes.
        """
        made = self._make_batches(config.batch_size, seed, share)
        return ReadAhead(made, self.data.read_ahead, self.data.workers)

    def _make_batches(
        self,
        batch_size: int,
        seed: int,
        share: Share = Share(),  # noqa: B008 - immutable
        data: DataConfig | None = None,
    ) -> StepBatches:
        rows, eos_id = self.rows["train"], self.tokenizer.eos_id
        data = data or self.data
        return make_batches(rows, data, batch_size, seed, eos_id, share, self.vision)

    @functools.cached_property
    def _one_row_batches(self) -> StepBatches:
        """Batches that tell what a row of any batch costs, but for the size of the batches."""
        return self._make_batches(1, 0)

    def epochs(self, config: TrainConfig, steps: int) -> float:
        """Return how often so many steps go through the rows to train on."""
        return steps * config.batch_size / self._one_row_batches.places_an_epoch

    def train_tokens(self, config: TrainConfig, steps: int) -> float:
        """Return the number of tokens that so many steps run through the model, on average."""
        return steps * config.batch_size * self._one_row_batches.slots

    def tokens(self, split: Split) -> float:
        """Return the number of tokens that a split takes: what `score` or `validate` advance by."""
        rows = self.rows[split]
        total = sum(map(row_length, rows))
        # Rates are chosen by the loss: nothing is written to the validation rows.
        for protocol in self.protocols if split == "evaluation" else ():
            if protocol != "likelihood":
                written = self._sampling(protocol).max_new_tokens
                total += sum(len(row.prompt) + written for row in rows)
        return float(total)

    @property
    def protocols(self) -> tuple[Protocol | Literal["exact_match", "score"], ...]:
        """How the rows to evaluate are scored; what methods are judged by is the first."""
        if self.task_metrics:
            return ("score",)
        return self.evaluation.protocols if self.chooses("evaluation") else ("exact_match",)

    def validate(
        self,
        model: Writer,
        params: Any,
        advance: Callable[[float], None] = lambda tokens: None,
    ) -> Validation:
        """Return how a model does on the validation rows; arguments as of `score`."""
        scores = self._likelihoods(model, params, "validation", advance)
        # A share of right choices says nothing of rows that are judged by metrics of their own.
        by_choice = self.chooses("validation") and not self.task_metrics
        return validate_rows(self.rows["validation"], scores, by_choice)

    def _likelihoods(
        self, model: Writer, params: Any, split: Split, advance: Callable[[float], None]
    ) -> list[OptionScores]:
        rows, eos_id = self.rows[split], self.tokenizer.eos_id
        return score_rows(model, params, rows, self.batch_size, eos_id, advance, self.vision)

    def score(
        self,
        model: Writer,
        params: Any,
        advance: Callable[[float], None] = lambda tokens: None,
    ) -> Score:
        """Score a model on the rows to evaluate.

        Args:
            model: the plain model.
            params: its parameters, adapters merged.
            advance: called with the number of tokens done.
        """
        rows = self.rows["evaluation"]
        scores = self._likelihoods(model, params, "evaluation", advance)
        found: dict[str, ProtocolResult] = {}
        said: dict[str, list[str]] = {}
        for protocol in self.protocols:
            judged: Sequence[float | None]
            if protocol == "likelihood":
                picked = [pick(row, options) for row, options in zip(rows, scores, strict=True)]
                judged = [n == row.correct for n, row in zip(picked, rows, strict=True)]
                texts = [row.option_texts[n] for n, row in zip(picked, rows, strict=True)]
            else:
                sampling = self._sampling(protocol)
                texts = write_answers(
                    model,
                    params,
                    rows,
                    sampling,
                    self.batch_size,
                    self.tokenizer,
                    advance,
                    self.vision,
                )
                judged = self._judged(protocol, rows, texts)
            said[protocol] = texts
            correct = tuple(
                float(mark or 0) if self.task_metrics else int(mark or 0) for mark in judged
            )
            found[protocol] = ProtocolResult(
                self._mean(rows, correct), correct, sum(mark is None for mark in judged)
            )
        main, *others = found
        other = {name: found[name] for name in others}
        places = sample_places(len(rows), self.evaluation.samples)
        answers = tuple(said[main][place].strip() for place in places)
        best, loss = found[main], loss_per_token(scores)
        return Score(best.accuracy, best.correct, loss, best.unanswered, other, answers)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The evaluated rows that a report shows, in the order of `Score.answers`."""
        return show(self.rows["evaluation"], self.evaluation.samples, self.tokenizer)

    def _mean(self, rows: Sequence[EncodedRow], marks: Sequence[float]) -> float:
        """Return the figure over all rows: of rows with metrics a mean over tasks."""
        if not self.task_metrics:
            return sum(marks) / len(marks)
        return fmean(task_means(marks, [row.task for row in rows]).values())

    def _sampling(self, protocol: str) -> Sampling:
        """How a protocol lets the model write to the rows to evaluate."""
        if protocol == "exact_match":
            return Sampling(max_new_tokens=new_tokens(self.rows["evaluation"]))
        how = self.evaluation
        return Sampling(max_new_tokens=how.new_tokens, num_beams=how.beams)

    def _judged(
        self, protocol: str, rows: Sequence[EncodedRow], texts: Sequence[str]
    ) -> Sequence[float | None]:
        """What a protocol makes of each text; None where it holds no answer at all."""
        if protocol != "score":
            verdict = is_match if protocol == "exact_match" else judge
            return [verdict(row, text) for row, text in zip(rows, texts, strict=True)]
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row.task, []).append(place)
        marks = [0.0] * len(rows)
        for own in places.values():
            metric = rows[own[0]].metric or "exact"
            scores = score_answers(metric, [rows[n] for n in own], [texts[n] for n in own])
            for place, mark in zip(own, scores, strict=True):
                marks[place] = mark
        return marks


def encode_task(
    examples: Examples,
    config: DataConfig,
    tokenizer: Tokenizer,
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - immutable
    vision: Sight | None = None,
    start: int | None = None,
    context: int | None = None,
) -> Task:
    """Encode examples for a model.

    Args:
        examples: to encode.
        config: how.
        tokenizer: the model's.
        evaluation: how they are scored.
        vision: the model's, where it sees.
        start: of an encoder-decoder the token that its texts begin behind, else None.
        context: the model's, in tokens: what bounds the rows that are evaluated, unless
            `evaluation.max_length` does; None takes `data.max_length` for them too.

    Raises:
        DoraError: when no row of a split is short enough.
    """
    template = get_template(config.prompt)
    if start is not None:
        _check_pairs(config)
    rows: dict[Split, tuple[EncodedRow, ...]] = {}
    skipped: dict[str, dict[str, int]] = {}
    cut: dict[str, dict[str, int]] = {}
    for split, given in examples.splits.items():
        encode = functools.partial(
            encode_all,
            given,
            template,
            tokenizer,
            too_long=_policy(config, split, start),
            vision=vision,
            start=start,
        )
        # The length of the texts of an encoder-decoder belongs to how it is asked.
        if split == "evaluation" and start is None and context is not None:
            section, encoded = "evaluation", _encode_evaluated(encode, evaluation, context)
        else:
            section, encoded = "data", encode(max_length=config.max_length)
        reasons = dict(examples.left_out.get(split, {}))
        for reason, count in encoded.left_out.items():
            reasons[reason] = reasons.get(reason, 0) + count
        if not encoded.rows and (split != "validation" or config.validation_rows):
            why = "; ".join(f"{n} {reason}" for reason, n in reasons.items()) or "there are none"
            raise DoraError(
                f"{examples.name}: no rows are left for {split} ({why}): give more rows, raise "
                f"--{section}.max-length, or let --data.too-long cut them"
            )
        rows[split] = tuple(encoded.rows)
        if reasons:
            skipped[split] = reasons
        if encoded.cut:
            cut[split] = encoded.cut
    size = config.eval_batch_size
    return Task(
        examples.name, rows, tokenizer, size, skipped, cut, config, evaluation, vision, start
    )


def _check_pairs(config: DataConfig) -> None:
    """Find settings that an encoder-decoder has no use for.

    Raises:
        DoraError: naming the field.
    """
    if config.packing == "pack":
        raise DoraError(
            "data.packing 'pack' is for decoders: texts of an encoder-decoder have each a source "
            "of their own; give --data.packing bucket, or none"
        )
    if config.train_on == "all":
        raise DoraError(
            "data.train_on 'all' is for decoders: what an encoder reads carries no label; give "
            "--data.train-on answers"
        )


def _policy(config: DataConfig, split: Split, start: int | None) -> Policy:
    """Return what happens to a split's long rows: an answer that is scored must be whole."""
    if config.too_long != "truncate_right":
        return config.too_long
    if split != "train":
        return "drop" if start is None else SOURCE_ALONE
    return WHOLE_TEXT if config.train_on == "all" else config.too_long


def _encode_evaluated(
    encode: Callable[..., Encoded], evaluation: EvaluationConfig, context: int
) -> Encoded:
    """Return the rows to evaluate, of all that the model can read: training's bound is its own."""
    given = evaluation.max_length
    limit, bound = given or context, "evaluation.max_length" if given else "the model's context"
    found = encode(max_length=limit, bound=bound)
    rows, written = found.rows, 0
    if any(row.metric for row in rows) or "generate" in evaluation.protocols:
        written = evaluation.new_tokens
    if not all(row.options for row in rows):
        written = max(written, new_tokens(rows))
    if all(len(row.prompt) + written <= limit for row in rows):
        return found
    bound += f" with {written} tokens to be written"
    return encode(max_length=limit, bound=bound, written=written)
