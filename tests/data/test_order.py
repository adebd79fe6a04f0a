from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dora_jax.data.order import MixedOrder, Recent, ShuffledOrder, shares


def test_the_order_is_that_of_before():
    # Runs of before data.mix repeat to the row.
    expected = np.random.default_rng((3, 2)).permutation(10)
    assert (ShuffledOrder(10, 3).epoch(2) == expected).all()


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), st.integers(0, 1000))
def test_shares_add_up_and_are_within_one_of_the_weights(weights, count):
    found = shares(weights, count)
    assert sum(found) == count
    exact = np.array(weights) / sum(weights) * count
    assert (np.abs(exact - found) < 1 + 1e-9).all()


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 5),
    st.data(),
)
def test_a_mixture_holds_its_weights_and_goes_through_each_source_in_turn(sizes, seed, data):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    sources = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = MixedOrder(list(sources), weights, seed)
    epochs = [order.epoch(n) for n in range(4)]
    for epoch in epochs:
        drawn = np.bincount(sources[epoch], minlength=len(sizes))
        assert tuple(drawn) == order.shares
    drawn = Counter(int(i) for epoch in epochs for i in epoch)
    for source in range(len(sizes)):
        # None comes a second time before all came once.
        times = [drawn[i] for i in np.flatnonzero(sources == source)]
        assert max(times) - min(times) <= 1
    assert all((a == b).all() for a, b in zip(epochs, map(order.epoch, range(4)), strict=True))


def test_the_largest_remainders_are_rounded_up():
    assert shares([7, 3], 1) == (1, 0)
    assert shares([1, 2, 4], 10) == (1, 3, 6)  # of 1.43, 2.86 and 5.71
    assert shares([1, 1], 3) == (2, 1)


def test_a_mixture_is_a_stream_of_each_source_that_the_epochs_cut_and_shuffle():
    sources, seed = [0, 1, 0, 0, 1, 0, 1, 1, 0], 4
    order = MixedOrder(sources, [1, 2], seed)
    assert order.shares == (3, 6)
    streams = []
    for source in (0, 1):
        rows = [n for n, s in enumerate(sources) if s == source]
        rounds = [np.random.default_rng((seed, source, n)).permutation(len(rows)) for n in range(9)]
        streams.append([rows[i] for one in rounds for i in one])
    for epoch in range(4):
        drawn = streams[0][3 * epoch : 3 * epoch + 3] + streams[1][6 * epoch : 6 * epoch + 6]
        shuffled = np.random.default_rng((seed, epoch)).permutation(9)
        assert [*order.epoch(epoch)] == [drawn[i] for i in shuffled]


def test_what_two_epochs_gave_is_kept():
    made = []
    recent = Recent(lambda epoch: made.append(epoch) or 10 * epoch)
    assert [recent(n) for n in (0, 1, 0, 1, 2, 1, 2)] == [0, 10, 0, 10, 20, 10, 20]
    assert made == [0, 1, 2]


def test_another_seed_or_epoch_is_another_order():
    sources = [0] * 20 + [1] * 20
    order = MixedOrder(sources, [3, 1], 0)
    assert (order.epoch(0) != order.epoch(1)).any()
    assert (order.epoch(0) != MixedOrder(sources, [3, 1], 1).epoch(0)).any()
