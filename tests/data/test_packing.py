import functools
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_jax.data.batches import Share, ShuffledBatches
from dora_jax.data.buckets import BucketedBatches, bucket_lengths
from dora_jax.data.encode import EncodedRow
from dora_jax.data.packing import PackedBatches, first_fit, image_room, label_room
from dora_jax.data.train_rows import train_row
from dora_jax.errors import DoraError
from dora_jax.models.attention import PADDING
from dora_jax.partition import partition, trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from dora_jax.training.step import labelled_loss
from tests.data.rows import random_row
from tests.tiny import adapted_params

EOS = 2
WAYS = {
    "none": ShuffledBatches,
    "pack": lambda rows, *how, **more: PackedBatches(rows, 48, *how, **more),
    "bucket": lambda rows, *how, **more: BucketedBatches(rows, 3, *how, **more),
}


@functools.cache
def some_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        random_row(1000 * seed + n, int(rng.integers(1, 30)), [int(rng.integers(1, 9))])
        for n in range(count)
    )


def sequences(batch):
    """Return the (tokens, labels by position) of each sequence in a batch, read from its arrays."""
    found = []
    batch = jax.tree.map(np.asarray, batch)
    for i, tokens in enumerate(batch.tokens):
        used = batch.label_weights[i] > 0
        labels = dict(
            zip(batch.label_positions[i][used], batch.label_targets[i][used], strict=True)
        )
        if batch.segments is None:
            last = max(labels, default=-1) + 1  # answers end rows
            found += [(tuple(tokens[:last]), labels)] if labels else []
            continue
        for segment in range(1, batch.segments[i].max() + 1):
            (at,) = np.nonzero(batch.segments[i] == segment)
            assert (at == np.arange(at[0], at[0] + len(at))).all()
            assert (batch.positions[i][at] == np.arange(len(at))).all()
            own = {p - at[0]: t for p, t in labels.items() if p in at}
            found.append((tuple(tokens[at]), own))
        assert sum(batch.segments[i][p] > 0 for p in labels) == len(labels)
        rest = batch.segments[i] < 1
        assert (batch.segments[i][rest] == PADDING).all()
        assert (tokens[rest] == EOS).all()
    return [(tokens, tuple(sorted(labels.items()))) for tokens, labels in found]


def expected(rows):
    made = [train_row(row, EOS) for row in rows]
    return Counter((tuple(r.tokens), tuple(zip(r.positions, r.targets, strict=True))) for r in made)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 3))
def test_packed_rows_hold_every_row_once_an_epoch(count, batch_size, seed):
    rows = some_rows(count)
    batches = PackedBatches(rows, 48, batch_size, seed, EOS)
    plans = [len(batches.plan(epoch)) for epoch in range(3)]
    steps = -(-sum(plans) // batch_size)
    bins = [
        sequences(jax.tree.map(lambda x, i=i: x[i : i + 1], batches.batch(step)))
        for step in range(steps)
        for i in range(batch_size)
    ]
    start = 0
    for plan in plans:
        own = [sequence for one in bins[start : start + plan] for sequence in one]
        assert Counter(own) == expected(rows)
        start += plan


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 3), st.integers(1, 5))
def test_buckets_hold_every_row_once_an_epoch(count, batch_size, seed, buckets):
    rows = some_rows(count)
    batches = BucketedBatches(rows, buckets, batch_size, seed, EOS)
    for epoch in range(2):
        first = epoch * batches.steps_an_epoch
        made = [batches.batch(first + n) for n in range(batches.steps_an_epoch)]
        assert Counter(s for batch in made for s in sequences(batch)) == expected(rows)
        # Few shapes; none but the last batch has an empty row.
        assert {b.tokens.shape[1] for b in made} <= set(batches.lengths)
        assert len(batches.lengths) <= buckets
        assert sum((b.label_weights.sum(axis=1) == 0).sum() for b in made) == -count % batch_size


def test_packed_rows_have_room_for_labels_over_their_mean_and_no_more():
    tokens, labels = np.full(50, 10), np.full(50, 2)
    assert label_room(tokens, labels, 100) == 32  # a quarter over 20, by eights
    tokens[7], labels[7] = 62, 61  # every row must fit
    assert label_room(tokens, labels, 100) == 64
    assert label_room(tokens, tokens, 100) == 100
    assert label_room(np.array([90]), np.array([80]), 90) == 90


