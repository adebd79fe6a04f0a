import dataclasses
import json
import re

import numpy as np
import pytest

from dora_jax.analysis.results import ComparisonResults
from dora_jax.answer import answer
from dora_jax.checkpoint.adapter import AdapterInfo, load_model
from dora_jax.checkpoint.merge import merge_to_hf
from dora_jax.comparison import compare as comparison
from dora_jax.comparison import evaluate as evaluating
from dora_jax.comparison import parts, workbench
from dora_jax.errors import DoraError
from dora_jax.evaluation.validation import Validation
from dora_jax.training import runs
from dora_jax.training.config import (
    AdapterConfig,
    CompareConfig,
    DataConfig,
    ExperimentConfig,
    OptimConfig,
    TrainConfig,
)
from tests.tiny_comparison import experiment, write_inputs, write_rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def config(inputs, tmp_path_factory):
    return experiment(
        inputs,
        name="tiny",
        train=TrainConfig(steps=4, batch_size=4, checkpoint_every=2),
        compare=CompareConfig(learning_rates=(1e-3, 1e-2), search_steps=2),
        out=tmp_path_factory.mktemp("run") / "whole",
    )


@pytest.fixture(scope="module")
def results(config):
    return comparison.compare(config, "the command")


def facts(results):
    """What must be the same however often the run was interrupted: everything but times."""
    return [
        (r.method, r.seed, r.learning_rate, r.accuracy, r.correct, r.loss, r.history)
        for r in results.runs
    ] + [results.base, results.search, results.eval_rows, results.data]


def test_every_method_gets_the_same(results, config):
    assert [(r.method, r.seed) for r in results.runs] == [("lora", 0), ("dora", 0)]
    lora, dora = results.runs
    # The same rows in the same order, from the same initial function.
    assert lora.history[0].loss == pytest.approx(dora.history[0].loss, rel=1e-5)
    assert lora.history[-1].loss != dora.history[-1].loss
    trials = {(t.method, t.learning_rate, t.steps) for t in results.search}
    assert trials == {(m, rate, 2) for m in ("lora", "dora") for rate in (1e-3, 1e-2)}
    assert len(lora.correct) == len(dora.correct) == len(results.base.correct) == 12


def test_the_rate_of_least_validation_loss_is_chosen(results):
    for run in results.runs:
        trials = [t for t in results.search if t.method == run.method]
        best = min(trials, key=lambda t: t.validation_loss)
        assert [t for t in trials if t.chosen] == [best]
        assert run.learning_rate == best.learning_rate


def test_tasks_count_alike_in_the_choice_of_the_rate(config, tmp_path, monkeypatch):
    """By all tokens together the first rate would be chosen, whose captions are better."""
    trials = iter(
        [
            Validation(1.2, {"caption": 1.1, "vqa": 3.0}, None),
            Validation(1.3, {"caption": 1.3, "vqa": 1.5}, None),
        ]
    )
    monkeypatch.setattr(workbench.Workbench, "validate", lambda *arguments: next(trials))
    own = dataclasses.replace(config.compare, methods=("lora",), search_steps=1)
    short = dataclasses.replace(config.train, steps=1)
    out = tmp_path / "run"
    found = comparison.compare(dataclasses.replace(config, compare=own, train=short, out=out), "c")
    assert [trial.chosen for trial in found.search] == [False, True]
    assert [trial.validation_loss for trial in found.search] == pytest.approx([2.05, 1.4])
    assert found.search[1].validation_losses == {"caption": 1.3, "vqa": 1.5}
    assert found.runs[0].learning_rate == 1e-2
    assert ComparisonResults.from_json(out / "results.json") == found
    assert "the mean over tasks of each one" in (out / "report.html").read_text()


def test_of_one_task_no_losses_by_task_are_kept(results):
    assert [trial.validation_losses for trial in results.search] == [{}] * 4


def test_dora_was_on(results):
    lora, dora = results.runs
    assert lora.magnitude_parameters == 0
    # One magnitude an output feature of q, k, v, up and down, in three layers.
    assert dora.magnitude_parameters == 3 * (128 + 64 + 64 + 160 + 96)
    assert dora.trainable_parameters == lora.trainable_parameters + dora.magnitude_parameters
    assert dora.history[-1].magnitude_drift > 0


