"""Every experiment file can be read, and the paper's rows are the paper's."""

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path

import pytest

from dora_jax.cli import _parse_experiment, load_experiment
from dora_jax.comparison.arms import make_arms
from dora_jax.training.config import GridAxis
from experiments.commonsense import published
from experiments.llava import build_eval

FOLDER = Path(__file__).parents[1] / "experiments"
PARTS = (
    "__init__.py",
    "build_data.py",
    "build_eval.py",
    "miniature.py",
    "nlvr.py",
    "scene_rows.py",
    "paper.py",
    "probe.py",
    "published.py",
    "smollm2.py",
    "start.py",
    "steps.py",
    "text_rows.py",
    "tower.py",
    "tuned.py",
    "words.py",
)
FILES = [
    path
    for path in sorted(FOLDER.rglob("*.py"))
    if path.name not in PARTS and path.parent.name != "launch"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_has_arms(path):
    config = load_experiment(str(path))
    arms = make_arms(config)
    assert len(arms) >= 2
    named = {arm.name for arm in arms} | {arm.label for arm in arms}
    assert {row.arm for row in config.published} <= named | {""}


@pytest.mark.parametrize(
    ("name", "rate_16", "rate_32"),
    [
        ("llama_7b", 2e-4, 1e-4),
        ("llama_13b", 3e-4, 2e-4),
        ("llama2_7b", 2e-4, 2e-4),
        ("llama3_8b", 1e-4, 1e-4),
    ],
)
def test_the_paper_s_settings(name, rate_16, rate_32):
    config = load_experiment(str(FOLDER / "commonsense" / f"{name}.py"))
    lora, dora, half, granular = make_arms(config)
    assert [a.method for a in (lora, dora, half, granular)] == ["lora", "dora", "dora", "dora"]
    rates = [a.config.optim.learning_rate for a in (lora, dora, half, granular)]
    assert rates == [3e-4, rate_32, rate_16, rate_32]
    assert [a.config.adapter.rank for a in (lora, dora, half, granular)] == [32, 32, 16, 32]
    assert all(a.config.adapter.alpha == 2 * a.config.adapter.rank for a in (lora, dora, half))
    assert granular.config.adapter.modules == "qkv-dora"
    for arm in (lora, dora, half, granular):
        one = arm.config
        assert one.adapter.dropout == 0.05
        assert (one.train.batch_size, one.train.micro_batches) == (16, 1)
        assert one.train.steps == 31_931  # three epochs of 170,300 rows
        assert round(one.optim.warmup_ratio * one.train.steps) == 100
        assert (one.train.validate_every, one.train.select) == (80, "best")
        assert (one.data.validation_rows, one.data.max_length) == (120, 256)
        assert one.data.train_on == "all"
        assert one.evaluation.protocols[0] == "generate"
        assert (one.evaluation.beams, one.evaluation.new_tokens) == (4, 32)
        assert one.compare.search_steps == 0


def test_the_paper_s_ranks():
    """Table 15: all but rank and rate as in Table 1, each figure beside the arm of its rank."""
    config = load_experiment(str(FOLDER / "commonsense" / "llama_7b_ranks.py"))
    arms = make_arms(config)
    ranks = (4, 8, 16, 32, 64)
    assert [(a.method, a.config.adapter.rank) for a in arms] == [
        (method, rank) for method in ("lora", "dora") for rank in ranks
    ]
    assert all(a.config.adapter.alpha == 2 * a.config.adapter.rank for a in arms)
    rates = [a.config.optim.learning_rate for a in arms]
    assert rates == [3e-4] * 5 + [2e-4, 2e-4, 2e-4, 1e-4, 1e-4]
    own = {arm.label: arm for arm in arms}
    beside = [(own[row.arm], row) for row in config.published]
    assert [arm for arm, _ in beside] == list(arms)
    assert [(row.label, row.average) for _, row in beside] == [
        (f"LLaMA-7B, {method} r={rank}", average)
        for method, averages in (
            ("LoRA", (39.5, 40.7, 70.9, 74.7, 65.8)),
            ("DoRA", (61.9, 77.9, 77.5, 78.4, 72.1)),
        )
        for rank, average in zip(ranks, averages, strict=True)
    ]
    lora, dora, half, _ = make_arms(load_experiment(str(FOLDER / "commonsense" / "llama_7b.py")))
    for arm in (lora, dora, half):
        twin = own[arm.label].config
        assert dataclasses.replace(arm.config, name=twin.name, published=()) == (
            dataclasses.replace(twin, published=())
        )


def test_no_figures_of_another_model_stand_beside_the_small_one_s():
    configs = [load_experiment(str(path)) for path in FILES if path.parent.name == "commonsense"]
    small = [config for config in configs if config.model.name == "smollm2-135m-instruct"]
    assert len(small) == 8
    assert not any(config.published for config in small)


def test_sample_counts_are_trained_on_once():
    """A packed row of 256 tokens holds 11 questions of the cloze form, by the model's tokenizer."""
    arms = make_arms(load_experiment(str(FOLDER / "commonsense" / "samples.py")))
    assert {arm.config.data.train_rows for arm in arms} == {1000, 4000, 7000, 10_000}
    for arm in arms:
        data, train = arm.config.data, arm.config.train
        assert (data.form, data.packing, data.max_length) == ("cloze", "pack", 256)
        assert train.steps * train.batch_size * 11 == pytest.approx(data.train_rows, rel=0.02)


def test_the_readme_s_commands_are_read():
    text = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"dora-jax (compare|train) (experiments/[^`\n]*)", text)
    studies = [path for path in FILES if path.parent.name == "commonsense"]
    assert all(f"{path.name}`" in text for path in studies)
    for command, line in found:
        words = shlex.split(line)
        config = _parse_experiment(command, [str(FOLDER.parent / words[0]), *words[1:]])
        if command == "compare":
            make_arms(config)
    by_rate, by_rows = (line for _, line in found if "--grid" in line)
    assert "optim.learning_rate" in by_rate
    rows = [word for word in shlex.split(by_rows) if word.startswith("data.train_rows")]
    for count, steps in GridAxis.parse(rows[0]).values:
        assert steps == math.ceil(count / 16)


