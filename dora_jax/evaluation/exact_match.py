"""Free answers: greedy text, right where it is the expected answer word for word."""

from collections.abc import Callable, Sequence
from typing import Any

from dora_jax.data.encode import EncodedRow
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.generation import Sampling, generate_ids
from dora_jax.models.llama import Llama

_SPARE_TOKENS = 4  # beyond the longest expected answer, so that a longer one is seen to be wrong


def new_tokens(rows: Sequence[EncodedRow]) -> int:
    """Return how many tokens are generated for each of these rows."""
    return max(len(row.answer) for row in rows) + _SPARE_TOKENS


def words(text: str) -> list[str]:
    """Return what is compared: the words, whatever the space between them."""
    return text.split()


def exact_matches(
    model: Llama,
    params: Any,
    rows: Sequence[EncodedRow],
    batch_size: int,
    tokenizer: Tokenizer,
    advance: Callable[[float], None] = lambda tokens: None,
) -> list[int]:
    """Return 1 for each row whose greedy answer is the expected one, else 0.

    Args:
        model: the plain model.
        params: its parameters, adapters merged.
        rows: to answer.
        batch_size: rows at once.
        tokenizer: the model's.
        advance: called with the number of tokens done, prompt and answer.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    # One bound for all rows: another one would be compiled anew.
    sampling = Sampling(max_new_tokens=new_tokens(rows))
    found = [0] * len(rows)
    for start in range(0, len(rows), batch_size):
        indices = order[start : start + batch_size]
        prompts = [rows[i].prompt for i in indices]
        filled = prompts + prompts[-1:] * (batch_size - len(prompts))
        texts = generate_ids(model, {"params": params}, filled, sampling, tokenizer.end_ids)
        for i, ids in zip(indices, texts, strict=False):
            found[i] = int(words(tokenizer.decode(ids)) == words(rows[i].text))
        advance(float(sum(len(p) + sampling.max_new_tokens for p in prompts)))
    return found
