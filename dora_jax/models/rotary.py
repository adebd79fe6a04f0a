"""Rotary positions (RoPE, Su et al. 2021) and how contexts are stretched by changing them.

The kinds and their settings are Hugging Face's (`rope_parameters` in `config.json`).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dora_jax.spec import nearest

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rotary:
    """How positions rotate queries and keys.

    Attributes:
        rope_theta: base of the frequencies.
        rope_type: how the context is stretched.
        partial_rotary_factor: share of a head's features that are rotated, the first ones.
        factor: by what the context is stretched; longrope: for `attention_factor` alone.
        original_max_position_embeddings: the context before it was stretched.
        attention_factor: multiplies cosines and sines; None takes the kind's own formula.
        low_freq_factor: llama3: wavelengths over the original context by this are stretched.
        high_freq_factor: llama3: wavelengths under the original context by this stay.
        beta_fast: yarn: features that turn more often than this in the original context stay.
        beta_slow: yarn: those that turn less often than this are stretched.
        mscale: yarn: with `mscale_all_dim`, changes the attention factor.
        mscale_all_dim: yarn: see `mscale`.
        truncate: yarn: whether the bounds are rounded to whole features.
        short_factor: longrope: divisors of the frequencies within the original context.
        long_factor: longrope: those beyond it.
    """

    rope_theta: float = 10000.0
    rope_type: RopeType = "default"
    partial_rotary_factor: float = 1.0
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def dim(self, head_dim: int) -> int:
        """Return the number of features that are rotated."""
        return int(head_dim * self.partial_rotary_factor)

    def check(self, head_dim: int) -> None:
        """Check the settings, and that they fit heads of this size.

        Raises:
            ValueError: for an unknown kind, a setting that is missing, or sizes that do not fit.
        """
        if self.rope_type not in get_args(RopeType):
            raise ValueError(
                f"rope_type is {self.rope_type!r}{nearest(self.rope_type, get_args(RopeType))}; "
                f"supported: {', '.join(get_args(RopeType))}"
            )
        missing = [name for name in _NEEDED[self.rope_type] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"rotary positions of type {self.rope_type} need {', '.join(missing)}")
        if self.factor is not None and self.factor < 1:
            raise ValueError(f"the rotary factor must be at least 1, got {self.factor}")
        dim = self.dim(head_dim)
        if dim < 2 or dim % 2 or dim > head_dim:
            raise ValueError(
                f"partial_rotary_factor {self.partial_rotary_factor} rotates {dim} of {head_dim} "
                "features; their number must be even, and not zero"
            )
        for name in ("short_factor", "long_factor"):
            given = getattr(self, name)
            if given is not None and len(given) != dim // 2:
                raise ValueError(f"{name} must list {dim // 2} numbers, got {len(given)}")
        original = self.original_max_position_embeddings
        if original is not None and original < 1:
            raise ValueError(f"original_max_position_embeddings must be over 0, got {original}")


def _settings(rope: Rotary, *names: str) -> list[float]:
    """Return settings that this kind needs: `check` has seen that they are there."""
    return [float(getattr(rope, name)) for name in names]


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(rope: Rotary, max_positions: int) -> float:
    """Return what multiplies cosines and sines, which is to say the temperature of attention."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.rope_type == "yarn":  # Peng et al. 2023, equation 22, and DeepSeek's variant of it
        (factor,) = _settings(rope, "factor")
        if rope.mscale and rope.mscale_all_dim:
            return _mscale(factor, rope.mscale) / _mscale(factor, rope.mscale_all_dim)
        return _mscale(factor)
    if rope.rope_type == "longrope":  # Ding et al. 2024, section 3.3
        (original,) = _settings(rope, "original_max_position_embeddings")
        stretch = max_positions / original if rope.factor is None else rope.factor
        return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return 1.0


def _llama3(rope: Rotary, frequencies: jax.Array) -> jax.Array:
    """Return Llama 3.1's: long waves stretched, short ones kept, a ramp between them."""
    factor, low, high, original = _settings(rope, *_NEEDED["llama3"])
    turns = original * frequencies / (2 * math.pi)  # in the original context
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def _yarn(rope: Rotary, frequencies: jax.Array, dim: int) -> jax.Array:
    """Return those of YaRN (Peng et al. 2023, section 3.2)."""
    factor, original = _settings(rope, *_NEEDED["yarn"])

    def feature(turns: float) -> float:  # that turns so often in the original context
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = feature(rope.beta_fast or 32), feature(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    stretched = jnp.clip((jnp.arange(dim // 2, dtype=jnp.float32) - low) / width, 0, 1)
    return frequencies * (1 - stretched + stretched / factor)


def inverse_frequencies(
    rope: Rotary, dim: int, max_positions: int, length: jax.Array
) -> Float[Array, " f"]:
    """Return the angle that one position turns each pair of features by, float32.

    Args:
        rope: the settings.
        dim: features of a head that are rotated; twice the pairs.
        max_positions: the model's `max_position_embeddings`.
        length: of the longest sequence so far: `dynamic` and `longrope` depend on it.
    """
    exponents = jnp.arange(0, dim, 2, dtype=jnp.float32) / dim
    theta: float | jax.Array = rope.rope_theta
    if rope.rope_type == "dynamic":  # NTK-aware scaling, by u/bloc97 and u/emozilla
        (factor,) = _settings(rope, "factor")
        stretch = factor * jnp.maximum(length, max_positions) / max_positions
        theta = theta * (stretch - (factor - 1)) ** (dim / (dim - 2))
    frequencies = theta**-exponents
    if rope.rope_type == "linear":
        (factor,) = _settings(rope, "factor")
        return frequencies / factor
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies)
    if rope.rope_type == "yarn":
        return _yarn(rope, frequencies, dim)
    if rope.rope_type == "longrope":
        (original,) = _settings(rope, "original_max_position_embeddings")
        is_long = length > original
        divisors = jnp.where(is_long, jnp.array(rope.long_factor), jnp.array(rope.short_factor))
        return frequencies / divisors
    return frequencies


def rotations(
    rope: Rotary | None, positions_BL: Int[Array, "b l"], dim: int, max_positions: int
) -> Float[Array, "2 b l f"]:
    """Return the cosine and sine of each position and pair of features, float32.

    Args:
        rope: the settings; None turns nothing.
        positions_BL: of the tokens.
        dim: features of a head that are rotated; twice the pairs.
        max_positions: the model's `max_position_embeddings`.
    """
    if rope is None:
        still = jnp.zeros((*positions_BL.shape, dim // 2))
        return jnp.stack([still + 1, still])
    length = jnp.max(positions_BL) + 1
    frequencies = inverse_frequencies(rope, dim, max_positions, length)
    angles = positions_BL[..., None].astype(jnp.float32) * frequencies
    turned = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    return turned * _attention_factor(rope, max_positions)


def rotate(x_BLHF: Array, rotation: Float[Array, "2 b l f"]) -> Array:
    """Rotate feature pairs (i, i + d / 2) of the first d features: Hugging Face's convention."""
    cos, sin = rotation[:, :, :, None]
    d = 2 * cos.shape[-1]
    wide = x_BLHF[..., :d].astype(jnp.float32)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    turned = turned.astype(x_BLHF.dtype)
    if d == x_BLHF.shape[-1]:
        return turned
    return jnp.concatenate([turned, x_BLHF[..., d:]], axis=-1)