@pytest.mark.parametrize(
    ("model", "variant", "figures"),
    [
        ("LLaMA-7B", "LoRA r=32", (68.9, 80.7, 77.4, 78.1, 78.8, 77.8, 61.3, 74.8)),
        ("LLaMA-7B", "DoRA r=16", (70.0, 82.6, 79.7, 83.2, 80.6, 80.6, 65.4, 77.6)),
        ("LLaMA-13B", "DoRA r=32", (72.4, 84.9, 81.5, 92.4, 84.2, 84.2, 69.6, 82.8)),
        ("LLaMA2-7B", "DoRA r=16", (72.0, 83.1, 79.9, 89.1, 83.0, 84.5, 71.0, 81.2)),
        ("LLaMA3-8B", "LoRA r=32", (70.8, 85.2, 79.9, 91.7, 84.3, 84.2, 71.2, 79.0)),
    ],
)
def test_published_figures_are_of_their_tasks(model, variant, figures):
    """Table 1; the averages would not tell two tasks that are exchanged."""
    scores = next(row.scores for row in published.published(model) if row.arm == variant)
    boolq, piqa, siqa, hellaswag, winogrande, easy, challenge, openbookqa = figures
    assert scores == {
        "boolq": boolq,
        "piqa": piqa,
        "social_i_qa": siqa,
        "hellaswag": hellaswag,
        "winogrande": winogrande,
        "ARC-Easy": easy,
        "ARC-Challenge": challenge,
        "openbookqa": openbookqa,
    }


def test_published_averages_are_those_of_their_rows():
    """A figure that was copied wrongly would show; averages are rounded to one digit."""
    seen = 0
    for model in ("LLaMA-7B", "LLaMA-13B", "LLaMA2-7B", "LLaMA3-8B"):
        for row in published.published(model):
            if row.scores:
                seen += 1
                mean = sum(row.scores.values()) / len(row.scores)
                assert mean == pytest.approx(row.average, abs=0.11), row.label
    assert seen == 13


