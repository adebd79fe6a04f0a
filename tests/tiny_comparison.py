"""A comparison that takes seconds, shared by tests: its model, its rows and its config."""

import json
from pathlib import Path
from typing import Any

from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.training.config import AdapterConfig, DataConfig, ExperimentConfig, ModelConfig
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer

OPTIONS = ["hello", "wor", "low"]


def write_rows(path: Path, start: int, count: int) -> None:
    """Write questions with three options each, numbered from `start`."""
    with open(path, "w") as file:
        for n in range(start, start + count):
            output = OPTIONS[n % 3]
            row = {"instruction": f"{n} gives {output}?", "output": output, "options": OPTIONS}
            file.write(json.dumps(row) + "\n")


def write_inputs(folder: Path) -> Path:
    """Write a tiny model, and files to train and evaluate on; return the folder."""
    params = our_params(hf_weights())
    write_hf_folder(folder / "model", CONFIG, params, tokenizer(), dtype="float32")
    write_rows(folder / "train.jsonl", 0, 40)
    write_rows(folder / "eval.jsonl", 100, 12)
    return folder


def experiment(inputs: Path, **fields: Any) -> ExperimentConfig:
    """Return an experiment on what `write_inputs` wrote."""
    data = DataConfig(
        train=inputs / "train.jsonl",
        eval=inputs / "eval.jsonl",
        validation_rows=8,
        eval_batch_size=4,
        max_length=100,
    )
    model, adapter = ModelConfig(name=str(inputs / "model")), AdapterConfig(rank=2, alpha=4.0)
    return ExperimentConfig(model=model, data=data, adapter=adapter, **fields)
