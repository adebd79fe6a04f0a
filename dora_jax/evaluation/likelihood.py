"""Multiple choice by likelihood: one pass over the prompt with all its options behind it.

A row is laid out as prompt, option, option, ...; each option continues the prompt's positions and
sees the prompt and itself alone, so the pass gives the very logits of separate sequences while the
prompt is computed once:

    tokens     p p p p a a b b b
    positions  0 1 2 3 4 5 4 5 6
    segments   0 0 0 0 1 1 2 2 2
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dora_jax.data.encode import EncodedRow
from dora_jax.data.padding import round_up
from dora_jax.models.llama import Llama
from dora_jax.training.sharding import replicate, split_rows

_LENGTH_MULTIPLE = 32  # few lengths, so few compilations
_PADDING = -1  # a segment of its own: seen by nobody


class Layout(NamedTuple):
    """Rows as arrays; letters as in `models/llama.py`, T the answer tokens of a row.

    Attributes:
        tokens: (B, L) token ids.
        positions: (B, L), for RoPE.
        segments: (B, L), 0 the prompt, 1, 2, ... the options, -1 padding.
        sources: (B, T) places in the row whose next token is scored.
        targets: (B, T) those next tokens.
        owners: (B, T) index of the option that each belongs to; -1 for padding; the row's number of
            options for the token that ends the right answer: part of the loss, of no score.
    """

    tokens: Any
    positions: Any
    segments: Any
    sources: Any
    targets: Any
    owners: Any


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


def row_length(row: EncodedRow) -> int:
    """Return the number of tokens that scoring a row takes."""
    return len(row.prompt) + sum(map(len, choices(row)))


def lay_out(rows: Sequence[EncodedRow], length: int, scored: int, eos_id: int) -> Layout:
    """Return rows as arrays of `length` tokens and `scored` answer tokens each."""
    size = len(rows)
    tokens = np.full((size, length), eos_id, np.int32)
    positions = np.zeros((size, length), np.int32)
    segments = np.full((size, length), _PADDING, np.int32)
    sources = np.zeros((size, scored), np.int32)
    targets = np.zeros((size, scored), np.int32)
    owners = np.full((size, scored), _PADDING, np.int32)
    for i, row in enumerate(rows):
        start = len(row.prompt)
        tokens[i, :start] = row.prompt
        positions[i, :start] = np.arange(start)
        segments[i, :start] = 0
        place, entry = start, 0
        for number, option in enumerate(choices(row)):
            end = place + len(option)
            tokens[i, place:end] = option
            positions[i, place:end] = start + np.arange(len(option))
            segments[i, place:end] = number + 1
            # The prompt's last token predicts the first of every option.
            ids = [*option, eos_id] if number == row.correct else [*option]
            owned = slice(entry, entry + len(ids))
            sources[i, owned] = [start - 1, *range(place, end)][: len(ids)]
            targets[i, owned] = ids
            owners[i, owned] = number
            if number == row.correct:
                owners[i, entry + len(ids) - 1] = len(choices(row))
            place, entry = end, entry + len(ids)
    return Layout(tokens, positions, segments, sources, targets, owners)


def sees(segments_BL: Int[Array, "b l"]) -> Bool[Array, "b l l"]:
    """Return which places see which: earlier ones of the prompt and of one's own segment."""
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    places = jnp.arange(segments_BL.shape[1])
    return (places[None, :] <= places[:, None]) & ((key == 0) | (key == query))


@functools.partial(jax.jit, static_argnames="model")
def _log_likelihoods(model: Llama, params: Any, layout: Layout) -> Float[Array, "b t"]:
    variables = {"params": params}
    hidden_BLD, _ = model.apply(
        variables, layout.tokens, layout.positions, sees(layout.segments), method="hidden_states"
    )
    hidden_BTD = jnp.take_along_axis(hidden_BLD, layout.sources[..., None], axis=1)
    logits_BTV: Any = model.apply(variables, hidden_BTD, method="head")
    chosen_BT = jnp.take_along_axis(logits_BTV, layout.targets[..., None], axis=-1)[..., 0]
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


def score_rows(
    model: Llama,
    params: Any,
    rows: Sequence[EncodedRow],
    batch_size: int,
    eos_id: int,
    advance: Callable[[float], None] = lambda tokens: None,
) -> list[OptionScores]:
    """Score every option of every row.

    Args:
        model: the plain model.
        params: its parameters, adapters merged.
        rows: to score; those without options have their answer scored.
        batch_size: rows at once.
        eos_id: the token that ends an answer.
        advance: called with the number of `row_length` tokens done.

    Returns:
        The scores, in the rows' order.
    """
    order = sorted(range(len(rows)), key=lambda i: row_length(rows[i]))
    scored = round_up(max(sum(map(len, choices(row))) + 1 for row in rows), 8)
    found: list[OptionScores | None] = [None] * len(rows)
    params = replicate(params)
    for start in range(0, len(rows), batch_size):
        indices = order[start : start + batch_size]
        batch = [rows[i] for i in indices]
        # Repeat the last row: every batch of one length has one shape.
        filled = batch + batch[-1:] * (batch_size - len(batch))
        length = round_up(max(map(row_length, batch)), _LENGTH_MULTIPLE)
        layout = lay_out(filled, length, scored, eos_id)
        values = np.asarray(_log_likelihoods(model, params, split_rows(layout)), np.float64)
        for place, i in enumerate(indices):
            found[i] = _gather(rows[i], values[place], layout.owners[place])
        advance(float(sum(map(row_length, batch))))
    return [scores for scores in found if scores is not None]


def _gather(row: EncodedRow, values: np.ndarray, owners: np.ndarray) -> OptionScores:
    options = len(choices(row))
    sums = tuple(float(values[owners == number].sum()) for number in range(options))
    end = float(values[owners == options].sum())
    return OptionScores(sums, -(sums[row.correct] + end), len(row.answer) + 1)


def pick(row: EncodedRow, scores: OptionScores) -> int:
    """Return the index of the likeliest option per byte of its text.

    Dividing by the length in bytes keeps a long option from being punished for its length (the
    "normalised accuracy" of EleutherAI's evaluation harness); unlike a count of tokens it does not
    depend on the tokenizer. The first of equals wins.
    """
    lengths = [max(1, len(text.encode())) for text in row.option_texts]
    return int(np.argmax([s / n for s, n in zip(scores.log_likelihoods, lengths, strict=True)]))
