"""`generate`: texts from prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from dora_jax.adapters import column_norms
from dora_jax.data.features import check_features
from dora_jax.data.vision import expand
from dora_jax.errors import DoraError
from dora_jax.generation.adapter_bank import Adapter, AdapterBank
from dora_jax.generation.batches import Numbered, Output, Request, check_prompts, run_batch
from dora_jax.generation.sampling import Sampling
from dora_jax.generation.text import GrowingText, TextTokenizer
from dora_jax.models.bart import Bart
from dora_jax.models.build import Writer
from dora_jax.models.llava import Llava
from dora_jax.models.vlbart import VLBart
from dora_jax.sharding import replicate

_STREAMED = 1  # tokens between two looks at the texts when they are shown as they come
_WATCHED = 16  # and when only stop strings are looked for


@dataclass(frozen=True)
class Completion:
    """One text.

    Attributes:
        prompt: the number of its prompt, from 0.
        sample: its number among the texts of that prompt, from 0; of beams the best is 0.
        text: of its tokens, without the stop string; empty when there is no tokenizer.
        token_ids: what was generated, without the stop token; with the tokens that make up the stop
            string where that ended it.
        log_probs: of each of these tokens by the model itself, before penalty, temperature and
            filters; nats.
        finish_reason: `stop` (a stop token or string) or `length` (`max_new_tokens`).
        score: the sum of the log-probabilities of everything chosen, the stop token included; of a
            beam what it was ranked by.
    """

    prompt: int
    sample: int
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    score: float


def generate(
    model: Writer,
    params: Any,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    tokenizer: TextTokenizer | None = None,
    norms: Any = None,
    stop: Sequence[str] = (),
    stop_ids: Sequence[int] | None = None,
    batch_size: int = 32,
    on_text: Callable[[int, str], None] | None = None,
    adapters: AdapterBank | Sequence[Adapter] | None = None,
    adapter_of: Sequence[int] | None = None,
    images: Sequence[Sequence[Any]] | None = None,
) -> list[Completion]:
    """Continue prompts; by an encoder-decoder, write what answers each.

    A text depends on its prompt, the prompt's number and the sampling alone, not on what else is in
    the batch (up to rounding, where two tokens are as likely).

    Args:
        model: plain, or built with the rules of an unmerged adapter.
        params: its parameters.
        prompts: texts, which need a tokenizer, or lists of token ids.
        sampling: see `Sampling`; None is greedy.
        tokenizer: the model's.
        norms: `dora_jax.column_norms` of an unmerged adapter, where at hand; else computed once.
        stop: strings that end a text, and are not part of it. Beam search does not look at them:
            its texts are cut at them.
        stop_ids: tokens that end a text; None is the model's end tokens and the tokenizer's.
        batch_size: rows that are decoded at once: prompts times samples, or times beams.
        on_text: told of each piece of text as it becomes certain: the place of its completion in
            the result, and the piece. With beams, texts come whole.
        adapters: for a plain model, adapters that the prompts choose from: see `AdapterBank.build`.
        adapter_of: of each prompt, the number of its adapter.
        images: of each prompt, its images in the order of their tokens, as the model's processor
            makes them: arrays (height, width, channels), or what numpy takes for such. In the ids
            an image may be one token, or already as many as it is. VL-BART takes features, see
            `dora_jax.data.features.check_features`, and no tokens for them.

    Returns:
        `num_samples` completions of each prompt, in the prompts' order: completion
        `prompt * num_samples + sample`.

    Raises:
        DoraError: for a prompt that is empty or too long for the model's context, named by its
            number; text or stop strings without a tokenizer; adapters that cannot be used; other
            images than the prompt has tokens for.

    Example:
        >>> for piece in generate(model, params, ["Once"], Sampling(20), tokenizer=tokenizer):
        ...     print(piece.text)
    """
    sampling = Sampling() if sampling is None else sampling
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if tokenizer is None and (stop or on_text is not None):
        asked = "stop strings" if stop else "on_text"
        raise DoraError(f"{asked} need a tokenizer: pass tokenizer=")
    if not all(stop):
        raise DoraError("a stop string is empty: every text would end at once")
    if batch_size < 1:
        raise DoraError(f"batch_size must be at least 1; got {batch_size}")
    encoded = _encode(prompts, tokenizer, isinstance(model, Bart))
    bank, chosen = _adapters(model, params, adapters, adapter_of, len(encoded))
    numbered = _numbered(model, encoded, chosen, images)
    check_prompts(model, numbered, sampling)
    if stop_ids is None:
        stop_ids = [
            *model.config.text.eos_token_id,
            *([] if tokenizer is None else tokenizer.end_ids),
        ]
    request = Request(
        model,
        replicate(_variables(model, params, norms)),
        sampling,
        tuple(dict.fromkeys(int(i) for i in stop_ids)),
        bank,
    )
    found: dict[int, Completion] = {}
    for batch, rows in _batches(numbered, max(1, batch_size // _rows_of_a_prompt(sampling))):
        for completion in _complete(request, batch, rows, tokenizer, stop, on_text):
            place = completion.prompt * sampling.num_samples + completion.sample
            found[place] = completion
    return [found[place] for place in sorted(found)]


def generate_ids(
    model: Writer,
    variables: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    images: Sequence[Sequence[Any]] | None = None,
) -> list[list[int]]:
    """Continue each prompt of token ids, all in one batch.

    Args:
        model: the model, with or without adapters.
        variables: {"params": ...}, with `norms` if at hand.
        prompts: non-empty lists of ids, of any lengths: shorter ones are padded left. Divided
            over the devices.
        sampling: see `Sampling`.
        stop_ids: tokens that end a row.
        images: of each prompt, see `generate`.

    Returns:
        `num_samples` lists of ids for each prompt, the stop token not among them.

    Raises:
        DoraError: for an empty prompt, one that leaves no room in the model's context, or other
            images than it has tokens for.
    """
    numbered = _numbered(model, prompts, [0] * len(prompts), images)
    check_prompts(model, numbered, sampling)
    request = Request(model, replicate(variables), sampling, tuple(dict.fromkeys(stop_ids)))
    return [output.ids for output in run_batch(request, numbered)] if numbered else []


def _encode(
    prompts: Sequence[str] | Sequence[Sequence[int]],
    tokenizer: TextTokenizer | None,
    is_whole: bool,
) -> list[Sequence[int]]:
    """Return the prompts' ids; texts that are whole get what a text ends with, too."""
    if isinstance(prompts, str):
        raise DoraError("prompts must be a list; for one prompt give [prompt]")
    encoded: list[Sequence[int]] = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if tokenizer is None:
                raise DoraError(f"prompt {number + 1} is text: pass tokenizer=, or token ids")
            text, start = tokenizer.encode(prompt), list(tokenizer.start_ids)
            text = text if text[: len(start)] == start else [*start, *text]
            encoded.append([*text, *tokenizer.final_ids] if is_whole else text)
        elif isinstance(prompt, int):
            raise DoraError("prompts must be a list of texts or of lists of ids; got a list of ids")
        else:
            given: list[Any] = list(prompt)
            encoded.append([int(i) for i in given])
    return encoded


