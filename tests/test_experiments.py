"""Every experiment file can be read, and the paper's rows are the paper's."""

from pathlib import Path

import pytest

from dora_jax.cli import load_experiment
from dora_jax.comparison.arms import make_arms
from experiments.commonsense import published

FOLDER = Path(__file__).parents[1] / "experiments"
PARTS = ("__init__.py", "build_data.py", "paper.py", "published.py", "smollm2.py", "tuned.py")
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