def test_what_a_run_leaves(results, config):
    assert ComparisonResults.from_json(config.out / "results.json") == results
    report = (config.out / "report.html").read_text()
    assert "<svg" in report
    assert "the command" in report
    settings = json.loads((config.out / "config.json").read_text())
    assert settings["adapter"]["rank"] == 2
    (environment,) = json.loads((config.out / "environment.json").read_text())
    assert "jax" in environment["versions"]
    for method in ("lora", "dora"):
        part = config.out / "seed-0" / method
        assert not (part / "checkpoints").exists()
        lines = (part / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
        assert (part / "adapter" / "adapter.json").is_file()


def test_a_run_ends_with_how_far_it_went(config, tmp_path, capsys):
    """Four steps of four rows, of the 40 that there are."""
    train = dataclasses.replace(config.train, method="lora")
    comparison.train(dataclasses.replace(config, train=train, out=tmp_path / "run"), "c")
    told = capsys.readouterr().err
    assert re.search(
        r"lora, seed 0: [\d.]+%; 0\.4 epochs, [\d.]+% of the time waiting for data", told
    )


def test_run_again_nothing_is_trained(results, config, monkeypatch):
    monkeypatch.setattr(parts, "fit", None)
    monkeypatch.setattr(workbench.Workbench, "score", None)
    monkeypatch.setattr(workbench.Workbench, "validate", None)
    monkeypatch.setattr(parts, "Shelf", None)  # what is done is looked for nowhere
    assert facts(comparison.compare(config, "the command")) == facts(results)


# In a trial of the search; in DoRA's run, behind a checkpoint.
@pytest.mark.parametrize("stop_at", [pytest.param(6, marks=pytest.mark.slow), 15])
def test_an_interrupted_run_continues_to_the_same_numbers(
    results, config, tmp_path, monkeypatch, stop_at
):
    """Steps 1 to 8 are the search's four trials, the next four LoRA's run, the last four DoRA's."""
    config = dataclasses.replace(config, out=tmp_path / "run")
    done, advance = [], comparison.WorkProgress.advance

    def interrupt(self, work, detail=""):
        done.append(detail)
        if sum(d.startswith("step") for d in done) == stop_at:
            raise KeyboardInterrupt
        advance(self, work, detail)

    with monkeypatch.context() as patch:
        patch.setattr(comparison.WorkProgress, "advance", interrupt)
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(config, "the command")
    assert not (config.out / "results.json").exists()
    assert facts(comparison.compare(config, "the command")) == facts(results)


@pytest.mark.slow
def test_a_rate_that_diverges_loses_the_search_and_does_not_end_it(config, tmp_path, monkeypatch):
    fit = parts.fit

    def diverging(*args, **fields):
        if "lr0.01" in str(fields["folder"]):
            raise parts.DivergedError("the loss is nan")
        return fit(*args, **fields)

    splits = []

    def noted(split, method):
        def call(*arguments):
            splits.append(split)
            return method(*arguments)

        return call

    monkeypatch.setattr(parts, "fit", diverging)
    for split, name in (("evaluation", "score"), ("validation", "validate")):
        method = noted(split, getattr(workbench.Workbench, name))
        monkeypatch.setattr(workbench.Workbench, name, method)
    found = comparison.compare(dataclasses.replace(config, out=tmp_path / "run"), "the command")
    # Rates are chosen by validation rows, methods judged by evaluation rows.
    assert splits == ["evaluation", "validation", "validation", "evaluation", "evaluation"]
    assert [t.validation_loss is None for t in found.search] == [False, True, False, True]
    assert {run.learning_rate for run in found.runs} == {1e-3}


def test_if_every_rate_diverges_it_ends(config, tmp_path, monkeypatch):
    def diverging(*args, **fields):
        raise parts.DivergedError("the loss is nan")

    monkeypatch.setattr(parts, "fit", diverging)
    with pytest.raises(DoraError, match="lora diverged at every learning rate that was tried"):
        comparison.compare(dataclasses.replace(config, out=tmp_path / "run"), "the command")


def test_a_loss_that_is_no_number_is_never_the_least():
    trials = [
        comparison.SearchTrial("lora", 1.0, 1, False, 0.0, loss)
        for loss in (float("nan"), 2.0, 1.0, None)
    ]
    assert min(trials, key=comparison._validation_loss) is trials[2]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("adapter", AdapterConfig(rank=2, modules="(q|k)_pro"), r"matches no module; near misses"),
        ("data", None, r"data\.max_length \(4096\) is more than the model's context of 128"),
    ],
)
def test_what_does_not_suit_the_model_is_found_first(config, tmp_path, field, value, message):
    value = value or dataclasses.replace(config.data, max_length=4096)
    with pytest.raises(DoraError, match=message):
        comparison.compare(dataclasses.replace(config, out=tmp_path / "run", **{field: value}), "c")
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_refused_on_other_weights(results, config, inputs, tmp_path, monkeypatch):
    part = config.out / "seed-0" / "dora"
    weights = inputs / "model" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        changed = bytearray(kept)
        changed[-100_000:] = bytes(100_000)
        weights.write_bytes(bytes(changed))
        with pytest.raises(DoraError, match="was trained on other weights of"):
            answer("hello", adapter=part)
    finally:
        weights.write_bytes(kept)


