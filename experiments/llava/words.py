"""A projector that begins as a dictionary: what it makes of a patch is near the words for it.

LLaVA's first stage finds by half a million captions what features mean to the language model. A
miniature has a thousand, so it begins nearer: of family A it is known what lies where, and a patch
with a small red circle becomes the mean of the embeddings of " small", " red" and " circle". The
language model is not run for it.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jaxtyping import Float

from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.checkpoint.vision import read_vision_folder
from dora_jax.data.scenes.families import FAMILY_A
from dora_jax.data.scenes.scene import SIZES
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.models.llava import LlavaConfig, Projector
from experiments.llava.tower import KINDS, Labels, patches_seen, pictures_of

SCENES, STEPS, BATCH, RATE = 4000, 1500, 64, 1e-3
NOTHING = " empty"


def words_of(labels: Labels) -> list[list[str]]:
    """Return the words for each patch, picture by picture; a digit is its figure."""
    found = []
    for kind, colour, size, digit in zip(
        *(label.ravel().tolist() for label in labels[:4]), strict=True
    ):
        if kind == 0:
            found.append([NOTHING])
            continue
        what = KINDS[kind] if digit < 0 else str(digit)
        found.append([f" {SIZES[size]}", f" {FAMILY_A.colours[colour]}", f" {what}"])
    return found


def embedded(
    words: list[list[str]], tokenizer: Tokenizer, embedding: Float[np.ndarray, "v d"]
) -> Float[np.ndarray, "n d"]:
    """Return the mean over each patch's words of what the language model reads for them."""

    @functools.cache
    def of(word: str) -> np.ndarray:
        mean: np.ndarray = embedding[np.array(tokenizer.encode(word))].mean(0)
        return mean

    return np.stack([np.mean([of(word) for word in some], axis=0) for some in words])


def write_word_projector(tower: Path, language: str, out: Path) -> None:
    """Train a projector to give the words for what lies in each patch, and write it.

    Args:
        tower: the vision tower's folder.
        language: the language model, as `load_pretrained` takes it; its embeddings are read.
        out: the safetensors file to write, as `join_parts` takes it.
    """
    vision, tower_params = read_vision_folder(tower)
    base = load_pretrained(language)
    # Of the joined model the projector knows the sizes alone.
    config = LlavaConfig(vision=vision, text=base.config, image_token_id=0)
    side = vision.image_size // vision.patch_size
    pictures, labels = pictures_of("train", SCENES, side)
    embedding = np.asarray(base.params["embed_tokens"]["embedding"], np.float32)
    wanted = embedded(words_of(labels), base.tokenizer, embedding)
    features = patches_seen(vision, tower_params, pictures)
    # As large as one another, whatever the language model's embeddings are: loss 1 knows nothing.
    spread = float(wanted.var())
    projector = Projector(config, {"dtype": jnp.float32, "param_dtype": jnp.float32})
    tx = optax.adamw(optax.cosine_decay_schedule(RATE, STEPS), b2=0.98)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(own: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss_of(own: Any) -> jax.Array:
            return jnp.mean((projector.apply({"params": own}, x) - y) ** 2) / spread

        loss, gradients = jax.value_and_grad(loss_of)(own)
        updates, state = tx.update(gradients, state, own)
        return optax.apply_updates(own, updates), state, loss

    own = projector.init(jax.random.key(0), features[:1])["params"]
    state, rng = tx.init(own), np.random.default_rng(0)
    loss = jnp.zeros(())
    for _ in range(STEPS):
        rows = rng.integers(0, len(features), BATCH * side * side)
        own, state, loss = step(own, state, features[rows], wanted[rows])
    print(f"projector: {1 - float(loss):.1%} of the words' variance", flush=True)
    write_projector(own, out)


def write_projector(own: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Write a projector's parameters under Hugging Face's names."""
    tensors = {}
    for layer, arrays in own.items():
        prefix = f"multi_modal_projector.{layer}"
        tensors[f"{prefix}.weight"] = np.ascontiguousarray(np.asarray(arrays["kernel"]).T)
        tensors[f"{prefix}.bias"] = np.asarray(arrays["bias"])
    safetensors.numpy.save_file(tensors, out)
