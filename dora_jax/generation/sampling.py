"""How the next token is chosen: the request, and pure functions of logits that carry it out.

Order and meaning of the filters are those of `transformers`: repetition penalty, repeated n-grams,
forced tokens, temperature, top-k, top-p, min-p. Letters: B rows, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dora_jax.errors import DoraError

_NONE = -1  # of places where no token stands


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Sampling:
    """How texts are continued.

    Attributes:
        max_new_tokens: at most so many tokens are generated.
        temperature: 0 takes the likeliest token, whatever the filters; otherwise logits are divided
            by it and sampled.
        seed: of the sampling; the same seed gives the same text.
        top_k: sample from the k likeliest tokens (and those as likely as the k-th).
        top_p: sample from the likeliest tokens whose probabilities reach p together.
        min_p: sample from the tokens at least p times as likely as the likeliest.
        repetition_penalty: logits of tokens in the prompt and the text so far are divided by it
            where positive, multiplied where negative; padding does not count.
        no_repeat_ngram_size: over 0: so many tokens in a row are never written that stand in prompt
            or text already; for an encoder-decoder its text alone counts.
        forced_bos_token_id: the first new token, whatever the model says.
        forced_eos_token_id: the last of `max_new_tokens`, for texts that have not ended before.
        num_beams: over 1: beam search, which keeps that many texts of each prompt.
        length_penalty: beams are ranked by log-probability / length ** length_penalty.
        early_stopping: when a prompt's beam search ends: `True` as soon as `num_beams` texts have
            ended; `False` when the best running text at its length is worse than all of those;
            `"never"` when it would be even at the best length.
        num_samples: texts of each prompt; with beams the best ones.

    Raises:
        DoraError: naming the field, what was given and what is allowed.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_samples: int = 1

    def __post_init__(self) -> None:
        def need(field: str, is_good: Callable[[Any], bool], allowed: str) -> None:
            given = getattr(self, field)
            if not is_good(given):
                raise DoraError(f"{field} must be {allowed}; got {given!r}")

        for field in ("max_new_tokens", "num_beams", "num_samples"):
            need(field, lambda n: _whole(n) and n >= 1, "a whole number of at least 1")
        need("temperature", lambda t: _real(t) and t >= 0, "at least 0, and finite")
        need("seed", lambda n: _whole(n) and 0 <= n < 2**32, "at least 0 and below 2**32")
        need("top_k", lambda k: k is None or (_whole(k) and k >= 1), "at least 1, or None")
        need(
            "top_p", lambda p: p is None or (_real(p) and 0 < p <= 1), "over 0 and up to 1, or None"
        )
        need("min_p", lambda p: p is None or (_real(p) and 0 <= p <= 1), "from 0 to 1, or None")
        need("repetition_penalty", lambda x: _real(x) and x > 0, "over 0, and finite")
        need("no_repeat_ngram_size", lambda n: _whole(n) and n >= 0, "a whole number, 0 for none")
        for field in ("forced_bos_token_id", "forced_eos_token_id"):
            need(field, lambda i: i is None or (_whole(i) and i >= 0), "a token's id, or None")
        need("length_penalty", _real, "a finite number")
        need(
            "early_stopping",
            lambda e: e is True or e is False or e == "never",
            "True, False, 'never'",
        )
        if self.num_beams > 1 and self.temperature > 0:
            raise DoraError(
                f"num_beams {self.num_beams} searches and temperature {self.temperature} samples: "
                "take num_beams 1 or temperature 0"
            )
        if self.num_beams > 1 and self.num_samples > self.num_beams:
            raise DoraError(
                f"num_samples must be at most num_beams ({self.num_beams}), all the texts that "
                f"the search keeps; got {self.num_samples}"
            )
        if self.num_samples > 1 and self.temperature == 0 and self.num_beams == 1:
            raise DoraError(
                f"num_samples {self.num_samples} at temperature 0 would be one text, repeated: "
                "give a temperature over 0, or num_beams"
            )

    def filters(self) -> "Filters":
        """Return what is compiled: which steps there are at all."""
        samples = self.temperature > 0
        return Filters(
            greedy=not samples,
            penalty=self.repetition_penalty != 1,
            no_repeat_ngram=self.no_repeat_ngram_size,
            forced_bos=self.forced_bos_token_id is not None,
            forced_eos=self.forced_eos_token_id is not None,
            top_k=samples and self.top_k is not None,
            top_p=samples and self.top_p is not None and self.top_p < 1,
            min_p=samples and bool(self.min_p),
        )

    def knobs(self) -> "Knobs":
        """Return the numbers, which can change without compiling anew."""

        def number(value: float | None) -> Any:
            return np.float32(value or 0)

        return Knobs(
            seed=np.uint32(self.seed),
            max_new_tokens=np.int32(self.max_new_tokens),
            temperature=number(self.temperature),
            top_k=number(self.top_k),
            top_p=number(self.top_p),
            min_p=number(self.min_p),
            repetition_penalty=number(self.repetition_penalty),
            length_penalty=number(self.length_penalty),
            forced_bos=np.int32(self.forced_bos_token_id or 0),
            forced_eos=np.int32(self.forced_eos_token_id or 0),
        )


