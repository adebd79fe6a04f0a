"""Comparisons on a grid, carried out by every executor; parts that fail, diverge or are found."""

import dataclasses
import itertools
import json
import os
import shutil

import pytest

from dora_jax.analysis.results import BaseResult, ComparisonResults
from dora_jax.comparison import executors, parts, reuse
from dora_jax.comparison.arms import make_arms
from dora_jax.comparison.compare import compare, train
from dora_jax.errors import DoraError
from dora_jax.training.config import (
    CompareConfig,
    EvaluationConfig,
    ExecuteConfig,
    ExperimentConfig,
    TrainConfig,
)
from dora_jax.training.runs import finish_part
from tests.tiny_comparison import experiment, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def config(inputs, tmp_path_factory):
    """LoRA at two ranks and magnitudes alone, two rates each."""
    return experiment(
        inputs,
        name="grid",
        evaluation=EvaluationConfig(protocols=("likelihood", "generate"), beams=2, new_tokens=4),
        train=TrainConfig(steps=2, batch_size=4),
        compare=CompareConfig(
            methods=("lora", "magnitude"),
            learning_rates=(1e-3, 1e-2),
            search_steps=1,
        ),
        grid=("adapter.rank=2,3",),
        out=tmp_path_factory.mktemp("grid") / "here",
    )


@pytest.fixture(scope="module")
def results(config):
    return compare(config, "the command")


def facts(results):
    return [
        (r.method, r.seed, r.learning_rate, r.correct, r.loss, r.other) for r in results.runs
    ] + [results.base, results.search, results.arms]


def test_a_grid_is_searched_run_and_reported(results, config):
    assert [run.method for run in results.runs] == ["lora-rank2", "lora-rank3", "magnitude"]
    assert len(results.search) == 6
    assert {t.method for t in results.search if t.chosen} == {run.method for run in results.runs}
    low, high, _ = results.runs
    assert low.trainable_parameters * 3 == high.trainable_parameters * 2
    assert results.protocols == ("likelihood", "generate")
    assert all(len(run.other["generate"].correct) == 12 for run in results.runs)
    assert ComparisonResults.from_json(config.out / "results.json") == results
    assert (config.out / "plots" / "by-rank.csv").is_file()
    assert "Accuracy by rank" in (config.out / "report.html").read_text()


def test_what_a_grid_would_score_on_other_rows_is_refused(config, tmp_path):
    other = dataclasses.replace(config, grid=("data.eval_rows=4,12",), out=tmp_path / "run")
    with pytest.raises(DoraError, match="scored on other rows, or rows that read otherwise"):
        compare(other, "c")
    with pytest.raises(DoraError, match="for dora-jax compare: train trains one thing"):
        train(dataclasses.replace(config, out=tmp_path / "run"), "c")


def test_the_number_of_rows_to_train_on_may_vary(config, tmp_path):
    compared = dataclasses.replace(config.compare, methods=("lora",), search_steps=0)
    varied = dataclasses.replace(
        config,
        grid=("data.train_rows=8,24",),
        compare=compared,
        evaluation=EvaluationConfig(),
        out=tmp_path / "run",
    )
    few, many = compare(varied, "c").runs
    assert (few.method, many.method) == ("lora-train_rows8", "lora-train_rows24")
    assert few.history[0].loss != many.history[0].loss


def like(results):
    """What is the same to the last digit; losses are summed by other numbers of threads."""
    return [
        (r.method, r.seed, r.learning_rate, r.correct, pytest.approx(r.loss, rel=1e-5), r.other)
        for r in results.runs
    ] + [results.base.correct, results.arms]


@pytest.fixture(scope="module")
def small(config, tmp_path_factory):
    """One method with two seeds: three parts."""
    return dataclasses.replace(
        config,
        compare=dataclasses.replace(config.compare, methods=("lora",), search_steps=0),
        grid=(),
        seeds=(0, 1),
        execute=ExecuteConfig(reuse=False),
        out=tmp_path_factory.mktemp("small") / "here",
    )


@pytest.fixture(scope="module")
def small_results(small):
    return compare(small, "the command")


def elsewhere(small, out, executor):
    """Return the same comparison, carried out by another executor."""
    return dataclasses.replace(
        small, execute=ExecuteConfig(executor=executor, workers=2, reuse=False), out=out
    )


