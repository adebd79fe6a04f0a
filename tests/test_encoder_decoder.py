"""BART under the commands: trained, compared, scored, merged and asked as any other model."""

import dataclasses
import json

import numpy as np
import pytest

from dora_jax.answer import answer
from dora_jax.checkpoint.exchange import export_peft
from dora_jax.checkpoint.merge import merge_to_hf
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.comparison.compare import compare
from dora_jax.comparison.evaluate import evaluate
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling, generate
from dora_jax.models.bart import Bart
from dora_jax.scoring import Request, score_tokens
from dora_jax.training.config import (
    AdapterConfig,
    CompareConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)
from tests.models.barts import EOS, PROMPTS, write_folder
from tests.tiny_comparison import write_rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_folder(folder / "bart", "bart")
    write_rows(folder / "train.jsonl", 0, 24)
    write_rows(folder / "eval.jsonl", 100, 6)
    return folder


def experiment(inputs, **fields):
    data = DataConfig(
        train=inputs / "train.jsonl",
        eval=inputs / "eval.jsonl",
        validation_rows=6,
        eval_batch_size=4,
        max_length=40,
        prompt="none",
    )
    model = ModelConfig(name=str(inputs / "bart"))
    adapter = AdapterConfig(rank=2, alpha=4.0, modules="qv", bias="all")
    base = ExperimentConfig(
        model=model,
        data=data,
        adapter=adapter,
        train=TrainConfig(steps=6, batch_size=4, checkpoint_every=3),
        compare=CompareConfig(learning_rates=(3e-2,), search_steps=1),
    )
    return dataclasses.replace(base, **fields)


@pytest.fixture(scope="module")
def config(inputs, tmp_path_factory):
    return experiment(inputs, out=tmp_path_factory.mktemp("run") / "whole")


@pytest.fixture(scope="module")
def results(config):
    return compare(config, "the command")


def test_methods_are_compared_and_learn(results):
    lora, dora = results.runs
    assert (lora.method, dora.method) == ("lora", "dora")
    assert lora.history[0].loss == pytest.approx(dora.history[0].loss, rel=1e-4)
    for run in (lora, dora):
        assert run.loss < results.base.loss
        assert run.history[-1].loss < run.history[0].loss
    assert dora.magnitude_parameters > 0 == lora.magnitude_parameters
    # The queries and values of three attentions, their biases and the norms' beside them.
    assert lora.trainable_parameters < dora.trainable_parameters


def test_what_the_head_adds_to_logits_is_not_trained(config, results):
    model = load_pretrained(config.model.name)
    merged = config.out.parent / "merged"
    merge_to_hf(config.out / "seed-0" / "dora", merged)
    tuned = load_pretrained(merged)
    assert isinstance(tuned.config, type(model.config))
    for name in ("shared", "final_logits_bias"):
        (before,), (after,) = model.params[name].values(), tuned.params[name].values()
        np.testing.assert_array_equal(before, after)
    bias = "decoder", "layers", "fc1", "bias"
    before, after = model.params, tuned.params
    for key in bias:
        before, after = before[key], after[key]
    assert np.abs(np.asarray(before) - np.asarray(after)).max() > 1e-3


def test_an_adapter_scores_as_its_run_did(config, results):
    lines = evaluate(config, config.out / "seed-0" / "dora")
    dora = results.runs[1]
    assert lines[0].startswith(f"accuracy {dora.accuracy:.1%} of 6 rows, loss {dora.loss:.4f}")


def test_options_are_scored_as_texts_of_their_own(inputs):
    """All of them behind one start token, to one source: each as if it were alone."""
    found = load_pretrained(inputs / "bart")
    model, variables = Bart(found.config), {"params": found.params}
    options = [[5, 6], [9], [5, 7, 8, 30]]
    together = [Request((EOS,), options, (), prompt) for prompt in PROMPTS]
    alone = [Request((EOS,), [ids], (), prompt) for prompt in PROMPTS for ids in options]
    whole = score_tokens(model, variables, together, 2)
    single = score_tokens(model, variables, alone, 4)
    for n, scores in enumerate(s for row in whole for s in row):
        np.testing.assert_allclose(scores.log_probs, single[n][0].log_probs, rtol=1e-4, atol=1e-5)
    # The generation code's own figures, of the text that it chose.
    (written,) = generate(model, found.params, PROMPTS[:1], Sampling(5), stop_ids=())
    request = Request((EOS,), [written.token_ids], (), PROMPTS[0])
    ((scores,),) = score_tokens(model, variables, [request], 1)
    np.testing.assert_allclose(scores.log_probs, written.log_probs, rtol=1e-4, atol=1e-5)
    assert scores.is_greedy.all()


def test_free_answers_are_written_and_matched(inputs, tmp_path):
    rows = [json.loads(line) for line in (inputs / "train.jsonl").read_text().splitlines()]
    for name, own in (("train", rows), ("eval", rows[:4])):
        free = [{k: v for k, v in row.items() if k != "options"} for row in own]
        for n, row in enumerate(free):
            row["instruction"] += f" {name} {n}"
        text = "".join(json.dumps(row) + "\n" for row in free)
        (tmp_path / f"{name}.jsonl").write_text(text)
    base = experiment(inputs)
    data = dataclasses.replace(
        base.data, train=tmp_path / "train.jsonl", eval=tmp_path / "eval.jsonl"
    )
    (line,) = evaluate(dataclasses.replace(base, data=data), None)
    assert line.startswith("exact_match 0.0% of 4 rows")


def test_it_answers_a_text(inputs):
    found = load_pretrained(inputs / "bart")
    ids = [*found.tokenizer.encode("hello"), *found.tokenizer.final_ids]
    stop = found.stop_ids
    (own,) = generate(Bart(found.config), found.params, [ids], Sampling(4), stop_ids=stop)
    text = found.tokenizer.decode(own.token_ids).strip()
    assert answer("hello", model=str(inputs / "bart"), template="none", max_new_tokens=4) == text


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"packing": "pack"}, "data.packing 'pack' is for decoders"),
        ("data", {"train_on": "all"}, "data.train_on 'all' is for decoders"),
        ("train", {"neftune_alpha": 5.0}, "neftune_alpha is for decoders alone"),
        ("data", {"max_length": 60}, r"data.max_length \(60\) is more than the model's context"),
    ],
)
def test_what_it_has_no_use_for_is_refused(inputs, tmp_path, section, fields, message):
    base = experiment(inputs, out=tmp_path / "run")
    changed = dataclasses.replace(getattr(base, section), **fields)
    with pytest.raises(DoraError, match=message):
        compare(dataclasses.replace(base, **{section: changed}), "the command")


def test_peft_files_are_refused_with_the_way_out(config, results, tmp_path):
    with pytest.raises(DoraError, match=r"this is a BART: .*dora-jax merge"):
        export_peft(config.out / "seed-0" / "dora", tmp_path / "peft")
