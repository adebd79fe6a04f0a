"""A small vision tower, trained from nothing on scenes of family A: each patch says what is there.

image --VisionTower--> features of the last but one layer --one Dense each--> for each patch:
    what it is, its colour, size and digit, where it lies    of the object whose middle is in it
    the patch's own pixels                                   keeps what family A has no name for

Half of the pictures have other colours than they were drawn with (`with_other_looks`).
Only the tower is kept. What it sees of test scenes is written beside it (`sees.json`).
"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from dora_jax.checkpoint.store import CheckpointStore
from dora_jax.checkpoint.vision import write_vision_folder
from dora_jax.data.images import FILE, ImageProcessor
from dora_jax.data.scenes.families import FAMILY_A
from dora_jax.data.scenes.render import render_all
from dora_jax.data.scenes.sample import sample_scene
from dora_jax.data.scenes.scene import DIGIT, SIZES, Object, Scene, Split
from dora_jax.models.vision_config import VisionConfig
from dora_jax.models.vit import VisionTower

LAYER = -2  # whose features are used, as LLaVA does; the one behind is never trained
KINDS = ("", *FAMILY_A.shapes, DIGIT)  # "" where no object has its middle
BATCH = 64
TESTED = 1000  # scenes
_EVERY = 500  # steps between checkpoints
_PEAK = 1e-3  # learning rate
# How much each loss counts; those of classes are cross-entropies in nats, the others squares.
_WEIGHTS = {"kind": 3.0, "colour": 1.0, "size": 1.0, "digit": 1.0, "place": 4.0, "pixels": 1.0}
_CLASSES = {
    "kind": len(KINDS),
    "colour": len(FAMILY_A.colours),
    "size": len(SIZES),
    "digit": 10,
}


class Labels(NamedTuple):
    """What lies in each of P patches, row by row; of B pictures or of one.

    Attributes:
        kind: index in `KINDS`, 0 for nothing.
        colour: index in the family's colours; -1 where there is nothing, or none of them.
        size: index in `SIZES`; -1 where there is nothing.
        digit: 0 to 9; -1 where there is none.
        place: of the middle, (x, y) from the patch's own middle, from -0.5 to 0.5.
    """

    kind: Int[np.ndarray, "*b p"]
    colour: Int[np.ndarray, "*b p"]
    size: Int[np.ndarray, "*b p"]
    digit: Int[np.ndarray, "*b p"]
    place: Float[np.ndarray, "*b p 2"]


def objects_in(scene: Scene, side: int) -> Iterator[tuple[int, int, Object]]:
    """Yield (row, column) of the patch that each object's middle is in, of `side` squared.

    Larger ones come later: of two in one patch they are what is said of it.
    """
    for thing in sorted(scene.objects, key=lambda o: o.radius):
        yield min(int(thing.y * side), side - 1), min(int(thing.x * side), side - 1), thing


def labels_of(scenes: Sequence[Scene], side: int) -> Labels:
    """Return what lies in the patches of pictures, (B, side * side); the larger one of two."""
    shape = (len(scenes), side * side)
    kind, place = np.zeros(shape, np.int32), np.zeros((*shape, 2), np.float32)
    colour, size, digit = (np.full(shape, -1, np.int32) for _ in range(3))
    for number, scene in enumerate(scenes):
        for row, column, thing in objects_in(scene, side):
            at = (number, row * side + column)
            kind[at] = KINDS.index(thing.kind)
            colour[at] = FAMILY_A.colours.index(thing.colour)
            size[at] = SIZES.index(thing.size)
            digit[at] = -1 if thing.digit is None else thing.digit
            place[at] = (thing.x * side - column - 0.5, thing.y * side - row - 0.5)
    return Labels(kind, colour, size, digit, place)


def pictures_of(split: Split, count: int, side: int) -> tuple[UInt8[np.ndarray, "b h w c"], Labels]:
    """Return the first pictures of family A's split, and what lies in their patches."""
    scenes = [sample_scene(FAMILY_A, split, index) for index in range(count)]
    return render_all(scenes), labels_of(scenes, side)


