"""LLaVA in miniature, all of it, offline: a tower trained from nothing, two stages, a comparison.

    python -m experiments.llava.miniature                 CPU settings, under 30 minutes a run
    python -m experiments.llava.miniature --sizes gpu

1. Scenes (docs/scenes.md) of families A and B are written, and NLVR where its folder is given.
2. A small vision tower is trained from scratch on family A, to tell what lies where (`tower.py`).
3. The tower and SmolLM2-135M-Instruct become a LLaVA, whose projector begins as a dictionary of
   family A's words (`words.py`).
4. Stage 1: the projector alone is trained, on family A.
5. Stage 2: `dora-jax compare` of full fine-tuning, LoRA, DoRA and a blind LoRA, on family B, whose
   shapes, colours, styles and questions differ.

What is finished is not done again; interrupted, the same command goes on where it stopped.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dora_jax.checkpoint.llava_parts import join_parts
from dora_jax.cli import errors_in_words
from dora_jax.comparison.compare import compare
from dora_jax.data.scenes.dataset import write
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, Family
from dora_jax.models.vision_config import VisionConfig
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
from experiments.llava.tower import train_tower
from experiments.llava.words import write_word_projector
from experiments.nlvr import check_nlvr, nlvr_rows, unseen
from experiments.steps import make_once, write_trained

ROWS = "rows.jsonl"
LANGUAGE = "smollm2-135m-instruct"
PROJECTOR = r"multi_modal_projector/linear_\d"
LINEAR = r"language_model/.*/(q|k|v|o|gate|up|down)_proj"
_SOURCES = {"align": ("captions", "talk"), "tune": ("b",)}
# Of the sizes, those that the tower depends on.
TOWER_FIELDS = ("width", "layers", "patch", "tower_scenes", "tower_steps")
# The projector's rate beside the adapters': 2e-5 to 2e-4 in the paper.
SLOWER = {"multi_modal_projector/.*": 0.1}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Attributes:
        name: of the folder.
        language: the language model.
        width: of the tower.
        layers: of the tower.
        patch: pixels of its patches; an image of 64 is so many squared tokens.
        tower_scenes: of family A, that it is trained on.
        tower_steps: of 64 scenes.
        align_rows: scenes of family A for stage 1.
        align_steps: of 16 rows.
        tune_rows: scenes of family B for stage 2, each with up to four questions.
        tune_steps: of 8 rows.
        search_steps: of each trial of a learning rate.
        test_rows: questions on family B; half as many on family A, and as many NLVR statements.
        seeds: of stage 2.
        max_length: of rows, in tokens.
    """

    name: str
    language: str = LANGUAGE
    width: int = 192
    layers: int = 6
    patch: int = 16
    tower_scenes: int = 40_000
    tower_steps: int = 3000
    align_rows: int = 4000
    align_steps: int = 80
    tune_rows: int = 2000
    tune_steps: int = 60
    search_steps: int = 10
    test_rows: int = 240
    seeds: tuple[int, ...] = (0, 1, 2)
    max_length: int = 320

    @property
    def folder(self) -> Path:
        """Where data and models are."""
        return Path("data") / f"llava-scenes-{self.name}"


CPU = Sizes("cpu")
GPU = Sizes(
    "gpu",
    width=384,
    layers=8,
    patch=8,
    tower_scenes=200_000,
    tower_steps=20_000,
    align_rows=20_000,
    align_steps=1000,
    tune_rows=10_000,
    tune_steps=1200,
    search_steps=200,
    test_rows=2400,
)


def learn_data(out: Path, rows: int) -> None:
    """Write scenes of family A, in captions and in questions."""
    for name, task in (("captions", "captions"), ("talk", "conversations")):
        write(out / name, FAMILY_A, "train", rows, task=task)


def tune_data(sizes: Sizes, out: Path, nlvr: Path | None) -> None:
    """Write what stage 2 is trained on: family B, and NLVR where its folder is given."""
    write(out / "b", FAMILY_B, "train", sizes.tune_rows, 0, "conversations")
    if nlvr is not None:
        _write_rows(out / "nlvr", nlvr_rows(nlvr, "train", out / "nlvr"))


def test_data(sizes: Sizes, out: Path, nlvr: Path | None) -> None:
    """Write what is evaluated: family B by kinds of question; family A and NLVR are a task each."""
    _questions(out / "b", FAMILY_B, sizes.test_rows)
    _questions(out / "a", FAMILY_A, sizes.test_rows // 2, task="family A")
    if nlvr is not None:
        trained = sizes.folder / "tune" / "nlvr"
        rows = nlvr_rows(nlvr, "dev", out / "nlvr")
        kept = unseen(rows, out / "nlvr", _read_rows(trained), trained)
        _write_rows(out / "nlvr", kept[: sizes.test_rows])


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]


def _write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _questions(folder: Path, family: Family, rows: int, task: str = "") -> None:
    """Write questions; all of them under the name of one task, if one is given."""
    path = write(folder, family, "test", rows, task="questions")
    told = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    _write_rows(folder, [row | ({"task": task} if task else {}) for row in told])


def tower_config(sizes: Sizes) -> VisionConfig:
    """Return the tower's shape."""
    return VisionConfig(
        hidden_size=sizes.width,
        intermediate_size=3 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.width // 32,
        image_size=FAMILY_A.canvas,
        patch_size=sizes.patch,
        hidden_act="gelu",
    )


