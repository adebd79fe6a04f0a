"""What a tower's features hold of family A, and of family B that it was never trained on.

    python -m experiments.llava.probe data/llava-scenes-cpu/tower

For each property a linear classifier of one patch's features is fitted to training scenes, and its
share of right answers on test scenes is printed, as JSON: `kind` of all patches with an object in
them, the others of objects that have the property.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from dora_jax.checkpoint.vision import read_vision_folder
from dora_jax.cli import errors_in_words
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B, Family
from dora_jax.data.scenes.render import render_all
from dora_jax.data.scenes.sample import sample_scene
from dora_jax.data.scenes.scene import DIGIT, SIZES, Scene, Split
from dora_jax.models.vision_config import VisionConfig
from experiments.llava.tower import objects_in, patches_seen

SCENES: dict[Split, int] = {"train": 6000, "test": 1000}
STEPS, BATCH, RATE = 1200, 512, 3e-3


def names_of(family: Family) -> dict[str, tuple[Any, ...]]:
    """Return what may be said of each property; what is not there of a patch is not among it."""
    return {
        "kind": (*family.shapes, DIGIT),
        "colour": family.colours,
        "size": SIZES,
        "style": family.styles,
        "digit": tuple(range(10)),
    }


def labels_of(scenes: Sequence[Scene], side: int, family: Family) -> dict[str, np.ndarray]:
    """Return each property's index for each patch, (B * side * side,); -1 where there is none."""
    names = names_of(family)
    found = {name: np.full((len(scenes), side * side), -1) for name in names}
    for number, scene in enumerate(scenes):
        for row, column, thing in objects_in(scene, side):
            for name, known in names.items():
                value = getattr(thing, name)
                place = known.index(value) if value in known else -1
                found[name][number, row * side + column] = place
    return {name: label.ravel() for name, label in found.items()}


def linear(
    train: tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]],
    test: tuple[Float[np.ndarray, "m d"], Int[np.ndarray, " m"]],
    classes: int,
) -> float:
    """Return the share of test rows that a linear classifier of training rows tells right."""
    tx = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    @jax.jit
    def step(own: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def loss(own: Any) -> jax.Array:
            logits = x @ own["w"] + own["b"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, state = tx.update(jax.grad(loss)(own), state)
        return optax.apply_updates(own, updates), state

    mean, deviation = train[0].mean(0), train[0].std(0) + 1e-6
    own = {"w": jnp.zeros((train[0].shape[1], classes)), "b": jnp.zeros(classes)}
    state, rng = tx.init(own), np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.integers(0, len(train[1]), BATCH)
        own, state = step(own, state, (train[0][rows] - mean) / deviation, train[1][rows])
    said = ((test[0] - mean) / deviation) @ np.asarray(own["w"]) + np.asarray(own["b"])
    return float((said.argmax(-1) == test[1]).mean())


def probe(config: VisionConfig, params: Any, family: Family) -> dict[str, float]:
    """Return for each property the share that its features tell."""
    side = config.image_size // config.patch_size
    parts = {}
    for split, count in SCENES.items():
        scenes = [sample_scene(family, split, index) for index in range(count)]
        features = patches_seen(config, params, render_all(scenes))
        parts[split] = features, labels_of(scenes, side, family)

    def rows(split: Split, name: str) -> tuple[np.ndarray, np.ndarray]:
        features, labels = parts[split]
        asked = labels[name] >= 0
        return features[asked], labels[name][asked]

    return {
        name: linear(rows("train", name), rows("test", name), len(known))
        for name, known in names_of(family).items()
        if len(known) > 1
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Probe the tower of a folder."""
    parser = argparse.ArgumentParser(prog="python -m experiments.llava.probe")
    parser.add_argument("tower", type=Path, help="a folder of CLIP's, SigLIP's or a LLaVA's tower")
    given = parser.parse_args(argv)
    with errors_in_words(continues=False):
        config, params = read_vision_folder(given.tower)
        found = {f.name: probe(config, params, f) for f in (FAMILY_A, FAMILY_B)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
