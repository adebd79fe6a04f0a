"""VL-BART in miniature, all of it, offline: features of a small tower, a base, a comparison.

    python -m experiments.vlbart.miniature images          CPU settings, under 30 minutes a run
    python -m experiments.vlbart.miniature video --sizes gpu

1. Rows of four tasks (`scene_rows.py`) about scenes of families A and B, NLVR's where its folder
   is given, and texts alone (`text_rows.py`).
2. The tower of the LLaVA miniature, trained from scratch on family A: taken if it is there.
3. Its features of all pictures, or of all clips' frames, made once and kept.
4. A VL-BART of random weights is trained in full on family A and on texts, all at once.
5. `dora-jax compare` of full fine-tuning, LoRA, DoRA, and LoRA with text or images alone, on
   family B, whose shapes, colours, styles, questions and words differ.

What is finished is not done again; interrupted, the same command goes on where it stopped.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from dora_jax.checkpoint.bart import write_bart_folder
from dora_jax.checkpoint.llava import read_processor
from dora_jax.checkpoint.vision import read_vision_folder
from dora_jax.cli import errors_in_words
from dora_jax.comparison.compare import compare
from dora_jax.data.scenes.families import FAMILY_B
from dora_jax.data.scenes.scene import Split
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vl.feature_cache import CachedFeatures, MadeBy, cached_features
from dora_jax.data.vl.row import CAPTION_TASKS
from dora_jax.data.vl.tower_features import TowerFeatures
from dora_jax.errors import DoraError
from dora_jax.models.vit import VisionTower
from dora_jax.models.vlbart import VLBart, VLBartConfig
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
from experiments.llava import miniature as llava
from experiments.llava.tower import LAYER
from experiments.nlvr import check_nlvr
from experiments.steps import make_once, write_trained
from experiments.vlbart.paper import EVERYTHING, adapter
from experiments.vlbart.scene_rows import (
    TASKS,
    WORLDS,
    Subject,
    nlvr_picture,
    pictures,
    write_nlvr,
    write_scene_rows,
)
from experiments.vlbart.text_rows import GAP, texts_of, write_texts
from experiments.vlbart.text_rows import TASK as TEXT

# Of the sizes, those that the rows depend on.
_ROWS_FIELDS = ("learn_rows", "text_rows", "tune_rows", "test_rows", "test_captions")
# Those that the start depends on beside its rows and the tower.
_START_FIELDS = ("width", "layers", "vocabulary", "image_tokens")
SPECIAL = ("<s>", "<pad>", "</s>", GAP)
STEPS = ("data", "tower", "features", "base", "compared")
# Of a clip, as many as family B's have.
FRAMES = FAMILY_B.frames
MAX_LENGTH = 256


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Attributes:
        name: of the folder.
        subject: images or clips.
        tower: the LLaVA miniature's sizes.
        width: of the VL-BART.
        layers: of its encoder, and of its decoder.
        vocabulary: tokens that texts are made of, without the places in an image.
        image_tokens: that an image becomes, or a clip: one a frame.
        learn_rows: of each task, of family A.
        text_rows: of each task and of both families, texts alone, for the base.
        learn_steps: of 64 rows, that the base is trained for.
        tune_rows: of each task, of family B.
        tune_steps: of 32 rows.
        search_steps: of each trial of a learning rate.
        test_rows: of each task that has one right answer, of each family.
        test_captions: of each task of captions, of each family.
        rank: of the adapters, and their alpha; a sixth of the width, as the paper's.
        new_tokens: of an answer or a caption, at most.
        seeds: of the comparison; the two baselines have the first.
    """

    name: str
    subject: Subject
    tower: llava.Sizes = llava.CPU
    width: int = 192
    layers: int = 3
    vocabulary: int = 500
    image_tokens: int = 16
    learn_rows: int = 10_000
    text_rows: int = 1000
    learn_steps: int = 3000
    tune_rows: int = 2000
    tune_steps: int = 800
    search_steps: int = 80
    test_rows: int = 200
    test_captions: int = 80
    rank: int = 32
    new_tokens: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def folder(self) -> Path:
        """Where data and models are."""
        return Path("data") / f"vlbart-scenes-{self.subject}-{self.name}"


CPU: dict[Subject, Sizes] = {
    "images": Sizes("cpu", "images"),
    "video": Sizes(
        "cpu",
        "video",
        image_tokens=FRAMES,
        learn_rows=6000,
        learn_steps=1800,
        tune_steps=500,
        search_steps=50,
    ),
}
_GPU: dict[str, Any] = {
    "tower": llava.GPU,
    "width": 384,
    "layers": 6,
    "vocabulary": 600,
    "learn_rows": 50_000,
    "text_rows": 5000,
    "learn_steps": 30_000,
    "tune_rows": 10_000,
    "tune_steps": 4000,
    "search_steps": 400,
    "test_rows": 500,
    "test_captions": 500,
    "rank": 64,
}
GPU: dict[Subject, Sizes] = {
    "images": Sizes("gpu", "images", image_tokens=36, **_GPU),
    "video": Sizes("gpu", "video", image_tokens=FRAMES, **_GPU),
}


