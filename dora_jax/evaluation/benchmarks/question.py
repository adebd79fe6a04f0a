"""A benchmark's question as LLaVA-1.5 asks it, with what its scorer needs.

The wording of the prompts is that of LLaVA-1.5's own question files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: as the published file names it, as a text; no other question of a reader has it.
        image: its file, or the file's bytes where the published file holds them; None where the
            question has none.
        prompt: what the model is asked, without the image's token.
        references: what people answered, or the letter of the right option; empty where a server
            keeps it.
        options: of a multiple choice, A first.
        groups: what results are broken down by, such as `{"answer_type": "yes/no"}`.
    """

    id: str
    image: Path | bytes | None
    prompt: str
    references: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)


def short_prompt(question: str) -> str:
    """Ask for a short answer."""
    return f"{question}\n{SHORT}"


def letter_prompt(question: str, options: Sequence[str]) -> str:
    """Ask for the letter of one of the options, which follow the question line by line."""
    listed = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *listed, _LETTER])
