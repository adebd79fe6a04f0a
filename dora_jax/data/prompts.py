"""Prompt templates: how an example becomes the text before the answer, and the answer's text."""

from collections.abc import Callable
from dataclasses import dataclass

from dora_jax.data.examples import Example
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from dora_jax.spec import nearest

# The wording of the paper's commonsense study (and of Stanford's Alpaca, where it comes from).
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


@dataclass(frozen=True)
class PromptTemplate:
    """A named shape of prompts.

    Attributes:
        name: as configs give it.
        prefix: everything before the answer, from the question.
        before_answer: stands between prefix and answer, and belongs to the answer's tokens: a
            byte-level tokenizer writes a word with the space before it.
    """

    name: str
    prefix: Callable[[str, Tokenizer], str]
    before_answer: str = ""

    def encode_prompt(self, prompt: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of everything before the answer."""
        ids = tokenizer.encode(self.prefix(prompt, tokenizer))
        start = tokenizer.start_ids
        # Chat templates write the beginning of the text themselves.
        return ids if ids[: len(start)] == start else start + ids

    def encode_answer(self, answer: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of an answer, without the token that ends it."""
        return tokenizer.encode(self.before_answer + answer)

    def render(self, example: Example, tokenizer: Tokenizer) -> str:
        """Return the whole text of an example, for people."""
        return self.prefix(example.prompt, tokenizer) + self.before_answer + example.answer


def _chat(prompt: str, tokenizer: Tokenizer) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], True)


TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("plain", lambda prompt, _: f"Question: {prompt}\nAnswer:", " "),
        PromptTemplate("chat", _chat),
        PromptTemplate("alpaca", lambda prompt, _: _ALPACA.format(prompt=prompt)),
    )
}


def get_template(name: str) -> PromptTemplate:
    """Return a template by name.

    Raises:
        DoraError: for an unknown name, with the nearest one and the list.
    """
    if name not in TEMPLATES:
        raise DoraError(
            f"unknown prompt template {name!r}{nearest(name, TEMPLATES)}; "
            f"there are {', '.join(TEMPLATES)}"
        )
    return TEMPLATES[name]
