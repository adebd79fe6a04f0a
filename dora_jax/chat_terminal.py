"""The terminal around a conversation: lines in, text out as it comes."""

import contextlib
import sys
from collections.abc import Callable
from typing import TextIO

from rich.console import Console

from dora_jax.chat import Chat

_PROMPT = "> "


def run(
    make_chat: Callable[[Callable[[str], None], Callable[[str], None]], Chat],
    stdin: TextIO | None = None,
    console: Console | None = None,
) -> None:
    """Talk until the user leaves: by `/exit`, or by Ctrl-D, or at the end of a piped input.

    Args:
        make_chat: given where to write pieces of an answer and where to say the rest.
        stdin: where lines come from; on a terminal they can be edited.
        console: where everything goes; standard output by default.
    """
    stdin = stdin or sys.stdin
    console = console or Console(file=sys.stdout)
    asks = stdin.isatty()
    if asks:
        # Importing it is what makes `input` edit lines and remember them.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401

    def write(piece: str) -> None:
        console.file.write(piece)
        console.file.flush()

    def say(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def next_line() -> str | None:
        if not asks:
            return stdin.readline() or None
        try:
            return input(_PROMPT)
        except EOFError:
            console.print()
            return None

    chat = make_chat(write, say)
    say(f"{chat.ready.name}. /help lists commands; Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            line = next_line()
            if line is None or not chat.feed(line):
                return
        except KeyboardInterrupt:
            # Outside an answer there is nothing to stop, and nothing to lose.
            console.print()
            say("(Ctrl-D leaves)")