def test_packed_rows_have_room_for_their_mean_number_of_images_or_the_most_of_one():
    tokens = np.full(4, 10)
    assert image_room(tokens, np.array([1, 1, 1, 0]), 30) == 3  # 2.25, rounded up
    assert image_room(tokens, np.array([0, 0, 5, 0]), 30) == 5  # every row must fit


def test_a_small_set_is_packed_into_rows_no_wider_than_all_of_it():
    rows = [random_row(n, 6, [1]) for n in range(3)]
    batches = PackedBatches(rows, 48, 2, 0, EOS)
    assert batches.batch(0).tokens.shape == (2, 24)
    assert batches.efficiency == 21 / 24
    assert PackedBatches(rows, 16, 2, 0, EOS).batch(0).tokens.shape == (2, 16)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), min_size=1, max_size=60),
    st.integers(1, 70),
)
def test_first_fit_takes_the_first_bin_with_room(sizes, window):
    found = first_fit(np.array(sizes), (20, 9), window)
    bins = []
    closed = 0
    for number, (size, labels) in enumerate(sizes):
        if number % window == 0:
            closed = len(bins)
        fits = [
            n
            for n, items in enumerate(bins)
            if n >= closed
            and sum(sizes[i][0] for i in items) + size <= 20
            and sum(sizes[i][1] for i in items) + labels <= 9
        ]
        if fits:
            bins[fits[0]].append(number)
        else:
            bins.append([number])
    assert found == bins


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 3))
def test_bucket_lengths_waste_the_least(counts, buckets):
    import itertools

    def slots(lengths):
        return sum(min(n for n in lengths if n >= count) for count in counts)

    found = bucket_lengths(np.array(counts), buckets)
    assert len(found) <= buckets
    options = sorted({-(-n // 8) * 8 for n in counts})
    best = min(
        slots([*some, options[-1]])
        for size in range(buckets)
        for some in itertools.combinations(options, size)
    )
    assert slots(found) == best


def test_buckets_that_fit_exactly_pad_nothing_and_come_in_another_order_each_epoch():
    rows = [random_row(n, 8 * (1 + n % 3) - 2, [2]) for n in range(36)]
    batches = BucketedBatches(rows, 3, 4, 0, EOS)
    assert batches.lengths == (8, 16, 24)
    assert batches.efficiency == 1
    widths = [batches.batch(step).tokens.shape[1] for step in range(18)]
    assert Counter(widths[:9]) == Counter(widths[9:]) == {8: 3, 16: 3, 24: 3}
    assert widths[:9] != widths[9:]
    assert widths[:9] != sorted(widths[:9])
    assert widths[9:] != sorted(widths[9:])


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("way", WAYS)
def test_shares_of_processes_are_the_batch_of_one(way, processes):
    rows = some_rows(23)
    whole = WAYS[way](rows, 12, 1, EOS)
    parts = [WAYS[way](rows, 12, 1, EOS, share=Share(n, processes)) for n in range(processes)]
    for step in (0, 3, 11, 2):
        batch = whole.batch(step)
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(p.batch(step) for p in parts))
        assert all(np.array_equal(a, b) for a, b in zip(batch, joined, strict=True))
        assert all(part.row_ids(step) == whole.row_ids(step) for part in parts)
    with pytest.raises(DoraError, match=r"\(7\) must be a multiple of the number of processes"):
        WAYS[way](rows, 7, 1, EOS, share=Share(0, 3))


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_tells_where_its_rows_come_from(way):
    rows = [replace(row, where=f"a.jsonl, line {2 * n}") for n, row in enumerate(some_rows(17))]
    batches = WAYS[way](rows, 4, 1, EOS)
    held = {row.where: next(iter(expected([row]))) for row in rows}
    for step in (0, 3, 4, 9):
        found = sequences(batches.batch(step))
        assert [held[name] for name in batches.row_ids(step)] == found
    # Rows of no file are told by their number.
    unknown = WAYS[way](some_rows(17), 4, 1, EOS)
    numbers = [rows.index(row) + 1 for row in rows if row.where in batches.row_ids(3)]
    assert sorted(unknown.row_ids(3)) == sorted(f"row {n} to train on" for n in numbers)


@pytest.mark.parametrize("way", WAYS)
def test_any_step_can_be_asked_for_alone(way):
    rows = some_rows(17)
    in_order = WAYS[way](rows, 4, 1, EOS)
    made = [in_order.batch(step) for step in range(25)]
    for step in (24, 0, 13, 7):
        alone = WAYS[way](rows, 4, 1, EOS).batch(step)
        assert all(np.array_equal(a, b) for a, b in zip(made[step], alone, strict=True))
    other = WAYS[way](rows, 4, 2, EOS)
    later = [other.batch(step) for step in range(4)]
    pairs = zip(made, later, strict=False)
    assert any(not np.array_equal(a.tokens, b.tokens) for a, b in pairs)


@pytest.mark.parametrize("way", WAYS)
def test_efficiency_counts_tokens_and_slots(way):
    rows = some_rows(24)
    batches = WAYS[way](rows, 1, 0, EOS)
    if way == "pack":
        made = [batches.batch(n) for n in range(len(batches.plan(0)))]
    else:
        made = [batches.batch(n) for n in range(24)]
    tokens = sum(len(r.prompt) + len(r.answer) for r in rows)
    slots = [batch.tokens.size for batch in made]
    assert batches.efficiency == pytest.approx(tokens / sum(slots))
    assert batches.slots == pytest.approx(np.mean(slots))


@functools.cache
def tuned_model():
    """Return a compiled (batch) -> (loss, gradient) of DoRA."""
    rules = AdapterRules.preset("paper", AdapterSpec(rank=2))
    model, params = adapted_params(rules)
    trainable, frozen = partition(params, trainable_mask(params, rules))
    # Away from the start, where the gradient of one factor is zero.
    leaves, structure = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    trainable = jax.tree.unflatten(structure, moved)
    loss = jax.jit(jax.value_and_grad(lambda t, batch: labelled_loss(model, t, frozen, batch)))
    return functools.partial(loss, trainable)


def loss_and_gradient(batch):
    return tuned_model()(batch)


def assert_equal(found, expected):
    """Compare losses and gradients in float32: sums of the same terms in another order."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    pairs = zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True)
    for a, b in pairs:
        assert float(np.abs(b).max()) > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


def test_the_loss_and_gradient_of_packed_rows_are_those_of_rows_alone():
    rows = some_rows(9)
    packed = PackedBatches(rows, 48, 1, 0, EOS)
    bins = len(packed.plan(0))
    assert bins < 7  # several rows do share one
    together = PackedBatches(rows, 48, bins, 0, EOS).batch(0)
    alone = ShuffledBatches(rows, 9, 0, EOS).batch(0)
    expected_loss, expected_gradient = loss_and_gradient(alone)
    assert_equal(loss_and_gradient(together), (expected_loss, expected_gradient))
    # Without the segments the rows would see each other: the test can tell.
    leaky = together._replace(segments=np.minimum(together.segments, 1))
    assert abs(float(loss_and_gradient(leaky)[0]) - float(expected_loss)) > 1e-3


def test_the_loss_and_gradient_of_buckets_are_those_of_rows_alone():
    rows = some_rows(9)
    batches = BucketedBatches(rows, 2, 2, 0, EOS)
    made = [loss_and_gradient(batches.batch(step)) for step in range(5)]
    total = jax.tree.map(lambda *parts: sum(parts), *made)
    assert_equal(total, loss_and_gradient(ShuffledBatches(rows, 9, 0, EOS).batch(0)))


def test_labels_of_conversations_of_all_and_of_cut_answers():
    row = EncodedRow((5, 6, 7, 8), (9, 10), (), 0, "", (), "", earlier=((1, 3),))
    found = train_row(row, EOS)
    assert [*found.tokens] == [5, 6, 7, 8, 9, 10]
    assert [*found.positions] == [0, 1, 3, 4, 5]
    assert [*found.targets] == [6, 7, 9, 10, EOS]
    assert [*train_row(row, EOS, "all").targets] == [6, 7, 8, 9, 10, EOS]
    cut = EncodedRow((5, 6), (9, 10), (), 0, "", (), "", is_cut=True)
    assert [*train_row(cut, EOS).targets] == [9, 10]
    assert [*train_row(cut, EOS, "all").targets] == [6, 9, 10]
    begins = EncodedRow((5, 6), (9,), (), 0, "", (), "", earlier=((0, 1),))
    assert [*train_row(begins, EOS).targets] == [9, EOS]  # the first is predicted from nothing
