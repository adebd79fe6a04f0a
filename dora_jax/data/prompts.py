"""Prompt templates: how an example becomes the text before the answer, and the answer's text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dora_jax.data.examples import Example, Turn
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.data.vision import IMAGE
from dora_jax.errors import DoraError
from dora_jax.spec import nearest

# The wording of the paper's commonsense study (and of Stanford's Alpaca, where it comes from).
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)
# What Vicuna v1.5 and LLaVA-1.5 ("v1") were tuned with.
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
_INDENT = 16 * " "


@dataclass(frozen=True)
class PromptTemplate:
    """A named shape of prompts.

    Attributes:
        name: as configs give it.
        prefix: everything before the answer, from the question.
        before_answer: stands between prefix and answer, and belongs to the answer's tokens: a
            byte-level tokenizer writes a word with the space before it.
        is_chat: whether the model's chat template writes the text, with its beginning, if it has
            one, as in `transformers`.
        is_verbatim: whether the space around questions and answers is kept.
        opening: stands once, before the first question; a system message takes its place.
    """

    name: str
    prefix: Callable[[str, Tokenizer], str]
    before_answer: str = ""
    is_chat: bool = False
    is_verbatim: bool = False
    opening: str = ""

    def encode_prompt(self, prompt: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of everything before the answer."""
        return self.encode_text(self.opening + self.prefix(prompt, tokenizer), tokenizer)

    def encode_text(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of a text of this shape, which begins as the model's texts begin."""
        ids = tokenizer.encode(text)
        return ids if self.is_chat else tokenizer.start_ids + ids

    def encode_answer(self, answer: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of an answer, without the token that ends it."""
        if self.is_chat:
            # After the marker that opens it, as if it were a text of its own.
            return tokenizer.encode(answer)
        return tokenizer.encode_continuation(self.before_answer + answer)

    def encode_turns(
        self, turns: Sequence[Turn], tokenizer: Tokenizer
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a conversation that is to be answered, and its answers to train on.

        Without a chat template the questions and answers follow each other, each answer ended;
        what is neither, such as a system message, stands before the next question.

        Returns:
            The ids, and for each answer to train on which of them it is, with the end token.

        Raises:
            DoraError: when the chat template refuses the conversation, or rewrites answers.
        """
        if self.is_chat:
            return _encode_chat(turns, tokenizer)
        ids = list(tokenizer.start_ids)
        spans, questions = [], []
        before = self.opening
        if before and turns[0].role == "system":
            before, turns = turns[0].text.strip() + " ", turns[1:]
        for turn in turns:
            if turn.role != "assistant":
                questions.append(turn.text if self.is_verbatim else turn.text.strip())
                continue
            ids += tokenizer.encode(before + self.prefix("\n\n".join(questions), tokenizer))
            before, questions = "", []
            answer = turn.text if self.is_verbatim else turn.text.strip()
            answered = [*self.encode_answer(answer, tokenizer), tokenizer.eos_id]
            if turn.trains:
                spans.append((len(ids), len(ids) + len(answered)))
            ids += answered
        asked = before + self.prefix("\n\n".join(questions), tokenizer)
        return ids + tokenizer.encode(asked), spans

    def render(self, example: Example, tokenizer: Tokenizer) -> str:
        """Return the whole text of an example, for people."""
        asked = self.opening + self.prefix(example.prompt, tokenizer)
        return asked + self.before_answer + example.answer


def _plain(prompt: str, tokenizer: Tokenizer) -> str:
    return f"Question: {prompt}\nAnswer:"


def _alpaca(prompt: str, tokenizer: Tokenizer) -> str:
    return _ALPACA.format(prompt=prompt)


def _alpaca_indented(prompt: str, tokenizer: Tokenizer) -> str:
    """The authors' own: every line of the template after the first is indented by 16 spaces.

    Theirs for training and for tests differ by one space and a blank line's padding; this has
    neither. The last of the 16 is the answer's, as tokenizers join it when they read the whole.
    """
    first, *lines = _ALPACA.split("\n")
    indented = [first, *(_INDENT + line if line else "" for line in lines[:-1]), _INDENT[1:]]
    return "\n".join(indented).format(prompt=prompt)


def _vicuna(prompt: str, tokenizer: Tokenizer) -> str:
    return f"USER: {prompt} ASSISTANT:"


def _images_alone(prompt: str, tokenizer: Tokenizer) -> str:
    """The images, whatever the row asks: the first stage of LLaVA's training, on captions."""
    return IMAGE * prompt.count(IMAGE)


def _none(prompt: str, tokenizer: Tokenizer) -> str:
    return prompt


def _chat(prompt: str, tokenizer: Tokenizer) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], True)


def _encode_chat(
    turns: Sequence[Turn], tokenizer: Tokenizer
) -> tuple[list[int], list[tuple[int, int]]]:
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    if not any(turn.trains for turn in turns):
        return tokenizer.encode(tokenizer.apply_chat_template(messages, True)), []
    text, places = tokenizer.chat_with_answers(messages)
    ids, offsets = tokenizer.encode_with_offsets(text)
    spans = []
    answers = [turn for turn in turns if turn.role == "assistant"]
    for turn, place in zip(answers, places, strict=True):
        if not turn.trains:
            continue
        if place is None:
            raise DoraError("the chat template rewrites earlier answers")
        first, end = place
        inside = [n for n, (a, b) in enumerate(offsets) if a >= first and b <= end and b > a]
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return ids, spans


TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("plain", _plain, " "),
        PromptTemplate("chat", _chat, is_chat=True),
        PromptTemplate("alpaca", _alpaca),
        PromptTemplate("alpaca-indented", _alpaca_indented, " "),
        PromptTemplate("vicuna", _vicuna, " ", opening=_VICUNA),
        PromptTemplate("llava-plain", _images_alone),
        PromptTemplate("none", _none, is_verbatim=True),
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
