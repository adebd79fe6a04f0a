"""VL-BART under the commands: several tasks, each with its metric, on features of images."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.checkpoint.bart import write_bart_folder
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.comparison.compare import compare
from dora_jax.comparison.evaluate import evaluate
from dora_jax.data.encode import digest_rows
from dora_jax.data.splits import read_examples
from dora_jax.data.vision import ImageFile
from dora_jax.data.vl.store import open_features
from dora_jax.data.vl.visuals import FeatureVision
from dora_jax.errors import DoraError
from dora_jax.evaluation.task import encode_task
from dora_jax.generation import Sampling, generate
from dora_jax.models.vlbart import VLBart, VLBartConfig
from dora_jax.scoring import Request, score_tokens
from dora_jax.training.config import (
    AdapterConfig,
    CompareConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
)
from tests.checkpoint.tiny_model import tokenizer
from tests.models.barts import SIZES

FEATURE_SIZE = 6
CONFIG = VLBartConfig(
    **{k: v for k, v in SIZES.items() if k not in ("eos_token_id", "forced_eos_token_id")},
    eos_token_id=(2,),
    feature_size=FEATURE_SIZE,
    image_tokens=4,
    layout="regions",
)
WORDS = ("hello", "low", "wor")


def rows(first, count):
    """Return rows of three tasks: what is asked is to be seen, and in one of two images."""
    for n in range(first, first + count):
        word, image = WORDS[n % 3], f"image-{n}"
        yield {
            "task": "vqa",
            "instruction": f"vqa: {n}?",
            "output": word,
            "images": [image],
            "metric": "vqa",
            "references": [word] * 2 + ["no"] * 8,
            "targets": {word: 0.6, "no": 0.3},
        }
        yield {
            "task": "caption",
            "instruction": f"caption: {n}",
            "output": f"a {word}",
            "images": [image],
            "metric": "cider",
            "references": [f"a {word}", f"the {word}"],
        }
        yield {
            "task": "nlvr",
            "instruction": f"nlvr: {n} same",
            "output": str(n % 3 == (n + 1) % 3).lower(),
            "images": [image, f"image-{n + 1}"],
            "metric": "exact",
        }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vl")
    model = VLBart(CONFIG)
    init = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    write_bart_folder(folder / "model", CONFIG, init["params"], tokenizer())
    for name, first, count in (("train", 0, 8), ("eval", 30, 4)):
        text = "".join(json.dumps(row) + "\n" for row in rows(first, count))
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "features").mkdir()
    rng = np.random.default_rng(0)
    for n in range(40):
        seen = rng.normal(size=(1 + n % 3, FEATURE_SIZE)).astype(np.float32)
        seen[:, n % 3] += 5
        np.savez(folder / "features" / f"image-{n}.npz", features=seen)
    return folder


def experiment(inputs, **fields):
    base = ExperimentConfig(
        model=ModelConfig(name=str(inputs / "model")),
        data=DataConfig(
            train=inputs / "train.jsonl",
            eval=inputs / "eval.jsonl",
            features=inputs / "features",
            validation_rows=6,
            eval_batch_size=4,
            max_length=40,
            prompt="none",
        ),
        evaluation=EvaluationConfig(beams=2, new_tokens=6),
        adapter=AdapterConfig(
            rank=2,
            alpha=2.0,
            modules="qv",
            bias="all",
            modules_to_save=("visual_embedding/.*",),
        ),
        train=TrainConfig(steps=30, batch_size=4),
        compare=CompareConfig(methods=("dora",), learning_rates=(3e-2,), search_steps=0),
    )
    return dataclasses.replace(base, **fields)


@pytest.fixture(scope="module")
def config(inputs, tmp_path_factory):
    return experiment(inputs, out=tmp_path_factory.mktemp("run") / "whole")


@pytest.fixture(scope="module")
def results(config):
    return compare(config, "the command")


def test_each_task_has_its_metric_and_the_figure_is_their_mean(results):
    assert results.data.metric == "score"
    assert results.data.task_metrics == {
        "vqa": "VQA accuracy",
        "caption": "CIDEr-D",
        "nlvr": "exact match",
    }
    (run,) = results.runs
    tasks = [row.task for row in results.eval_rows]
    means = [
        np.mean([mark for mark, own in zip(run.correct, tasks, strict=True) if own == task])
        for task in ("vqa", "caption", "nlvr")
    ]
    assert run.accuracy == pytest.approx(np.mean(means))
    assert run.loss < results.base.loss


def test_each_task_is_told_with_its_metric_and_interval(config, results):
    lines = evaluate(config, config.out / "seed-0" / "dora")
    tasks = [row.task for row in results.eval_rows]
    for line, (task, metric) in zip(lines[1:], results.data.task_metrics.items(), strict=False):
        marks = [m for m, own in zip(results.runs[0].correct, tasks, strict=True) if own == task]
        expected = rf"  {task}, {metric}: {100 * np.mean(marks):.1f} points of 4 \([\d.]+ to "
        assert re.match(expected, line), line
    assert lines[4] == f"  average of the tasks: {100 * results.runs[0].accuracy:.1f} points"


def test_the_folder_is_read_back(config):
    found = load_pretrained(config.model.name)
    assert found.config == CONFIG
    again = jax.tree.leaves(found.params)
    init = jax.jit(VLBart(CONFIG).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    for before, after in zip(jax.tree.leaves(init["params"]), again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_is_seen_and_what_is_read_count(config, results):
    def losses(**fields):
        data = dataclasses.replace(config.data, **fields)
        changed = dataclasses.replace(config, data=data)
        return evaluate(changed, config.out / "seed-0" / "dora")[0]

    both = losses()
    assert re.match(r"score [\d.]+ points of 12 rows", both)
    assert both.endswith(f"loss {results.runs[0].loss:.4f}")
    blind, mute = losses(images="leave_out"), losses(texts="leave_out")
    assert len({both, blind, mute}) == 3


def test_of_what_is_left_out_nothing_is_read(config):
    """What images alone tell is asked by the first word, which names the task."""
    given = read_examples(config.data)
    mute = read_examples(dataclasses.replace(config.data, texts="leave_out"))
    blind = read_examples(dataclasses.replace(config.data, images="leave_out"))
    for split, examples in given.splits.items():
        for whole, words, seen in zip(
            examples, blind.splits[split], mute.splits[split], strict=True
        ):
            assert (words.prompt, words.images) == (whole.prompt, ())
            assert (seen.prompt, seen.images) == (f"{whole.task}:", whole.images)
            assert words.answer == seen.answer == whole.answer


def test_rows_without_features_are_counted(inputs, config):
    path = inputs / "more.jsonl"
    lines = (inputs / "train.jsonl").read_text().splitlines()
    lost = json.loads(lines[0]) | {"images": ["image-99"], "instruction": "vqa: lost?"}
    path.write_text("\n".join([*lines, json.dumps(lost)]) + "\n")
    data = dataclasses.replace(config.data, train=path)
    assert read_examples(data).left_out["train"] == {"with an image whose features are missing": 1}
    with pytest.raises(DoraError, match=r"more\.jsonl, line 25: .* has no features of 'image-99'"):
        read_examples(dataclasses.replace(data, bad_images="error"))


def test_one_question_about_two_images_is_two(inputs, config, tmp_path):
    given = [json.loads(line) for line in (inputs / "train.jsonl").read_text().splitlines()]
    for row in given:
        row["instruction"] = row["instruction"].split()[0] + " the same?"
    text = "".join(json.dumps(row) + "\n" for row in given)
    (tmp_path / "train.jsonl").write_text(text)
    data = dataclasses.replace(config.data, train=tmp_path / "train.jsonl", validation_rows=0)
    seen = read_examples(data)
    blind = read_examples(dataclasses.replace(data, images="leave_out"))
    assert len(seen.splits["train"]) == len(blind.splits["train"]) == len(given)
    assert not any(example.images for example in blind.splits["train"])


def test_other_features_are_other_data(inputs, config, tmp_path):
    def digest(folder):
        data = dataclasses.replace(config.data, features=folder)
        vision = FeatureVision(open_features(folder), CONFIG)
        task = encode_task(read_examples(data), data, tokenizer(), vision=vision, start=2)
        return digest_rows(task.rows["train"])

    (tmp_path / "other").mkdir()
    for n in range(40):
        np.savez(tmp_path / "other" / f"image-{n}.npz", features=np.ones((9, FEATURE_SIZE)))
    assert digest(inputs / "features") != digest(tmp_path / "other")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": "absent"}, "absent: there is no such folder of features"),
        ({"frame_seconds": 0.0}, "data.frame_seconds must be positive and finite"),
        ({"texts": "none"}, "data.texts must be one of 'use', 'leave_out'"),
    ],
)
def test_what_cannot_be_is_refused(inputs, tmp_path, fields, message):
    base = experiment(inputs, out=tmp_path / "run")

    def run():
        data = dataclasses.replace(base.data, **fields)
        compare(dataclasses.replace(base, data=data), "the command")

    with pytest.raises(DoraError, match=message):
        run()


def test_what_is_scored_is_what_was_written(inputs):
    """Generation's own figures, of texts to features of one image, of two and of none."""
    found = load_pretrained(inputs / "model")
    vision = FeatureVision(open_features(inputs / "features"), CONFIG)
    names = [["image-1"], ["image-2", "image-3"], []]
    images = [vision.pictures([ImageFile(name, "") for name in own]) for own in names]
    prompts = [[5, 6, 7]] * 3
    model = VLBart(CONFIG)
    written = generate(model, found.params, prompts, Sampling(5), stop_ids=(), images=images)
    start = CONFIG.decoder_start_token_id
    requests = [
        Request((start,), [text.token_ids], own, prompt)
        for text, own, prompt in zip(written, images, prompts, strict=True)
    ]
    scored = score_tokens(model, {"params": found.params}, requests, 2)
    for text, (scores,) in zip(written, scored, strict=True):
        np.testing.assert_allclose(scores.log_probs, text.log_probs, rtol=1e-4, atol=1e-5)
    assert len({text.log_probs for text in written}) == 3


