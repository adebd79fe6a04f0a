"""The paper's VL-BART studies (Tables 2, 3 and 9): four image-text tasks at once, four video-text.

BART-base and a new visual embedding, features made beforehand. What is expected, of each family:

    models/vl-bart-image       the start: `python -m experiments.vlbart.start image --bart FOLDER`
    data/vlbart/image/         train/ and eval/, rows of the four tasks (docs/vl_data.md), and
                               features, a folder or file of them

Settings of the paper's appendix and the authors' scripts: r = alpha = 128, no dropout, AdamW,
linear with 10 % of warm-up, gradients clipped at 5, 5 beams. Its table says that queries and keys
are adapted: its scripts adapt queries and values, and so does this.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

Family = Literal["image", "video"]
DATA = Path("data/vlbart")
MODELS = Path("models")
VISUAL = r"visual_embedding/.*"
NORMS = r"(?:encoder|decoder)/.*norm.*"


@dataclass(frozen=True)
class Study:
    """What the two families differ in.

    Attributes:
        rows: to train on, of each task: the published splits' sizes.
        batch: rows a step, of one task each.
        epochs: over all of them.
        rate: of LoRA and DoRA; the authors' script has 2.4e-4 for video.
        max_length: of a source in tokens, behind which what is seen stands.
        new_tokens: of an answer or a caption.
        frame_seconds: that one feature of a clip stands for; None where there are no clips.
        table: of the paper.
        scores: of full fine-tuning, LoRA and DoRA by task, and the published average.
    """

    rows: dict[str, int]
    batch: int
    epochs: int
    rate: float
    max_length: int
    new_tokens: int
    frame_seconds: float | None
    table: str
    scores: dict[str, tuple[float, ...]]

    @property
    def steps(self) -> int:
        """Of the epochs, each task's last batch filled up or not."""
        return self.epochs * sum(-(-count // self.batch) for count in self.rows.values())


STUDIES: dict[Family, Study] = {
    "image": Study(
        # Karpathy's training split and `restval` of VQAv2 and COCO, five captions an image; GQA's
        # balanced questions; NLVR2.
        rows={"vqa": 605_102, "gqa": 943_000, "nlvr": 86_373, "caption": 566_747},
        batch=300,
        epochs=20,
        rate=1e-3,
        max_length=64,
        new_tokens=20,
        frame_seconds=None,
        table="Table 2",
        scores={
            "Full fine-tuning": (66.9, 56.7, 73.7, 112.0, 77.3),
            "LoRA": (65.2, 53.6, 71.9, 115.3, 76.5),
            "DoRA": (65.8, 54.7, 73.1, 115.9, 77.4),
        },
    ),
    "video": Study(
        # The VALUE benchmark's training splits, two captions a moment of TVC.
        rows={"tvqa": 122_039, "how2qa": 34_213, "tvc": 174_350, "yc2c": 10_337},
        batch=40,
        epochs=7,
        rate=3e-4,
        max_length=1000,
        new_tokens=40,
        # As the VALUE benchmark extracted them; TVC's and YC2C's moments are cut out by it.
        frame_seconds=1.5,
        table="Table 3",
        scores={
            "Full fine-tuning": (76.3, 73.9, 45.7, 154.0, 87.5),
            "LoRA": (75.5, 72.9, 44.6, 140.9, 83.5),
            "DoRA": (76.3, 74.1, 45.8, 145.4, 85.4),
        },
    ),
}
# Of full fine-tuning the paper does not say it.
FULL_RATE = 1e-4
# What a variant needs to train all there is.
EVERYTHING: dict[str, Any] = {
    "train.method": "full",
    "adapter.modules": ".*",
    "adapter.bias": "none",
    "adapter.modules_to_save": (),
}


def adapter(family: Family) -> AdapterConfig:
    """Return what is tuned: queries and values, all biases, what is new; for images the norms."""
    norms = (NORMS,) if family == "image" else ()
    return AdapterConfig(
        rank=128, alpha=128.0, modules="qv", bias="all", modules_to_save=(VISUAL, *norms)
    )


def published(family: Family) -> tuple[Published, ...]:
    """Return the paper's rows, scores by task and their average."""
    study = STUDIES[family]
    return tuple(
        Published(
            f"VL-BART, {label}",
            f"DoRA (ICML 2024), {study.table}",
            dict(zip(study.rows, scores, strict=False)),
            scores[-1],
            label,
        )
        for label, scores in study.scores.items()
    )


def _rates(rate: float) -> dict[str, Any]:
    """Return a rate, and those around it for `--compare.search-steps 1000`."""
    around = (0.3 * rate, rate, 3 * rate)
    return {"optim.learning_rate": rate, "compare.learning_rates": around}


def comparison(family: Family) -> ExperimentConfig:
    """Return full fine-tuning, LoRA and DoRA on the four tasks of a family."""
    study, folder = STUDIES[family], DATA / family
    return ExperimentConfig(
        name=f"vlbart-{family}",
        model=ModelConfig(name=str(MODELS / f"vl-bart-{family}"), dtype="bfloat16"),
        data=DataConfig(
            train=folder / "train",
            eval=folder / "eval",
            features=folder / "features",
            frame_seconds=study.frame_seconds,
            train_rows=sum(study.rows.values()),
            validation_rows=0,
            eval_rows=1_000_000,  # all of them
            prompt="none",
            max_length=study.max_length,
            too_long="truncate_right",
            packing="bucket",
            eval_batch_size=64,
        ),
        evaluation=EvaluationConfig(beams=5, new_tokens=study.new_tokens),
        adapter=adapter(family),
        optim=OptimConfig(clip_norm=5.0),
        train=TrainConfig(steps=study.steps, batch_size=study.batch, checkpoint_every=1000),
        # The paper's own rates: nothing is searched for, unless it is asked for.
        compare=CompareConfig(search_steps=0),
        variants={  # type: ignore[arg-type]
            "Full fine-tuning": EVERYTHING | _rates(FULL_RATE),
            "LoRA": {"train.method": "lora", **_rates(study.rate)},
            "DoRA": {"train.method": "dora", **_rates(study.rate)},
        },
        published=published(family),
    )
