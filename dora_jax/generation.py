"""Text from a model: one prefill, then a decoding loop on the device with a key-value cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dora_jax.data.padding import round_up
from dora_jax.errors import DoraError
from dora_jax.models.llama import Llama, init_cache
from dora_jax.training.sharding import replicate, split_rows

_BUCKET = 64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: at most so many tokens are generated.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and sampled.
        seed: of the sampling; the same seed gives the same text.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise DoraError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise DoraError(f"temperature must be at least 0; got {self.temperature}")
        if not 0 <= self.seed < 2**32:
            raise DoraError(f"seed must be at least 0 and below 2**32; got {self.seed}")


@partial(jax.jit, static_argnames=("model", "new_tokens", "greedy"))
def _decode(
    model: Llama,
    variables: dict[str, Any],
    tokens_BL: jax.Array,
    real_BL: jax.Array,
    stop_ids: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
    *,
    new_tokens: int,
    greedy: bool,
) -> jax.Array:
    """Return the generated ids (B, new_tokens); after a stop token a row repeats that token."""
    B, L = tokens_BL.shape
    slots = L + new_tokens
    seen_BS = jnp.zeros((B, slots), bool).at[:, :L].set(real_BL)
    positions_BL = jnp.maximum(jnp.cumsum(real_BL, axis=1) - 1, 0)
    causal_LS = jnp.arange(slots)[None, :] <= jnp.arange(L)[:, None]

    def pick(logits_BV: jax.Array, index: jax.Array) -> jax.Array:
        if greedy:
            return jnp.argmax(logits_BV, axis=-1)
        step_key = jax.random.fold_in(key, index)
        return jax.random.categorical(step_key, logits_BV / temperature, axis=-1)

    def logits_of(hidden_BLD: jax.Array) -> jax.Array:
        logits_BV: Any = model.apply(variables, hidden_BLD[:, -1], method="head")
        return logits_BV

    cache = init_cache(model.config, B, slots, model.dtype)
    # A padded query sees no real key: the first slot is opened to it, to keep its softmax finite.
    padded_BLS = ~real_BL[:, :, None] & (jnp.arange(slots) == 0)
    mask = (causal_LS & seen_BS[:, None]) | padded_BLS
    prefilled: Any = model.apply(
        variables, tokens_BL, positions_BL, mask, cache, method="hidden_states"
    )
    hidden, cache = prefilled
    first = pick(logits_of(hidden), jnp.zeros((), jnp.int32))
    out = jnp.zeros((B, new_tokens), jnp.int32).at[:, 0].set(first)

    def is_running(carry: tuple) -> jax.Array:
        index, _, _, _, _, stopped = carry
        return (index < new_tokens) & ~jnp.all(stopped)

    def advance(carry: tuple) -> tuple:
        index, last, out, cache, seen_BS, stopped = carry
        seen_BS = seen_BS.at[:, L + index - 1].set(True)
        position = (positions_BL[:, -1] + index)[:, None]
        hidden, cache = model.apply(
            variables, last[:, None], position, seen_BS[:, None], cache, method="hidden_states"
        )
        token = jnp.where(stopped, last, pick(logits_of(hidden), index))
        out = out.at[:, index].set(token)
        return index + 1, token, out, cache, seen_BS, stopped | jnp.isin(token, stop_ids)

    carry = (jnp.ones((), jnp.int32), first, out, cache, seen_BS, jnp.isin(first, stop_ids))
    index, _, out, *_ = jax.lax.while_loop(is_running, advance, carry)
    # The loop ends when every row has stopped: the rest would repeat the stop tokens.
    last_BT = jnp.take_along_axis(out, jnp.full((B, 1), index - 1), axis=1)
    return jnp.where(jnp.arange(new_tokens) < index, out, last_BT)


def generate_ids(
    model: Llama,
    variables: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """Continue each prompt of token ids; the stop token is not part of what is returned.

    Args:
        model: the model, with or without adapters.
        variables: {"params": ...}, with `norms` if at hand.
        prompts: non-empty lists of ids, of any lengths: shorter ones are padded left. Divided
            over the devices where their number divides.
        sampling: see `Sampling`.
        stop_ids: tokens that end a row.

    Raises:
        DoraError: for an empty prompt, or one that leaves no room in the model's context.
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DoraError(f"prompt {index + 1} is empty: nothing to continue")
    longest = max(map(len, prompts))
    context = model.config.max_position_embeddings
    if longest + sampling.max_new_tokens > context:
        raise DoraError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the "
            f"model's context of {context}: shorten the prompt or lower --max-new-tokens"
        )
    width = min(round_up(longest, _BUCKET), context - sampling.max_new_tokens)
    tokens = np.zeros((len(prompts), width), np.int32)
    real = np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        real[row, width - len(prompt) :] = True
    stops = list(stop_ids) or [-1]
    out = _decode(
        model,
        replicate(variables),
        *split_rows((tokens, real)),
        jnp.asarray(stops),
        jnp.asarray(max(sampling.temperature, 1e-6), jnp.float32),
        jax.random.key(sampling.seed),
        new_tokens=sampling.max_new_tokens,
        greedy=sampling.temperature == 0,
    )
    results = []
    for ids in np.asarray(out).tolist():
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        results.append(ids[:end])
    return results
