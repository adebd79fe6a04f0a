"""The variance of a mean over a table of seeds and rows, and of a mean over several such tables.

A table, `(seeds, rows)`, holds the scores, or differences of scores, of one task; all tables of a
call have the same seeds. Their mean is the mean over tables of each table's mean, so that every
task counts alike whatever its rows: the macro-average. Rows are drawn anew within each task, as in
a sample with fixed strata, and the seeds anew for all tasks together, since one run answers them
all. With `T` tables of `N_t` rows and `S` seeds,

    var = var_over_seeds(mean over all rows) / S
        + sum over t of var_over_rows_of_t(mean over seeds) / (N_t T^2)

For one table it is the variance of `statistics`' docstring. Pooled rows are one table.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Tables = Sequence[Float[np.ndarray, "seeds _"]]


def by_task(table: Float[np.ndarray, "seeds rows"], tasks: Sequence[str] | None) -> Tables:
    """Split a table into one for each task, in the order of their first rows.

    Args:
        table: (seeds, rows).
        tasks: the task of each row; None where the rows are pooled, which gives one table.

    Raises:
        ValueError: when there are not as many tasks as rows.
    """
    table = np.asarray(table, np.float64)
    if tasks is None:
        return [table]
    if len(tasks) != table.shape[1]:
        raise ValueError(f"{table.shape[1]} rows need as many tasks, got {len(tasks)}")
    names = np.array(tasks)
    return [table[:, names == task] for task in dict.fromkeys(tasks)]


def mean_by_seed(tables: Tables) -> Float[np.ndarray, " seeds"]:
    """Return the mean over tables of each one's mean over rows, for every seed."""
    return np.mean([table.mean(axis=1) for table in tables], axis=0)


def mean(tables: Tables) -> float:
    """Return the mean over tables of each table's mean."""
    return math.fsum(float(table.mean()) for table in tables) / len(tables)


def two_way_variance(tables: Tables) -> tuple[float, float]:
    """Return the variance of `mean` and its Welch-Satterthwaite degrees of freedom.

    With one seed it is that over rows alone. A table of one row adds none: it has no variance.
    """
    seeds = len(tables[0])
    parts = []  # of the variance, each with its degrees of freedom
    if seeds > 1:
        parts.append((float(mean_by_seed(tables).var(ddof=1)) / seeds, seeds - 1))
    for table in tables:
        rows = table.shape[1]
        if rows > 1:
            spread = float(table.mean(axis=0).var(ddof=1))
            parts.append((spread / rows / len(tables) ** 2, rows - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, 1.0
    return variance, variance**2 / sum(part**2 / freedom for part, freedom in parts)


def variance_parts(tables: Tables) -> Float[np.ndarray, " tables"]:
    """Return what each table adds to the variance that `two_way_variance` gives; the sum is that.

    Over seeds it is the covariance of the table's mean with that of all: below zero where a table
    goes against the others.
    """
    seeds, count = len(tables[0]), len(tables)
    whole = mean_by_seed(tables)
    parts = np.zeros(count)
    for place, table in enumerate(tables):
        rows = table.shape[1]
        if seeds > 1:
            together = float(np.cov(table.mean(axis=1), whole)[0, 1])
            parts[place] += together / count / seeds
        if rows > 1:
            parts[place] += float(table.mean(axis=0).var(ddof=1)) / rows / count**2
    return parts


def floored_variance(tables: Tables, odd_rows: int) -> tuple[float, float]:
    """As `two_way_variance`, but never believing that rows which all agree are all there is.

    It is no smaller than Bonett and Price's (2012) variance for such rows: that of `odd_rows` rows
    in each table, of all and two more, that are a full mark away from the rest.

    Args:
        tables: as the module's docstring says.
        odd_rows: 1 for scores, of which some row may differ from the others; 2 for differences,
            which may differ either way.
    """
    variance, freedom = two_way_variance(tables)
    floor = sum(odd_rows / (table.shape[1] + 2) ** 2 for table in tables) / len(tables) ** 2
    rows = sum(table.shape[1] - 1 for table in tables)
    return (variance, freedom) if variance >= floor else (floor, float(max(rows, 1)))


def bonett_price(tables: Tables) -> tuple[float, float]:
    """Return the centre and variance of a mean difference, each table of one seed.

    Two rows are added to each table, one that the first method wins by a full mark and one that
    the second does. For differences of -1, 0 and 1 this is the interval of Bonett and Price (2012).
    """
    centre = variance = 0.0
    for table in tables:
        rows = table.shape[1] + 2
        shrunk = float(table.sum()) / rows
        spread = (float(np.square(table).sum()) + 2) / rows - shrunk**2
        centre += shrunk / len(tables)
        variance += spread / rows / len(tables) ** 2
    return centre, variance
