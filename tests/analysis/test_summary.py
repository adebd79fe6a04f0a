import dataclasses

import numpy as np
import pytest

from dora_jax.analysis.results import Arm, EvalRow, HistoryPoint
from dora_jax.analysis.statistics import accuracy_interval, difference_interval, score_interval
from dora_jax.analysis.summary import summarize
from tests.analysis import sample


def test_figures_of_a_method_over_its_seeds():
    runs = [
        sample.run("lora", 0, sample.first(20), step_time_s=0.4, loss=1.0, temp_bytes=100),
        sample.run("dora", 1, sample.first(30), step_time_s=0.9, loss=0.5, temp_bytes=130),
        sample.run("dora", 0, sample.first(20), step_time_s=0.6, loss=0.7, temp_bytes=150),
        sample.run("lora", 1, sample.first(24), step_time_s=0.6, loss=2.0, temp_bytes=100),
    ]
    lora, dora = summarize(sample.results(runs=runs)).methods
    assert (lora.method, dora.method) == ("lora", "dora")
    assert dora.seeds == (0, 1)
    assert dora.accuracy == pytest.approx(25 / 40)
    assert dora.over_base.difference == pytest.approx(17 / 40)
    assert dora.over_base.difference in dora.over_base.interval
    assert dora.loss == pytest.approx(0.6)
    assert dora.step_time_s == pytest.approx(0.75)
    assert dora.step_time_ratio == pytest.approx(0.75 / 0.5)
    assert (dora.temp_bytes, dora.temp_ratio) == (150, 1.5)
    assert lora.step_time_ratio == 1.0


def test_lora_is_the_reference_wherever_it_stands():
    scores = {"full": [sample.first(20)], "mine": [sample.first(9)], "lora": [sample.first(21)]}
    summary = summarize(sample.results(scores))
    assert [method.method for method in summary.methods] == ["lora", "full", "mine"]
    assert [m.label for m in summary.methods] == ["LoRA", "Full fine-tuning", "mine"]
    assert summary.reference.method == "lora"


def test_the_headline_is_dora_against_lora():
    scores = {name: [sample.first(20)] for name in ("magnitude", "dora", "lora")}
    summary = summarize(sample.results(scores))
    assert len(summary.pairs) == 3
    assert summary.headline is not None
    assert (summary.headline.first.method, summary.headline.second.method) == ("dora", "lora")


def test_pairs_are_corrected_together():
    scores = {"lora": [sample.first(20)], "dora": [sample.first(28)], "full": [sample.first(21)]}
    pairs = summarize(sample.results(scores)).pairs
    raw = {(p.first.method, p.second.method): p.comparison.p_value for p in pairs}
    assert raw[("dora", "lora")] == pytest.approx(2 / 2**8)  # eight rows, all for DoRA
    assert raw[("full", "dora")] == pytest.approx(2 / 2**7)
    adjusted = {(p.first.method, p.second.method): p.p_value for p in pairs}
    assert adjusted[("dora", "lora")] == pytest.approx(3 * 2 / 2**8)
    assert adjusted[("full", "dora")] == pytest.approx(2 * 2 / 2**7)
    assert adjusted[("full", "lora")] == 1.0


def test_only_shared_seeds_are_paired_and_by_their_number():
    runs = [
        sample.run("lora", 5, sample.first(10)),
        sample.run("lora", 7, sample.first(20)),
        sample.run("dora", 7, sample.first(30)),
        sample.run("dora", 9, sample.first(40)),
    ]
    (pair,) = summarize(sample.results(runs=runs)).pairs
    assert pair.comparison.seeds == 1
    assert pair.comparison.difference == pytest.approx(10 / 40)


def test_seeds_are_paired_whatever_their_order():
    runs = [
        sample.run("lora", 0, sample.first(10)),
        sample.run("lora", 1, sample.first(30)),
        sample.run("dora", 1, sample.first(31)),
        sample.run("dora", 0, sample.first(12)),
    ]
    (pair,) = summarize(sample.results(runs=runs)).pairs
    assert pair.comparison.by_seed.differences == pytest.approx((2 / 40, 1 / 40))


def test_tasks_are_broken_down():
    even = [1 if i % 2 == 0 else 0 for i in range(sample.ROWS)]
    summary = summarize(sample.results({"lora": [sample.first(20)], "dora": [even]}))
    by_name = {task.task: task for task in summary.tasks}
    assert list(by_name) == ["even", "odd"]
    assert by_name["even"].rows == 20
    assert by_name["even"].base == pytest.approx(4 / 20)
    assert by_name["even"].accuracies == {"lora": 0.5, "dora": 1.0}
    assert by_name["even"].difference == pytest.approx(0.5)
    assert by_name["odd"].difference == pytest.approx(-0.5)


def test_tasks_and_their_average_have_intervals():
    """Ten rows of one task and thirty of another, which count alike in the average alone."""
    rows = [EvalRow("small")] * 10 + [EvalRow("large")] * 30
    scores = {"lora": [sample.first(10)] * 2, "dora": [sample.first(16), sample.first(22)]}
    summary = summarize(sample.results(scores, eval_rows=rows))
    small, large = summary.tasks
    table = np.array(scores["dora"])
    assert large.intervals["dora"] == accuracy_interval(table[:, 10:])
    assert small.base_interval == accuracy_interval(np.array([sample.BASE[:10]]))
    average, names = summary.average, [row.task for row in rows]
    assert average.rows == 40
    assert average.accuracies == pytest.approx({"lora": 0.5, "dora": (1 + 0.3) / 2})
    assert average.difference == pytest.approx(0.15)
    assert average.interval == difference_interval(table - np.array(scores["lora"]), names)
    wide = score_interval(table, names)
    assert average.intervals["dora"] == wide
    assert average.accuracies["dora"] in wide