def test_other_weights_at_the_same_path_are_another_run(results, config, monkeypatch):
    load = workbench.load_pretrained

    def changed(name, sharding):
        found = load(name, sharding=sharding)
        found.params["norm"]["scale"] = found.params["norm"]["scale"] * 1.01
        return found

    monkeypatch.setattr(workbench, "load_pretrained", changed)
    with pytest.raises(DoraError, match=r"another config \(weights is"):
        comparison.compare(config, "the command")


def test_a_folder_of_another_config_is_refused(results, config):
    other = dataclasses.replace(config, adapter=AdapterConfig(rank=3, alpha=4.0))
    with pytest.raises(DoraError, match=r"of another config \(adapter\.rank is 2"):
        comparison.compare(other, "the command")


def test_other_rows_are_another_run(results, config, inputs, tmp_path):
    changed = tmp_path / "eval.jsonl"
    write_rows(changed, 200, 12)
    (config.data.eval).rename(tmp_path / "kept")
    try:
        changed.rename(config.data.eval)
        with pytest.raises(DoraError, match=r"another config \(rows is"):
            comparison.compare(config, "the command")
    finally:
        (tmp_path / "kept").rename(config.data.eval)


def test_train_is_one_method_at_the_given_rate(config, tmp_path):
    alone = dataclasses.replace(
        config, out=tmp_path / "run", train=TrainConfig(method="magnitude", steps=2, batch_size=4)
    )
    found = comparison.train(alone, "the command")
    assert [(r.method, r.learning_rate) for r in found.runs] == [("magnitude", 1e-3)]
    assert found.search == ()
    # Nothing is searched for: no rows are set aside.
    assert (found.data.train_rows, found.data.validation_rows) == (40, 0)


def test_a_search_without_rows_is_refused(config):
    data = dataclasses.replace(config.data, validation_rows=0)
    with pytest.raises(DoraError, match=r"needs rows: raise --data\.validation-rows"):
        comparison.compare(dataclasses.replace(config, data=data), "c")


def test_evaluate_scores_an_adapter_as_the_comparison_did(results, config):
    for run in results.runs:
        (line,) = evaluating.evaluate(config, config.out / "seed-0" / run.method)
        assert line == f"accuracy {run.accuracy:.1%} of 12 rows, loss {run.loss:.4f}"
    chat = dataclasses.replace(config, data=dataclasses.replace(config.data, prompt="chat"))
    with pytest.raises(DoraError, match=r"template 'plain', not 'chat': give --data.prompt plain"):
        evaluating.evaluate(chat, config.out / "seed-0" / "dora")
    (line,) = evaluating.evaluate(config, None)
    assert line.startswith(f"accuracy {results.base.accuracy:.1%} of 12 rows")


def test_rows_that_an_adapter_may_have_seen_are_warned_of():
    data = DataConfig(seed=1)
    info = AdapterInfo("m", "s", "dora", {}, "plain", data=ExperimentConfig().settings()["data"])
    (line,) = evaluating._doubts(ExperimentConfig(data=data), info)
    assert line.startswith("warning: the adapter was trained with data.seed 0, not 1")
    assert evaluating._doubts(ExperimentConfig(), info) == []
    assert (
        evaluating._doubts(ExperimentConfig(data=data), dataclasses.replace(info, data=None)) == []
    )


@pytest.mark.parametrize("command", [comparison.compare, evaluating.evaluate])
def test_data_are_read_before_a_model_is_loaded(config, tmp_path, monkeypatch, command):
    monkeypatch.setattr(workbench, "load_pretrained", None)
    monkeypatch.setattr(evaluating, "load_model", None)
    data = dataclasses.replace(config.data, eval=tmp_path / "none.jsonl")
    with pytest.raises(DoraError, match=r"none\.jsonl"):
        command(dataclasses.replace(config, data=data), None)


def test_a_run_continued_elsewhere_says_so(results, config, monkeypatch, capsys):
    here = runs.environment()
    monkeypatch.setattr(runs, "environment", lambda: here | {"git_commit": "another"})
    found = comparison.compare(config, "the command")
    assert "this run was begun in another environment" in capsys.readouterr().err
    assert found.environment["git_commit"] == "another"
    assert [e["git_commit"] for e in found.environment["earlier"]] == [here["git_commit"]]
    monkeypatch.undo()
    (config.out / "environment.json").write_text(json.dumps([here]))
    comparison.compare(config, "the command")


