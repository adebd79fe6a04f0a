import dataclasses
import json
import math

import numpy as np
import pytest

from dora_jax.analysis import atomic
from dora_jax.analysis.records import FieldError
from dora_jax.analysis.results import (
    Arm,
    BaseResult,
    ComparisonResults,
    HistoryPoint,
    ProtocolResult,
)
from dora_jax.errors import DoraError
from tests.analysis import sample


def test_round_trip(tmp_path):
    before = sample.results({"lora": [sample.first(20)] * 2, "dora": [sample.first(22)] * 2})
    path = before.to_json(tmp_path / "deep" / "results.json")
    assert ComparisonResults.from_json(path) == before
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_numpy_values_and_lists_are_taken(tmp_path):
    plain = sample.results()
    correct = np.array(plain.runs[0].correct)
    run = sample.run("lora", 0, correct, accuracy=np.float32(0.6), trainable_parameters=np.int64(7))
    before = sample.results(runs=[run])
    after = ComparisonResults.from_json(before.to_json(tmp_path / "r.json"))
    assert after.runs[0].correct == plain.runs[0].correct
    assert after.runs[0].trainable_parameters == 7
    assert after.runs[0].accuracy == pytest.approx(0.6)


def test_a_diverged_loss_survives_strict_json(tmp_path):
    points = (HistoryPoint(1, 2.0), HistoryPoint(2, math.nan), HistoryPoint(3, math.inf))
    run = sample.run("lora", 0, sample.first(10), history=points)
    path = sample.results(runs=[run]).to_json(tmp_path / "r.json")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    losses = [point.loss for point in ComparisonResults.from_json(path).runs[0].history]
    assert losses[0] == 2.0
    assert math.isnan(losses[1])
    assert losses[2] == math.inf


def _set(values, path, value):
    *parents, last = path
    for key in parents:
        values = values[key]
    values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["runs", 1, "seed"], "one", ["field runs[1].seed", "whole number", "'one'"]),
        (["runs", 0, "seed"], True, ["runs[0].seed", "whole number"]),
        (["runs", 0, "loss"], "low", ["runs[0].loss", "a number"]),
        (["runs", 0, "history", 2, "step"], 1.5, ["runs[0].history[2].step", "whole number"]),
        (["runs", 0, "correct", 3], 2, ["runs[0].correct[3]", "0 or 1"]),
        (["runs", 0, "correct"], [1, 0], ["runs[0].accuracy", "1 of 2"]),
        (["runs", 0, "accuracy"], 0.5, ["runs[0].accuracy", "24 of 40"]),
        (["base", "accuracy"], 1.2, ["base.accuracy", "between 0 and 1"]),
        (["base", "accuracy"], "NaN", ["base.accuracy", "between 0 and 1"]),
        (["base", "correct", 0], "NaN", ["base.correct[0]", "finite"]),
        (["base", "correct", 0], True, ["base.correct[0]", "a number"]),
        (["base", "correct"], {}, ["base.correct", "a list"]),
        (["data", "metric"], "bleu", ["data.metric", "accuracy, exact_match", "'bleu'"]),
        (["data", "task_metrics"], {"even": "CIDEr-D"}, ["data.task_metrics", "'accuracy'"]),
        (["search", 1, "validation_accuracy"], 1.5, ["search[1].validation_accuracy", "0 and 1"]),
        (["search", 1, "validation_accuracy"], -1, ["search[1].validation_accuracy", "0 or above"]),
        (
            ["search", 1, "validation_losses"],
            {"vqa": 1.0, "caption": 3.0},
            ["search[1].validation_loss", "is 1.0, but the mean of validation_losses is 2.0"],
        ),
        (["data", "chance"], -0.1, ["data.chance", "between 0 and 1"]),
        (["data", "eval_rows"], 39, ["data.eval_rows", "39", "40"]),
        (["data", "skipped"], {"train": {"long": "3"}}, ["data.skipped.train.long", "whole"]),
        (["search", 0, "learning_rate"], 0, ["search[0].learning_rate", "above 0"]),
        (["runs"], [], ["runs", "no method"]),
        (["eval_rows"], [], ["eval_rows", "nothing was evaluated"]),
        (["model"], None, ["model", "an object"]),
        (["runs", 0, "step_tim_s"], 1.0, ["runs[0].step_tim_s", "did you mean 'step_time_s'"]),
        (["extra_words"], 1, ["extra_words", "unknown field"]),
    ],
)
def test_a_broken_field_is_named(tmp_path, path, value, words):
    values = sample.results().to_dict()
    _set(values, path, value)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(values))
    with pytest.raises(DoraError) as error:
        ComparisonResults.from_json(file)
    for word in [str(file), "dora-jax compare", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("path", [("name",), ("runs", 0, "correct"), ("data", "task")])
def test_a_missing_field_is_named(tmp_path, path):
    values = sample.results().to_dict()
    parent = values
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(values))
    with pytest.raises(DoraError, match=rf"{path[-1]} is missing"):
        ComparisonResults.from_json(file)


def test_marks_of_tasks_with_their_own_metrics(tmp_path):
    before = sample.scored()
    after = ComparisonResults.from_json(before.to_json(tmp_path / "r.json"))
    assert after == before
    assert max(after.runs[0].correct) > 1
    assert after.strata == sample.SCORED_TASKS
    assert sample.results().strata is None