def test_the_paper_s_llava():
    """Tables 4, 10 and 12."""
    config = load_experiment(str(FOLDER / "llava" / "llava_7b.py"))
    full, lora, dora = make_arms(config)
    assert [arm.label for arm in (full, lora, dora)] == ["Full fine-tuning", "LoRA", "DoRA"]
    assert [arm.config.optim.learning_rate for arm in (full, lora, dora)] == [2e-5, 2e-4, 2e-4]
    for arm in (lora, dora):
        adapter, optim = arm.config.adapter, arm.config.optim
        assert (adapter.rank, adapter.alpha, adapter.dropout) == (128, 256, 0.05)
        ((pattern, ratio),) = optim.rate_ratios
        assert re.fullmatch(pattern, "multi_modal_projector/linear_1/kernel")
        assert optim.learning_rate * ratio == pytest.approx(2e-5)
        rules = adapter.rules(arm.method)
        for name in ("q", "k", "v", "o", "up", "down", "gate"):
            path = f"language_model/layers/mlp/{name}_proj"
            assert rules.spec_for(path).method == arm.method
        assert rules.spec_for("multi_modal_projector/linear_2").method == "full"
        assert rules.spec_for("vision_tower/layers/self_attn/q_proj").method == "frozen"
        assert rules.spec_for("language_model/lm_head").method == "frozen"
    rules = full.config.adapter.rules("full")
    assert rules.spec_for("language_model/lm_head").method == "full"
    assert rules.spec_for("vision_tower/layers/mlp/fc1").method == "frozen"
    assert config.train.steps * config.train.batch_size == pytest.approx(665_298, abs=128)
    assert (config.optim.schedule, config.optim.warmup_ratio) == ("cosine", 0.03)
    assert (config.data.max_length, config.data.prompt) == (2048, "vicuna")
    # Two tasks by likelihood are no figures to hold against the published seven.
    assert config.published == ()
    first = load_experiment(str(FOLDER / "llava" / "pretrain.py"))
    rules = first.adapter.rules(first.train.method)
    assert rules.spec_for("multi_modal_projector/linear_1").method == "full"
    assert rules.spec_for("language_model/layers/mlp/up_proj").method == "frozen"
    assert (first.optim.learning_rate, first.train.batch_size) == (1e-3, 256)


def test_rows_to_compare_llavas_on(tmp_path, capsys):
    """POPE's questions as yes or no, ScienceQA's with an image as letters."""
    asked = {"question_id": 1, "image": "1.jpg", "text": "Is there a cat?", "label": "no"}
    (tmp_path / "coco_pope_random.json").write_text(json.dumps(asked))
    problem = {"question": "Which?", "choices": ["a", "b", "c"], "answer": 2, "hint": ""}
    problems = {
        "7": problem | {"image": "image.png", "subject": "natural science", "grade": "grade2"},
        "8": problem | {"image": None, "subject": "natural science", "grade": "grade2"},
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "splits.json").write_text(json.dumps({"test": ["7", "8"]}))
    where = {
        "--pope": "coco_pope_random.json",
        "--coco": "coco",
        "--problems": "problems.json",
        "--splits": "splits.json",
        "--scienceqa": "science",
        "--out": "eval.jsonl",
    }
    build_eval.main([word for name, path in where.items() for word in (name, str(tmp_path / path))])
    assert capsys.readouterr().out == f"2 rows written to {tmp_path / 'eval.jsonl'}\n"
    one, two = map(json.loads, (tmp_path / "eval.jsonl").read_text().splitlines())
    assert (one["answer"], one["options"], one["task"]) == ("No", ["Yes", "No"], "POPE")
    assert one["image"] == str(tmp_path / "coco" / "1.jpg")
    assert (two["answer"], two["options"], two["task"]) == ("C", ["A", "B", "C"], "SQA")
    assert two["image"] == str(tmp_path / "science" / "7" / "image.png")
