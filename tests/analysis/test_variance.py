import numpy as np
import pytest

from dora_jax.analysis.variance import (
    bonett_price,
    by_task,
    floored_variance,
    mean,
    mean_by_seed,
    two_way_variance,
    variance_parts,
)

A = np.array([[1.0, 0.0], [3.0, 0.0]])
B = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 4.0]])


def test_rows_are_parted_by_task_in_the_order_of_the_first():
    table = np.array([[1, 2, 3], [4, 5, 6]])
    first, second = by_task(table, ["b", "a", "b"])
    assert first.tolist() == [[1, 3], [4, 6]]
    assert second.tolist() == [[2], [5]]
    (pooled,) = by_task(table, None)
    assert pooled.tolist() == table.tolist()


def test_every_table_counts_alike():
    assert mean_by_seed([A, B]).tolist() == [1.25, 1.75]  # (1/2 + 2) / 2 and (3/2 + 2) / 2
    assert mean([A, B]) == 1.5


def test_variance_by_hand():
    by_seed = 0.125 / 2  # var(1.25, 1.75) = 1/8
    a = 2 / 2 / 4  # var of the rows' means 2, 0 is 2; two tables: over 2^2
    b = 1 / 3 / 4  # var(2, 1, 3) = 1
    variance, freedom = two_way_variance([A, B])
    assert variance == pytest.approx(by_seed + a + b)
    assert freedom == pytest.approx(variance**2 / (by_seed**2 / 1 + a**2 / 1 + b**2 / 2))


def test_variance_of_one_seed_is_over_rows_alone():
    variance, freedom = two_way_variance([A[:1], B[:1]])
    a, b = 0.5 / 2 / 4, 1 / 3 / 4
    assert variance == pytest.approx(a + b)
    assert freedom == pytest.approx(variance**2 / (a**2 / 1 + b**2 / 2))


def test_what_each_table_adds_by_hand():
    # Means by seed: A 1/2 and 3/2, B 2 and 2, of all 1.25 and 1.75; only A moves with the seed.
    over_seeds = 0.25 / 2 / 2
    parts = variance_parts([A, B])
    assert parts == pytest.approx([over_seeds + 2 / 2 / 4, 1 / 3 / 4])
    assert parts.sum() == pytest.approx(two_way_variance([A, B])[0])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_parts_are_all_of_the_variance(seeds):
    random = np.random.default_rng(seeds)
    tables = [random.normal(n, n + 1, (seeds, 1 + 4 * n)) for n in range(4)]
    assert variance_parts(tables).sum() == pytest.approx(two_way_variance(tables)[0])


def test_rows_that_agree_are_not_believed_to_be_all():
    level = [np.full((3, 8), 0.5), np.full((3, 3), 2.0)]
    variance, freedom = floored_variance(level, odd_rows=2)
    assert variance == pytest.approx((2 / 100 + 2 / 25) / 4)
    assert freedom == 9
    assert floored_variance(level, odd_rows=1)[0] == pytest.approx(variance / 2)
    assert floored_variance([A, B], odd_rows=1) == two_way_variance([A, B])


def test_bonett_price_adds_a_win_of_each():
    # With +1 and -1: sum 3 of 5 rows, squares 5 + 2; and sum 0 of 4 rows, squares 2.
    centre, variance = bonett_price([np.array([[1.0, 2.0, 0.0]]), np.zeros((1, 2))])
    assert centre == pytest.approx(3 / 5 / 2)
    assert variance == pytest.approx(((7 / 5 - 9 / 25) / 5 + (2 / 4) / 4) / 4)
