"""Rows that say how their written answers are scored."""

import pytest

from dora_jax.data.formats import read_row
from dora_jax.errors import DoraError

ROW = {"instruction": "vqa: what is it?", "output": "dog", "task": "vqa", "metric": "vqa"}


def test_metric_references_and_targets_are_read():
    more = {"references": ["dog", "a dog"], "targets": {"puppy": 0.3, "dog": 1}}
    example = read_row(ROW | more, "rows.jsonl, line 1")
    assert (example.metric, example.references) == ("vqa", ("dog", "a dog"))
    assert example.targets == (("puppy", 0.3), ("dog", 1.0))


def test_a_row_without_a_metric_is_as_it_was():
    example = read_row({"instruction": "a", "output": "b"}, "")
    assert (example.metric, example.references, example.targets) == (None, (), ())


def test_what_is_written_is_not_chosen():
    """A metric is of written answers: options are then for the question's text alone."""
    example = read_row(ROW | {"options": ["dog", "cat"]}, "")
    assert example.options == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"metric": "vqa2"},
            "line 3: 'metric' must be one of exact, vqa, cider, cider_share.*did you mean",
        ),
        ({"metric": None, "references": ["a"]}, "line 3: has 'references', and no 'metric'"),
        ({"references": "dog"}, "line 3: 'references' must be a list of texts"),
        ({"references": [1]}, "line 3: 'references' must be a list of texts"),
        ({"targets": ["dog"]}, "line 3: 'targets' must be an object of answers"),
        ({"targets": {"dog": 0}}, "line 3: 'targets' must be an object of answers"),
        ({"targets": {"dog": float("nan")}}, "line 3: 'targets' must be an object"),
        ({"targets": {"cat": 1.0}}, "line 3: the output 'dog' must be among 'targets'"),
        ({"targets": {"dog": 0.3, "cat": 1.0}}, "line 3: the output 'dog' must be among"),
    ],
)
def test_what_is_not_such_is_named(fields, message):
    with pytest.raises(DoraError, match=message):
        read_row(ROW | fields, "rows.jsonl, line 3")