class Filters(NamedTuple):
    """The steps of choosing that are on; see `Sampling`."""

    greedy: bool
    penalty: bool
    no_repeat_ngram: int
    forced_bos: bool
    forced_eos: bool
    top_k: bool
    top_p: bool
    min_p: bool


class Knobs(NamedTuple):
    """The numbers of `Sampling` as arrays, each ()."""

    seed: Any
    max_new_tokens: Any
    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    length_penalty: Any
    forced_bos: Any
    forced_eos: Any


class Written(NamedTuple):
    """What stands before the next token, where the filters ask for it.

    Attributes:
        prompt: (*B, L) tokens, padded left with -1; None where nobody asks.
        tokens: (*B, T) the text's.
        step: () how many of these there are.
    """

    prompt: Array | None
    tokens: Array
    step: Array


def penalise_repetition(
    logits: Float[Array, "*b v"], seen: Bool[Array, "*b v"], penalty: Float[Array, ""]
) -> Float[Array, "*b v"]:
    """Return logits with those of seen tokens made less likely (Keskar et al. 2019, 4.1)."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def ban_repeated_ngrams(
    logits: Float[Array, "*b v"], written: Written, size: int
) -> Float[Array, "*b v"]:
    """Return logits, -inf for tokens that would end a run of `size` that is there already."""
    assert written.prompt is not None
    text = jnp.where(jnp.arange(written.tokens.shape[-1]) < written.step, written.tokens, _NONE)
    before = jnp.concatenate([written.prompt, text], axis=-1)
    places = before.shape[-1] - size + 1
    if places < 1:
        return logits
    # Of fewer tokens than that the last ones are followed by none.
    start = jnp.maximum(written.prompt.shape[-1] + written.step - (size - 1), 0)
    last = jax.lax.dynamic_slice_in_dim(before, start, size - 1, axis=-1)
    following = before[..., size - 1 : size - 1 + places]
    again = following != _NONE
    for offset in range(size - 1):
        own = last[..., offset, None]
        again &= (before[..., offset : offset + places] == own) & (own != _NONE)
    banned = jnp.zeros(logits.shape, bool)
    rows = jnp.ix_(*map(jnp.arange, logits.shape[:-1]), jnp.zeros(1, jnp.int32))[:-1]
    return jnp.where(banned.at[(*rows, following)].max(again), -jnp.inf, logits)


def rule_out(
    logits: Float[Array, "*b v"], written: Written, filters: Filters, knobs: Knobs
) -> Float[Array, "*b v"]:
    """Return logits, -inf for tokens that may not be next; a forced token's is 0."""
    if filters.no_repeat_ngram:
        logits = ban_repeated_ngrams(logits, written, filters.no_repeat_ngram)
    for is_on, token, step in (
        (filters.forced_bos, knobs.forced_bos, 0),
        (filters.forced_eos, knobs.forced_eos, knobs.max_new_tokens - 1),
    ):
        if is_on:
            alone = jnp.where(jnp.arange(logits.shape[-1]) == token, 0, -jnp.inf)
            logits = jnp.where(written.step == step, alone, logits)
    return logits


