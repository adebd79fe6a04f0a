"""The LLaMA architecture, top to bottom: RMSNorm, RoPE, grouped-query attention, SwiGLU.

Layers are stacked on a leading axis and scanned, so compile time does not grow with depth; every
projection is one of our layers, so rules decide what is tuned. Module names are Hugging Face's:
`layers/self_attn/q_proj`, `layers/mlp/down_proj`, and so on.

Letters in names: B batch, L query length, S key length, D hidden size, H heads, K key-value heads,
F head size, V vocabulary, N layers.
"""

from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from dora_jax.decomposition import PRODUCT
from dora_jax.layers import LOW_RANK, NORMS, Dense, Embed
from dora_jax.models.config import LlamaConfig
from dora_jax.spec import AdapterRules, nearest

Remat = Literal["none", "dots", "full"]
AttentionKernel = Literal["xla", "cudnn"]

_REMAT_POLICIES = {
    # Keep the results of products with a weight and of attention, recompute the cheap rest.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PRODUCT, LOW_RANK),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
        key: (N, B, S, K, F); slots beyond `length` are unused.
        value: (N, B, S, K, F).
        length: number of filled slots, the same for all rows (shorter prompts are padded left).
    """

    key: Array
    value: Array
    length: Array


def init_cache(config: LlamaConfig, batch: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """Return an empty cache for `batch` rows of at most `slots` tokens."""
    shape = (
        config.num_hidden_layers,
        batch,
        slots,
        config.num_key_value_heads,
        config.head_dim,
    )
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def rotary_angles(positions_BL: Int[Array, "b l"], config: LlamaConfig) -> Float[Array, "b l f"]:
    """Return the rotation angle of each position and pair of features, (B, L, F / 2), float32."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return positions_BL[..., None].astype(jnp.float32) * frequencies


def rotate(x_BLHF: Array, angles_BLf: Array) -> Array:
    """Rotate feature pairs (i, i + F / 2) by the angles: Hugging Face's convention of RoPE."""
    cos, sin = jnp.cos(angles_BLf)[:, :, None], jnp.sin(angles_BLf)[:, :, None]
    first, second = jnp.split(x_BLHF.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BLHF.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    epsilon: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    config: LlamaConfig
    dense: dict[str, Any]
    kernel: AttentionKernel

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        angles_BLf: Array,
        mask_BLS: Array | None,
        cache: tuple[Array, Array] | None,
        cache_length: Array | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        c = self.config
        H, K, F = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        B, L, _ = x_BLD.shape
        q = Dense(H * F, name="q_proj", **self.dense)(x_BLD).reshape(B, L, H, F)
        k = Dense(K * F, name="k_proj", **self.dense)(x_BLD).reshape(B, L, K, F)
        v = Dense(K * F, name="v_proj", **self.dense)(x_BLD).reshape(B, L, K, F)
        q, k = rotate(q, angles_BLf), rotate(k, angles_BLf)
        if cache is not None:
            start: Any = (0, cache_length, 0, 0)
            k = jax.lax.dynamic_update_slice(cache[0], k.astype(cache[0].dtype), start)
            v = jax.lax.dynamic_update_slice(cache[1], v.astype(cache[1].dtype), start)
            cache = (k, v)
        mask = None if mask_BLS is None else mask_BLS[:, None]
        y = jax.nn.dot_product_attention(
            q,
            k.astype(q.dtype),
            v.astype(q.dtype),
            mask=mask,
            is_causal=mask is None,
            implementation=self.kernel if mask is None else "xla",
        )
        y = checkpoint_name(y.reshape(B, L, H * F), PRODUCT)
        return Dense(c.hidden_size, name="o_proj", **self.dense)(y), cache


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    config: LlamaConfig
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        gate = Dense(c.intermediate_size, name="gate_proj", **self.dense)(x_BLD)
        up = Dense(c.intermediate_size, name="up_proj", **self.dense)(x_BLD)
        return Dense(c.hidden_size, name="down_proj", **self.dense)(jax.nn.silu(gate) * up)


class Block(nn.Module):
    """One transformer layer; its call has the (carry, output) form that `nn.scan` wants."""

    config: LlamaConfig
    dense: dict[str, Any]
    attention: AttentionKernel

    @nn.compact
    def __call__(
        self,
        x_BLD: Array,
        angles_BLf: Array,
        mask_BLS: Array | None,
        cache: tuple[Array, Array] | None,
        cache_length: Array | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        dtypes = {"dtype": self.dense["dtype"], "param_dtype": self.dense["param_dtype"]}
        epsilon = self.config.rms_norm_eps
        h = RMSNorm(epsilon, name="input_layernorm", **dtypes)(x_BLD)
        attended, cache = Attention(self.config, self.dense, self.attention, name="self_attn")(
            h, angles_BLf, mask_BLS, cache, cache_length
        )
        x_BLD = x_BLD + attended
        h = RMSNorm(epsilon, name="post_attention_layernorm", **dtypes)(x_BLD)
        return x_BLD + MLP(self.config, self.dense, name="mlp")(h), cache


class Llama(nn.Module):
    """A LLaMA-architecture language model.

    Attributes:
        config: the shape.
        adapters: rules that say how each module is tuned; None for the plain model.
        dtype: of the computation; norms, rotations and logits are float32 in any case.
        param_dtype: of the base parameters that `init` makes.
        remat: what the backward pass recomputes: `none`, `dots` (all but products with weights)
            or `full` (everything but each layer's input).
        attention: how plain causal attention is computed: `xla`, or `cudnn`, the flash kernel of
            NVIDIA GPUs, for bfloat16. Under a mask it is `xla` in any case.
    """

    config: LlamaConfig
    adapters: AdapterRules | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    attention: AttentionKernel = "xla"

    def setup(self) -> None:
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"use_bias": False, "adapter": self.adapters, **dtypes}
        self.embed_tokens = Embed(c.vocab_size, c.hidden_size, adapter=self.adapters, **dtypes)
        block = Block
        for name, choices in (("remat", Remat), ("attention", AttentionKernel)):
            given, allowed = getattr(self, name), get_args(choices)
            if given not in allowed:
                raise ValueError(
                    f"Llama.{name} must be one of {', '.join(map(repr, allowed))}; got "
                    f"{given!r}{nearest(given, allowed)}"
                )
        if self.remat != "none":
            block = nn.remat(Block, policy=_REMAT_POLICIES[self.remat], prevent_cse=False)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, NORMS: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
            length=c.num_hidden_layers,
        )
        self.layers = scanned(c, dense, self.attention)
        self.norm = RMSNorm(c.rms_norm_eps, **dtypes)
        if not c.tie_word_embeddings:
            self.lm_head = Dense(c.vocab_size, **dense)

    @property
    def vocabulary(self) -> int:
        """The number of logits of a position."""
        return self.config.vocab_size

    @property
    def head_modules(self) -> tuple[str, ...]:
        """The modules whose parameters `head` uses."""
        return ("embed_tokens",) if self.config.tie_word_embeddings else ("lm_head",)

    def hidden_states(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        mask_BLS: Bool[Array, "b l s"] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "b l d"], Cache | None]:
        """Run the trunk.

        Args:
            tokens_BL: token ids.
            positions_BL: for RoPE; by default 0, 1, 2, ..., or on from the cache's length.
            mask_BLS: True where the query may see the key, causality included; plain causal by
                default, which is all that right-padded rows need. With a cache, S is the number of
                its slots.
            cache: keys and values so far; the new ones are written after them, and must fit.

        Returns:
            The normalised hidden states (B, L, D), and the cache with these tokens in it.
        """
        if positions_BL is None:
            first = 0 if cache is None else cache.length
            positions_BL = jnp.broadcast_to(first + jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        if cache is not None and mask_BLS is None:
            slots = jnp.arange(cache.key.shape[2])
            last_seen_L = cache.length + jnp.arange(tokens_BL.shape[1])
            mask_BLS = (slots <= last_seen_L[:, None])[None]
        x_BLD = self.embed_tokens(tokens_BL)
        layers_cache = None if cache is None else (cache.key, cache.value)
        filled: Any
        x_BLD, filled = self.layers(
            x_BLD,
            rotary_angles(positions_BL, self.config),
            mask_BLS,
            layers_cache,
            None if cache is None else cache.length,
        )
        if cache is not None:
            key, value = filled
            cache = Cache(key, value, cache.length + tokens_BL.shape[1])
        return self.norm(x_BLD), cache

    def head(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Return the logits of hidden states, float32."""
        if self.config.tie_word_embeddings:
            return self.embed_tokens.attend(hidden).astype(jnp.float32)
        return self.lm_head(hidden).astype(jnp.float32)

    def __call__(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        mask_BLS: Bool[Array, "b l s"] | None = None,
    ) -> Float[Array, "b l v"]:
        """Return the logits (B, L, V), float32; arguments as `hidden_states`."""
        return self.head(self.hidden_states(tokens_BL, positions_BL, mask_BLS)[0])


def param_shapes(model: Llama) -> Any:
    """Return the shapes and dtypes of a model's parameters, adapters included; computes nothing."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