def processor(config: VisionConfig) -> ImageProcessor:
    """Return what makes a picture an input of the tower: values from -1 to 1."""
    side = (config.image_size, config.image_size)
    return ImageProcessor(size=side, crop=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Labeller(nn.Module):
    """A tower, and what each patch says of itself by its features."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x_BHWC: Array) -> dict[str, Array]:
        c = self.config
        tower = VisionTower(c, name="vision_tower")
        (features,) = tower(x_BHWC, (LAYER,), pool=False).layers
        h_BPD = nn.LayerNorm(name="norm")(features[:, int(c.class_token) :])
        sizes = _CLASSES | {"place": 2, "pixels": c.patch_size**2 * c.num_channels}
        return {name: nn.Dense(size, name=name)(h_BPD) for name, size in sizes.items()}


def losses(
    said: dict[str, Array], x_BHWC: Array, labels: Labels, patch_size: int
) -> dict[str, Array]:
    """Return the mean of each loss over the patches that it is about."""
    told = {name: getattr(labels, name) for name in _CLASSES}
    found = {
        name: _mean(
            optax.softmax_cross_entropy_with_integer_labels(said[name], jnp.maximum(label, 0)),
            label >= 0,
        )
        for name, label in told.items()
    }
    away = ((said["place"] - labels.place) ** 2).sum(-1)
    found["place"] = _mean(away, labels.kind > 0)
    batch, side = len(x_BHWC), x_BHWC.shape[1] // patch_size
    cut = x_BHWC.reshape(batch, side, patch_size, side, patch_size, -1).swapaxes(2, 3)
    found["pixels"] = ((said["pixels"] - cut.reshape(batch, side * side, -1)) ** 2).mean()
    return found


def _mean(values: Array, where: Array) -> Array:
    return (values * where).sum() / jnp.maximum(where.sum(), 1)


def with_other_looks(key: Array, x_BHWC: Array, labels: Labels) -> tuple[Array, Labels]:
    """Return pictures of which about half have other colours, even a negative's.

    Each channel of those is scaled, turned over or shifted, so that shapes and digits are known on
    any ground; what their colours are called is left open.
    """
    keys = jax.random.split(key, 4)
    shape = (len(x_BHWC), 1, 1, x_BHWC.shape[-1])
    scale = jax.random.uniform(keys[0], shape, minval=0.4)
    turned = jax.random.rademacher(keys[1], shape, jnp.float32)
    shift = jax.random.uniform(keys[2], shape, minval=-1.0) * (1 - scale)
    is_other = jax.random.bernoulli(keys[3], 0.5, shape[:1])
    changed = x_BHWC * scale * turned + shift
    colour = jnp.where(is_other[:, None], -1, labels.colour)
    x_BHWC = jnp.where(is_other[:, None, None, None], changed, x_BHWC)
    return x_BHWC, labels._replace(colour=colour)


class _State(NamedTuple):
    params: Any
    moments: Any


def _optimizer(steps: int) -> optax.GradientTransformation:
    warmup = min(100, steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0 if warmup else _PEAK, _PEAK, warmup, steps)
    adamw = optax.adamw(rate, b2=0.98, weight_decay=0.05)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def inputs(pixels: Array) -> Array:
    """Return pixels from 0 to 255 as the tower's processor makes them."""
    scaled: Array = pixels.astype(jnp.float32) / 127.5 - 1
    return scaled


def train_tower(config: VisionConfig, scenes: int, steps: int, runs: Path, out: Path) -> None:
    """Train a tower and write it as `CLIPVisionModel`'s folder; goes on where it was interrupted.

    Args:
        config: its shape.
        scenes: of family A that it is trained on, those of its training split that come first.
        steps: of `BATCH` pictures.
        runs: for checkpoints.
        out: the folder to write.

    Raises:
        DoraError: when a checkpoint is damaged or of other settings, or something cannot be
            written.
    """
    side = config.image_size // config.patch_size
    pictures, labels = pictures_of("train", scenes, side)
    model, tx = Labeller(config), _optimizer(steps)

    def loss_of(params: Any, x_BHWC: Array, part: Labels) -> tuple[Array, dict[str, Array]]:
        found = losses(model.apply({"params": params}, x_BHWC), x_BHWC, part, config.patch_size)
        return jnp.asarray(sum(_WEIGHTS[name] * loss for name, loss in found.items())), found

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: _State, number: Array, pixels: Array, part: Labels
    ) -> tuple[_State, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(1), number)
        batch = with_other_looks(key, inputs(pixels), part)
        gradients, found = jax.grad(loss_of, has_aux=True)(state.params, *batch)
        updates, moments = tx.update(gradients, state.moments, state.params)
        return _State(optax.apply_updates(state.params, updates), moments), found

    blank = jnp.zeros((1, config.image_size, config.image_size, config.num_channels))
    params = jax.jit(model.init)(jax.random.key(0), blank)["params"]
    state, first = _State(params, tx.init(params)), 0
    identity = {"tower": vars(config), "scenes": scenes, "steps": steps}
    with CheckpointStore(runs, identity) as store:
        found = store.restore(state)
        if found is not None:
            state, first = found[0], found[1].step
        for number in range(first, steps):
            rows = batch_rows(number, scenes)
            part = Labels(*(label[rows] for label in labels))
            state, told = step(state, jnp.asarray(number), pictures[rows], part)
            if (number + 1) % _EVERY == 0 or number + 1 == steps:
                shown = ", ".join(f"{name} {float(loss):.3f}" for name, loss in told.items())
                print(f"tower: step {number + 1}/{steps}, loss of {shown}", flush=True)
                store.save(number + 1, state)
    sees = seen(model, state.params)
    print("tower: of test scenes it tells " + ", ".join(f"{k} {v:.3f}" for k, v in sees.items()))
    tower = jax.tree.map(np.asarray, state.params["vision_tower"])
    write_vision_folder(out, config, tower)
    (out / FILE).write_text(json.dumps(processor(config).to_dict(), indent=2) + "\n")
    (out / "sees.json").write_text(json.dumps(sees, indent=2) + "\n")


