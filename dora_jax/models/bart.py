"""BART (Lewis et al. 2020), top to bottom: an encoder, a decoder that attends to it, a tied head.

Positions are learned, norms stand behind each part. Layers are stacked on a leading axis and
scanned; every projection is one of our layers, so rules decide what is tuned. Module names are
Hugging Face's: `encoder/layers/self_attn/q_proj`, `decoder/layers/encoder_attn/v_proj`,
`decoder/layers/fc1`, and so on. BART's own dropout is left out: adapters have theirs.

Letters in names: B batch, S source length, L text length or slots of its cache, D model size,
H heads, F head size, V vocabulary, N layers.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from dora_jax.decomposition import PRODUCT
from dora_jax.layers import NORMS, Dense, Embed
from dora_jax.mesh import ROWS, ShardingRules, constrain
from dora_jax.models.attention import (
    SHARED,
    Cache,
    Encoded,
    Places,
    attend,
    attend_slots,
    empty_cache,
    visible,
    write_places,
    write_slots,
)
from dora_jax.models.bart_config import BartConfig
from dora_jax.models.remat import Remat, rematerialised
from dora_jax.models.source import Source
from dora_jax.partition import BUFFER
from dora_jax.spec import AdapterRules

SHARDING: ShardingRules = (
    ("shared/embedding", ("tensor", "fsdp")),
    (r"(encoder|decoder)/layers/.*/(q|k|v)_proj/kernel", ("fsdp", "tensor")),
    (r"(encoder|decoder)/layers/.*/(q|k|v)_proj/bias", ("tensor",)),
    (r"(encoder|decoder)/layers/.*/out_proj/kernel", ("tensor", "fsdp")),
    (r"(encoder|decoder)/layers/fc1/kernel", ("fsdp", "tensor")),
    (r"(encoder|decoder)/layers/fc1/bias", ("tensor",)),
    (r"(encoder|decoder)/layers/fc2/kernel", ("tensor", "fsdp")),
)

# The table of positions has two more rows in front, which nothing uses any more.
POSITION_OFFSET = 2
NORM_EPSILON = 1e-5


class Seen(NamedTuple):
    """What a layer of the decoder needs to know.

    Attributes:
        visible: (B, L, L) of the text, see `attention.visible`; of the cache's slots where tokens
            came before.
        cache_length: of the cache before these tokens; None without a cache, or an empty one.
        source: (B, S, D) what the encoder made; None where `Encoded` has come of it.
        is_real: (B, S) False for the source's padding.
    """

    visible: Array
    cache_length: Array | None
    source: Array | None
    is_real: Array


# A layer's input (B, L, D), and all layers' cached keys and values, if there are any.
Carry = tuple[Array, tuple[Array, Array] | None]
KeysValues = tuple[Array, Array]


class Attention(nn.Module):
    """Projections of attention; what attends to what is its caller's."""

    size: int
    heads: int
    dense: dict[str, Any]

    def setup(self) -> None:
        self.q_proj = Dense(self.size, **self.dense)
        self.k_proj = Dense(self.size, **self.dense)
        self.v_proj = Dense(self.size, **self.dense)
        self.out_proj = Dense(self.size, **self.dense)

    def _split(self, x: Array) -> Array:
        x_BLHF = x.reshape(*x.shape[:2], self.heads, -1)
        return constrain(x_BLHF, ROWS, None, "tensor", None)

    def queries(self, x_BLD: Array) -> Float[Array, "b l h f"]:
        return self._split(self.q_proj(x_BLD))

    def keys_values(self, x_BLD: Array) -> KeysValues:
        """Return both, (B, L, H, F)."""
        return self._split(self.k_proj(x_BLD)), self._split(self.v_proj(x_BLD))

    def join(self, attended_BLHF: Array) -> Float[Array, "b l d"]:
        B, L = attended_BLHF.shape[:2]
        return self.out_proj(checkpoint_name(attended_BLHF.reshape(B, L, -1), PRODUCT))

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": (self.size // self.heads) ** -0.5, "softcap": None}

    def to_all(
        self, x_BLD: Array, k_BHSF: Array, v_BHSF: Array, is_real_BS: Array
    ) -> Float[Array, "b l d"]:
        """Return what x sees of keys and values that are all visible but for padding."""
        q_BLHF = self.queries(x_BLD)
        attended = attend_slots(
            q_BLHF,
            k_BHSF.astype(q_BLHF.dtype),
            v_BHSF.astype(q_BLHF.dtype),
            is_real_BS[:, None],
            **self.options,
        )
        return self.join(attended)


