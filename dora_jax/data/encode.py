"""Examples to token ids; what does not fit is left out and counted, never cut."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dora_jax.data.examples import Example
from dora_jax.data.prompts import PromptTemplate
from dora_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedRow:
    """An example as token ids.

    Attributes:
        prompt: everything before the answer.
        answer: the answer, without the token that ends it.
        options: the options in the example's order, `answer` among them; empty if it is free.
        correct: index of the answer in `options`, 0 where there are none.
        text: the answer's text.
        option_texts: the options' texts.
        task: the example's.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    correct: int
    text: str
    option_texts: tuple[str, ...]
    task: str


def encode_examples(
    examples: Sequence[Example], template: PromptTemplate, tokenizer: Tokenizer, max_length: int
) -> tuple[list[EncodedRow], int]:
    """Return the rows that fit into `max_length` tokens, and the number of those that do not.

    A row's length is that of its prompt with its longest answer and the end token.
    """
    rows, too_long = [], 0
    # Options repeat from row to row.
    ids_of: dict[str, tuple[int, ...]] = {}
    for example in examples:
        for text in (example.answer, *example.options):
            if text not in ids_of:
                ids_of[text] = tuple(template.encode_answer(text, tokenizer))
        prompt = tuple(template.encode_prompt(example.prompt, tokenizer))
        options = tuple(ids_of[text] for text in example.options)
        answer = ids_of[example.answer]
        if len(prompt) + max(map(len, (answer, *options))) + 1 > max_length:
            too_long += 1
            continue
        correct = example.options.index(example.answer) if options else 0
        rows.append(
            EncodedRow(
                prompt, answer, options, correct, example.answer, example.options, example.task
            )
        )
    return rows, too_long


def digest_rows(rows: Sequence[EncodedRow]) -> str:
    """Return 16 hexadecimal digits that name the rows, order included."""
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