@pytest.mark.slow
def test_an_adapter_of_rounded_weights_is_merged_into_those(config, tmp_path):
    half = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="bfloat16"),
        train=TrainConfig(method="dora", steps=1, batch_size=4),
        out=tmp_path / "half",
    )
    (run,) = comparison.train(half, "the command").runs
    (line,) = evaluating.evaluate(half, half.out / "seed-0" / "dora")
    assert line == f"accuracy {run.accuracy:.1%} of 12 rows, loss {run.loss:.4f}"
    loaded = load_model(None, half.out / "seed-0" / "dora")
    kernel = loaded.params["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype == "float32"
    np.testing.assert_array_equal(kernel, kernel.astype("bfloat16").astype("float32"))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "init"), [("lora", "pissa"), ("dora", "olora")])
def test_an_adapter_that_began_in_the_weights_is_scored_and_merged_as_trained(
    config, tmp_path, method, init
):
    """What its init took out of the weights is taken out again wherever it is loaded."""
    own = dataclasses.replace(
        config,
        adapter=dataclasses.replace(config.adapter, init=init),
        train=TrainConfig(method=method, steps=2, batch_size=4),
        out=tmp_path / "run",
    )
    (run,) = comparison.train(own, "the command").runs
    part = own.out / "seed-0" / method
    (line,) = evaluating.evaluate(own, part)
    assert line == f"accuracy {run.accuracy:.1%} of 12 rows, loss {run.loss:.4f}"
    merge_to_hf(part, tmp_path / "merged")
    merged = answer("hello", model=str(tmp_path / "merged"), template="plain", max_new_tokens=8)
    assert merged == answer("hello", adapter=part, max_new_tokens=8)


def test_an_adapter_finds_its_weights_in_another_place(results, config, inputs, tmp_path):
    part = config.out / "seed-0" / "dora"
    moved = inputs.parent / "moved"
    expected = answer("hello", adapter=part, max_new_tokens=4)
    (inputs / "model").rename(moved)
    try:
        with pytest.raises(DoraError, match="model: no such folder"):
            answer("hello", adapter=part)
        assert answer("hello", adapter=part, model=str(moved), max_new_tokens=4) == expected
        merge_to_hf(part, tmp_path / "merged", model=str(moved))
    finally:
        moved.rename(inputs / "model")


def test_generate_and_merge_use_the_adapter(results, config, tmp_path):
    part = config.out / "seed-0" / "dora"
    tuned = answer("hello", adapter=part, max_new_tokens=8)
    merge_to_hf(part, tmp_path / "merged")
    merged = answer("hello", model=str(tmp_path / "merged"), template="plain", max_new_tokens=8)
    assert merged == tuned
    with pytest.raises(DoraError, match="the prompt is empty"):
        answer(" ")
    with pytest.raises(DoraError, match="the prompt is not text"):
        answer("\udcff")
    with pytest.raises(DoraError, match="seed must be at least 0 and below"):
        answer("hello", adapter=part, seed=2**70)


def test_a_method_that_trains_nothing_is_refused(config):
    compared = CompareConfig(methods=("bitfit",), search_steps=0)
    with pytest.raises(DoraError, match="method 'bitfit' trains nothing: this model has no such"):
        comparison.compare(dataclasses.replace(config, compare=compared), "c")


def test_a_run_with_everything_on(config, tmp_path):
    """Norms by Muon, with noise, smoothed labels, a mean, validation, the best step and a trace."""
    run = dataclasses.replace(
        config,
        out=tmp_path / "run",
        optim=OptimConfig(optimizer="muon", schedule="wsd", ema=0.5, rate_ratios=(("scale", 2),)),
        train=TrainConfig(
            method="norms",
            steps=4,
            batch_size=4,
            neftune_alpha=5.0,
            label_smoothing=0.1,
            validate_every=2,
            select="best",
        ),
        track=("tensorboard",),
        profile=1,
    )
    # `train` sets no rows aside for a search, but these are measured on.
    found = comparison.train(run, "the command")
    assert found.data.validation_rows == 8
    part = tmp_path / "run" / "seed-0" / "norms"
    rows = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4]
    assert list((part / "profile").rglob("*.xplane.pb"))
    assert list((part / "tensorboard").iterdir())
    (line,) = evaluating.evaluate(run, part)
    assert (
        line == f"accuracy {found.runs[0].accuracy:.1%} of 12 rows, loss {found.runs[0].loss:.4f}"
    )