def _slots_first(pair: KeysValues) -> KeysValues:
    """Return keys and values as a cache holds them, (B, H, S, F)."""
    return pair[0].swapaxes(1, 2), pair[1].swapaxes(1, 2)


class EncoderBlock(nn.Module):
    """One layer; its call has the (carry, output) form that `nn.scan` wants."""

    config: BartConfig
    dense: dict[str, Any]
    norm: dict[str, Any]

    @nn.compact
    def __call__(self, x_BSD: Array, is_real_BS: Array) -> tuple[Array, None]:
        c, dense, norm = self.config, self.dense, self.norm
        attention = Attention(c.d_model, c.encoder_attention_heads, dense, name="self_attn")
        keys, values = _slots_first(attention.keys_values(x_BSD))
        x_BSD = x_BSD + attention.to_all(x_BSD, keys, values, is_real_BS)
        x_BSD = nn.LayerNorm(name="self_attn_layer_norm", **norm)(x_BSD)
        return _feed_forward(x_BSD, c.encoder_ffn_dim, dense, norm), None


class DecoderBlock(nn.Module):
    """One layer.

    Returns beside the carry its keys and values of the source, where they are to be kept.
    """

    config: BartConfig
    dense: dict[str, Any]
    norm: dict[str, Any]

    @nn.compact
    def __call__(
        self, carry: Carry, seen: Seen, layer: Array, kept: KeysValues | None
    ) -> tuple[Carry, KeysValues | None]:
        c, dense, norm = self.config, self.dense, self.norm
        x_BLD, cache = carry
        own = Attention(c.d_model, c.decoder_attention_heads, dense, name="self_attn")
        q_BLHF, (k_BLHF, v_BLHF) = own.queries(x_BLD), own.keys_values(x_BLD)
        if cache is not None:
            length = 0 if seen.cache_length is None else seen.cache_length
            cache = (
                write_slots(cache[0], layer, k_BLHF, length),
                write_slots(cache[1], layer, v_BLHF, length),
            )
        if cache is None or seen.cache_length is None:
            y = attend(q_BLHF, k_BLHF, v_BLHF, seen.visible, **own.options)
        else:
            key, value = (
                jax.lax.dynamic_index_in_dim(all_layers, layer, keepdims=False).astype(q_BLHF.dtype)
                for all_layers in cache
            )
            y = attend_slots(q_BLHF, key, value, seen.visible, **own.options)
        x_BLD = nn.LayerNorm(name="self_attn_layer_norm", **norm)(x_BLD + own.join(y))
        across = Attention(c.d_model, c.decoder_attention_heads, dense, name="encoder_attn")
        of_source = kept
        if of_source is None:
            assert seen.source is not None
            of_source = _slots_first(across.keys_values(seen.source))
        x_BLD = x_BLD + across.to_all(x_BLD, *of_source, seen.is_real)
        x_BLD = nn.LayerNorm(name="encoder_attn_layer_norm", **norm)(x_BLD)
        x_BLD = _feed_forward(x_BLD, c.decoder_ffn_dim, dense, norm)
        return (x_BLD, cache), of_source if cache is not None and kept is None else None


