"""Attention: which keys a query sees, the cache of keys and values, and the sum over values.

Letters as in `llama.py`: B batch, L query length, S key length or slots, H heads, K key-value
heads, F head size, N layers.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

AttentionKernel = Literal["xla", "cudnn"]

# Blocks of queries: small ones compute less in vain, many ones make the program long.
_LEAST_BLOCK, _MOST_BLOCKS = 64, 8

SHARED = 0  # the segment of a prefix, which every segment sees
PADDING = -1  # the segment of padding, seen by padding alone
_EMPTY = -2  # of a cache's slots that hold nothing


class Places(NamedTuple):
    """Where tokens stand: who sees whom follows from it.

    Attributes:
        positions: (B, L) within their sequence, for rotations, windows and causality.
        segments: (B, L): tokens see those of their own segment and of segment 0, a shared prefix;
            -1 is padding. Sequences packed into one row are numbered from 1.
    """

    positions: Array
    segments: Array


class Encoded(NamedTuple):
    """Keys and values of what an encoder read, computed once: nothing is written to them.

    Attributes:
        key: (N, B, K, S, F) of each of the decoder's layers.
        value: (N, B, K, S, F).
        is_real: (B, S) False for padding.
    """

    key: Array
    value: Array
    is_real: Array


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far.

    Attributes:
        key: (N, B, K, S, F).
        value: (N, B, K, S, F).
        places: (B, S) of the tokens in the slots.
        length: number of tokens written so far, the same for all rows (shorter prompts are padded
            left); the next goes to slot length % S, over the oldest when all are full.
        encoded: of an encoder-decoder, what its encoder read.
    """

    key: Array
    value: Array
    places: Places
    length: Array
    encoded: Encoded | None = None

    @property
    def slots(self) -> int:
        """The number of tokens that it holds."""
        return self.key.shape[3]


def empty_cache(
    layers: int, batch: int, kv_heads: int, slots: int, head_dim: int, dtype: Any
) -> Cache:
    """Return a cache that holds nothing."""
    shape = (layers, batch, kv_heads, slots, head_dim)
    places = Places(
        jnp.zeros((batch, slots), jnp.int32), jnp.full((batch, slots), _EMPTY, jnp.int32)
    )
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), places, jnp.int32(0))


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Return the cache with each row so many times, side by side."""

    def repeat(key: Array, value: Array, by_row: Any) -> tuple[Array, Array, Any]:
        return (
            jnp.repeat(key, times, axis=1),
            jnp.repeat(value, times, axis=1),
            jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), by_row),
        )

    encoded = None if cache.encoded is None else Encoded(*repeat(*cache.encoded))
    return Cache(*repeat(cache.key, cache.value, cache.places), cache.length, encoded)


def write_places(cache: Cache, new: Places) -> Cache:
    """Return the cache with the places of new tokens in it, and its length still the old one."""
    start = (0, cache.length % cache.slots)
    return cache._replace(
        places=jax.tree.map(
            lambda old, x: jax.lax.dynamic_update_slice(old, x, start), cache.places, new
        )
    )


def write_slots(
    all_NBKSF: Array, layer: Int[Array, ""], new_BLKF: Array, cache_length: Int[Array, ""] | int
) -> Float[Array, "n b k s f"]:
    """Return all layers' keys or values with those of new tokens in one layer's.

    All layers' are passed along, so that the new ones are written in place: a scan that takes the
    cache apart and puts it together again copies it for each token.
    """
    start = (layer, 0, 0, cache_length % all_NBKSF.shape[3], 0)
    new_NBKLF = new_BLKF.swapaxes(1, 2).astype(all_NBKSF.dtype)[None]
    return jax.lax.dynamic_update_slice(all_NBKSF, new_NBKLF, start)


def visible(query: Places, key: Places, window: int | None) -> Bool[Array, "b l s"]:
    """Return which keys each query sees: earlier ones of its segment or the shared prefix."""
    ahead_BLS = query.positions[:, :, None] - key.positions[:, None, :]
    key_segments = key.segments[:, None, :]
    same_BLS = (key_segments == SHARED) | (key_segments == query.segments[:, :, None])
    seen_BLS = same_BLS & (ahead_BLS >= 0)
    return seen_BLS if window is None else seen_BLS & (ahead_BLS < window)


def attend(
    q_BLHF: Array,
    k_BLKF: Array,
    v_BLKF: Array,
    visible_BLL: Array,
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "b l h f"]:
    """Return each query's mean of the values that it sees, weighted by softmax.

    Queries are taken in blocks, each with the keys up to its end alone: half of the products and of
    the softmax would be of keys that nobody sees.

    Args:
        q_BLHF: queries.
        k_BLKF: keys of the same tokens; every H / K query heads share one.
        v_BLKF: values.
        visible_BLL: see `visible`; B may be 1. No key behind its query is seen.
        scale: multiplies the products of queries and keys.
        softcap: bounds the products by softcap * tanh(product / softcap).
    """
    length = q_BLHF.shape[1]
    keys, values = k_BLKF.swapaxes(1, 2), v_BLKF.swapaxes(1, 2)
    block = max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS))
    blocks = []
    for start in range(0, length, block):
        own, so_far = slice(start, start + block), slice(0, start + block)
        blocks.append(
            attend_slots(
                q_BLHF[:, own],
                keys[:, :, so_far],
                values[:, :, so_far],
                visible_BLL[:, own, so_far],
                scale=scale,
                softcap=softcap,
            )
        )
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)


def attend_slots(
    q_BLHF: Array,
    k_BKSF: Array,
    v_BKSF: Array,
    visible_BLS: Bool[Array, "b l s"],
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "b l h f"]:
    """Return the same over keys and values as a cache holds them: no copy of it is made."""
    B, L, H, F = q_BLHF.shape
    K = k_BKSF.shape[1]
    groups = q_BLHF.reshape(B, L, K, H // K, F).transpose(0, 2, 3, 1, 4)
    q_BKML = groups.reshape(B, K, H // K * L, F)
    logits = jnp.einsum("bkmf,bksf->bkms", q_BKML, k_BKSF, preferred_element_type=jnp.float32)
    logits = logits.reshape(B, K, H // K, L, -1) * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(visible_BLS[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BKSF.dtype)
    y = jnp.einsum("bkms,bksf->bkmf", weights.reshape(B, K, H // K * L, -1), v_BKSF)
    return y.reshape(B, K, H // K, L, F).transpose(0, 3, 1, 2, 4).reshape(B, L, H, F)