def _ordered(x: Float[Array, "*b v"]) -> Int[Array, "*b v"]:
    """Return integers in the order of the floats; minus zero is zero."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _keep_while_above(
    logits: Float[Array, "*b v"], weights: Float[Array, "*b v"], limit: Float[Array, "*b 1"]
) -> Float[Array, "*b v"]:
    """Return logits, -inf where the tokens strictly above one weigh `limit` or more together.

    The threshold is found by bisection over the 2^32 floats, exactly: 32 sums, where sorting a
    vocabulary takes many times longer, and its size need not be known when this is compiled.
    """
    keys = _ordered(logits)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        # The mean, rounded down, of integers whose sum may not fit.
        middle = (low & high) + ((low ^ high) >> 1)
        above = jnp.sum(jnp.where(keys > middle, weights, 0), axis=-1, keepdims=True)
        fits = above < limit
        return jnp.where(fits, low, middle + 1), jnp.where(fits, middle, high)

    low = jnp.full_like(keys[..., :1], jnp.iinfo(jnp.int32).min)
    high = jnp.max(keys, axis=-1, keepdims=True)
    threshold, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(keys >= threshold, logits, -jnp.inf)


def keep_top_k(logits: Float[Array, "*b v"], k: Float[Array, ""]) -> Float[Array, "*b v"]:
    """Return logits, -inf for all but the k largest and those equal to the k-th."""
    return _keep_while_above(logits, jnp.ones_like(logits), jnp.reshape(k, (1,) * logits.ndim))


def keep_top_p(logits: Float[Array, "*b v"], p: Float[Array, ""]) -> Float[Array, "*b v"]:
    """Return logits, -inf for all but the likeliest tokens that reach probability p together.

    Holtzman et al. 2020, section 3.1. Tokens as likely as the last one are kept too.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return _keep_while_above(logits, weights, p * jnp.sum(weights, axis=-1, keepdims=True))


def keep_min_p(logits: Float[Array, "*b v"], p: Float[Array, ""]) -> Float[Array, "*b v"]:
    """Return logits, -inf for tokens less than p times as likely as the likeliest."""
    threshold = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def warp(logits: Float[Array, "*b v"], filters: Filters, knobs: Knobs) -> Float[Array, "*b v"]:
    """Return the logits of the distribution that is sampled from."""
    logits = logits / knobs.temperature
    if filters.top_k:
        logits = keep_top_k(logits, knobs.top_k)
    if filters.top_p:
        logits = keep_top_p(logits, knobs.top_p)
    if filters.min_p:
        logits = keep_min_p(logits, knobs.min_p)
    return logits


def choose(
    logits: Float[Array, "b v"],
    seen: Bool[Array, "b v"] | None,
    written: Written,
    keys: Key[Array, " b"],
    filters: Filters,
    knobs: Knobs,
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """Return each row's next token, and its log-probability by the model itself.

    Args:
        logits: of the model, float32.
        seen: the tokens of prompt and text so far; needed for the penalty alone.
        written: the same in order; its prompt is needed for repeated n-grams alone.
        keys: a random key for each row.
        filters: the steps.
        knobs: their numbers.
    """
    scores = logits
    if filters.penalty:
        assert seen is not None
        scores = penalise_repetition(logits, seen, knobs.repetition_penalty)
    scores = rule_out(scores, written, filters, knobs)
    if not filters.greedy:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        scores = warp(scores, filters, knobs) + noise
    token = jnp.argmax(scores, axis=-1)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)
