"""One task that moves the average of several more than all the others."""

import dataclasses

import numpy as np
import pytest

from dora_jax.analysis.conclusions import cautions
from dora_jax.analysis.dominance import dominance
from dora_jax.analysis.results import Arm
from dora_jax.analysis.summary import summarize
from tests.analysis import sample

TASKS = ("vqa",) * 20 + ("gqa",) * 20 + ("caption",) * 20
NAMES = ("lora", "dora")


def scored(scale, tasks=TASKS, names=NAMES, seeds=3, **changes):
    """Right and wrong answers, and captions whose marks are `scale` times as wide."""
    scales = np.where(np.array(tasks) == "caption", scale, 1.0)
    random = np.random.default_rng(0)
    correct = {
        name: [scales * random.integers(0, 2, len(tasks)) for _ in range(seeds)] for name in names
    }
    return sample.scored(correct, tasks, base=(0.0,) * len(tasks), **changes)


def told(results):
    found = [sample.plain(caution.text) for caution in cautions(summarize(results))]
    return [text for text in found if "variance" in text]


@pytest.mark.parametrize("seeds", [1, 3])
def test_captions_of_a_wide_scale_are_told_to_decide(seeds):
    found = dominance(summarize(scored(8.0, seeds=seeds)))
    assert found.task.task == "caption"
    assert 0.9 < found.share <= 1
    (text,) = told(scored(8.0, seeds=seeds))
    share = f"{100 * found.share:.0f} %"
    assert text.startswith(f"caption (CIDEr-D) holds {share} of the variance of the average diff")
    assert "of 3 tasks" in text


def test_tasks_of_one_scale_are_not():
    assert dominance(summarize(scored(1.0))) is None
    assert told(scored(1.0)) == []


def test_a_pair_that_differs_in_one_task_alone_is():
    """What both arms have in common moves neither of them against the other."""
    plain = scored(1.0)
    lora, dora = (next(run for run in plain.runs if run.method == name) for name in NAMES)
    gqa = np.array(TASKS) == "gqa"
    marks = np.where(gqa, dora.correct, lora.correct)
    dora = dataclasses.replace(dora, correct=marks, accuracy=sample.mean_of_tasks(marks, TASKS))
    found = dominance(summarize(dataclasses.replace(plain, runs=(lora, dora))))
    assert (found.task.task, found.share) == ("gqa", 1.0)


def test_without_a_pair_it_is_of_the_score():
    results = scored(8.0, names=("lora",))
    assert not dominance(summarize(results)).of_difference
    assert "of the variance of the average of 3 tasks" in told(results)[0]


def test_baselines_do_not_count():
    arms = tuple(Arm(name, name, name, baseline=name == "lora") for name in NAMES)
    assert not dominance(summarize(scored(8.0, arms=arms))).of_difference


def test_of_two_tasks_and_of_pooled_rows_nothing_is_told():
    two = ("vqa",) * 20 + ("caption",) * 20
    assert dominance(summarize(scored(8.0, tasks=two))) is None
    assert dominance(summarize(sample.results())) is None


def test_arms_that_agree_on_every_row_have_no_such_task():
    plain = scored(8.0)
    same = [
        dataclasses.replace(run, correct=plain.runs[0].correct, accuracy=plain.runs[0].accuracy)
        for run in plain.runs
    ]
    assert dominance(summarize(dataclasses.replace(plain, runs=tuple(same)))) is None
