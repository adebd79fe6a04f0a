"""A row as training sees it: the tokens that are fed, and which positions predict a label."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dora_jax.data.encode import EncodedRow
from dora_jax.data.examples import TrainOn
from dora_jax.data.vision import ImageFile


class TrainRow(NamedTuple):
    """One sequence to train on.

    Attributes:
        tokens: (N,) that are fed. The token that ends the row is predicted only.
        positions: (M,) of the tokens whose next one is a label, ascending.
        targets: (M,) those next ones.
        images: of the sequence, in the order of their tokens.
        source: (S,) what an encoder reads, `tokens` being its decoder's; empty for other models.
    """

    tokens: Int[np.ndarray, "n"]
    positions: Int[np.ndarray, "m"]
    targets: Int[np.ndarray, "m"]
    images: tuple[ImageFile, ...] = ()
    source: Int[np.ndarray, "s"] = np.zeros(0, np.int32)


def train_row(row: EncodedRow, eos_id: int, train_on: TrainOn = "answers") -> TrainRow:
    """Return what is trained on of a row.

    Args:
        row: an encoded example.
        eos_id: the token that ends an answer; learned, but where the answer was cut.
        train_on: `answers`, the earlier ones of a conversation too; or `all`, prompts included.
    """
    is_apart = row.start is not None
    before = (row.start,) if is_apart else row.prompt
    ids = np.array([*before, *row.answer, eos_id], np.int32)
    source = np.array(row.prompt if is_apart else (), np.int32)
    # The token at position p predicts the one after it.
    if train_on == "all":
        labelled = np.arange(1, len(ids))
    else:
        spans = [*row.earlier, (len(before), len(ids))]
        # The first token of all is predicted from nothing.
        labelled = np.concatenate([np.arange(max(1, a), b) for a, b in spans])
    if row.is_cut:
        labelled = labelled[:-1]
    positions = (labelled - 1).astype(np.int32)
    return TrainRow(ids[:-1], positions, ids[labelled], row.images, source)


def train_rows(
    rows: Sequence[EncodedRow], eos_id: int, train_on: TrainOn = "answers"
) -> list[TrainRow]:
    """Return what is trained on of each row."""
    return [train_row(row, eos_id, train_on) for row in rows]


def token_counts(rows: Sequence[TrainRow]) -> Int[np.ndarray, "rows"]:
    """Return the number of tokens that each row feeds; with an encoder, that it feeds there."""
    return np.array([len(row.source) or len(row.tokens) for row in rows], np.int64)


def image_counts(rows: Sequence[TrainRow]) -> Int[np.ndarray, "rows"]:
    """Return the number of images of each row."""
    return np.array([len(row.images) for row in rows], np.int64)


def label_counts(rows: Sequence[TrainRow]) -> Int[np.ndarray, "rows"]:
    """Return the number of labels of each row."""
    return np.array([len(row.targets) for row in rows], np.int64)
