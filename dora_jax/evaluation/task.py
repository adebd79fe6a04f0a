"""A task ready to train and score on: rows of three splits, encoded, with what was left out."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dora_jax.analysis.results import DataInfo, EvalRow
from dora_jax.data.batches import ShuffledBatches, padded_length
from dora_jax.data.encode import EncodedRow, digest_rows, encode_examples
from dora_jax.data.examples import Example, Split
from dora_jax.data.jsonl import read_jsonl
from dora_jax.data.prompts import get_template
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from dora_jax.evaluation.exact_match import exact_matches, new_tokens
from dora_jax.evaluation.likelihood import pick, row_length, score_rows
from dora_jax.models.llama import Llama
from dora_jax.training.config import DataConfig, TrainConfig


@dataclass(frozen=True)
class Score:
    """How a model did on a split.

    Attributes:
        accuracy: share of the rows answered right.
        correct: 0 or 1 for each row, in the split's order.
        loss: mean negative log-likelihood of the right answers' tokens, end token included, nats.
    """

    accuracy: float
    correct: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class Task:
    """Rows of three splits and how they are scored.

    Attributes:
        name: for reports.
        rows: encoded rows of each split.
        tokenizer: the model's.
        batch_size: rows scored at once.
        skipped: rows left out, `{split: {reason: count}}`.
    """

    name: str
    rows: dict[Split, tuple[EncodedRow, ...]]
    tokenizer: Tokenizer
    batch_size: int
    skipped: dict[str, dict[str, int]]

    def chooses(self, split: Split) -> bool:
        """Whether a split's rows are answered by choosing; else answers are written freely."""
        return all(row.options for row in self.rows[split])

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
            metric="exact_match" if chance is None else "accuracy",
            chance=chance,
            skipped=self.skipped,
        )

    @property
    def eval_rows(self) -> tuple[EvalRow, ...]:
        """The evaluated rows, in the order of `Score.correct`."""
        return tuple(EvalRow(row.task) for row in self.rows["evaluation"])

    def digest(self) -> str:
        """Return a short name of all rows: other data give another one."""
        return digest_rows([row for split in self.rows.values() for row in split])

    def describe(self) -> list[str]:
        """Return lines for the terminal: the rows, how they are scored, what was left out."""
        info = self.info
        how = "free answers, exact match" if info.chance is None else f"chance {info.chance:.1%}"
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
        repeated = info.eval_rows - len({row.prompt for row in self.rows["evaluation"]})
        if repeated:
            lines.append(f"{repeated:,} of the rows to evaluate repeat the prompt of another one")
        for split, reasons in self.skipped.items():
            lines += [f"left out of {split}: {n:,} rows, {why}" for why, n in reasons.items()]
        return lines

    def batches(self, config: TrainConfig, seed: int) -> ShuffledBatches:
        """Return the training batches of a seed: the same for every method."""
        return ShuffledBatches(self.rows["train"], config.batch_size, seed, self.tokenizer.eos_id)

    def train_tokens(self, config: TrainConfig, steps: int) -> float:
        """Return the number of tokens that so many steps run through the model."""
        return float(steps * config.batch_size * padded_length(self.rows["train"]))

    def tokens(self, split: Split) -> float:
        """Return the number of tokens that scoring a split takes: what `score` advances by."""
        rows = self.rows[split]
        total = sum(map(row_length, rows))
        if not self.chooses(split):
            total += sum(len(row.prompt) + new_tokens(rows) for row in rows)
        return float(total)

    def score(
        self,
        model: Llama,
        params: Any,
        split: Split,
        advance: Callable[[float], None] = lambda tokens: None,
    ) -> Score:
        """Score a model on a split.

        Args:
            model: the plain model.
            params: its parameters, adapters merged.
            split: which rows.
            advance: called with the number of tokens done.
        """
        rows = self.rows[split]
        scores = score_rows(model, params, rows, self.batch_size, self.tokenizer.eos_id, advance)
        if self.chooses(split):
            pairs = zip(rows, scores, strict=True)
            correct = [int(pick(row, found) == row.correct) for row, found in pairs]
        else:
            correct = exact_matches(model, params, rows, self.batch_size, self.tokenizer, advance)
        loss = sum(s.loss_sum for s in scores) / sum(s.loss_tokens for s in scores)
        return Score(sum(correct) / len(correct), tuple(correct), loss)


