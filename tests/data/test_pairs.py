"""Batches for encoder-decoders: sources padded on their own, answers behind the start token."""

import dataclasses

import numpy as np
import pytest

from dora_jax.data.encode import Target, digest_rows, encode_all
from dora_jax.data.examples import Example, Turn
from dora_jax.data.prompts import get_template
from dora_jax.data.train_rows import train_row
from dora_jax.data.ways import make_batches
from dora_jax.errors import DoraError
from dora_jax.training.config import DataConfig
from tests.checkpoint.tiny_model import tokenizer
from tests.data.rows import random_row

START, EOS = 7, 2


def pair(seed, source, answer, task=""):
    return dataclasses.replace(random_row(seed, source, [answer], task=task), start=START)


ROWS = [pair(seed, 3 + 5 * (seed % 4), 1 + seed % 3) for seed in range(9)]


class Framed:
    """The tiny tokenizer, as BART's: with a start and an end around a text."""

    start_ids, final_ids, end_ids, eos_id = [1], [2], (2,), 2
    encode = staticmethod(tokenizer().encode)
    encode_continuation = staticmethod(tokenizer().encode_continuation)


def encoded(examples, max_length=64, too_long="drop"):
    return encode_all(examples, get_template("none"), Framed(), max_length, too_long, start=START)


def batches(rows, size=3, seed=0, **how):
    return make_batches(rows, DataConfig(**how), size, seed, EOS)


def read_back(batch):
    """Return the (source, answer) of each row of a batch that is no filling."""
    found = []
    for n in range(len(batch.tokens)):
        labels = int(batch.label_weights[n].sum())
        if not labels:
            continue
        source = batch.source.tokens[n][batch.source.is_real[n]].tolist()
        targets = batch.label_targets[n, :labels].tolist()
        # Each token predicts the next one, from the start token on.
        assert batch.tokens[n, :labels].tolist() == [START, *targets[:-1]]
        assert batch.label_positions[n, :labels].tolist() == [*range(labels)]
        assert targets[-1] == EOS
        found.append((tuple(source), tuple(targets[:-1])))
    return found


def test_texts_are_whole_and_apart():
    (row,) = encoded([Example("hello?", "low")]).rows
    assert row.prompt == (1, *tokenizer().encode("hello?"), 2)
    assert row.answer == (1, *tokenizer().encode("low"))
    assert row.start == START
    trained = train_row(row, EOS)
    assert trained.source.tolist() == [*row.prompt]
    assert trained.tokens.tolist() == [START, *row.answer]
    assert trained.targets.tolist() == [*row.answer, EOS]


def test_options_are_whole_texts_too():
    (row,) = encoded([Example("hello?", "low", ("hello", "low"))]).rows
    assert row.options == tuple((1, *tokenizer().encode(text)) for text in ("hello", "low"))
    assert row.correct == 1


def test_source_and_answer_have_the_whole_length_each():
    example = Example("x" * 10, "y" * 10)  # 12 tokens to read, 11 and an end to write
    assert len(encoded([example], 12).rows) == 1
    assert encoded([example], 11).left_out == {"longer than data.max_length (11 tokens)": 1}
    (short,) = encoded([Example("x" * 10, "y" * 3)], 8, "truncate_left").rows
    assert short.prompt == (1, *tokenizer().encode("x" * 6), 2)
    (cut,) = encoded([Example("x" * 3, "y" * 10)], 8, "truncate_right").rows
    assert (len(cut.answer), cut.is_cut) == (7, True)
    # From the left, an answer that is too long stays so.
    assert not encoded([Example("x" * 3, "y" * 10)], 8, "truncate_left").rows
    (source,) = encoded([Example("x" * 10, "y" * 3)], 8, "truncate_right").rows
    assert source.prompt == (1, *tokenizer().encode("x" * 6), 2)
    assert not source.is_cut
    (both,) = encoded([Example("x" * 10, "y" * 10)], 8, "truncate_right").rows
    assert (len(both.prompt), len(both.answer), both.is_cut) == (8, 7, True)
    # What is scored has its whole answer.
    scored = encoded([Example("x" * 10, "y" * n) for n in (3, 10)], 8, "truncate_source").rows
    assert [row.text for row in scored] == ["yyy"]


