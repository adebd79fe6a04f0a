"""Vision towers of CLIP and SigLIP, top to bottom: patches, positions, pre-norm layers, pooling.

One model, driven by `VisionConfig`. Layers are stacked on a leading axis and scanned; every
projection is one of our layers, so rules decide what is tuned. Module names are Hugging Face's:
`layers/self_attn/q_proj`, `layers/mlp/fc1`, and so on.

Letters in names: B images, P tokens of an image, D hidden size, H heads, F head size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dora_jax.layers import NORMS, Conv, Dense
from dora_jax.mesh import ROWS, ShardingRules, constrain
from dora_jax.models.vision_config import VisionConfig
from dora_jax.spec import AdapterRules

SHARDING: ShardingRules = (
    (r"layers/self_attn/(q|k|v)_proj/kernel", ("fsdp", "tensor")),
    (r"layers/self_attn/(q|k|v)_proj/bias", ("tensor",)),
    (r"layers/self_attn/out_proj/kernel", ("tensor", "fsdp")),
    (r"layers/mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"layers/mlp/fc1/bias", ("tensor",)),
    (r"layers/mlp/fc2/kernel", ("tensor", "fsdp")),
)

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Features(NamedTuple):
    """What a tower makes of images.

    Attributes:
        layers: (B, P, D) for each layer that was asked for, before any last norm; the class token,
            where there is one, comes first.
        pooled: (B, D), one vector of each image; None for a tower without a way to pool.
    """

    layers: tuple[Array, ...]
    pooled: Array | None


def _attend(q: Array, k: Array, v: Array, heads: int) -> Array:
    q_BPHF, k_BPHF, v_BPHF = (
        constrain(x.reshape(*x.shape[:2], heads, -1), ROWS, None, "tensor", None) for x in (q, k, v)
    )
    return jax.nn.dot_product_attention(q_BPHF, k_BPHF, v_BPHF).reshape(q.shape)


class Attention(nn.Module):
    """Attention of all tokens of an image to all of them."""

    heads: int
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, x_BPD: Array) -> Array:
        q, k, v = (Dense(x_BPD.shape[-1], name=f"{n}_proj", **self.dense)(x_BPD) for n in "qkv")
        attended = _attend(q, k, v, self.heads)
        return Dense(x_BPD.shape[-1], name="out_proj", **self.dense)(attended)


class MLP(nn.Module):
    """fc2(act(fc1(x)))."""

    config: VisionConfig
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = Dense(self.config.intermediate_size, name="fc1", **self.dense)(x)
        h = constrain(_ACTIVATIONS[self.config.hidden_act](h), ROWS, None, "tensor")
        return Dense(self.config.hidden_size, name="fc2", **self.dense)(h)


class Block(nn.Module):
    """One layer; its call has the (carry, output) form that `nn.scan` wants.

    The carry holds, beside the tokens, what was kept of the layers that were asked for.
    """

    config: VisionConfig
    kept: tuple[int, ...]
    dense: dict[str, Any]
    norm: dict[str, Any]

    @nn.compact
    def __call__(
        self, carry: tuple[Array, tuple[Array, ...]], number: Array
    ) -> tuple[tuple[Array, tuple[Array, ...]], None]:
        x_BPD, features = carry
        attention = Attention(self.config.num_attention_heads, self.dense, name="self_attn")
        x_BPD = x_BPD + attention(nn.LayerNorm(name="layer_norm1", **self.norm)(x_BPD))
        mlp = MLP(self.config, self.dense, name="mlp")
        x_BPD = x_BPD + mlp(nn.LayerNorm(name="layer_norm2", **self.norm)(x_BPD))
        x_BPD = constrain(x_BPD, ROWS, None, None)
        features = tuple(
            jnp.where(number + 1 == wanted, x_BPD, feature)
            for wanted, feature in zip(self.kept, features, strict=True)
        )
        return (x_BPD, features), None


class PoolingHead(nn.Module):
    """SigLIP's: a learned probe attends to all tokens, then an MLP."""

    config: VisionConfig
    dense: dict[str, Any]
    norm: dict[str, Any]

    @nn.compact
    def __call__(self, x_BPD: Array) -> Array:
        c = self.config
        size = c.hidden_size
        probe = self.param(
            "probe", nn.initializers.normal(0.02), (1, 1, size), self.dense["param_dtype"]
        )
        probe_B1D = jnp.broadcast_to(probe.astype(x_BPD.dtype), (x_BPD.shape[0], 1, size))
        h = ProbeAttention(c.num_attention_heads, self.dense, name="attention")(probe_B1D, x_BPD)
        h = h + MLP(c, self.dense, name="mlp")(nn.LayerNorm(name="layernorm", **self.norm)(h))
        return h[:, 0]


