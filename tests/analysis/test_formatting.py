import math

import pytest

from dora_jax.analysis import formatting as say
from dora_jax.analysis.marks import BINARY_METRICS, METRICS
from dora_jax.analysis.statistics import Interval
from tests.analysis import sample

PERCENT, POINTS = say.METRIC_WORDS["accuracy"], say.METRIC_WORDS["score"]


def test_every_metric_has_its_words():
    assert set(say.METRIC_WORDS) == set(METRICS)
    assert [words.binary for words in say.METRIC_WORDS.values()] == [
        metric in BINARY_METRICS for metric in say.METRIC_WORDS
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (say.percent(0.663), "66.3 %"),
        (say.percent(0.00551, 3), "0.551 %"),
        (say.percent(None), "~"),
        (say.percent_interval(Interval(0.621, 0.702, "")), "62.1 to 70.2 %"),
        (PERCENT.value(0.663), "66.3 %"),
        (PERCENT.value(None), "~"),
        (PERCENT.interval(Interval(0.621, 0.702, "")), "62.1 to 70.2 %"),
        (PERCENT.bounds(Interval(0.621, 0.702, "")), "62.1 to 70.2"),
        (PERCENT.mark(1), " \N{CHECK MARK}"),
        (PERCENT.mark(0), ""),
        (PERCENT.named_axis, "accuracy"),
        (POINTS.value(1.12), "112.0"),
        (POINTS.value(None), "~"),
        (POINTS.interval(Interval(0.621, 1.2, "")), "62.1 to 120.0"),
        (POINTS.mark(0.6), " (60.0 points)"),
        (POINTS.mark(0), " (0.0 points)"),
        (POINTS.named_axis, "score, points"),
        (say.points(0.023), "+2.3"),
        (say.points(-0.023), "-2.3"),
        (say.points(-0.0001), "0.0"),
        (say.points(0.0001), "0.0"),
        (say.points_interval(Interval(-0.004, 0.042, "")), "-0.4 to +4.2"),
        (say.points_interval(None), "~"),
        (say.p_value(0.0386), "p = 0.039"),
        (say.p_value(0.25), "p = 0.25"),
        (say.p_value(0.0009), "p < 0.001"),
        (say.p_value(1.0), "p > 0.99"),
        (say.p_value(None), "~"),
        (say.count(1234567), "1,234,567"),
        (say.number(1.23456), "1.235"),
        (say.number(-0.5), "-0.500"),
        (say.number(math.nan), "not finite"),
        (say.learning_rate(5e-4), "0.0005"),
        (say.ratio(1.0366), "x1.04"),
        (say.byte_size(1_310_000_000), "1.31 GB"),
        (say.byte_size(812_300_000), "812 MB"),
        (say.byte_size(99_900), "99.9 kB"),
        (say.byte_size(0), "0 B"),
        (say.duration(0.0842), "84.2 ms"),
        (say.duration(0.9999), "1 s"),
        (say.duration(2.314), "2.31 s"),
        (say.duration(99.97), "1 min 40 s"),
        (say.duration(200), "3 min 20 s"),
        (say.duration(7500), "2 h 05 min"),
        (say.duration(math.inf), "not finite"),
        (say.duration(None), "~"),
        (say.plural(1, "seed"), "1 seed"),
        (say.plural(3, "seed"), "3 seeds"),
        (say.listed(["a"]), "a"),
        (say.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_as_written(text, expected):
    assert sample.plain(text) == expected
