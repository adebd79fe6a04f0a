import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from dora_jax.analysis.statistics import (
    accuracy_interval,
    bootstrap_interval,
    cohens_h,
    compare_paired,
    difference_interval,
    holm,
    mcnemar_exact,
    score_interval,
    seed_test,
    sign_flip_p_value,
)


def paired(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """One seed with the given counts of agreement and disagreement."""
    a = [1] * both + [1] * first + [0] * second + [0] * neither
    b = [1] * both + [0] * first + [1] * second + [0] * neither
    return np.array([a]), np.array([b])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # 2 * sum(C(12, k), k <= 2) / 2^12 = 2 * (1 + 12 + 66) / 4096
        (10, 2, 158 / 4096),
        (2, 10, 158 / 4096),
        (5, 0, 2 / 32),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_exact_by_hand(first, second, expected):
    assert mcnemar_exact(first, second) == pytest.approx(expected, abs=1e-12)


def test_wilson_interval_by_hand():
    # Wilson for 81 of 263 (Newcombe 1998, table I): 0.2553 to 0.3662.
    interval = accuracy_interval(np.array([[1] * 81 + [0] * 182]))
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    assert "Wilson" in interval.method


def test_wilson_does_not_vanish_at_the_ends():
    z2 = stats.norm.ppf(0.975) ** 2
    interval = accuracy_interval(np.zeros((1, 20), int))
    assert interval.low == pytest.approx(0, abs=1e-12)
    assert interval.high == pytest.approx(z2 / (20 + z2))


def test_accuracy_of_identical_seeds_is_no_surer_than_one():
    row = np.array([[1] * 30 + [0] * 20])
    one, three = accuracy_interval(row), accuracy_interval(np.repeat(row, 3, axis=0))
    # Nothing new was seen, so that the width stays; t for z and N - 1 for N widen it a little.
    assert one.high - one.low <= three.high - three.low < 1.06 * (one.high - one.low)


def test_accuracy_interval_grows_with_the_spread_of_seeds():
    def table(*counts: int) -> np.ndarray:
        return np.array([[1] * count + [0] * (100 - count) for count in counts])

    together, apart = accuracy_interval(table(60, 60, 60)), accuracy_interval(table(45, 60, 75))
    assert apart.high - apart.low > 1.5 * (together.high - together.low)
    assert 0.6 in apart
    assert "3 seeds" in apart.method


@pytest.mark.parametrize("value", [0, 1])
def test_accuracy_of_unanimous_seeds_is_finite_and_not_certain(value):
    interval = accuracy_interval(np.full((3, 30), value))
    assert value in interval
    assert 0.05 < interval.high - interval.low < 0.2


def test_bonett_price_by_hand():
    # n = 100, b = 15, c = 5: p12 = 16/102, p21 = 6/102, d = 10/102.
    first, second = paired(50, 15, 5, 30)
    interval = compare_paired(first, second).interval
    d = 10 / 102
    half = 1.959964 * math.sqrt((22 / 102 - d**2) / 102)
    assert interval.low == pytest.approx(d - half, abs=1e-6)
    assert interval.high == pytest.approx(d + half, abs=1e-6)


def test_one_seed_comparison_counts_the_right_cells():
    comparison = compare_paired(*paired(50, 10, 2, 38))
    assert (comparison.first_only, comparison.second_only) == (10, 2)
    assert comparison.difference == pytest.approx(0.08)
    assert comparison.first_accuracy == pytest.approx(0.60)
    assert comparison.second_accuracy == pytest.approx(0.52)
    assert comparison.p_value == pytest.approx(0.0386, abs=5e-5)
    assert comparison.test == "exact McNemar test"
    assert comparison.effect_size == pytest.approx(cohens_h(0.60, 0.52))
    assert comparison.by_seed.interval is None
    assert comparison.by_seed.sign_flip_p_value is None


def test_methods_that_agree_everywhere_are_not_proved_equal():
    for seeds in (1, 3):
        row = np.repeat([[1] * 20 + [0] * 20], seeds, axis=0)
        comparison = compare_paired(row, row)
        assert comparison.p_value == 1.0
        assert comparison.interval.low == pytest.approx(-comparison.interval.high)
        assert comparison.interval.high > 0.05


def test_two_way_interval_by_hand():
    # Differences: seed means 1/2 and 0, row means 1/2, 1/2, 1/2, -1/2.
    first = np.array([[1, 1, 1, 0], [0, 0, 0, 0]])
    second = np.array([[0, 0, 0, 1], [0, 0, 0, 0]])
    by_seed = 0.125 / 2  # var(1/2, 0) = 1/8
    by_row = 0.25 / 4  # var(1/2, 1/2, 1/2, -1/2) = 1/4
    variance = by_seed + by_row
    freedom = variance**2 / (by_seed**2 / 1 + by_row**2 / 3)
    comparison = compare_paired(first, second)
    # The floor for four rows is 2 / 36, below the variance: it must not act here.
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert comparison.interval.low == pytest.approx(max(-1, 0.25 - half))
    assert comparison.interval.high == pytest.approx(min(1, 0.25 + half))
    t = 0.25 / math.sqrt(variance)
    assert comparison.p_value == pytest.approx(2 * stats.t.sf(t, freedom))
    assert comparison.test == "t test over rows and seeds"


def test_seed_test_is_the_paired_t_test():
    differences = np.array([0.02, 0.05, -0.01, 0.04])
    test = seed_test(differences)
    reference = stats.ttest_1samp(differences, 0)
    bounds = reference.confidence_interval(0.95)
    assert test.t_p_value == pytest.approx(reference.pvalue)
    assert test.interval is not None
    assert (test.interval.low, test.interval.high) == pytest.approx((bounds.low, bounds.high))


def test_equal_differences_in_every_seed_give_no_t_test():
    test = seed_test(np.array([0.5, 0.5, 0.5]))
    assert test.interval is None
    assert test.t_p_value is None
    assert test.sign_flip_p_value == 0.25


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # only +++ and --- reach 6
        ([1.0, 2.0, -3.0], 1.0),  # the observed sum is 0
        ([0.1, 0.1, 0.1, -0.1], 10 / 16),  # |sum| >= 0.2: all but the six balanced patterns
        ([1.0] * 6, 2 / 64),
        ([1.0] * 17, None),
    ],
)
def test_sign_flips_by_hand(differences, expected):
    assert sign_flip_p_value(np.array(differences)) == expected


