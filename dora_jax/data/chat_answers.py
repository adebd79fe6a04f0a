"""Where the assistant's earlier answers stand in a rendered conversation: they are trained on too.

What is rendered of the messages before an answer tells where it begins. Templates that mark
answers by `{% generation %}` are believed where that fails, and where their marks are tighter:
some, such as SmolLM3's, put the opening of the turn, which nobody generates, between the marks.
"""

from collections.abc import Callable, Sequence

from dora_jax.data.chat_template import SAID, SAID_END, Message
from dora_jax.errors import DoraError

Span = tuple[int, int]


def find_answers(
    render: Callable[[Sequence[Message], bool], str],
    messages: Sequence[Message],
    ends: Sequence[str],
) -> tuple[str, list[Span | None]]:
    """Return the rendered conversation, and the characters of each answer with what ends it.

    Args:
        render: (messages, whether an answer is to follow) -> text.
        messages: the conversation; the last one is to be answered.
        ends: texts of the tokens that end an answer.

    Returns:
        The text, and a span for each message of the assistant; None where the template rewrites
        earlier answers, so that they cannot be found.
    """
    text = render(messages, True)
    spans = [
        _answer(render, messages, number, text, ends)
        for number, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    return text, spans


def _answer(
    render: Callable[[Sequence[Message], bool], str],
    messages: Sequence[Message],
    number: int,
    text: str,
    ends: Sequence[str],
) -> Span | None:
    try:
        before = render(messages[:number], True)
        if not text.startswith(before):
            return None
        said = str(messages[number]["content"]).strip()
        rest = text[len(before) :]
        found = rest.lstrip().startswith(said)
        # Some templates write more than was said, such as empty reasoning.
        until = len(before) + len(rest) - len(rest.lstrip()) + len(said)
        if not found:
            through = render(messages[: number + 1], False)
            if not text.startswith(through) or len(through) <= len(before):
                return None
            until = len(before) + len(through[len(before) :].rstrip())
    except DoraError:  # such as an answer before any question
        return None
    after = text[until:].lstrip()
    end = next((end for end in sorted(ends, key=len)[::-1] if after.startswith(end)), None)
    # The token that ends an answer is written by the assistant, what stands behind it is not.
    return len(before), until if end is None else len(text) - len(after) + len(end)


def marked_answers(marked: str, text: str, spans: list[Span | None]) -> list[Span | None]:
    """Return spans narrowed to a template's own marks, if those are one for each answer.

    Args:
        marked: the conversation with the marks.
        text: the same without.
        spans: what was found without marks.
    """
    before, *pieces = marked.split(SAID)
    marks: list[Span] = []
    plain = before
    for piece in pieces:
        said, mark, after = piece.partition(SAID_END)
        if not mark:
            return spans
        marks.append((len(plain), len(plain) + len(said)))
        plain += said + after
    if len(marks) != len(spans) or plain != text:
        return spans
    return [_both(*pair) for pair in zip(marks, spans, strict=True)]


def _both(mark: Span, found: Span | None) -> Span:
    if found is None:
        return mark
    first, end = max(mark[0], found[0]), min(mark[1], found[1])
    return (first, end) if first < end else mark
