"""The study that fits a small machine: SmolLM2-135M on the offline sample of seven tasks.

A model of this size hardly binds option labels to options, so the files beside this one ask it in
two ways: `smollm2_cloze.py` (the answer is the option's own text, scored by normalised
likelihood) and `smollm2_index.py` (the paper's: the answer names a label).

The rows are expected in `data/commonsense`: train.jsonl.gz, and one JSONL file for each task, see
experiments/README.md.
"""

import dataclasses
from pathlib import Path
from typing import Any

from dora_jax.training.config import (
    AdapterConfig,
    CompareConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

DATA = Path("data/commonsense")
BATCH_SIZE = 2
# Questions of the cloze form that share a packed row of 256 tokens.
QUESTIONS_A_ROW = 11
# Each method has three rates, half a decade apart, around those that suit it.
COMPARE = CompareConfig(learning_rates=(1e-3, 3e-3, 1e-2), search_steps=10)
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {"train.method": "lora"},
    "DoRA": {"train.method": "dora"},
    "Magnitude only": {
        "train.method": "magnitude",
        "compare.learning_rates": (3e-3, 1e-2, 3e-2),
    },
    "Full fine-tuning": {
        "train.method": "full",
        "adapter.modules": ".*",
        "compare.learning_rates": (3e-5, 1e-4, 3e-4),
        # All weights' gradients and moments: the dearest by far.
        "compare.first_seeds": 1,
    },
}


def study(name: str, form: str, **changes: Any) -> ExperimentConfig:
    """Return an experiment on the sample.

    Args:
        name: of the run folder.
        form: cloze, or as_given (the paper's labels).
        changes: fields of the experiment to replace.
    """
    # A question of the other form is dear, for its four beams: it has fewer of them.
    is_cloze = form == "cloze"
    data = DataConfig(
        train=DATA / "train.jsonl.gz",
        eval=DATA / "*.jsonl",
        form=form,  # type: ignore[arg-type]
        train_rows=30_000,  # all of them
        validation_rows=60,
        eval_rows=560 if is_cloze else 140,
        prompt="plain" if is_cloze else "alpaca",
        max_length=256,
        packing="pack",
    )
    # Nobody writes an option's whole text word for word: of the cloze form only likelihoods.
    protocols = ("likelihood",) if is_cloze else ("likelihood", "generate")
    fields: dict[str, Any] = {
        "model": ModelConfig(name="smollm2-135m-instruct"),
        "data": data,
        "evaluation": EvaluationConfig(protocols=protocols),  # type: ignore[arg-type]
        "adapter": AdapterConfig(rank=8, alpha=16.0, modules="paper"),
        "optim": OptimConfig(schedule="linear", warmup_ratio=0.1),
        "train": TrainConfig(
            steps=50 if is_cloze else 40, batch_size=BATCH_SIZE, checkpoint_every=25
        ),
        "compare": COMPARE,
        "seeds": (0, 1, 2),
    }
    return ExperimentConfig(name=name, **(fields | changes))


def at_two_ranks(name: str, form: str) -> ExperimentConfig:
    """Return the study of all methods, with those that have a rank at two of them."""
    return study(
        name,
        form,
        variants=VARIANTS,
        grid={"adapter.rank+adapter.alpha": ((4, 8.0), (8, 16.0))},
        # Is half the rank enough?
        compare=dataclasses.replace(COMPARE, pairs=(("dora-rank4", "lora-rank8"),)),
    )
