"""Multiple choice by likelihood: the option that the model finds likeliest is its answer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dora_jax.data.encode import EncodedRow
from dora_jax.data.vision import Sight, pictures
from dora_jax.models.build import Writer
from dora_jax.scoring import Request, TokenScores, score_tokens


class OptionScores(NamedTuple):
    """What `score_rows` found for one row.

    Attributes:
        log_likelihoods: of each option, nats, the end token not counted.
        loss_sum: negative log-likelihood of the right answer and the token that ends it, nats.
        loss_tokens: number of tokens in that sum.
    """

    log_likelihoods: tuple[float, ...]
    loss_sum: float
    loss_tokens: int


def choices(row: EncodedRow) -> tuple[tuple[int, ...], ...]:
    """Return the answers that are scored: the options, or the one free answer."""
    return row.options or (row.answer,)


def _request(row: EncodedRow, eos_id: int, vision: Sight | None) -> Request:
    """Return the row's options, the right one with the token that ends it."""
    ends = {row.correct: (eos_id,)}
    continuations = [(*ids, *ends.get(n, ())) for n, ids in enumerate(choices(row))]
    images = pictures(row.images, vision)
    if row.start is not None:
        return Request((row.start,), continuations, images, row.prompt)
    return Request(row.prompt, continuations, images)


def row_length(row: EncodedRow) -> int:
    """Return the number of tokens that scoring a row takes."""
    return len(row.prompt) + sum(map(len, choices(row))) + 1


def score_rows(
    model: Writer,
    params: Any,
    rows: Sequence[EncodedRow],
    batch_size: int,
    eos_id: int,
    advance: Callable[[float], None] = lambda tokens: None,
    vision: Sight | None = None,
) -> list[OptionScores]:
    """Score every option of every row.

    Args:
        model: the plain model.
        params: its parameters, adapters merged.
        rows: to score; those without options have their answer scored.
        batch_size: rows at once.
        eos_id: the token that ends an answer.
        advance: called with the number of `row_length` tokens done.
        vision: the model's, where rows have images.

    Returns:
        The scores, in the rows' order.
    """
    requests = [_request(row, eos_id, vision) for row in rows]
    scores = score_tokens(model, {"params": params}, requests, batch_size, advance)
    return [_gather(row, found) for row, found in zip(rows, scores, strict=True)]


def _gather(row: EncodedRow, found: Sequence[TokenScores]) -> OptionScores:
    sums = tuple(
        float(scores.log_probs[: len(ids)].sum())
        for scores, ids in zip(found, choices(row), strict=True)
    )
    right = found[row.correct].log_probs
    return OptionScores(sums, -float(right.sum()), len(right))


def loss_per_token(scores: Sequence[OptionScores]) -> float:
    """Return the mean over all tokens of the rows' right answers, the end tokens included, nats."""
    return sum(s.loss_sum for s in scores) / sum(s.loss_tokens for s in scores)


def pick(row: EncodedRow, scores: OptionScores) -> int:
    """Return the index of the likeliest option per byte of its text.

    Dividing by the length in bytes keeps a long option from being punished for its length (the
    "normalised accuracy" of EleutherAI's evaluation harness); unlike a count of tokens it does not
    depend on the tokenizer. The first of equals wins.
    """
    lengths = [max(1, len(text.encode())) for text in row.option_texts]
    return int(np.argmax([s / n for s, n in zip(scores.log_likelihoods, lengths, strict=True)]))