@dataclass(frozen=True)
class Examples:
    """Examples of three splits as text, read before any model is loaded.

    Attributes:
        name: for reports.
        splits: the examples.
        left_out: as `Task.skipped`.
    """

    name: str
    splits: dict[Split, list[Example]]
    left_out: dict[str, dict[str, int]]


def read_examples(config: DataConfig) -> Examples:
    """Read the data that a config names.

    Raises:
        DoraError: for an unreadable file (named, with line and field), an unknown template or
            relation, or too few rows.
    """
    get_template(config.prompt)
    return _world(config) if config.train is None else _files(config)


def encode_task(examples: Examples, config: DataConfig, tokenizer: Tokenizer) -> Task:
    """Encode examples for a model.

    Raises:
        DoraError: when no row of a split fits into `data.max_length` tokens.
    """
    template = get_template(config.prompt)
    rows: dict[Split, tuple[EncodedRow, ...]] = {}
    skipped: dict[str, dict[str, int]] = {}
    for split, given in examples.splits.items():
        fitting, too_long = encode_examples(given, template, tokenizer, config.max_length)
        reasons = dict(examples.left_out.get(split, {}))
        if too_long:
            reasons[f"longer than data.max_length ({config.max_length} tokens)"] = too_long
        if not fitting and (split != "validation" or config.validation_rows):
            why = "; ".join(f"{n} {reason}" for reason, n in reasons.items()) or "there are none"
            raise DoraError(
                f"no rows are left for {split} ({why}): give more rows, or raise --data.max-length"
            )
        rows[split] = tuple(fitting)
        if reasons:
            skipped[split] = reasons
    return Task(examples.name, rows, tokenizer, config.eval_batch_size, skipped)


def _world(config: DataConfig) -> Examples:
    from dora_jax.data.world import DEFAULT_RELATIONS, world_examples

    counts: dict[Split, int] = {
        "train": config.train_rows,
        "validation": config.validation_rows,
        "evaluation": config.eval_rows,
    }
    splits = {
        split: world_examples(config.relations, split, count, config.seed)
        for split, count in counts.items()
    }
    relations = ", ".join(config.relations or DEFAULT_RELATIONS)
    return Examples(f"world knowledge ({relations})", splits, {})


def _files(config: DataConfig) -> Examples:
    """Read the two files; validation rows are taken from the training file."""
    assert config.train is not None, "DataConfig checks it"
    assert config.eval is not None, "DataConfig checks it"
    evaluation = read_jsonl(config.eval)
    # Of the whole file: a later evaluation may take more of its rows.
    asked = {example.prompt for example in evaluation}
    given = read_jsonl(config.train)
    # One row for each prompt, so that no validation prompt is trained on: the first.
    own = list({e.prompt: e for e in reversed(given) if e.prompt not in asked}.values())[::-1]
    evaluated = sum(example.prompt in asked for example in given)
    if len(own) < 2:
        raise DoraError(
            f"{config.train}: has {len(own)} rows of its own, and needs at least two: one to "
            "train on and one to choose learning rates by"
        )
    validation_rows = min(config.validation_rows, len(own) // 2)
    chosen = _sample(own, validation_rows + config.train_rows, config.seed)
    splits: dict[Split, list[Example]] = {
        "train": chosen[validation_rows:],
        "validation": chosen[:validation_rows],
        "evaluation": _sample(evaluation, config.eval_rows, config.seed),
    }
    left_out = {
        "in the evaluation file too": evaluated,
        "with a prompt seen before": len(given) - len(own) - evaluated,
    }
    reasons = {reason: count for reason, count in left_out.items() if count}
    name = f"{config.train.name}, evaluated on {config.eval.name}"
    return Examples(name, splits, {"train": reasons})


def _sample(examples: list[Example], count: int, seed: int) -> list[Example]:
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[i] for i in order[:count]]