def test_an_image_s_captions_are_rows_of_their_own(config, tmp_path):
    def caption(image, text):
        told = {"task": "caption", "instruction": "caption:", "output": text, "metric": "cider"}
        return told | {"images": [image]}

    given = [caption(f"image-{n}", text) for n in range(6) for text in ("a", "b", "c", "a")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    data = dataclasses.replace(config.data, train=tmp_path / "train.jsonl", validation_rows=2)
    for images in ("use", "leave_out"):
        found = read_examples(dataclasses.replace(data, images=images))
        train, validation = found.splits["train"], found.splits["validation"]
        left = found.left_out["train"]
        assert len(validation) == 2
        assert len(train) + left["in the validation rows too"] == 3 * 6 - 2
        assert left["with a prompt seen before"] == 6
    seen = read_examples(data)
    apart = {example.images for example in seen.splits["validation"]}
    assert not apart & {example.images for example in seen.splits["train"]}


def test_more_images_than_the_model_tells_apart_are_named(config, tmp_path):
    row = {"task": "nlvr", "instruction": "nlvr: same", "output": "true", "metric": "exact"}
    many = [row | {"images": [f"image-{n}", "image-1", "image-2"]} for n in range(3, 8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    data = dataclasses.replace(config.data, train=tmp_path / "train.jsonl")
    vision = FeatureVision(open_features(data.features), CONFIG)
    with pytest.raises(DoraError, match=r"train\.jsonl, line \d: has 3 images; the model takes 2"):
        encode_task(read_examples(data), data, tokenizer(), vision=vision, start=2)
