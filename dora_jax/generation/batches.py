"""From lists of ids to what runs on the device, and back: one batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dora_jax.data.features import stack_features
from dora_jax.data.source_rows import lay_out_source
from dora_jax.data.vision import fill_up
from dora_jax.errors import DoraError
from dora_jax.generation import beams, decode
from dora_jax.generation.adapter_bank import AdapterBank
from dora_jax.generation.buckets import cache_slots, prompt_width, room_for, row_count
from dora_jax.generation.decode import Prompts
from dora_jax.generation.sampling import Sampling
from dora_jax.models.bart import Bart
from dora_jax.models.build import Writer
from dora_jax.models.llava import Llava
from dora_jax.models.source import Source
from dora_jax.models.vlbart import VLBart
from dora_jax.sharding import fetch, row_places, run_mesh, split_rows

_STOP_MULTIPLE = 8  # stop tokens are filled up, so that another one compiles nothing anew
_NO_TOKEN = -1


@dataclass(frozen=True)
class Request:
    """What is the same for all prompts.

    Attributes:
        model: the model.
        variables: {"params": ...}, with `norms` if at hand, on the devices.
        sampling: see `Sampling`.
        stop_ids: tokens that end a text.
        bank: adapters for rows, or None.
    """

    model: Writer
    variables: dict[str, Any]
    sampling: Sampling
    stop_ids: tuple[int, ...]
    bank: AdapterBank | None = None


@dataclass(frozen=True)
class Numbered:
    """A prompt and its place among all.

    Attributes:
        ids: its tokens.
        number: its place, from 0.
        adapter: the number of its adapter in the bank.
        images: arrays, or what numpy takes for such, in the order of their tokens; of a model that
            reads features these, see `check_features`.
    """

    ids: Sequence[int]
    number: int
    adapter: int = 0
    images: Sequence[Any] = ()


@dataclass(frozen=True)
class Output:
    """What the device made of one text.

    Attributes:
        ids: its tokens, the stop token not among them.
        log_probs: of these tokens.
        is_stopped: whether a stop token ended it.
        score: the sum of its tokens' log-probabilities, the stop token's included; of a beam what
            it was ranked by.
    """

    ids: list[int]
    log_probs: list[float]
    is_stopped: bool
    score: float


def check_prompts(model: Writer, prompts: Sequence[Numbered], sampling: Sampling) -> None:
    """Check that prompts can be continued as is asked.

    Raises:
        DoraError: for an empty prompt, one that leaves no room in the model's context, or a token
            that the model does not have.
    """
    context, vocabulary = model.config.text.context_length, model.vocabulary
    new_tokens = sampling.max_new_tokens
    for field in ("forced_bos_token_id", "forced_eos_token_id"):
        if (getattr(sampling, field) or 0) >= vocabulary:
            raise DoraError(
                f"{field} {getattr(sampling, field)} is outside the model's vocabulary of "
                f"{vocabulary}"
            )
    if isinstance(model, Bart):  # its text has a context of its own
        if 1 + new_tokens > context:
            raise DoraError(
                f"{new_tokens} new tokens and the start token exceed the model's context of "
                f"{context}: lower max_new_tokens to {context - 1}"
            )
        new_tokens = 0
    for prompt in prompts:
        name = f"prompt {prompt.number + 1}"
        if not len(prompt.ids):
            raise DoraError(f"{name} is empty: nothing to continue")
        if len(prompt.ids) + new_tokens > context:
            raise DoraError(
                f"{name} has {len(prompt.ids)} tokens; with {new_tokens} new ones they exceed the "
                f"model's context of {context}: shorten it to {max(context - new_tokens, 0)} "
                "tokens, or lower max_new_tokens"
            )
        if min(prompt.ids) < 0 or max(prompt.ids) >= vocabulary:
            raise DoraError(
                f"{name} has a token outside the model's vocabulary of {vocabulary}: was it "
                "encoded by this model's tokenizer?"
            )


def _lay_out(model: Writer, prompts: Sequence[Numbered], rows: int) -> Prompts:
    filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
    numbers = np.array([prompt.number for prompt in filled], np.int32)
    is_asked = np.arange(rows) < len(prompts)
    if isinstance(model, Bart):
        start = np.full((rows, 1), model.config.decoder_start_token_id, np.int32)
        ones = np.ones(rows, np.int32)
        return Prompts(start, ones, numbers, is_asked, source=_source(model, filled))
    width = prompt_width(max(len(prompt.ids) for prompt in prompts))
    tokens = np.zeros((rows, width), np.int32)
    for row, prompt in enumerate(filled):
        tokens[row, width - len(prompt.ids) :] = prompt.ids
    lengths = np.array([len(prompt.ids) for prompt in filled], np.int32)
    images = None
    if isinstance(model, Llava) and any(prompt.images for prompt in prompts):
        # What fills the batch up needs none.
        own = [*(prompt.images for prompt in prompts), *[()] * (rows - len(prompts))]
        images = fill_up(own, model.config.image_shape)
    return Prompts(tokens, lengths, numbers, is_asked, images)


def _source(model: Bart, filled: Sequence[Numbered]) -> Source:
    """Return what the encoder reads: the prompts, padded right, and what stands beside them."""
    longest = max(len(prompt.ids) for prompt in filled)
    width = min(prompt_width(longest), model.config.context_length)
    visual = None
    if isinstance(model, VLBart):
        visual = stack_features([prompt.images for prompt in filled], model.config)
    return lay_out_source([prompt.ids for prompt in filled], width, visual)


def _variables(request: Request, adapter_of: np.ndarray) -> dict[str, Any]:
    if request.bank is None:
        return request.variables
    return {**request.variables, "norms": request.bank.rows(split_rows(adapter_of))}


def _cut(
    tokens: np.ndarray, log_probs: np.ndarray, stop_ids: Sequence[int]
) -> tuple[list[int], list[float], bool, float]:
    ids, scores = tokens.tolist(), log_probs.tolist()
    end = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end], scores[:end], end < len(ids), float(sum(scores[: end + 1]))


def run_batch(
    request: Request,
    prompts: Sequence[Numbered],
    *,
    rows: int | None = None,
    stretch: int | None = None,
    watch: Callable[[list[Output], bool], Sequence[bool]] | None = None,
) -> list[Output]:
    """Continue prompts, all at once.

    Args:
        request: what to do.
        prompts: of any lengths.
        rows: rows that the batch is filled up to; None is as many as prompts.
        stretch: number of steps after which `watch` is called; None is all. Beams have one stretch.
        watch: told of the texts so far and whether they are all; says which of them end here.

    Returns:
        `num_samples` texts of each prompt, a prompt's side by side.
    """
    sampling = request.sampling
    count = row_count(rows or len(prompts), row_places(run_mesh()))
    laid = _lay_out(request.model, prompts, count)
    adapter_of = np.array([p.adapter for p in prompts] + [0] * (count - len(prompts)), np.int32)
    run = _search if sampling.num_beams > 1 else _decode
    outputs: list[Output] = []
    halted = np.zeros(count * sampling.num_samples, bool)
    for outputs, is_last in run(request, laid, adapter_of, stretch, halted):
        outputs = outputs[: len(prompts) * sampling.num_samples]
        if watch is not None:
            halted[: len(outputs)] |= np.asarray(watch(outputs, is_last), bool)
    return outputs


def _search(
    request: Request, laid: Prompts, adapter_of: np.ndarray, stretch: int | None, halted: np.ndarray
) -> Iterator[tuple[list[Output], bool]]:
    sampling = request.sampling
    found = beams.search(
        request.model,
        _variables(request, adapter_of),
        split_rows(laid),
        sampling.knobs(),
        np.asarray(request.stop_ids, np.int32),
        filters=sampling.filters(),
        early_stopping=sampling.early_stopping,
        beams=sampling.num_beams,
        room=room_for(sampling.max_new_tokens),
    )
    best = jax.tree.map(lambda x: x[:, : sampling.num_samples], fetch(found))
    outputs = []
    for row, sample in np.ndindex(*best.scores.shape):
        length = best.lengths[row, sample]
        ids, log_probs, is_stopped, _ = _cut(
            best.tokens[row, sample, :length],
            best.log_probs[row, sample, :length],
            request.stop_ids,
        )
        outputs.append(Output(ids, log_probs, is_stopped, float(best.scores[row, sample])))
    yield outputs, True


def _decode(
    request: Request, laid: Prompts, adapter_of: np.ndarray, stretch: int | None, halted: np.ndarray
) -> Iterator[tuple[list[Output], bool]]:
    """Yield the texts after each stretch; `halted` is read before the next one."""
    sampling, model = request.sampling, request.model
    filters, knobs, room = sampling.filters(), sampling.knobs(), room_for(sampling.max_new_tokens)
    spare = -len(request.stop_ids) % _STOP_MULTIPLE or (0 if request.stop_ids else _STOP_MULTIPLE)
    stop_ids = np.asarray([*request.stop_ids, *[_NO_TOKEN] * spare], np.int32)
    variables = _variables(request, adapter_of)
    state = decode.prefill(
        model,
        variables,
        split_rows(laid),
        knobs,
        stop_ids,
        filters=filters,
        slots=cache_slots(model.config.text, laid.tokens.shape[1], room),
        room=room,
        samples=sampling.num_samples,
    )
    if sampling.num_samples > 1:
        variables = _variables(request, np.repeat(adapter_of, sampling.num_samples))
    most = sampling.max_new_tokens
    until = most if stretch is None else 1
    while True:
        if until > 1:
            state = decode.advance(
                model,
                variables,
                state,
                knobs,
                stop_ids,
                split_rows(halted),
                np.int32(until),
                filters=filters,
            )
        seen = fetch((state.step, state.tokens, state.log_probs, state.stopped))
        step, tokens, log_probs, stopped = seen
        is_last = until >= most or bool(np.all(stopped | halted))
        outputs = [
            Output(*_cut(row[:step], scores[:step], request.stop_ids))
            for row, scores in zip(tokens, log_probs, strict=True)
        ]
        yield outputs, is_last
        if is_last or np.all(stopped | halted):
            return
        until = min(until + (stretch or most), most)
