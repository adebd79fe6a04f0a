"""Decoders of the LLaMA family, top to bottom: norms, attention, gated MLP, tied or separate head.

One model, driven by `LlamaConfig`, is LLaMA, Mistral, Qwen, Gemma, Phi-3 and SmolLM: they differ in
which projections have biases, which norms stand where, and what a layer sees. Layers are stacked
on a leading axis and scanned, so compile time does not grow with depth; every projection is one of
our layers, so rules decide what is tuned. Module names are Hugging Face's:
`layers/self_attn/q_proj`, `layers/mlp/down_proj`, and so on.

Letters in names: B batch, L query length, S key length, D hidden size, H heads, K key-value heads,
F head size, V vocabulary, N layers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from dora_jax.decomposition import PRODUCT
from dora_jax.layers import NORMS, Dense, Embed
from dora_jax.mesh import ROWS, ShardingRules, constrain
from dora_jax.models.attention import (
    PADDING,
    SHARED,
    AttentionKernel,
    Cache,
    Places,
    attend,
    attend_slots,
    empty_cache,
    visible,
    write_places,
    write_slots,
)
from dora_jax.models.config import LlamaConfig
from dora_jax.models.remat import Remat, rematerialised
from dora_jax.models.rotary import rotate, rotations
from dora_jax.spec import AdapterRules, nearest

# Columns of what comes in, rows of what goes out: one sum over `tensor` for attention and for MLP.
SHARDING: ShardingRules = (
    ("embed_tokens/embedding", ("tensor", "fsdp")),
    (r"layers/.*/(q|k|v|qkv|gate|up|gate_up)_proj/kernel", ("fsdp", "tensor")),
    (r"layers/.*/(q|k|v|qkv|gate|up|gate_up)_proj/bias", ("tensor",)),
    (r"layers/.*/(o|down)_proj/kernel", ("tensor", "fsdp")),
    ("lm_head/kernel", ("fsdp", "tensor")),
)

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


def head_modules(config: LlamaConfig) -> tuple[str, ...]:
    """Return the modules whose parameters the head uses."""
    return ("embed_tokens",) if config.tie_word_embeddings else ("lm_head",)


def init_cache(config: LlamaConfig, batch: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """Return an empty cache for `batch` rows of at most `slots` tokens.

    Where every layer has a window, as many slots as its size (and as the longest prompt) are
    enough, however long the text gets.
    """
    c = config
    return empty_cache(c.num_hidden_layers, batch, c.num_key_value_heads, slots, c.head_dim, dtype)


class Seen(NamedTuple):
    """What a layer needs to know of the tokens, for each kind of layer on a leading axis.

    Attributes:
        rotations: (kinds, 2, B, L, f); B is 1 where all rows stand alike.
        visible: (kinds, B, L, S), of the cache's slots, or of these tokens where they are the
            first; None for plain causal attention by cuDNN.
        cache_length: of the cache before these tokens; None without a cache, or an empty one.
    """

    rotations: Array
    visible: Array | None
    cache_length: Array | None


class Layer(NamedTuple):
    """Which layer it is.

    Attributes:
        number: from 0.
        kind: the index of its kind in `Seen`; None where there is one kind.
    """

    number: Array
    kind: Array | None


# A layer's input (B, L, D), and all layers' cached keys and values, if there are any.
Carry = tuple[Array, tuple[Array, Array] | None]


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32.

    With `unit_offset` the scale is 1 + the parameter, as Gemma stores it.
    """

    epsilon: float
    unit_offset: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        if self.unit_offset:
            scale = 1.0 + scale.astype(jnp.float32)
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    config: LlamaConfig
    dense: dict[str, Any]
    norm: dict[str, Any]

    @nn.compact
    def __call__(
        self, x_BLD: Array, seen: Seen, layer: Layer, cache: tuple[Array, Array] | None
    ) -> Carry:
        c = self.config
        H, K, F = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        B, L, _ = x_BLD.shape
        if c.fused_projections:
            fused = Dense((H + 2 * K) * F, use_bias=c.qkv_bias, name="qkv_proj", **self.dense)
            q, k, v = jnp.split(fused(x_BLD), [H * F, (H + K) * F], axis=-1)
        else:
            q, k, v = (
                Dense(heads * F, use_bias=c.qkv_bias, name=f"{name}_proj", **self.dense)(x_BLD)
                for name, heads in (("q", H), ("k", K), ("v", K))
            )
        q, k, v = (constrain(x.reshape(B, L, -1, F), ROWS, None, "tensor", None) for x in (q, k, v))
        if c.qk_norm:
            q, k = RMSNorm(name="q_norm", **self.norm)(q), RMSNorm(name="k_norm", **self.norm)(k)
        index = 0 if layer.kind is None else layer.kind
        q, k = rotate(q, seen.rotations[index]), rotate(k, seen.rotations[index])
        options: dict[str, Any] = {"scale": c.attention_scale, "softcap": c.attn_logit_softcapping}
        if cache is not None:
            length = 0 if seen.cache_length is None else seen.cache_length
            cache = (
                write_slots(cache[0], layer.number, k, length),
                write_slots(cache[1], layer.number, v, length),
            )
        if seen.visible is None:
            window = c.layer_kinds()[0][0].window  # of the one kind that there is
            y = jax.nn.dot_product_attention(
                q,
                k,
                v,
                scale=c.attention_scale,
                is_causal=True,
                local_window_size=None if window is None else (window - 1, 0),
                implementation="cudnn",
            )
        elif cache is None or seen.cache_length is None:
            y = attend(q, k, v, seen.visible[index], **options)
        else:
            key, value = (
                jax.lax.dynamic_index_in_dim(all_layers, layer.number, keepdims=False)
                for all_layers in cache
            )
            y = attend_slots(
                q, key.astype(q.dtype), value.astype(q.dtype), seen.visible[index], **options
            )
        y = checkpoint_name(y.reshape(B, L, H * F), PRODUCT)
        return Dense(c.hidden_size, use_bias=c.o_bias, name="o_proj", **self.dense)(y), cache


