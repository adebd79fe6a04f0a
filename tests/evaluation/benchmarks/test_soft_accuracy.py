import itertools

import pytest

from dora_jax.evaluation.benchmarks.soft_accuracy import soft_accuracy


@pytest.mark.parametrize(
    ("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_people(agree, expected):
    assert soft_accuracy("x", ["x"] * agree + ["y"] * (10 - agree)) == pytest.approx(expected)


@pytest.mark.parametrize("people", [1, 2, 3, 5, 10])
def test_the_mean_over_each_person_left_out(people):
    for agree in range(people + 1):
        references = ["x"] * agree + ["y"] * (people - agree)
        each = [
            min(1.0, sum(text == "x" for text in others) / 3)
            for others in itertools.combinations(references, people - 1)
        ]
        assert soft_accuracy("x", references) == pytest.approx(sum(each) / people)