def test_bootstrap_is_seeded_and_near_the_exact_interval():
    first, second = paired(150, 40, 20, 90)
    table = (first - second).astype(float)
    interval = bootstrap_interval(table)
    assert bootstrap_interval(table) == interval
    assert bootstrap_interval(table, seed=1) != interval
    # n = 300, b = 40, c = 20: se = sqrt((60/300 - (20/300)^2) / 300) = 0.02553
    assert interval.low == pytest.approx(0.0667 - 1.96 * 0.02553, abs=0.006)
    assert interval.high == pytest.approx(0.0667 + 1.96 * 0.02553, abs=0.006)


def test_bootstrap_resamples_seeds_too():
    table = np.array([[1.0] * 50, [0.0] * 50, [-1.0] * 50])  # rows never differ, seeds do
    interval = bootstrap_interval(table)
    # All three draws are the first seed in 1 of 27 resamples, more than 2.5 %.
    assert (interval.low, interval.high) == (-1.0, 1.0)


def test_cohens_h_by_hand():
    assert cohens_h(1.0, 0.0) == pytest.approx(math.pi)
    assert cohens_h(0.5, 0.25) == pytest.approx(math.pi / 2 - math.pi / 3)


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        ([0.01, 0.04, 0.03], (0.03, 0.06, 0.06)),
        ([0.04, 0.01], (0.04, 0.02)),
        ([0.5, 0.6, 0.9], (1.0, 1.0, 1.0)),
        ([0.2], (0.2,)),
        ([], ()),
    ],
)
def test_holm_by_hand(given_values, expected):
    assert holm(given_values) == pytest.approx(expected)