def test_the_average_of_accuracies_ends_at_one():
    full = {"lora": [sample.first(39)], "dora": [sample.first(40)]}
    assert summarize(sample.results(full)).average.intervals["dora"].high == 1.0


def test_a_task_dominates_with_more_than_half_of_pooled_rows():
    def dominant(results):
        found = summarize(results).dominant_task
        return found and found.task

    def with_large(count):
        rows = [EvalRow("large")] * count + [EvalRow("small")] * (sample.ROWS - count)
        return sample.results(eval_rows=rows)

    assert dominant(with_large(20)) is None
    assert dominant(with_large(21)) == "large"
    assert dominant(sample.scored(SCORED, UNEVEN, base=(0.3, 0, 1, 0))) is None


def test_evidence_that_magnitudes_moved():
    flat = tuple(HistoryPoint(step, 1.0, magnitude_drift=0.0) for step in range(3))
    runs = [
        sample.run("lora", 0, sample.first(9)),
        sample.run("dora", 0, sample.first(9)),
        sample.run("dora", 1, sample.first(9), history=flat),
        sample.run("dora", 2, sample.first(9), magnitude_parameters=0),
        sample.run("magnitude", 0, sample.first(9), history=()),
    ]
    evidence = summarize(sample.results(runs=runs)).magnitudes
    assert [(e.run.method, e.run.seed) for e in evidence] == [
        ("dora", 0),
        ("dora", 1),
        ("dora", 2),
        ("magnitude", 0),
    ]
    assert [e.off for e in evidence] == [False, True, True, False]
    assert [e.moved for e in evidence] == [True, False, True, None]
    assert evidence[0].drift == pytest.approx(0.004)


def test_one_method_alone_has_no_pairs():
    summary = summarize(sample.results({"lora": [sample.first(20)]}))
    assert summary.pairs == ()
    assert summary.headline is None
    assert summary.tasks[0].difference is None


# Two tasks, four rows: LoRA (0.3 + 0.6 + 0) / 3 = 0.3 and 2.1; DoRA 0.6 and 2.5; base 0.1 and 1.
UNEVEN = ("vqa", "vqa", "caption", "vqa")
SCORED = {"lora": [(0.3, 0.6, 2.1, 0)], "dora": [(0.9, 0.6, 2.5, 0.3)]}


def test_scores_are_averaged_over_tasks():
    summary = summarize(sample.scored(SCORED, UNEVEN, base=(0.3, 0, 1, 0)))
    lora, dora = summary.methods
    assert (lora.accuracy, dora.accuracy) == pytest.approx((1.2, 1.55))
    assert dora.over_base.difference == pytest.approx(1.55 - 0.55)
    assert dora.over_base.difference in dora.over_base.interval
    average = summary.average
    assert (average.base, average.accuracies["dora"]) == pytest.approx((0.55, 1.55))
    assert average.intervals["dora"] == dora.interval
    assert summary.headline is not None
    assert summary.headline.comparison.difference == pytest.approx(0.35)
    by_name = {task.task: task for task in summary.tasks}
    assert by_name["caption"].metric == "CIDEr-D"
    assert by_name["vqa"].difference == pytest.approx(0.3)
    assert by_name["caption"].difference == pytest.approx(0.4)
    assert summarize(sample.results()).tasks[0].metric == ""


def test_a_difference_of_scores_may_be_above_a_full_mark():
    scores = {"lora": [(0,) * 40], "dora": [(3.0,) * 20 + (4.0,) * 20]}
    summary = summarize(sample.scored(scores, ("caption",) * 40))
    interval = summary.tasks[0].interval
    assert interval is not None
    assert 3.5 in interval
    assert interval.high > 3.5


BESIDE = (
    Arm("blind", "LoRA, blind", "lora", baseline=True),
    Arm("mute", "LoRA, mute", "lora", baseline=True),
    Arm("lora", "LoRA", "lora"),
    Arm("dora", "DoRA", "dora"),
)


def test_baselines_are_reported_and_cost_the_pair_no_power():
    near = {"lora": [sample.first(20)], "dora": [sample.first(28)]}
    far = {"blind": [sample.first(9)], "mute": [sample.first(10)]}
    alone = summarize(sample.results(near))
    beside = summarize(sample.results({**far, **near}, arms=BESIDE))
    (pair,), (before,) = beside.pairs, alone.pairs
    assert (pair.first.label, pair.second.label) == ("DoRA", "LoRA")
    assert pair.p_value == before.p_value == pytest.approx(2 / 2**8)
    assert beside.headlines == beside.pairs
    assert [m.method for m in beside.methods] == ["lora", "dora", "blind", "mute"]
    assert beside.methods[2].interval == accuracy_interval(np.array(far["blind"]))
    assert beside.reference.method == "lora"
    assert beside.average.accuracies["mute"] == pytest.approx(10 / 40)


def test_baselines_do_not_make_a_grid_one_of_methods():
    ranks = [Arm(f"dora-rank{r}", f"DoRA, rank {r}", "dora", {"adapter.rank": r}) for r in (4, 8)]
    ranks = [dataclasses.replace(arm, start="dora") for arm in ranks]
    scores = {arm.name: [sample.first(20)] for arm in (*ranks, BESIDE[0])}
    summary = summarize(sample.results(scores, arms=(*ranks, BESIDE[0])))
    assert [(p.first.method, p.second.method) for p in summary.pairs] == [
        ("dora-rank8", "dora-rank4")
    ]
