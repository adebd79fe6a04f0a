"""What docs/llava.md shows: its row, its experiment, its commands."""

import json
import re
from pathlib import Path

from dora_jax import cli
from dora_jax.data.formats import read_row
from dora_jax.data.row_images import image_names

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "llava.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_its_row_is_read():
    (row,) = map(json.loads, blocks("json"))
    assert read_row(row, "row").answer == "White and red."
    assert image_names(row, "row") == [row["image"]]


def test_its_experiment_trains_what_it_says():
    (example,) = blocks("python")
    names = {}
    exec(example, names)
    rules = names["config"].adapter.rules("dora")
    methods = {
        path: rules.spec_for(path).method
        for path in (
            "language_model/layers/mlp/up_proj",
            "multi_modal_projector/linear_1",
            "vision_tower/layers/self_attn/q_proj",
        )
    }
    assert list(methods.values()) == ["dora", "full", "frozen"]


def test_its_published_averages_are_those_of_their_tasks():
    """A figure that was copied wrongly would show; averages are rounded to one digit."""
    rows = re.findall(r"\| published: ([\w -]+) \|(.*)\|", TEXT)
    assert [name for name, _ in rows] == ["full fine-tuning", "LoRA", "DoRA"]
    for _, cells in rows:
        *scores, average = map(float, cells.split("|"))
        assert len(scores) == 7
        assert abs(sum(scores) / 7 - average) < 0.11


def test_its_commands_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line.split("#")[0].split() for line in lines if line.startswith("dora-jax ")]
    assert {argv[1] for argv in commands} <= set(cli._COMMANDS)
    experiments = [argv[1:] for argv in commands if argv[1] in ("compare", "train")]
    assert len(experiments) == 2
    for name, *arguments in experiments:
        cli._parse_experiment(name, arguments)
    for line in lines:
        for module in re.findall(r"python -m (experiments[\w.]+)", line):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
