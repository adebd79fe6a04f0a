"""How likely texts are: one pass over a prompt with all its continuations behind it.

A row is laid out as prompt, continuation, continuation, ...; each one continues the prompt's
positions and sees the prompt and itself alone, so the pass gives the very logits of separate
sequences while the prompt is computed once:

    tokens     p p p p a a b b b
    positions  0 1 2 3 4 5 4 5 6
    segments   0 0 0 0 1 1 2 2 2

Of an encoder-decoder the prompt is the token that its texts begin behind, and all continuations
are written to one source.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dora_jax.data.features import stack_features
from dora_jax.data.padding import round_up
from dora_jax.data.source_rows import lay_out_source
from dora_jax.data.vision import fill_up
from dora_jax.errors import DoraError
from dora_jax.generation.api import with_images
from dora_jax.generation.buckets import bucket
from dora_jax.generation.text import TextTokenizer
from dora_jax.models.attention import PADDING, SHARED
from dora_jax.models.bart import Bart
from dora_jax.models.build import Writer
from dora_jax.models.llava import Llava
from dora_jax.models.vlbart import VLBart
from dora_jax.sharding import fetch, replicate, split_rows

_LENGTH_MULTIPLE = 32  # few lengths, so few compilations
_ANY_TOKEN = 0  # of padding


class Request(NamedTuple):
    """A prompt and what may follow it, as token ids; nothing of either is empty.

    Attributes:
        prompt: each of its images as many tokens as it is.
        continuations: of it.
        images: of the prompt, in the order of their tokens: arrays, or what numpy takes for such.
        source: what the encoder reads, of a model that has one.
    """

    prompt: Sequence[int]
    continuations: Sequence[Sequence[int]]
    images: Sequence[Any] = ()
    source: Sequence[int] = ()

    @property
    def length(self) -> int:
        """The number of tokens that scoring it takes."""
        return len(self.source) + self.width

    @property
    def width(self) -> int:
        """The number of them that are fed behind each other."""
        return len(self.prompt) + sum(map(len, self.continuations))


class TokenScores(NamedTuple):
    """What a model says of the tokens of one continuation.

    Attributes:
        log_probs: of each token, nats; float64.
        is_greedy: whether each is the likeliest where it stands.
    """

    log_probs: np.ndarray
    is_greedy: np.ndarray


class Score(NamedTuple):
    """How likely one continuation is.

    Attributes:
        log_likelihood: sum over its tokens, nats.
        tokens: their number.
        is_greedy: whether greedy decoding would give it.
    """

    log_likelihood: float
    tokens: int
    is_greedy: bool


class _Layout(NamedTuple):
    """Requests as arrays; letters as in `models/llama.py`, T the scored tokens of a row.

    Attributes:
        tokens: (B, L) token ids.
        positions: (B, L), for RoPE.
        segments: (B, L), 0 the prompt, 1, 2, ... the continuations, -1 padding.
        sources: (B, T) places in the row whose next token is scored.
        targets: (B, T) those next tokens.
        images: (B, M, height, width, channels) of the prompts; None where none has any.
        source: what the encoder reads, of a model that has one.
    """

    tokens: Any
    positions: Any
    segments: Any
    sources: Any
    targets: Any
    images: Any = None
    source: Any = None


def _lay_out(
    model: Writer, requests: Sequence[Request], size: int, length: int, scored: int
) -> _Layout:
    """Return requests as the first of `size` rows; the last one is repeated."""
    tokens = np.full((size, length), _ANY_TOKEN, np.int32)
    positions = np.zeros((size, length), np.int32)
    segments = np.full((size, length), PADDING, np.int32)
    sources = np.zeros((size, scored), np.int32)
    targets = np.zeros((size, scored), np.int32)
    filled = [*requests, *[requests[-1]] * (size - len(requests))]
    for i, (prompt, continuations, *_) in enumerate(filled):
        start = len(prompt)
        tokens[i, :start] = prompt
        positions[i, :start] = np.arange(start)
        segments[i, :start] = SHARED
        place, entry = start, 0
        for number, ids in enumerate(continuations, 1):
            end = place + len(ids)
            tokens[i, place:end] = ids
            positions[i, place:end] = start + np.arange(len(ids))
            segments[i, place:end] = number
            # The prompt's last token predicts the first of every continuation.
            sources[i, entry : entry + len(ids)] = [start - 1, *range(place, end - 1)]
            targets[i, entry : entry + len(ids)] = ids
            place, entry = end, entry + len(ids)
    images = None
    if isinstance(model, Llava) and any(request.images for request in requests):
        own = [*(request.images for request in requests), *[()] * (size - len(requests))]
        images = fill_up(own, model.config.image_shape)
    source = None
    if isinstance(model, Bart):
        longest = max(len(request.source) for request in requests)
        read = min(round_up(longest, _LENGTH_MULTIPLE), model.config.context_length)
        visual = None
        if isinstance(model, VLBart):
            visual = stack_features([request.images for request in filled], model.config)
        source = lay_out_source([request.source for request in filled], read, visual)
    return _Layout(tokens, positions, segments, sources, targets, images, source)


@functools.partial(jax.jit, static_argnames="model")
def _log_probs(
    model: Writer, variables: Any, layout: _Layout
) -> tuple[Float[Array, "b t"], Bool[Array, "b t"]]:
    beside = {"images": layout.images, "source": layout.source}
    seen = {name: given for name, given in beside.items() if given is not None}
    hidden_BLD, _ = model.apply(
        variables,
        layout.tokens,
        layout.positions,
        layout.segments,
        **seen,
        method="hidden_states",
    )
    hidden_BTD = jnp.take_along_axis(hidden_BLD, layout.sources[..., None], axis=1)
    logits_BTV: Any = model.apply(variables, hidden_BTD, method="head")
    chosen_BT = jnp.take_along_axis(logits_BTV, layout.targets[..., None], axis=-1)[..., 0]
    is_greedy_BT = jnp.argmax(logits_BTV, axis=-1) == layout.targets
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1), is_greedy_BT


def score_tokens(
    model: Writer,
    variables: dict[str, Any],
    requests: Sequence[Request],
    batch_size: int,
    advance: Callable[[float], None] = lambda tokens: None,
) -> list[list[TokenScores]]:
    """Score every token of every continuation.

    Args:
        model: plain, or with an unmerged adapter.
        variables: {"params": ...}, with `norms` if at hand.
        requests: in any order; those of like length are run together.
        batch_size: requests at once.
        advance: called with the number of tokens done, of `Request.length`.

    Returns:
        For each request, in their order, the scores of its continuations.
    """
    # Text alone first: what has images goes through more of the model.
    order = sorted(
        range(len(requests)), key=lambda i: (len(requests[i].images), requests[i].length)
    )
    found: list[list[TokenScores]] = [[] for _ in requests]
    variables = replicate(variables)
    for start in range(0, len(requests), batch_size):
        indices = order[start : start + batch_size]
        batch = [requests[i] for i in indices]
        # Every batch of one length has one shape.
        length = round_up(max(request.width for request in batch), _LENGTH_MULTIPLE)
        scored = bucket(max(request.width - len(request.prompt) for request in batch), 8)
        layout = split_rows(_lay_out(model, batch, batch_size, length, scored))
        values, greedy = fetch(_log_probs(model, variables, layout))
        for row, i in enumerate(indices):
            end = 0
            for ids in requests[i].continuations:
                own = slice(end, end := end + len(ids))
                found[i].append(TokenScores(values[row, own].astype(np.float64), greedy[row, own]))
        advance(float(sum(request.length for request in batch)))
    return found


def score(
    model: Writer,
    params: Any,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    continuations: Sequence[Sequence[str]] | Sequence[Sequence[Sequence[int]]],
    *,
    tokenizer: TextTokenizer | None = None,
    norms: Any = None,
    batch_size: int = 16,
    images: Sequence[Sequence[Any]] | None = None,
) -> list[list[Score]]:
    """Return how likely each continuation of each prompt is.

    A text is cut into tokens together with its prompt, so that the model reads what it would read
    in one text. Where a continuation changes how the prompt's end is cut, the tokens that change
    are scored with it, and with the prompt's other continuations, which stay comparable.

    Args:
        model: plain, or built with the rules of an unmerged adapter.
        params: its parameters.
        prompts: texts, which need a tokenizer, or lists of token ids.
        continuations: for each prompt, what may follow it: texts or lists of ids alike.
        tokenizer: the model's.
        norms: `dora_jax.column_norms` of an unmerged adapter, where at hand.
        batch_size: prompts at once.
        images: of each prompt, see `dora_jax.generation.generate`.

    Raises:
        DoraError: for a prompt or continuation without tokens, or one that the model's context
            cannot hold, named by its number; texts without a tokenizer; other images than a
            prompt has tokens for.

    Example:
        >>> score(model, params, ["2 + 2 ="], [[" 4", " 5"]], tokenizer=tokenizer)
    """
    if len(prompts) != len(continuations):
        raise DoraError(
            f"{len(prompts)} prompts, but {len(continuations)} lists of continuations: give one "
            "list for each prompt"
        )
    requests = []
    images = [()] * len(prompts) if images is None else images
    for number, (prompt, options, own) in enumerate(
        zip(prompts, continuations, images, strict=True)
    ):
        request = _cut(prompt, options, tokenizer)
        ids = with_images(model, request.prompt, len(own), f"prompt {number + 1}")
        request = request._replace(prompt=ids, images=own)
        _check(model, number, request)
        requests.append(request)
    variables = {"params": params} | ({} if norms is None else {"norms": norms})
    return [
        [
            Score(float(one.log_probs.sum()), len(one.log_probs), bool(one.is_greedy.all()))
            for one in found
        ]
        for found in score_tokens(model, variables, requests, batch_size)
    ]


def _common_start(rows: Sequence[Sequence[int]]) -> list[int]:
    columns = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
    return [ids[0] for ids in columns]


def _cut(prompt: Any, continuations: Sequence[Any], tokenizer: TextTokenizer | None) -> Request:
    """Return a prompt and its continuations as ids."""
    texts = [ids for ids in (prompt, *continuations) if isinstance(ids, str)]
    if not texts:
        return Request(prompt, continuations)
    if tokenizer is None:
        raise DoraError("texts need a tokenizer: pass tokenizer=, or token ids")
    if len(texts) != 1 + len(continuations):
        raise DoraError("prompts and continuations must both be texts, or both be token ids")
    before = tokenizer.encode(texts[0])
    whole = [tokenizer.encode(texts[0] + text) for text in texts[1:]]
    shared = _common_start([before, *whole])
    start = list(tokenizer.start_ids)
    if before[: len(start)] == start:  # chat templates write the beginning themselves
        start = []
    return Request([*start, *shared], [ids[len(shared) :] for ids in whole])


def _check(model: Writer, number: int, request: Request) -> None:
    if not request.prompt:
        raise DoraError(f"prompt {number + 1} is empty: nothing to continue")
    context = model.config.text.context_length
    for place, ids in enumerate(request.continuations):
        what = f"continuation {place + 1} of prompt {number + 1}"
        if not ids:
            raise DoraError(f"{what} is empty: there is nothing to score")
        length = len(request.prompt) + len(ids)
        if length > context:
            raise DoraError(
                f"{what} makes a text of {length} tokens, and the model's context is {context}: "
                "shorten the prompt"
            )
