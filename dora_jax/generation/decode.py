"""The decoding loop: one prefill, then a token a step on the device with a key-value cache.

The state of a batch is a NamedTuple. `advance` moves it to a given step, so that the same compiled
loop runs to the end at once, or in stretches between which the host looks at the texts.

Letters: B rows, L prompt width, T room for new tokens, S slots of the cache, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dora_jax.generation.row_adapters import row_adapters
from dora_jax.generation.sampling import Filters, Knobs, Written, choose
from dora_jax.models.attention import PADDING, SHARED, Cache, repeat_rows
from dora_jax.models.build import Writer
from dora_jax.models.source import Source


class Prompts(NamedTuple):
    """Prompts as arrays, padded left.

    Attributes:
        tokens: (B, L) that the texts go on from: of an encoder-decoder the start token.
        lengths: (B,) of the prompts; the last so many tokens of a row are real.
        numbers: (B,) of the prompts among all that were asked for, for their random keys.
        is_asked: (B,), False for rows that only fill the batch.
        images: (B, M, height, width, channels) of each row; None where no row has any.
        source: what an encoder-decoder's encoder reads; None for other models.
    """

    tokens: Any
    lengths: Any
    numbers: Any
    is_asked: Any
    images: Any = None
    source: Source | None = None


class State(NamedTuple):
    """Where decoding stands.

    Attributes:
        step: () number of tokens chosen.
        last: (B,) the latest token.
        tokens: (B, T) the chosen tokens; after its stop token a row repeats that.
        log_probs: (B, T) their log-probabilities by the model, 0 after the stop token.
        stopped: (B,) rows that have ended.
        positions: (B,) of the latest token.
        keys: (B,) random keys of the rows.
        seen: (B, V) tokens of prompt and text, or None where nobody asks.
        prompt: (B, L) tokens of the prompt, padded left with -1, or None where nobody asks.
        cache: without the latest token.
    """

    step: Array
    last: Array
    tokens: Array
    log_probs: Array
    stopped: Array
    positions: Array
    keys: Array
    seen: Array | None
    prompt: Array | None
    cache: Cache


def hidden_states(
    model: Writer,
    variables: Any,
    tokens: Int[Array, "b l"],
    positions: Int[Array, "b l"],
    segments: Int[Array, "b l"] | None,
    cache: Cache | int,
    **beside: Any,
) -> tuple[Float[Array, "b l d"], Cache]:
    """Run the model's trunk, each row by its own adapter if `variables` has such."""
    # Of images and source a model has one, or neither.
    seen = {name: given for name, given in beside.items() if given is not None}
    with row_adapters():
        out: Any = model.apply(
            variables, tokens, positions, segments, cache, **seen, method="hidden_states"
        )
    return out


def head(model: Writer, variables: Any, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
    """Return logits, each row by its own adapter if `variables` has such."""
    with row_adapters():
        logits: Any = model.apply(variables, hidden, method="head")
    return logits


def read_prompts(
    model: Writer, variables: Any, prompts: Prompts, slots: int
) -> tuple[Float[Array, "b v"], Cache]:
    """Return the logits behind each prompt, and the cache with the prompts in it."""
    L = prompts.tokens.shape[1]
    places_BL = jnp.arange(L) - (L - prompts.lengths[:, None])
    segments_BL = jnp.where(places_BL < 0, PADDING, SHARED)
    hidden_BLD, cache = hidden_states(
        model,
        variables,
        prompts.tokens,
        jnp.maximum(places_BL, 0),
        segments_BL,
        slots,
        images=prompts.images,
        source=prompts.source,
    )
    return head(model, variables, hidden_BLD[:, -1]), cache


def seen_tokens(prompts: Prompts, vocabulary: int) -> Bool[Array, "b v"]:
    """Return which tokens are in each prompt."""
    B, L = prompts.tokens.shape
    is_real_BL = jnp.arange(L) >= L - prompts.lengths[:, None]
    nothing = jnp.zeros((B, vocabulary), bool)
    return nothing.at[jnp.arange(B)[:, None], prompts.tokens].max(is_real_BL)


def tokens_in_order(prompts: Prompts) -> Int[Array, "b l"]:
    """Return each prompt's tokens, padded left with -1."""
    L = prompts.tokens.shape[1]
    return jnp.where(jnp.arange(L) >= L - prompts.lengths[:, None], prompts.tokens, -1)


def _row_keys(prompts: Prompts, knobs: Knobs, samples: int) -> Array:
    """Return keys that depend on a text's own numbers alone, not on what else is in the batch."""

    def key(number: Array, sample: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(knobs.seed), number), sample)

    numbers = jnp.repeat(prompts.numbers, samples)
    return jax.vmap(key)(numbers, jnp.tile(jnp.arange(samples), len(prompts.numbers)))