def _feed_forward(x_BLD: Array, width: int, dense: dict[str, Any], norm: dict[str, Any]) -> Array:
    """Return norm(x + fc2(gelu(fc1(x)))); called in a layer, whose modules these are."""
    h = jax.nn.gelu(Dense(width, name="fc1", **dense)(x_BLD), approximate=False)
    h = constrain(h, ROWS, None, "tensor")
    x_BLD = x_BLD + Dense(x_BLD.shape[-1], name="fc2", **dense)(h)
    x_BLD = nn.LayerNorm(name="final_layer_norm", **norm)(x_BLD)
    return constrain(x_BLD, ROWS, None, None)


class Stack(nn.Module):
    """Positions, a norm and layers: the encoder, or the decoder."""

    config: BartConfig
    dense: dict[str, Any]
    norm: dict[str, Any]
    is_decoder: bool
    remat: Remat

    def setup(self) -> None:
        c = self.config
        self.embed_positions = Embed(
            c.max_position_embeddings + POSITION_OFFSET, c.d_model, **self.dense
        )
        self.layernorm_embedding = nn.LayerNorm(**self.norm)
        scanned = nn.scan(
            rematerialised(DecoderBlock if self.is_decoder else EncoderBlock, self.remat, "Bart"),
            variable_axes={"params": 0, NORMS: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0, 0) if self.is_decoder else nn.broadcast,
            length=c.decoder_layers if self.is_decoder else c.encoder_layers,
        )
        self.layers = scanned(c, self.dense, self.norm)

    def place(
        self, x_BLD: Float[Array, "b l d"], positions: Int[Array, "#b l"]
    ) -> Float[Array, "b l d"]:
        """Return the first layer's input: words with positions, normalised."""
        x_BLD = x_BLD + self.embed_positions(positions + POSITION_OFFSET)
        return constrain(self.layernorm_embedding(x_BLD), ROWS, None, None)

    def check_length(self, length: int) -> None:
        """Check that a text is not too long.

        Raises:
            ValueError: when it has more tokens than the model has positions for.
        """
        most = self.config.max_position_embeddings
        if length > most:
            raise ValueError(
                f"{length} tokens, and the {self.name} has max_position_embeddings {most}"
            )

    def __call__(self, first: Any, *inputs: Any) -> tuple[Any, Any]:
        """Run the layers; arguments as those of a layer."""
        return self.layers(first, *inputs)


class LogitsBias(nn.Module):
    """What the head adds to the logits; torch has it as a buffer of zeros, which is not trained."""

    config: BartConfig
    dtype: Any

    @nn.compact
    def __call__(self, logits: Array) -> Array:
        shape = (1, self.config.vocab_size)
        bias = self.param(BUFFER, nn.initializers.zeros, shape, self.dtype)
        return logits + bias[0].astype(logits.dtype)