def _numbered(
    model: Writer,
    prompts: Sequence[Sequence[int]],
    adapter_of: Sequence[int],
    images: Sequence[Sequence[Any]] | None,
) -> list[Numbered]:
    images = [()] * len(prompts) if images is None else images
    if len(images) != len(prompts):
        raise DoraError(
            f"images must give a list for each of {len(prompts)} prompts; it gives {len(images)}"
        )
    numbered = []
    for n, (ids, adapter, own) in enumerate(zip(prompts, adapter_of, images, strict=True)):
        if isinstance(model, VLBart):
            check_features(own, model.config, f"prompt {n + 1}")
        else:
            ids = with_images(model, ids, len(own), f"prompt {n + 1}")
        numbered.append(Numbered(ids, n, adapter, own))
    return numbered


def with_images(model: Writer, ids: Sequence[int], images: int, where: str) -> Sequence[int]:
    """Return the ids of a text in which each image is as many tokens as the model sees it by.

    Args:
        model: the model.
        ids: with one token for each image, or already all of them.
        images: how many there are.
        where: named in the error.

    Raises:
        DoraError: when the ids have tokens for another number of images.
    """
    if not isinstance(model, Llava):
        if images:
            raise DoraError(f"{where} has images, and this model reads text alone")
        return ids
    token, tokens = model.config.image_token_id, model.config.image_tokens
    count = sum(i == token for i in ids)
    if count == images * tokens:
        return ids
    if count != images:
        raise DoraError(
            f"{where} has {count} tokens for images (id {token}), and {images} images: give one "
            f"token for each image, or {tokens}"
        )
    return expand(ids, token, tokens)[0]