def write_data(sizes: Sizes, out: Path, nlvr: Path | None) -> None:
    """Write rows of all tasks: `A/train`, `A/test`, `B/train`, `B/test`, a file each."""
    trained = {"A": sizes.learn_rows, "B": sizes.tune_rows}
    splits: tuple[Split, ...] = ("train", "test")
    for (name, family), split in itertools.product(WORLDS.items(), splits):
        for task in TASKS[sizes.subject]:
            tested = sizes.test_captions if task in CAPTION_TASKS else sizes.test_rows
            count = trained[name] if split == "train" else tested
            write_scene_rows(out / name / split / f"{task}.jsonl", task, family, split, count)
    said: list[str] = []
    if nlvr is not None:
        said = write_nlvr(nlvr, out, sizes.tune_rows, sizes.test_rows)
    # Of rows that nothing else is made of.
    first = max(sizes.learn_rows, sizes.tune_rows)
    texts = texts_of(sizes.subject, first, sizes.text_rows)
    write_texts(out / "A" / "train" / f"{TEXT}.jsonl", itertools.chain(texts, said))


def _records(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for path in files for line in path.read_text().splitlines())


def make_features(sizes: Sizes) -> CachedFeatures:
    """Return what the tower makes of all that rows name, from the cache or made now.

    Raises:
        DoraError: when the tower's folder is damaged, or the cache cannot be written.
    """
    folder, rows = sizes.tower.folder / "tower", sizes.folder / "rows"
    config, params = read_vision_folder(folder)
    maker = TowerFeatures(VisionTower(config), params, read_processor(folder, config), LAYER)
    files = sorted(rows.glob("[AB]/*/*.jsonl"))
    names = dict.fromkeys(name for record in _records(files) for name in record.get("images", ()))

    is_clips = sizes.subject == "video"

    def make(some: Sequence[str]) -> list[np.ndarray]:
        if is_clips:
            return maker.clips([pictures(name) for name in some], FRAMES)
        # A path is that of a file; scenes are drawn.
        return maker.images(
            [nlvr_picture(rows, name) if "/" in name else pictures(name)[0] for name in some]
        )

    identity = maker.identity("frames", FRAMES) if is_clips else maker.identity("grid")
    told = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    by = MadeBy(identity, {"rows": told, "families": repr(WORLDS)})
    return cached_features(sizes.folder / "features", by, list(names), make)


def learnt_tokenizer(sizes: Sizes) -> Tokenizer:
    """Return byte pairs of all that the base reads, with BART's frame."""
    texts = (
        text
        for record in _records(sorted((sizes.folder / "rows" / "A" / "train").glob("*")))
        for text in (record["instruction"], record["output"])
    )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    named = dict(zip(("bos_token", "pad_token", "eos_token", "mask_token"), SPECIAL, strict=True))
    return Tokenizer(backend, named, sizes.folder)


