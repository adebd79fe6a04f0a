"""The paper's LLaVA-1.5-7B rows (Tables 4, 10 and 12), and the stage of training before them.

Vicuna-7B v1.5, CLIP ViT-L/14 at 336 pixels, a projector of two layers. What is expected:

    models/llava-1.5-7b-start     the parts, joined: `dora-jax llava --vision CLIP --model VICUNA`
    models/llava-1.5-7b-stage1    that, with what stage 1 (`pretrain.py`) trained merged into it
    data/llava/                   blip_laion_cc_sbu_558k.json and its images in pretrain/ (stage 1)
                                  llava_v1_5_mix665k.json and its images in images/ (stage 2)
                                  eval.jsonl, of `python -m experiments.llava.build_eval`

Settings of the paper's appendix and the authors' scripts: r = 128, alpha = 256, dropout 0.05 on all
linear layers of the language model, the projector in full at a tenth of the rate, one epoch of
batches of 128, cosine with 3 % of warm-up, no weight decay, 2,048 tokens, bfloat16.

The reports have no published rows: they score `eval.jsonl` by likelihood, and Table 4 is of other
measures, those of `python -m dora_jax.evaluation.benchmarks`; docs/llava.md has its figures.
"""

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

DATA = Path("data/llava")
MODELS = Path("models")
PROJECTOR = r"multi_modal_projector/linear_\d"
LINEAR = r"language_model/.*/(q|k|v|o|up|down|gate)_proj"
STAGE_1_ROWS, STAGE_1_BATCH = 558_128, 256
STAGE_2_ROWS, STAGE_2_BATCH = 665_298, 128


def _data(train: str, images: str, rows: int, **fields: Any) -> DataConfig:
    given: dict[str, Any] = {
        "train": DATA / train,
        "image_folder": DATA / images,
        "eval": DATA / "eval.jsonl",
        "train_rows": rows,
        "validation_rows": 0,
        "eval_rows": 100_000,  # all of them
        "prompt": "vicuna",
        "max_length": 2048,
        "too_long": "truncate_right",
        "packing": "bucket",
    }
    return DataConfig(**given | fields)


def _training(rows: int, batch: int, micro_batches: int) -> TrainConfig:
    return TrainConfig(
        method="full",
        steps=rows // batch,
        batch_size=batch,
        micro_batches=micro_batches,
        checkpoint_every=250,
    )


def alignment() -> ExperimentConfig:
    """Return stage 1: the projector alone learns to put images into the language model's words."""
    return ExperimentConfig(
        name="llava-1.5-7b-pretrain",
        model=ModelConfig(name=str(MODELS / "llava-1.5-7b-start"), dtype="bfloat16", remat="full"),
        data=_data("blip_laion_cc_sbu_558k.json", "pretrain", STAGE_1_ROWS, prompt="llava-plain"),
        adapter=AdapterConfig(modules=PROJECTOR),
        optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_ratio=0.03),
        train=_training(STAGE_1_ROWS, STAGE_1_BATCH, 1),
    )


def tuning() -> ExperimentConfig:
    """Return stage 2: full fine-tuning, LoRA and DoRA, each training the projector too."""
    low_rank = {
        "adapter.modules": LINEAR,
        "optim.learning_rate": 2e-4,
        "optim.rate_ratios": (("multi_modal_projector/.*", 0.1),),
    }
    return ExperimentConfig(
        name="llava-1.5-7b",
        model=ModelConfig(name=str(MODELS / "llava-1.5-7b-stage1"), dtype="bfloat16", remat="full"),
        data=_data("llava_v1_5_mix665k.json", "images", STAGE_2_ROWS),
        evaluation=EvaluationConfig(samples=24),
        adapter=AdapterConfig(
            rank=128,
            alpha=256.0,
            dropout=0.05,
            dropout_style="peft",
            modules=LINEAR,
            modules_to_save=(PROJECTOR,),
        ),
        optim=OptimConfig(schedule="cosine", warmup_ratio=0.03),
        train=_training(STAGE_2_ROWS, STAGE_2_BATCH, 4),
        # The paper's own rates: nothing is searched for.
        compare=CompareConfig(search_steps=0),
        variants={  # type: ignore[arg-type]
            "Full fine-tuning": {
                "train.method": "full",
                "adapter.modules": r"language_model/.*",
                "optim.learning_rate": 2e-5,
            },
            "LoRA": {"train.method": "lora", **low_rank},
            "DoRA": {"train.method": "dora", **low_rank},
        },
    )