def test_a_score_is_the_mean_over_tasks_of_the_mean_over_rows():
    # vqa: (0.3 + 0.6 + 0) / 3 = 0.3; caption: 2.1; their mean 1.2. Pooled it would be 0.75.
    tasks, marks = ("vqa", "vqa", "caption", "vqa"), (0.3, 0.6, 2.1, 0)
    results = sample.scored({"lora": [marks]}, tasks, base=(0, 0, 0, 0))
    assert results.runs[0].accuracy == pytest.approx(1.2)
    pooled = sample.run("lora", 0, marks, accuracy=0.75)
    with pytest.raises(FieldError, match=r"runs\[0\].accuracy: is 0.75, but .* tasks .* is 1.2"):
        dataclasses.replace(results, runs=(pooled,))


def test_whole_marks_are_stored_as_before():
    assert json.dumps(sample.results().to_dict()["base"]["correct"][:2]) == "[1, 1]"
    scored = BaseResult(np.float32(0.65), np.array([1.0, 0.3]))
    assert json.dumps(scored.correct) == "[1, 0.3]"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["runs", 1, "correct", 2], -0.5, ["runs[1].correct[2]", "0 or above", "-0.5"]),
        (["runs", 1, "correct", 2], "Infinity", ["runs[1].correct[2]", "finite"]),
        (["runs", 1, "accuracy"], 9.0, ["runs[1].accuracy", "between 0 and", "9.0"]),
        (["base", "accuracy"], 0.5, ["base.accuracy", "0.5", "mean over tasks"]),
        (["base", "correct"], [0.5, 0.5], ["base.accuracy", "between 0.5 and 0.5"]),
        (["eval_rows", 39, "task"], "vcr", ["data.task_metrics", "'vcr'", "'vqa'", "'caption'"]),
        (["data", "task_metrics"], {}, ["data.task_metrics", "'vqa'", "only for none"]),
        (["data", "metric"], "accuracy", ["data.task_metrics", "'accuracy'"]),
    ],
)
def test_a_broken_field_of_scores_is_named(tmp_path, path, value, words):
    values = sample.scored().to_dict()
    _set(values, path, value)
    with pytest.raises(FieldError) as error:
        ComparisonResults.from_dict(values)
    for word in words:
        assert word in str(error.value)


def test_other_protocols_are_checked_too():
    wrong = ProtocolResult(0.5, (0.5,) * sample.ROWS, 0)
    base = dataclasses.replace(sample.results().base, other={"generate": wrong})
    with pytest.raises(FieldError, match=r"base.other.generate.correct\[0\]: must be 0 or 1"):
        sample.results(base=base)


def test_scores_of_too_few_rows_are_refused():
    short = BaseResult(0.5, (0.5, 0.5))
    with pytest.raises(FieldError, match=r"base.correct: has 2 values, but eval_rows has 40 rows"):
        dataclasses.replace(sample.scored(), base=short)


def test_optional_fields_may_be_missing():
    values = sample.results().to_dict()
    for name in ("search", "settings", "environment"):
        del values[name]
    for name in ("loss", "step_time_s", "temp_bytes", "history"):
        del values["runs"][0][name]
    run = ComparisonResults.from_dict(values).runs[0]
    assert (run.loss, run.step_time_s, run.temp_bytes, run.history) == (None, None, None, ())


def test_rows_of_another_number_are_refused():
    short = sample.run("dora", 0, sample.first(5, rows=39))
    with pytest.raises(FieldError, match=r"runs\[1\].correct: has 39 values.*40 rows"):
        sample.results(runs=[sample.run("lora", 0, sample.first(5)), short])
    with pytest.raises(FieldError, match=r"base.correct"):
        sample.results(base=BaseResult(1.0, (1,)))


def test_a_repeated_run_is_refused():
    twice = [sample.run("lora", 3, sample.first(5))] * 2
    with pytest.raises(FieldError, match=r"runs\[1\].*'lora' with seed 3, as runs\[0\]"):
        sample.results(runs=twice)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"name": "x",\n "command": ', "line 2"),
        (b"", "line 1"),
        (b"[]", "top level must be an object"),
        (b"\xff\xfe{}", "UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, words):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(DoraError, match=words) as error:
        ComparisonResults.from_json(file)
    assert str(file) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DoraError, match="No such file"):
        ComparisonResults.from_json(tmp_path / "none.json")


def test_what_json_cannot_hold_is_named_before_anything_is_written(tmp_path):
    broken = sample.results(settings={"optim": {"schedule": object()}})
    with pytest.raises(FieldError, match=r"settings.optim.schedule: a object"):
        broken.to_json(tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(DoraError, match="No space left on device"):
        sample.results().to_json(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_half_a_surrogate_pair_does_not_lose_the_file(tmp_path):
    path = sample.results(name="a\ud800b").to_json(tmp_path / "results.json")
    assert ComparisonResults.from_json(path).name == "a\ud800b"


def test_a_pair_with_a_baseline_is_refused():
    arms = (Arm("lora", "LoRA", "lora", baseline=True), Arm("dora", "DoRA", "dora"))
    assert sample.results(arms=arms).arms == arms
    with pytest.raises(FieldError, match="pairs: names 'lora', a baseline, which is in no pair"):
        sample.results(arms=arms, pairs=(("dora", "lora"),))
