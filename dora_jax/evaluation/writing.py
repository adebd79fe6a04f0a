"""Answers that a model writes, batch by batch: what the generating protocols judge."""

from collections.abc import Callable, Sequence
from typing import Any

from dora_jax.data.encode import EncodedRow
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vision import Sight, pictures
from dora_jax.generation import Sampling, generate_ids
from dora_jax.models.build import Writer


def write_answers(
    model: Writer,
    params: Any,
    rows: Sequence[EncodedRow],
    sampling: Sampling,
    batch_size: int,
    tokenizer: Tokenizer,
    advance: Callable[[float], None] = lambda tokens: None,
    vision: Sight | None = None,
) -> list[str]:
    """Return what a model writes after each row's prompt.

    Args:
        model: the plain model.
        params: its parameters, adapters merged.
        rows: to answer.
        sampling: how it writes; one bound on the length for all rows, since another one would be
            compiled anew.
        batch_size: rows at once.
        tokenizer: the model's.
        advance: called with the number of tokens done, prompt and answer.
        vision: the model's, where rows have images.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].images), len(rows[i].prompt)))
    found = [""] * len(rows)
    for start in range(0, len(rows), batch_size):
        indices = order[start : start + batch_size]
        prompts = [rows[i].prompt for i in indices]
        filled = prompts + prompts[-1:] * (batch_size - len(prompts))
        images = [pictures(rows[i].images, vision) for i in indices]
        images += images[-1:] * (batch_size - len(images))
        texts = generate_ids(model, {"params": params}, filled, sampling, tokenizer.end_ids, images)
        for i, ids in zip(indices, texts, strict=False):
            found[i] = tokenizer.decode(ids)
        advance(float(sum(len(p) + sampling.max_new_tokens for p in prompts)))
    return found
