"""Free answers: greedy text, right where it is the expected answer word for word."""

from collections.abc import Sequence

from dora_jax.data.encode import EncodedRow

_SPARE_TOKENS = 4  # beyond the longest expected answer, so that a longer one is seen to be wrong


def new_tokens(rows: Sequence[EncodedRow]) -> int:
    """Return how many tokens are generated for each of these rows."""
    return max(len(row.answer) for row in rows) + _SPARE_TOKENS


def is_match(row: EncodedRow, text: str) -> bool:
    """Whether a text is the row's answer, whatever the space between the words."""
    return text.split() == row.text.split()
