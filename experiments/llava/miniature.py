"""LLaVA in miniature, all of it, offline: a tower trained from nothing, two stages, a comparison.

    python -m experiments.llava.miniature                 CPU settings, under 30 minutes a run
    python -m experiments.llava.miniature --sizes gpu

1. Scenes (docs/scenes.md) of families A and B are written, and NLVR where its folder is given.
2. A small vision tower is trained from scratch on family A: a captioner of random weights is
   trained in full, and its tower kept.
3. The tower and SmolLM2-135M-Instruct become a LLaVA with a new projector.
4. Stage 1: the projector alone is trained, on family A.
5. Stage 2: `dora-jax compare` of full fine-tuning, LoRA, DoRA and a blind LoRA, on family B, whose
   shapes, colours, styles and questions differ.

What is finished is not done again; interrupted, the same command goes on where it stopped.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dora_jax.checkpoint.llava import write_llava_folder
from dora_jax.checkpoint.llava_parts import join_parts
from dora_jax.checkpoint.merge import merge_to_hf
from dora_jax.cli import errors_in_words
from dora_jax.comparison.compare import compare, train
from dora_jax.data.images import ImageProcessor
from dora_jax.data.nlvr import convert
from dora_jax.data.scenes.dataset import write
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, Family
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vision import IMAGE
from dora_jax.errors import DoraError
from dora_jax.models.config import LlamaConfig
from dora_jax.models.llava import Llava, LlavaConfig
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

ROWS = "rows.jsonl"
LANGUAGE = "smollm2-135m-instruct"
PROJECTOR = r"multi_modal_projector/linear_\d"
LINEAR = r"language_model/.*/(q|k|v|o|gate|up|down)_proj"
_SOURCES = {"tower": ("captions", "talk"), "align": ("captions", "talk"), "tune": ("b",)}
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
        tower_rows: scenes of family A that it is trained on.
        tower_steps: of 32 rows.
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
    tower_rows: int = 20_000
    tower_steps: int = 2000
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
    tower_rows=100_000,
    tower_steps=20_000,
    align_rows=20_000,
    align_steps=1000,
    tune_rows=10_000,
    tune_steps=1200,
    search_steps=200,
    test_rows=2400,
)


def learn_data(out: Path, rows: int, seed: int) -> None:
    """Write scenes of family A, in captions and in questions; another seed gives others."""
    for name, task in (("captions", "captions"), ("talk", "conversations")):
        write(out / name, FAMILY_A, "train", rows, seed, task)


def tune_data(sizes: Sizes, out: Path, nlvr: Path | None) -> None:
    """Write what stage 2 is trained on: family B, and NLVR where its folder is given."""
    write(out / "b", FAMILY_B, "train", sizes.tune_rows, 0, "conversations")
    if nlvr is not None:
        _nlvr(nlvr, "train", out / "nlvr", None)


def test_data(sizes: Sizes, out: Path, nlvr: Path | None) -> None:
    """Write what is evaluated: family B by kinds of question; family A and NLVR are a task each."""
    _questions(out / "b", FAMILY_B, sizes.test_rows)
    _questions(out / "a", FAMILY_A, sizes.test_rows // 2, task="family A")
    if nlvr is not None:
        _nlvr(nlvr, "dev", out / "nlvr", sizes.test_rows)


def _questions(folder: Path, family: Family, rows: int, task: str = "") -> None:
    """Write questions; all of them under the name of one task, if one is given."""
    path = write(folder, family, "test", rows, task="questions")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    text = "".join(json.dumps(line | ({"task": task} if task else {})) + "\n" for line in lines)
    path.rename(folder / ROWS).write_text(text)


def _nlvr(source: Path, split: str, out: Path, most: int | None) -> None:
    path = convert(source / f"{split}.jsonl", source / f"{split}_images.zip", out)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:most]))  # of that name already


def captioner(sizes: Sizes, out: Path) -> None:
    """Write a LLaVA of random weights, small enough to be trained from nothing."""
    tokenizer, token = _learnt_tokenizer(sizes.folder / "tower").with_special_token(IMAGE)
    config = LlavaConfig(
        vision=VisionConfig(
            hidden_size=sizes.width,
            intermediate_size=3 * sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.width // 32,
            image_size=FAMILY_A.canvas,
            patch_size=sizes.patch,
            hidden_act="gelu",
        ),
        text=LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=sizes.width,
            intermediate_size=3 * sizes.width,
            num_hidden_layers=4,
            num_attention_heads=sizes.width // 32,
            num_key_value_heads=sizes.width // 32,
            head_dim=32,
            max_position_embeddings=1024,
            eos_token_id=(tokenizer.eos_id,),
            bos_token_id=None,
            tie_word_embeddings=True,
        ),
        image_token_id=token,
        feature_layers=(-2,),
    )
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(Llava(config).init)(jax.random.key(0), tokens)["params"]
    write_llava_folder(out, config, params, tokenizer, processor=_processor(config.vision))


def _processor(vision: VisionConfig) -> ImageProcessor:
    side = (vision.image_size, vision.image_size)
    return ImageProcessor(size=side, crop=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _learnt_tokenizer(folder: Path) -> Tokenizer:
    """Return a byte-pair tokenizer of the words that are said about the scenes in a folder."""
    said = (
        turn["value"]
        for path in sorted(folder.glob("*/train.json"))
        for row in json.loads(path.read_text())
        for turn in row["conversations"]
    )
    return Tokenizer(byte_pairs(said, 600, ("<end>",)), {"eos_token": "<end>"}, folder)


def byte_pairs(texts: Iterable[str], size: int, special: Sequence[str]) -> tokenizers.Tokenizer:
    """Return byte pairs that are learnt from texts.

    Args:
        texts: to learn from.
        size: of the vocabulary, 256 bytes and special tokens among it.
        special: tokens that no text has; the first ones of the vocabulary.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


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


