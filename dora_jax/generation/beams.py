"""Beam search, to the same texts as `transformers`.

A prompt and its beams are one row: the prompt is segment 0, which all see, beam n is segment n + 1.
So the prompt's keys and values are kept and read once, however many beams there are, and where a
beam takes up another's text only what lies behind the prompt is moved.

Letters: B rows, N beams, C candidates, T room for new tokens, V vocabulary.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dora_jax.generation.decode import (
    Prompts,
    head,
    hidden_states,
    read_prompts,
    seen_tokens,
    tokens_in_order,
)
from dora_jax.generation.sampling import Filters, Knobs, Written, penalise_repetition, rule_out
from dora_jax.models.attention import Cache
from dora_jax.models.build import Writer

# What keeps a text from being chosen, as a score; transformers' own, so that ties fall as there.
_NEVER = -1e9


class Texts(NamedTuple):
    """Texts of each row, best first; M of them, beams or candidates.

    Attributes:
        tokens: (B, M, T).
        log_probs: (B, M, T) of the tokens, by the model.
        scores: (B, M) what they are ranked by.
        lengths: (B, M) tokens, that which ended the text included.
        ended: (B, M) whether they are complete.
    """

    tokens: Array
    log_probs: Array
    scores: Array
    lengths: Array
    ended: Array


class _State(NamedTuple):
    """Where the search stands.

    Attributes:
        step: () tokens chosen.
        running: texts that go on.
        complete: the best complete ones.
        is_open: (B,) whether a row can still become better.
        seen: (B, N, V) tokens of prompt and text, or None where nobody asks.
        prompt: (B, N, L) tokens of the prompt, padded left with -1, or None where nobody asks.
        cache: (B,) rows, without the latest tokens.
    """

    step: Array
    running: Texts
    complete: Texts
    is_open: Array
    seen: Array | None
    prompt: Array | None
    cache: Cache


class _Rules(NamedTuple):
    """What a search is told, beside arrays."""

    filters: Filters
    early_stopping: bool | Literal["never"]


def _pick(tree: Any, index_BM: Array) -> Any:
    """Return the texts of these indices, of every array of a tree."""

    def take(x: Array) -> Array:
        index = index_BM.reshape(*index_BM.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    return jax.tree.map(take, tree)


def _candidates(
    state: _State, logits_BNV: Array, count: int, rules: _Rules, knobs: Knobs
) -> tuple[Texts, Int[Array, "b c"]]:
    """Return the best continuations by one token, scored by their sums, and whose they are."""
    log_probs_BNV = jax.nn.log_softmax(logits_BNV, axis=-1)
    scores_BNV = log_probs_BNV
    if rules.filters.penalty:  # as there, of log-probabilities
        assert state.seen is not None
        scores_BNV = penalise_repetition(scores_BNV, state.seen, knobs.repetition_penalty)
    written = Written(state.prompt, state.running.tokens, state.step)
    scores_BNV = rule_out(scores_BNV, written, rules.filters, knobs)
    B, N, V = logits_BNV.shape
    each = min(count, V)
    values_BNC, ids_BNC = jax.lax.top_k(scores_BNV, each)
    own_BNC = jnp.take_along_axis(log_probs_BNV, ids_BNC, axis=-1)
    sums = (values_BNC + state.running.scores[..., None]).reshape(B, N * each)
    best_BC, place_BC = jax.lax.top_k(sums, count)
    parent_BC = place_BC // each
    token_BC, own_BC = (_pick(x.reshape(B, N * each), place_BC) for x in (ids_BNC, own_BNC))
    texts: Texts = _pick(state.running, parent_BC)
    texts = texts._replace(
        tokens=texts.tokens.at[:, :, state.step].set(token_BC),
        log_probs=texts.log_probs.at[:, :, state.step].set(own_BC),
        scores=best_BC,
        lengths=texts.lengths + 1,
    )
    return texts, parent_BC


def _grow(
    state: _State, logits_BNV: Array, stop_ids: Array, rules: _Rules, knobs: Knobs
) -> tuple[_State, Int[Array, "b n"]]:
    """Return the state one token later, its cache still the old one, and each beam's parent."""
    N = logits_BNV.shape[1]
    # Were all stop tokens of all beams among them, there would still be N that go on.
    count = min(max(2, 1 + len(stop_ids)) * N, N * logits_BNV.shape[2])
    found, parent_BC = _candidates(state, logits_BNV, count, rules, knobs)
    token_BC = found.tokens[:, :, state.step]
    length = state.step + 1
    ends_BC = jnp.isin(token_BC, stop_ids) | (length >= knobs.max_new_tokens)

    onward = found._replace(scores=found.scores + jnp.where(ends_BC, _NEVER, 0))
    go_on_BN = jax.lax.top_k(onward.scores, N)[1]
    running: Texts = _pick(onward, go_on_BN)
    parent_BN = _pick(parent_BC, go_on_BN)

    def normalise(scores: Array, length: Array) -> Array:
        return scores / length.astype(jnp.float32) ** knobs.length_penalty

    # Candidates beyond the first N are there to go on, not to end.
    enters_BC = ends_BC & (jnp.arange(count) < N)
    is_shut_B = ~state.is_open
    if rules.early_stopping is True:
        is_shut_B |= jnp.all(state.complete.ended, axis=1)
    barred_BC = ~enters_BC | is_shut_B[:, None]
    scores_BC = normalise(found.scores, length) + jnp.where(barred_BC, _NEVER, 0)
    entering = found._replace(scores=scores_BC, ended=enters_BC)
    merged = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), state.complete, entering)
    complete: Texts = _pick(merged, jax.lax.top_k(merged.scores, N)[1])

    hoped_length = length
    if rules.early_stopping == "never":
        hoped_length = jnp.where(knobs.length_penalty > 0, knobs.max_new_tokens, length)
    hope_B = normalise(running.scores[:, 0], hoped_length)
    worst_B = jnp.min(complete.scores, axis=1)
    is_open = state.is_open & ((hope_B > worst_B) | ~jnp.all(complete.ended, axis=1))

    seen = state.seen
    if seen is not None:
        rows, beams = jnp.ogrid[: len(token_BC), :N]
        seen = _pick(seen, parent_BN).at[rows, beams, running.tokens[:, :, state.step]].set(True)
    state = _State(length, running, complete, is_open, seen, state.prompt, state.cache)
    return state, parent_BN


