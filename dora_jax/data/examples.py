"""One question with its answer: what every source of data yields and every prompt is made of."""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "evaluation"]


@dataclass(frozen=True)
class Example:
    """A row of a task, before any prompt or tokenizer.

    Attributes:
        prompt: what is asked.
        answer: what the model should say.
        options: the answers to choose from, `answer` among them; empty where the answer is free.
        task: which task or relation it belongs to; scores are also reported by task.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    task: str = ""

    def __post_init__(self) -> None:
        if self.options and self.answer not in self.options:
            raise ValueError(f"answer {self.answer!r} is not one of the options {self.options!r}")
