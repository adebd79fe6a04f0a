"""Every experiment file can be read, and the paper's rows are the paper's."""

import json
import re
from pathlib import Path

import pytest

from dora_jax.cli import load_experiment
from dora_jax.comparison.arms import make_arms
from experiments.commonsense import published
from experiments.llava import build_eval

FOLDER = Path(__file__).parents[1] / "experiments"
PARTS = (
    "__init__.py",
    "build_data.py",
    "build_eval.py",
    "miniature.py",
    "scene_rows.py",
    "paper.py",
    "published.py",
    "smollm2.py",
    "start.py",
    "tuned.py",
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
    for row in config.published:
        assert sum(row.scores.values()) / 7 == pytest.approx(row.average, abs=0.11)
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