def _reorder(cache: Cache, parent_BN: Array, width: int) -> Cache:
    """Return the cache with each beam's part behind the prompt replaced by its parent's."""
    N = parent_BN.shape[1]

    def move(x: Array) -> Array:
        layers, B, K, S, F = x.shape
        behind = x[:, :, :, width:].reshape(layers, B, K, (S - width) // N, N, F)
        moved = jnp.take_along_axis(behind, parent_BN[None, :, None, None, :, None], axis=4)
        return x.at[:, :, :, width:].set(moved.reshape(layers, B, K, S - width, F))

    return cache._replace(key=move(cache.key), value=move(cache.value))


def _no_texts(rows: int, beams: int, room: int, scores: Array) -> Texts:
    return Texts(
        tokens=jnp.zeros((rows, beams, room), jnp.int32),
        log_probs=jnp.zeros((rows, beams, room), jnp.float32),
        scores=jnp.broadcast_to(scores, (rows, beams)).astype(jnp.float32),
        lengths=jnp.zeros((rows, beams), jnp.int32),
        ended=jnp.zeros((rows, beams), bool),
    )


@partial(jax.jit, static_argnames=("model", "filters", "early_stopping", "beams", "room"))
def search(
    model: Writer,
    variables: Any,
    prompts: Prompts,
    knobs: Knobs,
    stop_ids: Int[Array, " k"],
    *,
    filters: Filters,
    early_stopping: bool | Literal["never"],
    beams: int,
    room: int,
) -> Texts:
    """Return the best `beams` texts of each prompt, best first.

    Args:
        model: the model.
        variables: {"params": ...}, with `norms` if at hand.
        prompts: to continue.
        knobs: numbers of the sampling.
        stop_ids: tokens that end a text.
        filters: steps of the sampling, of which a search has those that are not of chance.
        early_stopping: see `Sampling`.
        beams: N.
        room: T, at least `max_new_tokens`.
    """
    B, L = prompts.tokens.shape
    rules = _Rules(filters, early_stopping)
    logits_BV, cache = read_prompts(model, variables, prompts, L + beams * room)
    seen = None
    if filters.penalty:
        seen_BV = seen_tokens(prompts, model.vocabulary)
        seen = jnp.repeat(seen_BV[:, None], beams, axis=1)
    prompt = None
    if filters.no_repeat_ngram:
        prompt = jnp.repeat(tokens_in_order(prompts)[:, None], beams, axis=1)
    # All beams start as one text: only the first may have children.
    starts = jnp.where(jnp.arange(beams) == 0, 0, _NEVER)
    state = _State(
        step=jnp.int32(0),
        running=_no_texts(B, beams, room, starts),
        complete=_no_texts(B, beams, room, jnp.full(beams, _NEVER)),
        is_open=prompts.is_asked,
        seen=seen,
        prompt=prompt,
        cache=cache,
    )
    logits_BNV = jnp.broadcast_to(logits_BV[:, None], (B, beams, logits_BV.shape[-1]))
    # The parents of the first tokens have no text that could be moved.
    state, _ = _grow(state, logits_BNV, stop_ids, rules, knobs)
    segments_BN = jnp.broadcast_to(1 + jnp.arange(beams), (B, beams))

    def is_running(state: _State) -> Array:
        active_B = state.is_open
        if early_stopping is True:
            active_B &= ~jnp.all(state.complete.ended, axis=1)
        return (state.step < knobs.max_new_tokens) & jnp.any(active_B)

    def take(state: _State) -> _State:
        last_BN = state.running.tokens[:, :, state.step - 1]
        positions_B = prompts.lengths + state.step - 1
        positions_BN = jnp.broadcast_to(positions_B[:, None], (B, beams))
        hidden_BND, cache = hidden_states(
            model, variables, last_BN, positions_BN, segments_BN, state.cache
        )
        logits_BNV = head(model, variables, hidden_BND)
        state, parent_BN = _grow(state._replace(cache=cache), logits_BNV, stop_ids, rules, knobs)
        return state._replace(cache=_reorder(state.cache, parent_BN, L))

    return jax.lax.while_loop(is_running, take, state).complete