@pytest.mark.slow
def test_processes_give_the_same_results(small_results, small, tmp_path):
    own = elsewhere(small, tmp_path / "run", "processes")
    assert like(compare(own, "c")) == like(small_results)
    assert (own.out / "seed-1" / "lora" / "log.txt").is_file()


def test_a_finished_run_is_found_by_another_comparison(results, config, monkeypatch, capsys):
    monkeypatch.setattr(parts, "fit", None)  # whatever is trained anew fails
    other = dataclasses.replace(
        config, name="another", grid=("adapter.rank=3,2",), out=config.out.parent / "other"
    )
    found = compare(other, "c")
    by_name = {run.method: run for run in results.runs}
    assert [run.method for run in found.runs] == ["lora-rank3", "lora-rank2", "magnitude"]
    assert all(by_name[run.method] == run for run in found.runs)
    assert "found finished" in capsys.readouterr().err
    adapter = other.out / "seed-0" / "lora-rank3" / "adapter"
    assert (adapter / "adapter.json").is_file()
    refused = dataclasses.replace(
        other, execute=ExecuteConfig(reuse=False), out=config.out.parent / "anew"
    )
    with pytest.raises(DoraError, match="failed"):
        compare(refused, "c")


@pytest.mark.slow
def test_what_a_result_depends_on_is_in_its_key(small_results, small, tmp_path, monkeypatch):
    own = dataclasses.replace(small, execute=ExecuteConfig(), out=tmp_path / "first")
    assert facts(compare(own, "c")) == facts(small_results)
    before = set((tmp_path / reuse.SHELF).iterdir())
    assert len(before) == 2
    monkeypatch.setattr(reuse, "_code", lambda: "other code")
    newer = dataclasses.replace(own, out=tmp_path / "newer")
    assert facts(compare(newer, "c")) == facts(small_results)
    assert len(set((tmp_path / reuse.SHELF).iterdir()) - before) == 2
    # What is gone is done again.
    shutil.rmtree(newer.out)
    again = dataclasses.replace(own, out=tmp_path / "again")
    assert facts(compare(again, "c")) == facts(small_results)
    assert not (newer.out).exists()


@pytest.fixture
def quick(config, tmp_path):
    return dataclasses.replace(
        config,
        compare=dataclasses.replace(config.compare, search_steps=0),
        evaluation=EvaluationConfig(),
        execute=ExecuteConfig(reuse=False),
        out=tmp_path / "run",
    )


def test_a_run_that_fails_or_diverges_does_not_stop_the_others(quick, monkeypatch):
    fit, broken = parts.fit, {"lora-rank2": ValueError("no luck"), "lora-rank3": None}

    def failing(*args, **fields):
        name = fields["folder"].name
        if name == "lora-rank3":
            raise parts.DivergedError("the loss is nan")
        if name in broken:
            raise broken[name]
        return fit(*args, **fields)

    monkeypatch.setattr(parts, "fit", failing)
    with pytest.raises(DoraError, match=r"1 of 3 runs failed.*lora-rank2, seed 0: ValueErr"):
        compare(quick, "c")
    stored = ComparisonResults.from_json(quick.out / "results.json")
    assert [run.method for run in stored.runs] == ["magnitude"]
    assert [(f.method, f.diverged) for f in stored.failures] == [
        ("lora-rank2", False),
        ("lora-rank3", True),
    ]
    assert "diverged and has no score: the loss is nan" in (quick.out / "report.html").read_text()
    details = json.loads((quick.out / "seed-0" / "lora-rank2" / "failed.json").read_text())
    assert "test_comparison.py" in details["details"]
    # What failed is tried again, what diverged is a result, what is done is done.
    monkeypatch.setattr(parts, "fit", fit)
    again = compare(quick, "c")
    assert [run.method for run in again.runs] == ["lora-rank2", "magnitude"]
    assert [f.method for f in again.failures] == ["lora-rank3"]


def test_if_nothing_comes_to_a_result_there_is_no_report(quick, monkeypatch):
    def failing(*args, **fields):
        raise DoraError("no disk is large enough")

    monkeypatch.setattr(parts, "fit", failing)
    with pytest.raises(
        DoraError, match=r"no run came to a result; lora-rank2, seed 0, failed: no d"
    ):
        compare(quick, "c")
    assert not (quick.out / "report.html").exists()


