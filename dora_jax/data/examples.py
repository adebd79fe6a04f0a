"""One question with its answer: what every source of data yields and every prompt is made of."""

from dataclasses import dataclass, field
from typing import Literal

from dora_jax.data.vision import ImageFile

Split = Literal["train", "validation", "evaluation"]
# How rows are trained on: what carries a label, what becomes of long ones, how they share batches.
TrainOn = Literal["answers", "all"]
TooLong = Literal["drop", "truncate_left", "truncate_right", "error"]
Packing = Literal["none", "pack", "bucket"]
Form = Literal["as_given", "cloze"]
# What becomes of the rows' images, and of rows whose image is missing or broken.
Images = Literal["use", "leave_out"]
Texts = Literal["use", "leave_out"]
BadImages = Literal["skip", "error"]
# How a written answer is scored, see `evaluation.metrics`.
Metric = Literal["exact", "vqa", "cider", "cider_share"]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation, before the answer.

    Attributes:
        role: system, user or assistant, or what else the model's chat template knows.
        text: what is said.
        trains: whether it is an answer to train on, as the last one is.
    """

    role: str
    text: str
    trains: bool = False


@dataclass(frozen=True)
class Example:
    """A row of a task, before any prompt or tokenizer.

    Attributes:
        prompt: what is asked.
        answer: what the model should say.
        options: the answers to choose from, `answer` among them; empty where the answer is free.
        task: which task or relation it belongs to; scores are also reported by task.
        turns: everything before the answer, where it is more than one question: `prompt` is then
            the last message's text.
        is_text: whether `answer` is plain text to learn as it stands, with no question before it.
        source: which part of a mixture it comes from.
        where: the file and line that it was read from, where there is one.
        images: in the order of their `<image>` in the text.
        metric: how a written answer is scored; None is by the options, or word for word.
        references: what people answered, that `metric` compares with; empty is `answer` alone.
        targets: where several answers may be trained on, each with its weight; `answer` is one of
            the heaviest.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    task: str = ""
    turns: tuple[Turn, ...] = ()
    is_text: bool = False
    source: int = 0
    where: str = field(default="", compare=False)
    images: tuple[ImageFile, ...] = ()
    metric: Metric | None = None
    references: tuple[str, ...] = ()
    targets: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.options and self.answer not in self.options:
            raise ValueError(f"answer {self.answer!r} is not one of the options {self.options!r}")

    @property
    def asked(self) -> object:
        """What is asked: two examples that ask the same must not be in two splits."""
        if self.is_text:
            return ("text", self.answer)
        text = tuple((t.role, t.text) for t in self.turns) if self.turns else self.prompt
        return (text, *((i.path, i.name, i.span) for i in self.images)) if self.images else text
