"""Ids to text as they come: stop strings, and what of a text is certain."""

from collections.abc import Iterable, Sequence
from typing import Protocol

_UNFINISHED = "\ufffd"  # what bytes decode to that are no whole character (yet)


class TextTokenizer(Protocol):
    """What generation needs of a tokenizer; `dora_jax.data.tokenizer.Tokenizer` has it."""

    start_ids: list[int]
    final_ids: list[int]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids."""


def _find(text: str, stop: Sequence[str]) -> int:
    """Return where the first stop string begins, or -1."""
    return min((at for s in stop if (at := text.find(s)) >= 0), default=-1)


class GrowingText:
    """One text as its tokens come.

    Args:
        tokenizer: that decodes.
        stop: strings that end the text; they may span tokens, and are cut off with what follows.

    Attributes:
        ids: the tokens; where a stop string ended the text, up to the one that completed it.
        text: of the tokens, cut at the stop string.
        is_stopped: whether a stop string ended it.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str]):
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._given = 0
        self.ids: list[int] = []
        self.text = ""
        self.is_stopped = False

    def extend(self, ids: Sequence[int]) -> None:
        """Add tokens; those behind a stop string are left out."""
        if self.is_stopped or not ids:
            return
        known = len(self.ids)
        self.ids += ids
        self.text = self._tokenizer.decode(self.ids)
        if _find(self.text, self._stop) < 0:
            return
        self.is_stopped = True
        for length in range(known + 1, len(self.ids) + 1):
            text = self._tokenizer.decode(self.ids[:length])
            end = _find(text, self._stop)
            if end >= 0:
                self.ids, self.text = self.ids[:length], text[:end]
                return

    def news(self, is_last: bool) -> str:
        """Return what has become certain since the last call; all of it when no tokens follow.

        Not certain are characters whose bytes are not all there, and what may become a stop string.
        """
        end = len(self.text)
        if not (is_last or self.is_stopped):
            end = len(self.text.rstrip(_UNFINISHED))
            for stop in self._stop:
                for length in range(min(len(stop) - 1, end), 0, -1):
                    if self.text.startswith(stop[:length], end - length):
                        end -= length
                        break
        news = self.text[self._given : end]
        self._given = max(self._given, end)
        return news