@pytest.mark.parametrize(
    ("example", "what"),
    [
        (Example("b", "c", turns=(Turn("user", "a"), Turn("user", "b"))), "a conversation"),
        (Example("", "c", is_text=True), "plain text"),
    ],
)
def test_what_has_no_source_is_refused(example, what):
    with pytest.raises(DoraError, match=f"row 2: is {what}.*one answer to one text"):
        encoded([Example("a", "b"), example])


def test_every_row_comes_once_an_epoch_with_its_own_source():
    made = batches(ROWS)
    found = [pair for step in range(3) for pair in read_back(made.batch(step))]
    assert sorted(found) == sorted((row.prompt, row.answer) for row in ROWS)
    assert made.batch(0).source.tokens.shape == (3, 24)
    assert made.places_an_epoch == 9


def test_buckets_are_of_like_sources():
    made = batches(ROWS, 2, packing="bucket", buckets=3)
    shapes = {made.batch(step).source.tokens.shape for step in range(5)}
    assert len(shapes) == 3
    found = [pair for step in range(5) for pair in read_back(made.batch(step))]
    assert sorted(found) == sorted((row.prompt, row.answer) for row in ROWS)


def test_what_fills_the_last_batch_has_no_label_and_something_to_look_at():
    made = batches(ROWS, 4)
    sizes = [len(read_back(made.batch(step))) for step in range(3)]
    assert sorted(sizes) == [1, 4, 4]
    (last,) = [made.batch(n) for n in range(3) if sizes[n] == 1]
    assert last.source.is_real.any(axis=1).all()


def test_a_cut_answer_does_not_learn_to_end():
    row = dataclasses.replace(ROWS[0], answer=(11, 12, 13), is_cut=True)
    batch = batches([row], 1).batch(0)
    labels = int(batch.label_weights.sum())
    assert batch.label_targets[0, :labels].tolist() == [11, 12, 13]
    assert batch.tokens[0, :labels].tolist() == [START, 11, 12]


def test_each_task_has_batches_of_its_own():
    rows = [pair(n, 4, 2, "ab"[n % 3 == 0]) for n in range(12)]
    made = batches(rows, 2)
    task_of = {row.prompt: row.task for row in rows}
    seen = []
    for step in range(6):
        tasks = {task_of[source] for source, _ in read_back(made.batch(step))}
        assert len(tasks) == 1
        seen += tasks
    assert sorted(seen) == ["a", "a", "a", "a", "b", "b"]


def test_batches_are_a_function_of_seed_and_step():
    first, again, other = (batches(ROWS, seed=seed).batch(4) for seed in (0, 0, 1))
    assert read_back(first) == read_back(again) != read_back(other)


def test_rows_are_named_by_what_is_read():
    apart = encoded([Example("hello?", "low")]).rows
    assert digest_rows(apart) != digest_rows(encoded([Example("hello!", "low")]).rows)


def soft(seed, *weights):
    """Return a row whose answers are of 1, 2, ... tokens, each with its weight."""
    targets = tuple(
        Target((10 * seed + 11,) * (n + 1), f"answer {n}", weight)
        for n, weight in enumerate(weights)
    )
    return dataclasses.replace(pair(seed, 4, 1), targets=targets, answer=targets[0].ids)


def lengths_drawn(rows, epochs):
    """Return how long the answer of each row is in each epoch (epochs, rows)."""
    made = batches(rows, len(rows))
    number = {row.prompt: n for n, row in enumerate(rows)}
    found = np.zeros((epochs, len(rows)), int)
    for epoch in range(epochs):
        for source, answer in read_back(made.batch(epoch)):
            found[epoch, number[source]] = len(answer)
    return found


def test_of_several_targets_one_is_drawn_each_epoch_by_its_weight():
    """Soft scores of VQA do not sum to 1: what counts is their proportion."""
    drawn = lengths_drawn([soft(1, 0.9, 0.3), soft(2, 0.3, 0.6, 0.6), soft(3, 1.0)], 400)
    shares = [[float(np.mean(own == n)) for n in (1, 2, 3)] for own in drawn.T]
    # Four deviations of 400 draws are at most 0.1.
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0.2, 0.4, 0.4], [1, 0, 0]], atol=0.1)


def test_each_epoch_and_each_row_draws_for_itself():
    drawn = lengths_drawn([soft(seed, 0.5, 0.5) for seed in range(8)], 8)
    for each in (drawn, drawn.T):
        assert len({tuple(own) for own in each}) == 8
    np.testing.assert_array_equal(
        drawn[:3], lengths_drawn([soft(s, 0.5, 0.5) for s in range(8)], 3)
    )