def _adapters(
    model: Writer,
    params: Any,
    adapters: AdapterBank | Sequence[Adapter] | None,
    adapter_of: Sequence[int] | None,
    prompts: int,
) -> tuple[AdapterBank | None, list[int]]:
    if adapters is None:
        if adapter_of is not None:
            raise DoraError("adapter_of chooses from adapters: pass adapters=")
        return None, [0] * prompts
    if model.adapters is not None:
        raise DoraError("adapters by row need the plain model: build it without adapters")
    size = adapters.size if isinstance(adapters, AdapterBank) else len(adapters)
    chosen = [0] * prompts if adapter_of is None and size == 1 else list(adapter_of or ())
    if len(chosen) != prompts:
        raise DoraError(
            f"adapter_of must give one of {size} adapters for each of {prompts} prompts; it gives "
            f"{len(chosen)}"
        )
    for number, adapter in enumerate(chosen):
        if not 0 <= adapter < size:
            raise DoraError(
                f"adapter_of gives adapter {adapter} for prompt {number + 1}; there are 0 to "
                f"{size - 1}"
            )
    bank = adapters if isinstance(adapters, AdapterBank) else AdapterBank.build(params, adapters)
    elsewhere = [path for path in bank.leaves if path[0] != "language_model"]
    if isinstance(model, Llava) and elsewhere:
        raise DoraError(
            f"adapters by row must be of the language model alone; {'/'.join(elsewhere[0])} is of "
            "another part: merge such an adapter (dora-jax merge), or answer with one at a time"
        )
    return replicate(bank), chosen


def _variables(model: Writer, params: Any, norms: Any) -> dict[str, Any]:
    params = jax.device_put(params)  # without a copy on CPUs
    if model.adapters is None:
        return {"params": params}
    # Without them every step would compute every module's norm anew.
    return {"params": params, "norms": norms or column_norms(params, model.adapters)}


def _rows_of_a_prompt(sampling: Sampling) -> int:
    return sampling.num_beams if sampling.num_beams > 1 else sampling.num_samples


def _batches(prompts: Sequence[Numbered], size: int) -> list[tuple[list[Numbered], int]]:
    """Return batches of prompts of like length, and how many rows each is filled up to."""
    # Text alone first: what has images goes through more of the model.
    by_length = sorted(prompts, key=lambda prompt: (len(prompt.images), len(prompt.ids)))
    # One batch is as large as it is; of several the last is filled up, to be compiled no more.
    rows = min(size, len(by_length))
    return [(by_length[i : i + size], rows) for i in range(0, len(by_length), size)]


def _complete(
    request: Request,
    batch: Sequence[Numbered],
    rows: int,
    tokenizer: TextTokenizer | None,
    stop: Sequence[str],
    on_text: Callable[[int, str], None] | None,
) -> list[Completion]:
    samples = request.sampling.num_samples
    owners = [(prompt.number, sample) for prompt in batch for sample in range(samples)]
    texts = [] if tokenizer is None else [GrowingText(tokenizer, stop) for _ in owners]

    def watch(outputs: list[Output], is_last: bool) -> list[bool]:
        for (number, sample), output, text in zip(owners, outputs, texts, strict=True):
            text.extend(output.ids[len(text.ids) :])
            if on_text is not None and (news := text.news(is_last or output.is_stopped)):
                on_text(number * samples + sample, news)
        return [text.is_stopped for text in texts]

    stretch = _STREAMED if on_text is not None else _WATCHED if stop else None
    outputs = run_batch(request, batch, rows=rows, stretch=stretch, watch=watch if texts else None)
    found = []
    for place, ((number, sample), output) in enumerate(zip(owners, outputs, strict=True)):
        ids, text, is_stopped = output.ids, "", output.is_stopped
        if texts:
            ids, text = texts[place].ids, texts[place].text
            is_stopped |= texts[place].is_stopped
        score = output.score
        if len(ids) < len(output.ids) and request.sampling.num_beams == 1:
            score = sum(output.log_probs[: len(ids)])
        found.append(
            Completion(
                number,
                sample,
                text,
                tuple(ids),
                tuple(output.log_probs[: len(ids)]),
                "stop" if is_stopped else "length",
                score,
            )
        )
    return found