def _take(state: State, logits_BV: Array, filters: Filters, knobs: Knobs, stop_ids: Array) -> State:
    """Return the state with the next token in it."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.step)
    written = Written(state.prompt, state.tokens, state.step)
    token, log_prob = choose(logits_BV, state.seen, written, keys, filters, knobs)
    token = jnp.where(state.stopped, state.last, token)
    log_prob = jnp.where(state.stopped, 0, log_prob)
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return state._replace(
        step=state.step + 1,
        last=token,
        tokens=state.tokens.at[:, state.step].set(token),
        log_probs=state.log_probs.at[:, state.step].set(log_prob),
        stopped=state.stopped | jnp.isin(token, stop_ids),
        positions=state.positions + 1,
        seen=seen,
    )


@partial(jax.jit, static_argnames=("model", "filters", "slots", "room", "samples"))
def prefill(
    model: Writer,
    variables: Any,
    prompts: Prompts,
    knobs: Knobs,
    stop_ids: Int[Array, " k"],
    *,
    filters: Filters,
    slots: int,
    room: int,
    samples: int,
) -> State:
    """Read the prompts and choose the first token of each text.

    Args:
        model: the model.
        variables: {"params": ...}, with `norms` if at hand.
        prompts: to continue.
        knobs: numbers of the sampling.
        stop_ids: tokens that end a row.
        filters: steps of the sampling.
        slots: of the cache.
        room: T, at least `max_new_tokens`.
        samples: texts of each prompt: rows of the state, a prompt's side by side.
    """
    logits_BV, cache = read_prompts(model, variables, prompts, slots)
    seen = seen_tokens(prompts, model.vocabulary) if filters.penalty else None
    prompt = tokens_in_order(prompts) if filters.no_repeat_ngram else None
    last, lengths, is_asked = prompts.tokens[:, -1], prompts.lengths, prompts.is_asked
    if samples > 1:  # the prompt is read once for all of its texts
        cache = repeat_rows(cache, samples)
        logits_BV, seen, prompt, last, lengths, is_asked = jax.tree.map(
            lambda x: jnp.repeat(x, samples, axis=0),
            (logits_BV, seen, prompt, last, lengths, is_asked),
        )
    state = State(
        step=jnp.int32(0),
        last=last,
        tokens=jnp.zeros((len(last), room), jnp.int32),
        log_probs=jnp.zeros((len(last), room), jnp.float32),
        stopped=~is_asked,
        positions=lengths - 1,
        keys=_row_keys(prompts, knobs, samples),
        seen=seen,
        prompt=prompt,
        cache=cache,
    )
    return _take(state, logits_BV, filters, knobs, stop_ids)


@partial(jax.jit, static_argnames=("model", "filters"), donate_argnames=("state",))
def advance(
    model: Writer,
    variables: Any,
    state: State,
    knobs: Knobs,
    stop_ids: Int[Array, " k"],
    halted: Bool[Array, " b"],
    until: Int[Array, ""],
    *,
    filters: Filters,
) -> State:
    """Choose tokens until there are `until` of them, or all rows have ended.

    Args:
        model: the model.
        variables: as for `prefill`, a row for each text.
        state: is used up.
        knobs: numbers of the sampling.
        stop_ids: tokens that end a row.
        halted: rows that end here, whatever their tokens.
        until: step to go to, at most `max_new_tokens`.
        filters: steps of the sampling.
    """

    def is_running(state: State) -> Array:
        return (state.step < until) & ~jnp.all(state.stopped)

    def take(state: State) -> State:
        hidden_B1D, cache = hidden_states(
            model, variables, state.last[:, None], state.positions[:, None], None, state.cache
        )
        logits_BV = head(model, variables, hidden_B1D[:, -1])
        return _take(state._replace(cache=cache), logits_BV, filters, knobs, stop_ids)

    return jax.lax.while_loop(is_running, take, state._replace(stopped=state.stopped | halted))
