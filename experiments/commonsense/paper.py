"""The paper's commonsense study, which the files of LLaMAs beside this one run for one model each.

Settings of the paper's appendix and of the authors' scripts: 170k rows of eight tasks, the steps of
three epochs of batches of 16, loss on prompt and answer, AdamW with 100 warm-up steps, the
checkpoint of least validation loss (120 rows, every 80 steps), 4 beams of at most 32 tokens, first
match.

The data are in the authors' layout: `commonsense_170k.json` and `TASK/test.json` for each task,
from their repository, or made of the tasks' own data sets by
`python -m experiments.commonsense.build_data --out data/commonsense_170k`. What differs from the
paper is told in `experiments/README.md`.
"""

from pathlib import Path
from typing import Any

from published import published

from dora_jax.analysis.results import Published
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

DATA = Path("data/commonsense_170k")
ROWS, VALIDATION, BATCH, EPOCHS = 170_420, 120, 16, 3
# Of the authors' rows, whichever are given: an epoch here may be fewer.
STEPS = (ROWS - VALIDATION) * EPOCHS // BATCH
LORA_RATE = 3e-4


def variant(method: str, rank: int, rate: float, modules: str = "paper") -> dict[str, Any]:
    """Return the fields of a variant, whose alpha is twice its rank."""
    return {
        "train.method": method,
        "adapter.rank": rank,
        "adapter.alpha": 2.0 * rank,
        "adapter.modules": modules,
        "optim.learning_rate": rate,
    }


def study(name: str, model: str, label: str, rate_16: float, rate_32: float) -> ExperimentConfig:
    """Return the study of one model: LoRA, DoRA, half-rank DoRA, and DoRA on q, k, v alone.

    Args:
        name: of the run folder.
        model: on the hub, or a folder.
        label: as the paper's tables call it.
        rate_16: DoRA's learning rate at rank 16.
        rate_32: at rank 32.
    """
    variants = {
        "LoRA r=32": variant("lora", 32, LORA_RATE),
        "DoRA r=32": variant("dora", 32, rate_32),
        "DoRA r=16": variant("dora", 16, rate_16),
        "QKV DoRA, magnitudes elsewhere": variant("dora", 32, rate_32, "qkv-dora"),
    }
    return experiment(name, model, variants, published(label))


def experiment(
    name: str,
    model: str,
    variants: dict[str, dict[str, Any]],
    published: tuple[Published, ...],
) -> ExperimentConfig:
    """Return an experiment by the paper's protocol.

    Args:
        name: of the run folder.
        model: on the hub, or a folder.
        variants: by label, see `variant`.
        published: rows to show beside them.
    """
    return ExperimentConfig(
        name=name,
        model=ModelConfig(name=model, dtype="bfloat16", remat="full"),
        data=DataConfig(
            train=DATA / "commonsense_170k.json",
            eval=DATA / "*" / "test.json",
            train_rows=ROWS,
            validation_rows=VALIDATION,
            eval_rows=100_000,  # all of them
            seed=42,
            prompt="alpaca",
            train_on="all",
            max_length=256,
            too_long="truncate_right",
            packing="bucket",
        ),
        evaluation=EvaluationConfig(protocols=("generate", "likelihood"), beams=4, new_tokens=32),
        adapter=AdapterConfig(dropout=0.05, dropout_style="peft"),
        optim=OptimConfig(schedule="linear", warmup_ratio=100 / STEPS, weight_decay=0.0),
        train=TrainConfig(
            steps=STEPS,
            batch_size=BATCH,
            checkpoint_every=80,
            validate_every=80,
            select="best",
        ),
        # The paper's own rates: nothing is searched for.
        compare=CompareConfig(search_steps=0),
        variants=variants,  # type: ignore[arg-type]
        published=published,
    )