@given(
    hnp.arrays(
        np.int64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(0, 1)
    ),
    st.integers(0, 2**16),
)
def test_exchanging_the_methods_changes_the_sign_alone(first, seed):
    second = np.random.default_rng(seed).integers(0, 2, first.shape)
    there, back = compare_paired(first, second), compare_paired(second, first)
    assert back.difference == pytest.approx(-there.difference)
    assert back.p_value == pytest.approx(there.p_value)
    assert back.interval.low == pytest.approx(-there.interval.high)
    assert back.interval.high == pytest.approx(-there.interval.low)
    assert back.bootstrap.low == pytest.approx(-there.bootstrap.high)
    assert back.effect_size == pytest.approx(-there.effect_size)
    assert (back.first_only, back.second_only) == (there.second_only, there.first_only)
    assert back.by_seed.sign_flip_p_value == there.by_seed.sign_flip_p_value
    assert 0 <= there.p_value <= 1
    assert -1 <= there.interval.low <= there.difference + 0.5
    assert there.interval.low <= there.interval.high <= 1


def test_two_way_interval_covers_where_the_bootstrap_does_not():
    """Crossed random effects of seed, row and both; true difference zero; three seeds."""
    random = np.random.default_rng(0)
    seeds, rows, tables = 3, 200, 250
    two_way = bootstrap = 0
    for _ in range(tables):
        hard = random.normal(0.5, 1.5, rows)
        scores = [
            hard + random.normal(0, 0.3, (seeds, 1)) + random.normal(0, 0.7, (seeds, rows)) > 0
            for _ in range(2)
        ]
        table = scores[0].astype(float) - scores[1].astype(float)
        two_way += 0 in difference_interval(table)
        bootstrap += 0 in bootstrap_interval(table, resamples=256)
    assert two_way / tables > 0.9
    assert bootstrap / tables < two_way / tables


def test_score_interval_by_hand():
    # Means 1/2 and 2; variances of the means (1/2) / 2 and 1 / 3, each over 2^2 tasks.
    interval = score_interval(np.array([[0, 1, 3, 1, 2]]), ["a", "a", "b", "b", "b"])
    a, b = 1 / 16, 1 / 12
    half = stats.t.ppf(0.975, (a + b) ** 2 / (a**2 / 1 + b**2 / 2)) * math.sqrt(a + b)
    assert (interval.low, interval.high) == pytest.approx((max(0, 1.25 - half), 1.25 + half))
    assert interval.method == "t with variance over rows within tasks"


@pytest.mark.parametrize("seeds", [1, 3])
def test_scores_that_are_all_nothing_are_not_certain(seeds):
    interval = score_interval(np.zeros((seeds, 60)), ["a"] * 30 + ["b"] * 30)
    assert interval.low == 0
    assert 0.01 < interval.high < 0.1


def test_a_task_of_few_rows_counts_as_much_as_one_of_many():
    tasks = ["many"] * 90 + ["few"] * 10
    first, second = np.zeros((1, 100)), np.zeros((1, 100))
    first[0, 90:] = 0.5
    comparison = compare_paired(first, second, tasks)
    assert comparison.difference == pytest.approx(0.25)
    assert comparison.first_accuracy == pytest.approx(0.25)
    assert comparison.effect_size is None
    assert (comparison.first_only, comparison.second_only) == (10, 0)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_one_task_of_right_and_wrong_is_as_pooled_rows(seeds):
    random = np.random.default_rng(seeds)
    first, second = random.integers(0, 2, (2, seeds, 50))
    pooled, tasks = compare_paired(first, second), compare_paired(first, second, ["a"] * 50)
    assert tasks.difference == pooled.difference
    assert tasks.bootstrap.low == pooled.bootstrap.low
    assert (tasks.interval.low, tasks.interval.high) == (pooled.interval.low, pooled.interval.high)
    assert tasks.by_seed == pooled.by_seed
    if seeds > 1:
        assert tasks.p_value == pooled.p_value