def tower(sizes: Sizes) -> ExperimentConfig:
    """Return the training of the captioner, whose tower is kept."""
    return ExperimentConfig(
        name=f"llava-tower-{sizes.name}",
        model=ModelConfig(name=str(sizes.folder / "captioner")),
        data=_data(sizes, "tower", eval_rows=32),
        adapter=AdapterConfig(modules=".*"),
        optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_ratio=0.05, beta2=0.98),
        train=TrainConfig(
            method="full", steps=sizes.tower_steps, batch_size=32, checkpoint_every=200
        ),
        out=sizes.folder / "runs" / "tower",
    )


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
    """Do every step that is not done, as far as one of them."""
    folder = sizes.folder
    command = f"python -m experiments.llava.miniature --sizes {sizes.name}"

    def step(name: str, make: Callable[[Path], object]) -> None:
        make_once(folder / name, make)

    step("tower", lambda out: learn_data(out, sizes.tower_rows, 0))
    step("align", lambda out: learn_data(out, sizes.align_rows, 1))
    step("tune", lambda out: tune_data(sizes, out, nlvr))
    step("test", lambda out: test_data(sizes, out, nlvr))
    if nlvr is not None:
        require_nlvr(folder / "test" / "nlvr", folder)
    if until == "data":
        return
    step("captioner", lambda out: captioner(sizes, out))
    step("tower-model", lambda out: write_trained(tower(sizes), command, out))
    if until == "tower":
        return
    step("joined", lambda out: join_parts(folder / "tower-model", sizes.language, out, pad=False))
    step("aligned", lambda out: write_trained(alignment(sizes), command, out))
    if until == "aligned":
        return
    compare(tuning(sizes), command)


def require_nlvr(found: Path, folder: Path) -> None:
    """Check that NLVR is in data that may have been made without it.

    Raises:
        DoraError: where it is not.
    """
    if not found.exists():
        raise DoraError(f"{folder}: was made without NLVR: leave --nlvr out, or remove the folder")


def make_once(folder: Path, make: Callable[[Path], object]) -> None:
    """Make a folder, in one step: what is there is whole, and not made again."""
    if not folder.exists():
        print(f"{folder.name} ...", flush=True)
        fresh = folder.with_name(f".{folder.name}")
        shutil.rmtree(fresh, ignore_errors=True)
        make(fresh)
        fresh.rename(folder)


def write_trained(config: ExperimentConfig, command: str, out: Path) -> None:
    """Train, and write the model with what was trained merged into it."""
    (result,) = train(config, command).runs
    merge_to_hf(config.run_folder() / f"seed-{result.seed}" / result.method, out)


if __name__ == "__main__":
    main()