class MLP(nn.Module):
    """Gated MLP: down(act(gate(x)) * up(x))."""

    config: LlamaConfig
    dense: dict[str, Any]

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        dense = {"use_bias": c.mlp_bias, **self.dense}
        if c.fused_projections:
            fused = Dense(2 * c.intermediate_size, name="gate_up_proj", **dense)(x_BLD)
            gate, up = jnp.split(fused, 2, axis=-1)
        else:
            gate = Dense(c.intermediate_size, name="gate_proj", **dense)(x_BLD)
            up = Dense(c.intermediate_size, name="up_proj", **dense)(x_BLD)
        activated = constrain(_ACTIVATIONS[c.hidden_act](gate) * up, ROWS, None, "tensor")
        return Dense(c.hidden_size, name="down_proj", **dense)(activated)


class Block(nn.Module):
    """One transformer layer; its call has the (carry, output) form that `nn.scan` wants."""

    config: LlamaConfig
    dense: dict[str, Any]
    norm: dict[str, Any]

    @nn.compact
    def __call__(self, carry: Carry, seen: Seen, layer: Layer) -> tuple[Carry, None]:
        x_BLD, cache = carry

        def norm(name: str, h: Array) -> Array:
            return RMSNorm(name=name, **self.norm)(h)

        sandwich = self.config.sandwich_norms
        attention = Attention(self.config, self.dense, self.norm, name="self_attn")
        attended, cache = attention(norm("input_layernorm", x_BLD), seen, layer, cache)
        if sandwich:
            attended = norm("post_attention_layernorm", attended)
        x_BLD = x_BLD + attended
        before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        h = MLP(self.config, self.dense, name="mlp")(norm(before_mlp, x_BLD))
        if sandwich:
            h = norm("post_feedforward_layernorm", h)
        return (constrain(x_BLD + h, ROWS, None, None), cache), None


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
            NVIDIA GPUs, for bfloat16. With segments, positions or a cache it is `xla`.
        neftune_alpha: size of the noise on embeddings (Jain et al. 2023) where the rng `neftune` is
            given, as in training.
    """

    config: LlamaConfig
    adapters: AdapterRules | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"
    attention: AttentionKernel = "xla"
    neftune_alpha: float = 0.0

    def setup(self) -> None:
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"adapter": self.adapters, **dtypes}
        norm = {"epsilon": c.rms_norm_eps, "unit_offset": c.unit_offset, **dtypes}
        self.embed_tokens = Embed(c.vocab_size, c.hidden_size, adapter=self.adapters, **dtypes)
        block = rematerialised(Block, self.remat, "Llama")
        allowed = get_args(AttentionKernel)
        if self.attention not in allowed:
            raise ValueError(
                f"Llama.attention must be one of {', '.join(map(repr, allowed))}; got "
                f"{self.attention!r}{nearest(self.attention, allowed)}"
            )
        kinds, indices = c.layer_kinds()
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, NORMS: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0),
            length=c.num_hidden_layers,
        )
        self.kinds = kinds
        # An index that is known needs no gather of masks and rotations in each layer.
        kind_of_layer = None if len(kinds) == 1 else jnp.array(indices)
        self.each_layer = Layer(jnp.arange(c.num_hidden_layers), kind_of_layer)
        self.layers = scanned(c, dense, norm)
        self.norm = RMSNorm(**norm)
        if not c.tie_word_embeddings:
            self.lm_head = Dense(c.vocab_size, use_bias=False, **dense)

    @property
    def vocabulary(self) -> int:
        """The number of logits of a position."""
        return self.config.vocab_size

    @property
    def sharding_rules(self) -> ShardingRules:
        """How the weights are divided over a mesh, see `dora_jax.mesh`."""
        return SHARDING

    @property
    def head_modules(self) -> tuple[str, ...]:
        """The modules whose parameters `head` uses."""
        return head_modules(self.config)

    def hidden_states(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        segments_BL: Int[Array, "b l"] | None = None,
        cache: Cache | int | None = None,
        inputs_BLD: Float[Array, "b l d"] | None = None,
    ) -> tuple[Float[Array, "b l d"], Cache | None]:
        """Run the trunk.

        Args:
            tokens_BL: token ids.
            positions_BL: within their sequence; by default 0, 1, 2, ..., or on from the cache's
                length.
            segments_BL: tokens see the earlier ones of their own segment and of segment 0, a
                prefix that all share; -1 is padding. By default one sequence a row, which is all
                that right-padded rows need.
            cache: keys and values so far; the new ones are written after them, and must fit: at
                once, when they are more than one. A number is that of the slots of a new cache,
                at least as many as tokens.
            inputs_BLD: in place of the tokens' own embeddings, where a part of them is not text:
                see `embed`.

        Returns:
            The normalised hidden states (B, L, D), and the cache with these tokens in it.
        """
        c = self.config
        batch, length = tokens_BL.shape
        is_plain = segments_BL is None and cache is None and positions_BL is None
        is_first = cache is None or isinstance(cache, int)
        if isinstance(cache, int):
            cache = init_cache(c, batch, cache, self.dtype)
        rows = 1 if is_plain else batch
        if positions_BL is None:
            first = 0 if cache is None else cache.length
            positions_BL = jnp.broadcast_to(first + jnp.arange(length), (rows, length))
        if segments_BL is None:
            segments_BL = jnp.full((rows, length), SHARED)
        places = Places(positions_BL, segments_BL)
        if cache is not None:
            cache = write_places(cache, places)
        visible_KBLS = None
        by_cudnn = self.attention == "cudnn" and is_plain and c.attn_logit_softcapping is None
        if not by_cudnn or len(self.kinds) > 1:
            keys = places if cache is None or is_first else cache.places
            visible_KBLS = jnp.stack([visible(places, keys, kind.window) for kind in self.kinds])
        seen = Seen(
            jnp.stack(
                [
                    rotations(kind.rope, positions_BL, c.rotary_dim, c.max_position_embeddings)
                    for kind in self.kinds
                ]
            ),
            visible_KBLS,
            None if cache is None or is_first else cache.length,
        )
        x_BLD = self.embed(tokens_BL) if inputs_BLD is None else inputs_BLD.astype(self.dtype)
        if c.scale_embeddings:
            x_BLD = x_BLD * jnp.asarray(c.hidden_size**0.5, x_BLD.dtype)
        if self.neftune_alpha and self.has_rng("neftune"):
            x_BLD += self._noise(x_BLD, segments_BL)
        x_BLD = constrain(x_BLD, ROWS, None, None)
        layers_cache = None if cache is None else (cache.key, cache.value)
        filled: Any
        (x_BLD, filled), _ = self.layers((x_BLD, layers_cache), seen, self.each_layer)
        if cache is not None:
            key, value = filled
            cache = Cache(key, value, cache.places, cache.length + length)
        return self.norm(x_BLD), cache

    def embed(self, tokens_BL: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Return the tokens' embeddings, as they are stored."""
        return self.embed_tokens(tokens_BL)

    def _noise(self, x_BLD: Array, segments_BL: Array) -> Array:
        """Return uniform noise of size alpha / sqrt(L D), L the tokens of each one's sequence.

        Sequences are told by segments; without them a row is one, with what it is filled up by.
        """
        number_BL = segments_BL - PADDING  # from 0
        count = jax.vmap(functools.partial(jnp.bincount, length=x_BLD.shape[1] + 2))
        lengths_BL = jnp.take_along_axis(count(number_BL), number_BL, axis=1)
        size_BL = self.neftune_alpha / jnp.sqrt(lengths_BL * x_BLD.shape[-1])
        noise_BLD = jax.random.uniform(self.make_rng("neftune"), x_BLD.shape, minval=-1.0)
        return (noise_BLD * size_BL[..., None]).astype(x_BLD.dtype)

    def head(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Return the logits of hidden states, float32."""
        c = self.config
        product = self.embed_tokens.attend if c.tie_word_embeddings else self.lm_head
        logits = product(hidden).astype(jnp.float32)
        if c.final_logit_softcapping is not None:
            logits = c.final_logit_softcapping * jnp.tanh(logits / c.final_logit_softcapping)
        return logits

    def __call__(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        segments_BL: Int[Array, "b l"] | None = None,
    ) -> Float[Array, "b l v"]:
        """Return the logits (B, L, V), float32; arguments as `hidden_states`."""
        return self.head(self.hidden_states(tokens_BL, positions_BL, segments_BL)[0])


def param_shapes(model: nn.Module) -> Any:
    """Return the shapes and dtypes of a model's parameters, adapters included; computes nothing."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