class ProbeAttention(nn.Module):
    """Attention whose queries come from elsewhere; q, k and v are one projection, as in torch."""

    heads: int
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, query_BQD: Array, x_BPD: Array) -> Array:
        size = x_BPD.shape[-1]
        project = Dense(3 * size, name="in_proj", **self.dense)
        q = project(query_BQD)[..., :size]
        k, v = jnp.split(project(x_BPD)[..., size:], 2, axis=-1)
        return Dense(size, name="out_proj", **self.dense)(_attend(q, k, v, self.heads))


class VisionTower(nn.Module):
    """A tower.

    Attributes:
        config: its shape.
        adapters: rules that say how each module is tuned; None for the plain tower.
        dtype: of the computation; norms are computed in float32 in any case.
        param_dtype: of the parameters that `init` makes.
    """

    config: VisionConfig
    adapters: AdapterRules | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], layers: Sequence[int] = (-1,), pool: bool = True
    ) -> Features:
        """Look at images.

        Args:
            images: (B, image_size, image_size, channels), as the tower's processor makes them.
            layers: whose outputs are wanted, as `transformers` counts `hidden_states`: 0 is the
                embeddings, 1 the first layer's output, -1 the last one's. LLaVA takes -2.
            pool: whether one vector of each image is wanted too.

        Raises:
            ValueError: for images of another size, or a layer that there is not.
        """
        c = self.config
        expected = (c.image_size, c.image_size, c.num_channels)
        if images.shape[1:] != expected:
            raise ValueError(f"images must be (batch, *{expected}); got {images.shape}")
        kept = tuple(n if n >= 0 else n + c.num_hidden_layers + 1 for n in layers)
        if not all(0 <= n <= c.num_hidden_layers for n in kept):
            raise ValueError(
                f"layers must be from {-c.num_hidden_layers - 1} to {c.num_hidden_layers}; got "
                f"{tuple(layers)}"
            )
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"adapter": self.adapters, **dtypes}
        norm = {"epsilon": c.layer_norm_eps, **dtypes}
        x_BPD = Embeddings(c, dense, name="embeddings")(images.astype(self.dtype))
        if c.pre_norm:
            x_BPD = nn.LayerNorm(name="pre_layrnorm", **norm)(x_BPD)
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0, NORMS: 0},
            split_rngs={"params": True, "dropout": True},
            length=c.num_hidden_layers,
        )
        blocks = scanned(c, kept, dense, norm, name="layers")
        (x_BPD, features), _ = blocks(
            (x_BPD, (x_BPD,) * len(kept)), jnp.arange(c.num_hidden_layers)
        )
        # Made in any case, so that a tower has the same parameters whatever is asked of it.
        last = nn.LayerNorm(name="post_layernorm", **norm)
        if c.pooling_head:
            pooled = PoolingHead(c, dense, norm, name="head")(last(x_BPD))
        else:
            pooled = last(x_BPD[:, 0] if c.class_token else x_BPD)
        has_pooled = c.pooling_head or c.class_token
        return Features(features, pooled if pool and has_pooled else None)


class Embeddings(nn.Module):
    """Patches as tokens, with a class token before them where there is one, and positions."""

    config: VisionConfig
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, images: Array) -> Array:
        c = self.config
        size = (c.patch_size, c.patch_size)
        project = Conv(
            c.hidden_size,
            size,
            strides=size,
            padding="VALID",
            use_bias=c.patch_bias,
            name="patch_embedding",
            **self.dense,
        )
        patches = project(images)
        x_BPD = patches.reshape(patches.shape[0], -1, c.hidden_size)
        init = nn.initializers.normal(0.02)
        dtype = self.dense["param_dtype"]
        if c.class_token:
            token = self.param("class_embedding", init, (c.hidden_size,), dtype)
            tokens = jnp.broadcast_to(token.astype(x_BPD.dtype), (len(x_BPD), 1, c.hidden_size))
            x_BPD = jnp.concatenate([tokens, x_BPD], axis=1)
        places = self.param("position_embedding", init, (c.positions, c.hidden_size), dtype)
        return x_BPD + places.astype(x_BPD.dtype)