def test_the_order_of_rows_does_not_matter_to_scores():
    random = np.random.default_rng(0)
    first, second = random.exponential(1, (2, 3, 40))
    tasks = ["a"] * 25 + ["b"] * 15
    order = random.permutation(40)
    there = compare_paired(first, second, tasks)
    shuffled = [tasks[i] for i in order]
    back = compare_paired(first[:, order], second[:, order], shuffled)
    assert back.difference == pytest.approx(there.difference)
    assert back.interval.low == pytest.approx(there.interval.low)
    assert back.p_value == pytest.approx(there.p_value)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_test_of_scores_agrees_with_their_interval(seeds):
    random = np.random.default_rng(5)
    tasks = ["a"] * 30 + ["b"] * 30
    shown = 0
    for gain in (0.0, 0.2, 0.4, 0.8):
        first, second = random.exponential(1, (2, seeds, 60))
        comparison = compare_paired(first + gain, second, tasks)
        assert (comparison.p_value < 0.05) == (0 not in comparison.interval)
        shown += comparison.p_value < 0.05
    assert 0 < shown < 4


def test_the_bootstrap_draws_rows_within_tasks():
    # No row differs within its task: whatever is drawn, the mean is that of 1 and 3.
    table = np.array([[1.0] * 20 + [3.0] * 5])
    interval = bootstrap_interval(table, ["a"] * 20 + ["b"] * 5)
    assert (interval.low, interval.high) == pytest.approx((2.0, 2.0))
    assert interval.method == "paired bootstrap over rows within tasks"


SIZES = {"soft": 80, "binary": 60, "binary again": 40, "long": 50}
MARKS = {
    "soft": lambda x: np.clip(0.3 * np.round(1.67 * (x + 1)), 0, 1),
    "binary": lambda x: (x > 0).astype(float),
    "binary again": lambda x: (x > 0).astype(float),
    "long": lambda x: np.minimum(np.exp(x - 0.5), 10.0),
}


def simulated(random, hard, seeds, shift, by_seed):
    """Marks of one method: random effects of row (`hard`), of seed and of both."""
    luck = random.normal(0, by_seed, (seeds, 1))
    return np.concatenate(
        [
            MARKS[task](x + shift + luck + random.normal(0, 0.6, (seeds, len(x))))
            for task, x in hard.items()
        ],
        axis=1,
    )


@pytest.mark.parametrize(("seeds", "by_seed"), [(1, 0.0), (3, 0.25)])
def test_intervals_of_scores_cover(seeds, by_seed):
    """Four tasks, one of them of skewed marks above 1; one seed speaks of its own runs alone."""
    random = np.random.default_rng(seeds)
    tasks = [task for task, rows in SIZES.items() for _ in range(rows)]

    def rows(factor):
        return {task: random.normal(0.3, 1.2, factor * n) for task, n in SIZES.items()}

    def truth(shift):
        spread = math.hypot(by_seed, 0.6)
        return np.mean(
            [
                MARKS[task](x + shift + random.normal(0, spread, len(x))).mean()
                for task, x in rows(4000).items()
            ]
        )

    low, high = truth(0.0), truth(0.15)
    score = difference = 0
    tables = 300
    for _ in range(tables):
        hard = rows(1)
        first, second = (simulated(random, hard, seeds, shift, by_seed) for shift in (0.15, 0.0))
        score += low in score_interval(second, tasks)
        difference += high - low in difference_interval(first - second, tasks)
    assert 0.9 < score / tables < 0.99
    assert 0.9 < difference / tables < 0.99


@pytest.mark.parametrize(
    ("scores", "tasks", "words"),
    [
        ([[0.5, 1.0]], ["a"], "2 rows need as many tasks, got 1"),
        ([[0.5, -1.0]], ["a", "a"], "0 or above"),
        ([[0.5, math.nan]], ["a", "a"], "finite"),
        ([[0.5, 1.0]], None, "0 or 1"),
    ],
)
def test_bad_scores_are_refused(scores, tasks, words):
    with pytest.raises(ValueError, match=words):
        compare_paired(np.array(scores), np.array(scores), tasks)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([[1, 0]], [[1, 0, 1]], "same seeds and rows"),
        ([1, 0], [1, 0], "table of"),
        ([[]], [[]], "empty"),
        ([[2, 0]], [[1, 0]], "0 or 1"),
    ],
)
def test_bad_tables_are_refused(first, second, words):
    with pytest.raises(ValueError, match=words):
        compare_paired(np.array(first), np.array(second))
