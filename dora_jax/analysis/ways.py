"""How the intervals and tests of a report were made, in words that are true of all of them.

Methods and pairs of several seeds have other ones than those of one, and a comparison may have
both: a dear method that was run once.
"""

from collections.abc import Iterable

from dora_jax.analysis import formatting as say
from dora_jax.analysis.plots import difference_rows
from dora_jax.analysis.summary import PairSummary, Summary


def of_scores(summary: Summary) -> str:
    """Say how the intervals of the scores were made."""
    made = [(_with_seeds("methods", len(m.runs)), m.interval.method) for m in summary.methods]
    return _told([*made, ("the base model", summary.base_interval.method)])


def of_differences(summary: Summary) -> str:
    """Say how the intervals of the pairs' differences were made."""
    return _told((_pairs(pair), pair.comparison.interval.method) for pair in summary.pairs)


def of_drawn_differences(summary: Summary) -> str:
    """As `of_differences`, and how those were made that the plot has of single seeds."""
    made = [(_pairs(pair), pair.comparison.interval.method) for pair in summary.pairs]
    by_seed = difference_rows(summary)[len(made) :]
    return _told([*made, *(("single seeds", interval.method) for _, _, interval in by_seed)])


def of_tests(summary: Summary) -> str:
    """Say which tests the pairs' p-values are of."""
    return _told((_pairs(pair), pair.comparison.test) for pair in summary.pairs)


def _pairs(pair: PairSummary) -> str:
    return _with_seeds("pairs", pair.comparison.seeds)


def _with_seeds(what: str, seeds: int) -> str:
    return f"{what} with {say.plural(seeds, 'seed')}"


def _told(made: Iterable[tuple[str, str]]) -> str:
    """Write (whose, way) pairs: one way by itself, several each with all whose it is."""
    whose: dict[str, dict[str, None]] = {}
    for owner, way in made:
        whose.setdefault(way, {})[owner] = None
    if len(whose) == 1:
        return next(iter(whose))
    return "; ".join(f"for {say.listed(list(own))}: {way}" for way, own in whose.items())
