"""Accuracies with intervals, and paired comparisons of two methods on the same rows and seeds.

Scores come as arrays of zeros and ones, `(seeds, rows)`: the same rows for every method, and one
line a seed, the same seeds in the same order. Nothing here knows which method is which: exchanging
two methods changes the sign of their difference and nothing else.

Several seeds. The question is about new seeds *and* new rows, and both are random, so the variance
of a mean over an S x N table is taken as

    var = var_over_seeds(mean over rows) / S + var_over_rows(mean over seeds) / N

with Student's t at the Welch-Satterthwaite degrees of freedom. It counts the residual twice, so it
errs on the wide side. On simulated tables (crossed random effects of seed, row and seed-by-row;
2 to 10 seeds, 100 and 500 rows; true difference zero) its 95 % interval held zero in 92.7 to 98.8 %
of cases from three seeds up (two seeds: 86 to 98 %), where the two-way bootstrap reached 80 to 99 %
and the paired t interval over seeds alone 56 to 96 %, since it takes the rows as given. Those two
are reported beside it, never decided by.

One seed. The exact McNemar test, and the interval of Bonett and Price (2012) for paired
proportions, which does not shrink to nothing when the two methods agree on every row. Both speak
about these two runs, not about the methods.

Tasks with metrics of their own. Given the task of every row, scores may be any numbers from 0 up, 1
being a full mark. The mean is then that over tasks, each counting alike, and rows are drawn anew
within each task (`variance` has the formulas). With one seed the test is the normal one that goes
with the interval. On simulated tables of four tasks (two of right and wrong, one of soft marks, one
of skewed marks far above 1; 40 to 80 rows each; crossed random effects) the 95 % intervals held the
true mean and the true difference in 92.8 to 95.7 % of cases with three and five seeds (two seeds:
87 to 93 %), and with one, of its own runs, in 94 to 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from dora_jax.analysis.variance import (
    Tables,
    bonett_price,
    by_task,
    floored_variance,
    mean,
    mean_by_seed,
    two_way_variance,
)

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
BOOTSTRAP_RESAMPLES = 4000
MAX_SIGN_FLIP_SEEDS = 16  # 65,536 sign patterns: the most that is enumerated

Scores = Int[np.ndarray, "seeds rows"] | Float[np.ndarray, "seeds rows"]
Differences = Float[np.ndarray, "seeds rows"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval and the words for how it was made."""

    low: float
    high: float
    method: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class SeedTest:
    """Paired by seed, the rows taken as given; None where there are too few or too many seeds.

    Attributes:
        differences: first minus second, one a seed.
        interval: paired t interval of their mean.
        t_p_value: of the paired t test, two-sided.
        sign_flip_p_value: of the exact permutation test that flips signs, two-sided. It cannot be
            below 2 / 2^seeds: six seeds are needed to reach 0.05.
    """

    differences: tuple[float, ...]
    interval: Interval | None
    t_p_value: float | None
    sign_flip_p_value: float | None


@dataclass(frozen=True)
class PairedComparison:
    """How far the first method is above the second, on the same rows and seeds.

    Attributes:
        seeds: seeds that both have.
        rows: rows that both were scored on.
        first_accuracy: of the first, over those seeds and rows.
        second_accuracy: of the second.
        difference: first_accuracy - second_accuracy; of accuracies -1 to 1.
        interval: 95 % interval of the difference, over rows and (with several) over seeds.
        p_value: two-sided, of `test`.
        test: the words for the test.
        effect_size: Cohen's h of the two accuracies; None for scores, which are no proportions.
        first_only: (seed, row) pairs that only the first got right, or where its score is higher.
        second_only: likewise of the second.
        bootstrap: percentile interval by resampling rows and seeds, as a check.
        by_seed: the comparison over seeds alone.
    """

    seeds: int
    rows: int
    first_accuracy: float
    second_accuracy: float
    difference: float
    interval: Interval
    p_value: float
    test: str
    effect_size: float | None
    first_only: int
    second_only: int
    bootstrap: Interval
    by_seed: SeedTest