def _data(sizes: Sizes, stage: str, **fields: Any) -> DataConfig:
    folder = sizes.folder
    # NLVR's statements are one row each, scenes' conversations up to four questions.
    mix = {str(folder / stage / name / "train.json"): 3.0 for name in _SOURCES[stage]}
    nlvr = folder / stage / "nlvr" / ROWS
    given: dict[str, Any] = {
        "mix": mix | ({str(nlvr): 1.0} if nlvr.exists() else {}),
        "eval": folder / "test" / "*" / ROWS,
        "eval_rows": 100_000,  # all of them
        "train_rows": 1_000_000,
        "validation_rows": 0,
        "max_length": sizes.max_length,
        "packing": "bucket",
        "eval_batch_size": 16,
    }
    return DataConfig(**given | fields)


def alignment(sizes: Sizes) -> ExperimentConfig:
    """Return stage 1: the projector alone, on captions and questions about family A."""
    return ExperimentConfig(
        name=f"llava-align-{sizes.name}",
        model=ModelConfig(name=str(sizes.folder / "joined")),
        data=_data(sizes, "align", eval_rows=32),
        adapter=AdapterConfig(modules=PROJECTOR),
        optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_ratio=0.03),
        train=TrainConfig(
            method="full", steps=sizes.align_steps, batch_size=16, checkpoint_every=25
        ),
        out=sizes.folder / "runs" / "align",
    )


def tuning(sizes: Sizes) -> ExperimentConfig:
    """Return stage 2: the comparison on family B, all methods training the projector too."""
    low_rank = {"adapter.modules": LINEAR, "optim.rate_ratios": tuple(SLOWER.items())}
    return ExperimentConfig(
        name=f"llava-scenes-{sizes.name}",
        model=ModelConfig(name=str(sizes.folder / "aligned")),
        data=_data(sizes, "tune", validation_rows=120),
        evaluation=EvaluationConfig(samples=12),
        adapter=AdapterConfig(rank=16, alpha=32.0, modules=LINEAR, modules_to_save=(PROJECTOR,)),
        optim=OptimConfig(schedule="cosine", warmup_ratio=0.03),
        train=TrainConfig(steps=sizes.tune_steps, batch_size=8, checkpoint_every=20),
        compare=CompareConfig(learning_rates=(3e-4, 1e-3, 3e-3), search_steps=sizes.search_steps),
        variants={  # type: ignore[arg-type]
            "LoRA": {"train.method": "lora", **low_rank},
            "DoRA": {"train.method": "dora", **low_rank},
            "Full fine-tuning": {
                "train.method": "full",
                "adapter.modules": r"language_model/.*",
                "compare.learning_rates": (3e-5, 1e-4, 3e-4),
            },
            "LoRA, blind": {
                "train.method": "lora",
                "data.images": "leave_out",
                "compare.first_seeds": 1,
                "compare.baseline": True,  # it is there to be far below the others
                **low_rank,
            },
        },
        seeds=sizes.seeds,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Do every step that is not done."""
    parser = argparse.ArgumentParser(prog="python -m experiments.llava.miniature")
    parser.add_argument("--sizes", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--nlvr", type=Path, help="folder of NLVR's train and dev (docs/llava.md)")
    parser.add_argument("--until", choices=("data", "tower", "aligned", "compared"))
    given = parser.parse_args(argv)
    with errors_in_words(continues=True):
        run({"cpu": CPU, "gpu": GPU}[given.sizes], given.nlvr, given.until or "compared")


def run(sizes: Sizes, nlvr: Path | None = None, until: str = "compared") -> None:
    """Do every step that is not done, as far as one of them.

    Args:
        sizes: how much of everything.
        nlvr: the folder of NLVR's files; None leaves it out.
        until: the last step: data, tower, aligned or compared.

    Raises:
        DoraError: when a step cannot be done, or was done with other settings.
    """
    if nlvr is not None:
        check_nlvr(nlvr)
    folder = sizes.folder
    command = f"python -m experiments.llava.miniature --sizes {sizes.name}"
    command += "" if nlvr is None else f" --nlvr {nlvr}"
    named: dict[str, Any] = dataclasses.asdict(sizes) | {"nlvr": nlvr is not None}

    def step(name: str, fields: Sequence[str], make: Callable[[Path], object]) -> None:
        make_once(folder / name, {field: named[field] for field in fields}, make)

    step("align", ["align_rows"], lambda out: learn_data(out, sizes.align_rows))
    step("tune", ["tune_rows", "nlvr"], lambda out: tune_data(sizes, out, nlvr))
    step("test", ["test_rows", "nlvr"], lambda out: test_data(sizes, out, nlvr))
    if until == "data":
        return
    tower = make_tower(sizes)
    if until == "tower":
        return
    parts = [*TOWER_FIELDS, "language"]
    step("joined", parts, lambda out: join(tower, sizes.language, out))
    parts += ["align_rows", "align_steps", "max_length"]
    step("aligned", parts, lambda out: write_trained(alignment(sizes), command, out))
    if until == "compared":
        compare(tuning(sizes), command)


def join(tower: Path, language: str, out: Path) -> None:
    """Write a LLaVA of the tower and a language model, whose projector begins with words."""
    with tempfile.TemporaryDirectory() as place:
        projector = Path(place) / "projector.safetensors"
        write_word_projector(tower, language, projector)
        join_parts(tower, language, out, projector=projector, pad=False)


def make_tower(sizes: Sizes) -> Path:
    """Train the tower, if that is not done; return its folder."""
    scenes, steps = sizes.tower_scenes, sizes.tower_steps
    runs, config = sizes.folder / "runs" / "tower", tower_config(sizes)
    made = sizes.folder / "tower"
    made_of = {field: getattr(sizes, field) for field in TOWER_FIELDS}
    make_once(made, made_of, lambda out: train_tower(config, scenes, steps, runs, out))
    return made


if __name__ == "__main__":
    main()