@pytest.mark.slow
def test_a_trial_that_fails_would_make_the_search_unfair(config, tmp_path, monkeypatch):
    fit = parts.fit

    def failing(*args, **fields):
        if fields["folder"].name == "magnitude-lr0.01":
            raise RuntimeError("lost the device")
        return fit(*args, **fields)

    monkeypatch.setattr(parts, "fit", failing)
    own = dataclasses.replace(config, execute=ExecuteConfig(reuse=False), out=tmp_path / "run")
    with pytest.raises(
        DoraError, match=r"search: magnitude, learning rate 0\.01 failed.*not be fair"
    ):
        compare(own, "c")


@pytest.mark.slow
def test_a_process_that_is_killed_is_a_failure_and_the_others_go_on(quick, monkeypatch):
    own = elsewhere(quick, quick.out, "processes")
    monkeypatch.setattr(executors, "_in_process", _killed_in_one)
    with pytest.raises(DoraError, match=r"1 of 3 runs failed.*signal 9 \(9: out of memory\?\)"):
        compare(own, "c")
    stored = ComparisonResults.from_json(own.out / "results.json")
    assert [run.method for run in stored.runs] == ["lora-rank3", "magnitude"]


_in_process = executors._in_process


def _killed_in_one(folder, part, environment, cores):
    if part.path == "seed-0/lora-rank2":
        os.kill(os.getpid(), 9)
    _in_process(folder, part, environment, cores)


def test_what_is_left_to_do_and_what_became_of_a_part(tmp_path):
    arm = make_arms(ExperimentConfig())[0]
    base = parts.Part("base", arm)
    diverged, failed, killed = (parts.Part("run", arm, seed, 0.1) for seed in (0, 1, 2))
    (tmp_path / base.path).mkdir()
    finish_part(tmp_path / base.path, BaseResult(1.0, (1,), 0.5))
    parts.leave_failure(tmp_path / diverged.path, parts.Failed(True, "the loss is nan"))
    parts.leave_failure(tmp_path / failed.path, parts.Failed(False, "no luck"))
    every = [base, diverged, failed, killed]
    assert executors.to_do(tmp_path, every) == [failed, killed]
    assert [executors.settle(tmp_path, part, "killed") for part in every] == [
        "base model: evaluation: done",
        "lora, seed 0, learning rate 0.1: failed: the loss is nan",
        "lora, seed 1, learning rate 0.1: failed: no luck",
        "lora, seed 2, learning rate 0.1: failed: killed",
    ]
    assert parts.outcome(tmp_path, killed).message == "killed"
    assert executors.to_do(tmp_path, every) == [failed, killed]


def test_gpus_and_cores_are_shared_out(tmp_path):
    made = executors.Processes(tmp_path, ExecuteConfig(gpus=("0", "3")), print)
    assert made._places == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    cores = sorted(os.sched_getaffinity(0))
    split = executors.Processes(tmp_path, ExecuteConfig(workers=2), print)._cores
    assert sorted(itertools.chain(*split)) == cores
    assert len(split) == min(2, len(cores))


def test_a_local_ray_cluster_gives_the_same_results(small_results, small, tmp_path):
    ray = pytest.importorskip("ray", reason="the ray extra is not installed")
    try:
        found = compare(elsewhere(small, tmp_path / "run", "ray"), "c")
    finally:
        ray.shutdown()
    assert like(found) == like(small_results)


@pytest.mark.slow
def test_jobs_give_the_same_results(small_results, small, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the slurm extra is not installed")
    from dora_jax.comparison import on_slurm

    monkeypatch.setattr(on_slurm, "CLUSTER", "local")  # submitit's stand-in for SLURM
    monkeypatch.setattr(on_slurm, "_POLL_S", 0.2)
    own = elsewhere(small, tmp_path / "run", "slurm")
    assert like(compare(own, "c")) == like(small_results)
    assert (own.out / "slurm").is_dir()


def test_without_slurm_it_says_so(quick):
    pytest.importorskip("submitit", reason="the slurm extra is not installed")
    own = dataclasses.replace(quick, execute=ExecuteConfig(executor="slurm"))
    with pytest.raises(DoraError, match="there is no SLURM here"):
        compare(own, "c")