def write_start(sizes: Sizes, out: Path) -> None:
    """Write a VL-BART of random weights, small enough to be trained from nothing."""
    tokenizer = learnt_tokenizer(sizes)
    parts = ("encoder", "decoder")
    config = VLBartConfig(
        vocab_size=tokenizer.vocab_size + sizes.image_tokens,
        d_model=sizes.width,
        **{f"{part}_layers": sizes.layers for part in parts},
        **{f"{part}_attention_heads": sizes.width // 32 for part in parts},
        **{f"{part}_ffn_dim": 4 * sizes.width for part in parts},
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_id,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=(tokenizer.eos_id,),
        decoder_start_token_id=tokenizer.eos_id,
        feature_size=sizes.tower.width,
        max_images=3,  # NLVR's
        image_tokens=sizes.image_tokens,
        layout="grid" if sizes.subject == "images" else "frames",
    )
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(VLBart(config).init)(jax.random.key(0), tokens)["params"]
    write_bart_folder(out, config, params, tokenizer)


def _common(sizes: Sizes, features: Path, name: str, family: str) -> dict[str, Any]:
    """Return what the base's training and the comparison have alike."""
    rows = sizes.folder / "rows" / family
    data = DataConfig(
        train=rows / "train",
        eval=rows / "test",
        features=features,
        train_rows=1_000_000,  # all of them
        validation_rows=160,
        eval_rows=1_000_000,
        prompt="none",
        max_length=MAX_LENGTH,
        eval_batch_size=32,
    )
    return {
        "name": f"vlbart-{name}-{sizes.subject}-{sizes.name}",
        "data": data,
        "evaluation": EvaluationConfig(beams=5, new_tokens=sizes.new_tokens),
    }


def base(sizes: Sizes, features: Path) -> ExperimentConfig:
    """Return the training of the base: everything, on family A, all tasks at once.

    A few rows are evaluated, greedily: a model of random weights never ends what it writes.
    """
    common = _common(sizes, features, "base", "A")
    return ExperimentConfig(
        name=common["name"],
        data=dataclasses.replace(common["data"], eval_rows=80),
        evaluation=dataclasses.replace(common["evaluation"], beams=1),
        model=ModelConfig(name=str(sizes.folder / "start")),
        adapter=AdapterConfig(modules=".*"),
        optim=OptimConfig(learning_rate=1e-3, schedule="cosine", warmup_ratio=0.05, beta2=0.98),
        train=TrainConfig(
            method="full", steps=sizes.learn_steps, batch_size=64, checkpoint_every=200
        ),
        out=sizes.folder / "runs" / "base",
    )


def comparison(sizes: Sizes, features: Path) -> ExperimentConfig:
    """Return the comparison on family B: what the paper tunes, at its share of the width."""
    low_rank = adapter("image" if sizes.subject == "images" else "video")
    lora = {"train.method": "lora", "compare.first_seeds": 1, "compare.baseline": True}
    return ExperimentConfig(
        **_common(sizes, features, "scenes", "B"),
        model=ModelConfig(name=str(sizes.folder / "base")),
        adapter=dataclasses.replace(low_rank, rank=sizes.rank, alpha=float(sizes.rank)),
        optim=OptimConfig(clip_norm=5.0),
        train=TrainConfig(steps=sizes.tune_steps, batch_size=32, checkpoint_every=100),
        compare=CompareConfig(learning_rates=(3e-4, 1e-3, 3e-3), search_steps=sizes.search_steps),
        variants={  # type: ignore[arg-type]
            "LoRA": {"train.method": "lora"},
            "DoRA": {"train.method": "dora"},
            "Full fine-tuning": EVERYTHING | {"compare.learning_rates": (1e-4, 3e-4, 1e-3)},
            "LoRA, text alone": lora | {"data.images": "leave_out"},
            "LoRA, images alone": lora | {"data.texts": "leave_out"},
        },
        seeds=sizes.seeds,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Do every step that is not done."""
    parser = argparse.ArgumentParser(prog="python -m experiments.vlbart.miniature")
    parser.add_argument("subject", choices=get_args(Subject))
    parser.add_argument("--sizes", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--nlvr", type=Path, help="folder of NLVR's train and dev (docs/llava.md)")
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1])
    given = parser.parse_args(argv)
    with errors_in_words(continues=True):
        sizes = {"cpu": CPU, "gpu": GPU}[given.sizes][given.subject]
        run(sizes, given.nlvr, given.until)


def run(sizes: Sizes, nlvr: Path | None = None, until: str = STEPS[-1]) -> None:
    """Do every step that is not done, as far as one of them.

    Args:
        sizes: how much of everything, and whether images or video.
        nlvr: the folder of NLVR's files, for images; None leaves it out.
        until: the last one of `STEPS`.

    Raises:
        DoraError: when a step cannot be done, or was done with other settings.
    """
    if nlvr is not None:
        if sizes.subject != "images":
            raise DoraError(f"--nlvr is for images; leave it out for {sizes.subject}")
        check_nlvr(nlvr)
    folder, last = sizes.folder, STEPS.index(until)
    command = f"python -m experiments.vlbart.miniature {sizes.subject} --sizes {sizes.name}"
    command += "" if nlvr is None else f" --nlvr {nlvr}"
    folder.mkdir(parents=True, exist_ok=True)
    made_of: dict[str, Any] = {name: getattr(sizes, name) for name in _ROWS_FIELDS}
    made_of["nlvr"] = nlvr is not None
    make_once(folder / "rows", made_of, lambda out: write_data(sizes, out, nlvr))
    if last >= STEPS.index("tower"):
        llava.make_tower(sizes.tower)
    if last < STEPS.index("features"):
        return
    print("features ...", flush=True)
    features = make_features(sizes).path
    if until == "features":
        return
    made_of |= {name: getattr(sizes, name) for name in _START_FIELDS}
    made_of["tower"] = {name: getattr(sizes.tower, name) for name in llava.TOWER_FIELDS}
    make_once(folder / "start", made_of, lambda out: write_start(sizes, out))
    made_of["learn_steps"] = sizes.learn_steps
    trained = base(sizes, features)
    make_once(folder / "base", made_of, lambda out: write_trained(trained, command, out))
    if until == "compared":
        compare(comparison(sizes, features), command)


if __name__ == "__main__":
    main()