class Bart(nn.Module):
    """A BART model that writes a text to a source: `BartForConditionalGeneration`.

    Attributes:
        config: the shape.
        adapters: rules that say how each module is tuned; None for the plain model.
        dtype: of the computation; norms and logits are float32 in any case.
        param_dtype: of the base parameters that `init` makes.
        remat: what the backward pass recomputes, see `Llama`.
    """

    config: BartConfig
    adapters: AdapterRules | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: Remat = "none"

    def setup(self) -> None:
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = {"adapter": self.adapters, **dtypes}
        norm = {"epsilon": NORM_EPSILON, **dtypes}
        self.shared = Embed(c.vocab_size, c.d_model, **dense)
        self.encoder = Stack(c, dense, norm, False, self.remat)
        self.decoder = Stack(c, dense, norm, True, self.remat)
        self.final_logits_bias = LogitsBias(c, self.param_dtype)

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
        return ("shared", "final_logits_bias")

    def _embed(self, tokens: Array) -> Array:
        c, x = self.config, self.shared(tokens)
        return x * jnp.asarray(c.d_model**0.5, x.dtype) if c.scale_embedding else x

    def source_inputs(self, source: Source) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
        """Return the encoder's first input, and which of it is no padding."""
        if source.visual is not None:
            raise ValueError("the source has visual features, and this model reads text alone")
        return self._text_inputs(source), source.is_real

    def _text_inputs(self, source: Source) -> Float[Array, "b s d"]:
        self.encoder.check_length(source.tokens.shape[1])
        positions = jnp.arange(source.tokens.shape[1])[None]
        return self.encoder.place(self._embed(source.tokens), positions)

    def encode(self, source: Source) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
        """Return what the encoder makes of the source, and which of it is no padding."""
        x_BSD, is_real_BS = self.source_inputs(source)
        return self.encoder(x_BSD, is_real_BS)[0], is_real_BS

    def hidden_states(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        segments_BL: Int[Array, "b l"] | None = None,
        cache: Cache | int | None = None,
        source: Source | None = None,
    ) -> tuple[Float[Array, "b l d"], Cache | None]:
        """Run encoder and decoder.

        Args:
            tokens_BL: of the texts, from `config.decoder_start_token_id` on.
            positions_BL: by default 0, 1, 2, ..., or on from the cache's length.
            segments_BL: see `Llama.hidden_states`; of texts to one source, as beams and options
                are: all see the row's own.
            cache: as `Llama.hidden_states` takes it. What the encoder made is in it.
            source: what the texts are written to; with a cache that has tokens in it None.

        Returns:
            The hidden states (B, L, D), and the cache with these tokens in it.

        Raises:
            ValueError: for rows without a source, or more tokens than positions.
        """
        c = self.config
        batch, length = tokens_BL.shape
        if source is None and self.is_initializing():
            source = Source(tokens_BL, jnp.ones(tokens_BL.shape, bool))
        old = cache if isinstance(cache, Cache) else None
        encoded = None if old is None else old.encoded
        if source is not None and encoded is None:
            source_BSD, is_real_BS = self.encode(source)
        elif source is None and encoded is not None:
            source_BSD, is_real_BS = None, encoded.is_real
        else:
            raise ValueError("the source is given with the first tokens, and with these alone")
        if isinstance(cache, int):
            heads, layers = c.decoder_attention_heads, c.decoder_layers
            cache = empty_cache(layers, batch, heads, cache, c.d_model // heads, self.dtype)
        if positions_BL is None:
            first = 0 if cache is None else cache.length
            positions_BL = jnp.broadcast_to(first + jnp.arange(length), (batch, length))
        if segments_BL is None:
            self.decoder.check_length(length)
            segments_BL = jnp.full((batch, length), SHARED)
        keys = places = Places(positions_BL, segments_BL)
        if cache is not None:
            cache = write_places(cache, places)
            keys = places if old is None else cache.places
        seen = Seen(
            visible(places, keys, None), None if old is None else old.length, source_BSD, is_real_BS
        )
        x_BLD = self.decoder.place(self._embed(tokens_BL), positions_BL)
        own = None if cache is None else (cache.key, cache.value)
        kept = None if encoded is None else (encoded.key, encoded.value)
        (x_BLD, filled), new = self.decoder((x_BLD, own), seen, jnp.arange(c.decoder_layers), kept)
        if cache is not None:
            if encoded is None:
                encoded = Encoded(new[0], new[1], is_real_BS)
            key, value = filled
            cache = Cache(key, value, cache.places, cache.length + length, encoded)
        return x_BLD, cache

    def head(self, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Return the logits of hidden states, float32."""
        return self.final_logits_bias(self.shared.attend(hidden).astype(jnp.float32))

    def __call__(
        self,
        tokens_BL: Int[Array, "b l"],
        positions_BL: Int[Array, "b l"] | None = None,
        segments_BL: Int[Array, "b l"] | None = None,
        source: Source | None = None,
    ) -> Float[Array, "b l v"]:
        """Return the logits (B, L, V), float32; arguments as `hidden_states`."""
        hidden, _ = self.hidden_states(tokens_BL, positions_BL, segments_BL, source=source)
        return self.head(hidden)
