"""LLaVA-1.5, top to bottom: a vision tower, a projector of two layers, a language model.

An image is so many tokens of the text: at each `image_token_id` stands what the projector makes of
one patch, in order. Rows have as many images as they like, or none. Every projection of the three
parts is one of our layers, so rules decide what is tuned: `language_model/.*/(q|k|v)_proj`.

Letters in names: B batch, M images of a row at most, P patches, L text length, D hidden size.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dora_jax.layers import Dense
from dora_jax.mesh import ShardingRules
from dora_jax.models import llama, vit
from dora_jax.models.attention import AttentionKernel, Cache
from dora_jax.models.config import LlamaConfig
from dora_jax.models.kinds import check_kinds
from dora_jax.models.llama import Llama
from dora_jax.models.remat import Remat
from dora_jax.models.vision_config import VisionConfig
from dora_jax.models.vit import VisionTower
from dora_jax.spec import AdapterRules

# Of fields whose name in a `config.json` is another one.
_NAMES = {
    "image_token_id": "image_token_index",
    "feature_layers": "vision_feature_layer",
    "projector_bias": "multimodal_projector_bias",
}
SHARDING: ShardingRules = (
    *((f"vision_tower/{pattern}", axes) for pattern, axes in vit.SHARDING),
    *((f"language_model/{pattern}", axes) for pattern, axes in llama.SHARDING),
)


@dataclass(frozen=True)
class LlavaConfig:
    """The shape of one model.

    Attributes:
        vision: of the tower.
        text: of the language model.
        image_token_id: the token at whose places images stand.
        feature_layers: whose outputs the projector gets, side by side; as `VisionTower` counts.
        first_token: whether the features of the tower's first token are among them. It is CLIP's
            class token, which LLaVA leaves out; of a tower without one it is a patch.
        projector_act: between the projector's layers.
        projector_bias: whether these have biases.

    Raises:
        ValueError: for a value of another kind, or when the parts do not fit each other.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: LlamaConfig = field(default_factory=LlamaConfig)
    image_token_id: int = 32000
    feature_layers: tuple[int, ...] = (-2,)
    first_token: bool = False
    projector_act: Literal["gelu"] = "gelu"
    projector_bias: bool = True

    def __post_init__(self) -> None:
        check_kinds(self, _NAMES)
        if not 0 <= self.image_token_id < self.text.vocab_size:
            raise ValueError(
                f"image_token_id ({self.image_token_id}) must be a token of the language model, "
                f"which has {self.text.vocab_size}"
            )
        if self.projector_act != "gelu":
            raise ValueError(f"projector_hidden_act must be 'gelu', got {self.projector_act!r}")
        layers = self.vision.num_hidden_layers
        if not self.feature_layers or not all(
            -layers - 1 <= n <= layers for n in self.feature_layers
        ):
            raise ValueError(
                f"vision_feature_layer must be from {-layers - 1} to {layers}; got "
                f"{self.feature_layers}"
            )

    @property
    def image_tokens(self) -> int:
        """The number of tokens that an image is."""
        return self.vision.positions - int(not self.first_token)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image as the tower takes it."""
        return (self.vision.image_size, self.vision.image_size, self.vision.num_channels)


class Projector(nn.Module):
    """linear_2(gelu(linear_1(x)))."""

    config: LlavaConfig
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        dense = {"use_bias": c.projector_bias, **self.dense}
        h = Dense(c.text.hidden_size, name="linear_1", **dense)(x)
        h = jax.nn.gelu(h, approximate=False)
        return Dense(c.text.hidden_size, name="linear_2", **dense)(h)


class Llava(nn.Module):
    """A LLaVA-1.5 model.

    Attributes:
        config: the shape.
        adapters: rules that say how each module is tuned; None for the plain model.
        dtype: of the computation; norms and logits are float32 in any case.
        param_dtype: of the base parameters that `init` makes.
        remat: of the language model, see `Llama`.
        attention: of the language model's training, see `Llama`.
        neftune_alpha: see `Llama`.
    """

    config: LlavaConfig
    adapters: AdapterRules | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    attention: AttentionKernel = "xla"
    neftune_alpha: float = 0.0

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.vision_tower = VisionTower(self.config.vision, self.adapters, **dtypes)
        self.multi_modal_projector = Projector(self.config, {"adapter": self.adapters, **dtypes})
        self.language_model = Llama(
            self.config.text,
            self.adapters,
            remat=self.remat,
            attention=self.attention,
            neftune_alpha=self.neftune_alpha,
            **dtypes,
        )

    @property
    def vocabulary(self) -> int:
        """The number of logits of a position."""
        return self.config.text.vocab_size

    @property
    def sharding_rules(self) -> ShardingRules:
        """How the weights are divided over a mesh, see `dora_jax.mesh`."""
        return SHARDING

    @property
    def head_modules(self) -> tuple[str, ...]:
        """The modules whose parameters `head` uses."""
        return tuple(f"language_model/{name}" for name in llama.head_modules(self.config.text))

    def image_features(self, images: Float[Array, "n h w c"]) -> Float[Array, "n p d"]:
        """Return what stands for each image in the text, (N, `config.image_tokens`, D)."""
        c = self.config
        found = self.vision_tower(images, c.feature_layers, pool=False).layers
        if not c.first_token:
            found = tuple(features[:, 1:] for features in found)
        return self.multi_modal_projector(jnp.concatenate(found, axis=-1))

    def embed(
        self, tokens_BL: Int[Array, "b l"], images: Float[Array, "b m h w c"] | None
    ) -> Float[Array, "b l d"]:
        """Return the embeddings of text with images in it.

        Args:
            tokens_BL: token ids; of each image `config.image_tokens` times `image_token_id`.
            images: of each row, in the order of their tokens; rows with fewer are filled up, with
                anything. None where no row has any.
        """
        x_BLD = self.language_model.embed(tokens_BL)
        if images is None and self.is_initializing():
            # The parameters of all parts, whatever the first rows hold.
            images = jnp.zeros((len(tokens_BL), 1, *self.config.image_shape), self.dtype)
        if images is None:
            return x_BLD
        rows, most = images.shape[:2]
        features = self.image_features(images.reshape(rows * most, *images.shape[2:]))
        features = features.reshape(rows, -1, x_BLD.shape[-1])
        is_image_BL = tokens_BL == self.config.image_token_id
        # The n-th image token of a row stands for the n-th patch of its images.
        number_BL = jnp.clip(jnp.cumsum(is_image_BL, axis=1) - 1, 0, features.shape[1] - 1)
        own_BLD = jnp.take_along_axis(features, number_BL[..., None], axis=1)
        return jnp.where(is_image_BL[..., None], own_BLD.astype(x_BLD.dtype), x_BLD)

    def hidden_states(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        segments_BL: Int[Array, "b l"] | None = None,
        cache: Cache | int | None = None,
        images: Float[Array, "b m h w c"] | None = None,
    ) -> tuple[Float[Array, "b l d"], Cache | None]:
        """Run the trunk; arguments as `Llama.hidden_states`, and `images` as `embed`."""
        inputs_BLD = self.embed(tokens_BL, images)
        return self.language_model.hidden_states(
            tokens_BL, positions_BL, segments_BL, cache, inputs_BLD
        )

    def head(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Return the logits of hidden states, float32."""
        return self.language_model.head(hidden)

    def __call__(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        segments_BL: Int[Array, "b l"] | None = None,
        images: Float[Array, "b m h w c"] | None = None,
    ) -> Float[Array, "b l v"]:
        """Return the logits (B, L, V), float32; arguments as `hidden_states`."""
        hidden, _ = self.hidden_states(tokens_BL, positions_BL, segments_BL, images=images)
        return self.head(hidden)