def batch_rows(step: int, scenes: int) -> Int[np.ndarray, " b"]:
    """Return which scenes a step sees: every epoch in an order of its own."""
    places = np.arange(step * BATCH, (step + 1) * BATCH)
    return np.array([_order(n // scenes, scenes)[n % scenes] for n in places.tolist()])


@functools.lru_cache(maxsize=2)  # a batch may lie between two epochs
def _order(epoch: int, scenes: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng(epoch).permutation(scenes)


def patches_seen(
    config: VisionConfig, params: Any, pictures: UInt8[np.ndarray, "b h w c"]
) -> Float[np.ndarray, "n d"]:
    """Return the features of all patches of pictures, one picture's after the other's."""

    @jax.jit
    def look(pixels: Array) -> Array:
        found: Any = VisionTower(config).apply(
            {"params": params}, inputs(pixels), (LAYER,), pool=False
        )
        features: Array = found.layers[0][:, int(config.class_token) :]
        return features

    parts = [np.asarray(look(pictures[at : at + 100])) for at in range(0, len(pictures), 100)]
    return np.concatenate(parts).reshape(-1, config.hidden_size)


def seen(model: Labeller, params: Any) -> dict[str, float]:
    """Return the share of right labels on test scenes: patches for `nothing`, else objects."""
    config = model.config
    pictures, labels = pictures_of("test", TESTED, config.image_size // config.patch_size)

    @jax.jit
    def best(pixels: Array) -> dict[str, Array]:
        said = model.apply({"params": params}, inputs(pixels))
        return {name: said[name].argmax(-1) for name in _CLASSES}

    parts = [best(pictures[at : at + BATCH]) for at in range(0, TESTED, BATCH)]
    told = {name: np.concatenate([part[name] for part in parts]) for name in _CLASSES}
    right = {name: told[name] == getattr(labels, name) for name in _CLASSES}
    is_there = labels.kind > 0
    where = {"kind": is_there} | {
        name: getattr(labels, name) >= 0 for name in ("colour", "size", "digit")
    }
    shares = {name: float(right[name][asked].mean()) for name, asked in where.items()}
    return {"nothing": float(right["kind"][~is_there].mean())} | shares
