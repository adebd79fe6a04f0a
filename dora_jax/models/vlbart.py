"""VL-BART (Cho et al. 2021): a BART whose encoder reads visual features behind the text.

A row has as many images as it likes, or one clip, or none. Of each come so many tokens, and each
token is the sum of

    norm(linear(feature))                     what is there
    norm(linear(left, right, top, bottom, area))    where it lies
    img_order_embedding(number of the image)  in rows of two (NLVR2)
    shared(last token - place)                the place in the image, or the time in the clip

The places are the embeddings of tokens that were added to BART's vocabulary for this. Module names
are BART's, and `visual_embedding/...`.

Letters in names: B batch, M images of a row at most, K features of an image, T tokens that come of
them, S text length, F feature size, D model size.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dora_jax.layers import Dense, Embed
from dora_jax.models.adaptive_pool import Pooling, pool, row_windows, square_windows
from dora_jax.models.bart import NORM_EPSILON, Bart
from dora_jax.models.bart_config import BartConfig
from dora_jax.models.llama import param_shapes
from dora_jax.models.source import Source, Visual
from dora_jax.spec import nearest

Layout = Literal["grid", "frames", "regions"]
# Left, right, top, bottom, area.
BOX_SIZE = 5
# Of new tokens, as transformers draws them for BART.
_INIT_DEVIATION = 0.02


@dataclass(frozen=True)
class VLBartConfig(BartConfig):
    """The shape of one model; the defaults are those of the paper's image-text study.

    Attributes:
        vocab_size: with the tokens added to BART's, of which the last ones are places.
        feature_size: F.
        max_images: of a row.
        image_tokens: that an image or a clip becomes at most.
        layout: what the features of an image are: `grid`, the cells of a square, row by row;
            `frames` of a clip; both are pooled to `image_tokens`. `regions` are not pooled.
        pooling: `mean`; `max` as in the authors' code.

    Raises:
        ValueError: when the sizes cannot describe a model.
    """

    vocab_size: int = 50465
    feature_size: int = 2048
    max_images: int = 2
    image_tokens: int = 36
    layout: Layout = "grid"
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("feature_size", "max_images", "image_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, choices in (("layout", Layout), ("pooling", Pooling)):
            given, allowed = getattr(self, name), get_args(choices)
            if given not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}; got "
                    f"{given!r}{nearest(given, allowed)}"
                )
        if self.layout == "grid" and math.isqrt(self.image_tokens) ** 2 != self.image_tokens:
            raise ValueError(f"image_tokens of a grid must be a square, got {self.image_tokens}")
        if self.image_tokens > self.vocab_size:
            raise ValueError(
                f"image_tokens ({self.image_tokens}) must not be more than vocab_size "
                f"({self.vocab_size}): their places are tokens"
            )


def pooled(config: VLBartConfig, visual: Visual) -> Visual:
    """Return features of which no image has more than `image_tokens`.

    A box becomes the one around all that was pooled.

    Raises:
        ValueError: for a grid that is no square, or more regions than there are tokens.
    """
    count, most = visual.features.shape[2], config.image_tokens
    side = math.isqrt(count)
    if config.layout == "grid" and side * side != count:
        raise ValueError(f"the features of an image must be a square grid, got {count}")
    if count <= most:
        return visual
    if config.layout == "regions":
        raise ValueError(f"{count} regions of an image, and the model takes {most} (image_tokens)")
    is_grid = config.layout == "grid"
    windows = square_windows(side, math.isqrt(most)) if is_grid else row_windows(count, most)
    features, is_real = pool(visual.features, visual.is_real, windows, config.pooling)
    # Right and bottom are the largest; left and top too, seen from the other side.
    sides = jnp.array([-1, 1, -1, 1], jnp.float32)
    boxes = sides * pool(sides * visual.boxes, visual.is_real, windows, "max")[0]
    return Visual(features, boxes, is_real)


class VisualEmbedding(nn.Module):
    """What the encoder reads of an image, but for the places of its tokens."""

    config: VLBartConfig
    dense: dict[str, Any]
    norm: dict[str, Any]

    @nn.compact
    def __call__(self, visual: Visual) -> Float[Array, "b m t d"]:
        size = self.config.d_model
        dtype = self.dense["dtype"]
        left, right, top, bottom = jnp.moveaxis(visual.boxes.astype(dtype), -1, 0)
        where = jnp.stack([left, right, top, bottom, (bottom - top) * (right - left)], axis=-1)
        seen = Dense(size, name="feat_embedding", **self.dense)(visual.features.astype(dtype))
        lies = Dense(size, name="absolute_vis_pos_embedding", **self.dense)(where)
        images = jnp.arange(visual.features.shape[1])
        order = Embed(self.config.max_images, size, name="img_order_embedding", **self.dense)
        return (
            nn.LayerNorm(name="feat_layer_norm", **self.norm)(seen)
            + nn.LayerNorm(name="absolute_vis_pos_layer_norm", **self.norm)(lies)
            + order(images)[None, :, None]
        )


class VLBart(Bart):
    """A VL-BART model; fields as those of `Bart`, whose sources it takes with visual features."""

    config: VLBartConfig

    def setup(self) -> None:
        super().setup()
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense, norm = {"adapter": self.adapters, **dtypes}, {"epsilon": NORM_EPSILON, **dtypes}
        self.visual_embedding = VisualEmbedding(self.config, dense, norm)

    def source_inputs(self, source: Source) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
        """Return the encoder's first input, text and then images, and which of it is real.

        Raises:
            ValueError: for more images than the model tells apart, or features of another size.
        """
        c, visual = self.config, source.visual
        x_BSD = self._text_inputs(source)
        if visual is None and self.is_initializing():
            # The parameters of all parts, whatever the first rows hold.
            shape = (len(x_BSD), 1, 1)
            sizes = jnp.zeros((*shape, c.feature_size)), jnp.zeros((*shape, 4))
            visual = Visual(*sizes, jnp.ones(shape, bool))
        if visual is None:
            return x_BSD, source.is_real
        rows, images, _, size = visual.features.shape
        if size != c.feature_size or images > c.max_images:
            raise ValueError(
                f"{images} images of features of size {size}, and the model takes {c.max_images} "
                f"(max_images) of {c.feature_size} (feature_size)"
            )
        visual = pooled(c, visual)
        places = self.shared(c.vocab_size - 1 - jnp.arange(visual.features.shape[2]))
        seen_BMTD = self.visual_embedding(visual) + places
        x_BSD = jnp.concatenate([x_BSD, seen_BMTD.reshape(rows, -1, c.d_model)], axis=1)
        is_real = [source.is_real, visual.is_real.reshape(rows, -1)]
        return x_BSD, jnp.concatenate(is_real, axis=1)


def start_from_bart(model: VLBart, params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """Return parameters to start training from: a BART's, and fresh ones for what it has not.

    New tokens are drawn as transformers does it, from a normal of deviation 0.02.

    Args:
        model: the plain model.
        params: of a `Bart` of the same sizes, whose vocabulary may be smaller.
        key: of what is drawn.

    Raises:
        ValueError: when the sizes differ; names the first parameter.
    """
    tokens, (key, token_key) = jnp.zeros((1, 2), jnp.int32), jax.random.split(key)
    # XLA leaves out what is not asked for.
    visual = jax.jit(lambda key: model.init(key, tokens)["params"]["visual_embedding"])(key)
    given = flax.traverse_util.flatten_dict(params, sep="/")
    vocabulary = given["shared/embedding"].shape[0]
    more = model.config.vocab_size - vocabulary
    if more > 0:
        new = _INIT_DEVIATION * jax.random.normal(token_key, (more, model.config.d_model))
        given["shared/embedding"] = jnp.concatenate(
            [given["shared/embedding"], new.astype(given["shared/embedding"].dtype)]
        )
        bias = given["final_logits_bias/buffer"]
        given["final_logits_bias/buffer"] = jnp.pad(jnp.asarray(bias), [(0, 0), (0, more)])
    shapes = flax.traverse_util.flatten_dict(param_shapes(model), sep="/")
    for path, leaf in given.items():
        expected = shapes[path].shape if path in shapes else None
        if np.shape(leaf) != expected:
            raise ValueError(
                f"{path} of the BART has shape {np.shape(leaf)}, the model's {expected}"
            )
    return flax.traverse_util.unflatten_dict(given, sep="/") | {"visual_embedding": visual}