def accuracy_interval(correct: Scores, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of an accuracy: Wilson's, over rows and (with several) over seeds.

    With several seeds Wilson's formula takes the effective number of rows n = p (1 - p) / var and
    Student's t, `var` being that of the module's docstring (the modified Wilson interval of survey
    statistics: Franco et al. 2019). It never leaves [0, 1].

    Args:
        correct: (seeds, rows) of 0 and 1.
        confidence: the level, 0 to 1.

    Raises:
        ValueError: when `correct` is not such a table.
    """
    correct = _checked(correct, None)
    seeds, rows = correct.shape
    share = float(correct.mean())
    if seeds == 1:
        exact = stats.binomtest(int(correct.sum()), rows).proportion_ci(confidence, method="wilson")
        return Interval(float(exact.low), float(exact.high), "Wilson, over rows")
    variance, freedom = two_way_variance(by_task(correct, None))
    effective = min(share * (1 - share) / variance, seeds * rows) if variance > 0 else float(rows)
    # A mean of 0 or 1 in every seed leaves no variance to estimate: the rows alone speak then.
    quantile = float(stats.t.ppf(0.5 + confidence / 2, freedom if variance > 0 else rows))
    shrink = 1 + quantile**2 / effective
    centre = (share + quantile**2 / (2 * effective)) / shrink
    half = math.sqrt(share * (1 - share) / effective + (quantile / (2 * effective)) ** 2)
    half *= quantile / shrink
    return Interval(
        max(0.0, min(share, centre - half)),  # rounding must not leave a share of 0 or 1 outside
        min(1.0, max(share, centre + half)),
        f"Wilson with the effective number of rows, over rows and {seeds} seeds",
    )


def score_interval(
    scores: Scores,
    tasks: Sequence[str],
    confidence: float = CONFIDENCE,
    end: float = math.inf,
) -> Interval:
    """Return the interval of a mean over tasks: Student's t, over rows within tasks and over seeds.

    It passes neither 0 nor `end`.

    Args:
        scores: (seeds, rows), from 0 up.
        tasks: the task of each row.
        confidence: the level, 0 to 1.
        end: the highest mean that there can be: 1 of accuracies; scores have none.

    Raises:
        ValueError: when `scores` is not such a table, or has not as many rows as `tasks`.
    """
    tables = by_task(_checked(scores, tasks), tasks)
    variance, freedom = floored_variance(tables, odd_rows=1)
    centre = mean(tables)
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(variance)
    words = f"t with variance over rows within tasks{_and_seeds(tables)}"
    return Interval(max(0.0, centre - half), min(end, centre + half), words)


def compare_paired(
    first: Scores, second: Scores, tasks: Sequence[str] | None = None
) -> PairedComparison:
    """Compare two methods on the same rows with the same seeds.

    Args:
        first: (seeds, rows) of 0 and 1; with `tasks`, of any numbers from 0 up.
        second: the same shape, seeds and rows in the same order.
        tasks: the task of each row, where each task counts alike; None where rows are pooled.

    Returns:
        The difference first - second with its interval and test; deterministic.

    Raises:
        ValueError: when the tables are not of one shape, or hold other values than these.
    """
    first, second = _checked(first, tasks), _checked(second, tasks)
    if first.shape != second.shape:
        raise ValueError(
            f"paired scores need the same seeds and rows, got shapes {first.shape} and "
            f"{second.shape}"
        )
    table = first.astype(np.float64) - second.astype(np.float64)
    seeds, rows = table.shape
    first_only, second_only = int((table > 0).sum()), int((table < 0).sum())
    tables = by_task(table, tasks)
    p_value, test = _test(tables, (first_only, second_only) if tasks is None else None)
    means = [mean(by_task(scores, tasks)) for scores in (first, second)]
    return PairedComparison(
        seeds=seeds,
        rows=rows,
        first_accuracy=means[0],
        second_accuracy=means[1],
        difference=mean(tables),
        interval=difference_interval(table, tasks),
        p_value=p_value,
        test=test,
        effect_size=cohens_h(means[0], means[1]) if tasks is None else None,
        first_only=first_only,
        second_only=second_only,
        bootstrap=bootstrap_interval(table, tasks),
        by_seed=seed_test(mean_by_seed(tables)),
    )


def difference_interval(
    differences: Differences, tasks: Sequence[str] | None = None, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of a mean difference of paired scores.

    One seed: Bonett and Price's. Several: Student's t with the module's two-way variance.

    Args:
        differences: (seeds, rows) of -1, 0 and 1; with `tasks`, of any numbers.
        tasks: the task of each row, where each task counts alike; None where rows are pooled.
        confidence: the level, 0 to 1.
    """
    tables = by_task(differences, tasks)
    within = "" if tasks is None else " within tasks"
    if len(differences) == 1:
        centre, variance = bonett_price(tables)
        half = float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(variance)
        words = f"Bonett-Price, paired by row{within}"
    else:
        variance, freedom = floored_variance(tables, odd_rows=2)
        centre = mean(tables)
        half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(variance)
        words = f"t with variance over rows{within}{_and_seeds(tables)}, paired by both"
    # Two accuracies are at most 1 apart; scores have no upper end.
    end = 1.0 if tasks is None else math.inf
    return Interval(max(-end, centre - half), min(end, centre + half), words)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Return the two-sided exact McNemar p-value of the rows on which two methods disagree.

    Args:
        first_only: rows that only the first got right.
        second_only: rows that only the second got right.

    Example:
        >>> round(mcnemar_exact(10, 2), 4)
        0.0386
    """
    discordant = first_only + second_only
    return float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0


def seed_test(differences: Float[np.ndarray, " seeds"]) -> SeedTest:
    """Test whether differences, one a seed, have mean zero; the rows are taken as given."""
    seeds = len(differences)
    values = tuple(float(value) for value in differences)
    if seeds < 2:
        return SeedTest(values, None, None, None)
    mean, error = float(differences.mean()), float(stats.sem(differences))
    interval = p_value = None
    if error > 0:  # equal differences in every seed leave t undefined
        half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, seeds - 1)) * error
        interval = Interval(mean - half, mean + half, f"paired t over {seeds} seeds")
        p_value = float(2 * stats.t.sf(abs(mean) / error, seeds - 1))
    return SeedTest(values, interval, p_value, sign_flip_p_value(differences))


def sign_flip_p_value(differences: Float[np.ndarray, " seeds"]) -> float | None:
    """Return the exact two-sided p-value over all 2^seeds flips of sign; None above 16 seeds.

    Example:
        >>> sign_flip_p_value(np.array([1.0, 2.0, 3.0]))
        0.25
    """
    seeds = len(differences)
    if seeds > MAX_SIGN_FLIP_SEEDS:
        return None
    signs = 1 - 2 * ((np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1)
    sums = np.abs(signs @ np.asarray(differences, np.float64))
    observed = abs(float(np.sum(differences)))
    return float(np.mean(sums >= observed * (1 - 1e-12)))  # equal sums differ by rounding


def bootstrap_interval(
    differences: Differences,
    tasks: Sequence[str] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the percentile interval of the mean by resampling rows and seeds independently.

    The "pigeonhole" bootstrap (Owen 2007); with one seed it resamples rows alone. Too narrow for
    few seeds, see the module's docstring: a check, not the basis of a conclusion.

    Args:
        differences: (seeds, rows).
        tasks: the task of each row, within which rows are resampled; None where they are pooled.
        confidence: the level, 0 to 1.
        resamples: how many tables are drawn.
        seed: of the random numbers; the same seed gives the same interval.
    """
    tables, seeds = by_task(differences, tasks), len(differences)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, 256):  # in pieces: (resamples, rows) may be large
        count = min(256, resamples - start)
        by_seed = np.mean([_resampled(table, count, random) for table in tables], axis=0)
        seed_weights = random.multinomial(seeds, np.full(seeds, 1 / seeds), count) / seeds
        means.append(np.sum(seed_weights * by_seed, axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    words = "paired bootstrap over rows" + ("" if tasks is None else " within tasks")
    return Interval(float(low), float(high), words + _and_seeds(tables))


def cohens_h(first: float, second: float) -> float:
    """Return Cohen's h, the effect size of two proportions: 0.2 is small, 0.5 medium, 0.8 large.

    h = 2 asin(sqrt(first)) - 2 asin(sqrt(second)).
    """
    return 2 * (math.asin(math.sqrt(first)) - math.asin(math.sqrt(second)))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return the p-values adjusted for their number by Holm's step-down method, in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return tuple(adjusted)


def _resampled(
    table: Differences, count: int, random: np.random.Generator
) -> Float[np.ndarray, "count seeds"]:
    """Return each seed's mean over rows that are drawn anew, the same for all seeds."""
    rows = table.shape[1]
    weights = random.multinomial(rows, np.full(rows, 1 / rows), count) / rows
    return weights @ table.T


def _checked(scores: Scores, tasks: Sequence[str] | None) -> Scores:
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(
            f"scores must be a table of (seeds, rows), neither empty; got shape {scores.shape}"
        )
    if tasks is None and not np.isin(scores, (0, 1)).all():
        raise ValueError("scores must be 0 or 1")
    if not (np.isfinite(scores) & (scores >= 0)).all():
        raise ValueError("scores must be finite and 0 or above")
    return scores


def _test(tables: Tables, discordant: tuple[int, int] | None) -> tuple[float, str]:
    """Return the p-value of a mean difference and the words for the test.

    `discordant` counts the rows that only one method got right; None where rows have scores.
    """
    if len(tables[0]) > 1:
        variance, freedom = floored_variance(tables, odd_rows=2)
        p_value = 2 * stats.t.sf(abs(mean(tables)) / math.sqrt(variance), freedom)
        return float(p_value), "t test over rows and seeds"
    if discordant is not None:
        return mcnemar_exact(*discordant), "exact McNemar test"
    centre, variance = bonett_price(tables)
    p_value = 2 * stats.norm.sf(abs(centre) / math.sqrt(variance))
    return float(p_value), "normal test over rows within tasks"


def _and_seeds(tables: Tables) -> str:
    seeds = len(tables[0])
    return f" and {seeds} seeds" if seeds > 1 else ""
