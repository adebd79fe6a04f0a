"""The paper's protocol: the model writes, and the first option that its text names is its answer.

Text after the last "### Response:" is searched, case-sensitively, for the words that the task's
answers are made of: `answer1` to `answer5`, `true` and `false`, ... A word that this row does not
offer is an answer too, and wrong. A text without any is unanswered, and wrong.
"""

import re
from collections.abc import Sequence

from dora_jax.data.encode import EncodedRow

_RESPONSE = "### Response:"
# The words of the paper's eight tasks; a row that offers one of a set is searched for all of it.
_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("true", "false"),
    ("solution1", "solution2"),
    ("answer1", "answer2", "answer3", "answer4", "answer5"),
    ("ending1", "ending2", "ending3", "ending4"),
    ("option1", "option2"),
)


def option_words(options: Sequence[str]) -> tuple[str, ...]:
    """Return what tells the options apart: each without the words that all of them begin with.

    Example:
        >>> option_words(["the correct answer is true", "the correct answer is false"])
        ('true', 'false')
    """
    split = [option.split() for option in options]
    shared = 0
    while all(len(words) > shared + 1 for words in split) and (
        len({words[shared] for words in split}) == 1
    ):
        shared += 1
    return tuple(" ".join(words[shared:]) for words in split)


def first_match(text: str, words: Sequence[str]) -> str | None:
    """Return the first of the words that a text holds, after its last "### Response:".

    Words of the paper's tasks stand for all those of their task.
    """
    family = next((f for f in _FAMILIES if set(words) <= set(f)), tuple(words))
    # The longest first: "option10" is no "option1".
    ordered = sorted(family, key=len, reverse=True)
    found = re.search("|".join(map(re.escape, ordered)), text.rsplit(_RESPONSE, 1)[-1])
    return None if found is None else found.group()


def judge(row: EncodedRow, text: str) -> bool | None:
    """Whether what a model wrote gives the row's right option; None where it gives no answer."""
    words = option_words(row.option_texts)
    found = first_match(text, words)
    return None if found is None else found == words[row.correct]
