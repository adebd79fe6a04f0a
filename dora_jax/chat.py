"""A conversation with a model: what is said, what is kept, and the commands; no terminal."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dora_jax.analysis.atomic import write_text
from dora_jax.answer import Answerer, check_text, trimmed
from dora_jax.data.images import open_image
from dora_jax.data.vision import IMAGE, with_marks
from dora_jax.errors import DoraError
from dora_jax.generation import Sampling
from dora_jax.spec import nearest

NO_ADAPTER = "none"

_COMMANDS = {
    "/help": "what there is",
    "/exit": "leave (Ctrl-D does too)",
    "/reset": "forget what was said; the system message stays",
    "/system TEXT": "tell the model how to behave; without TEXT it is told nothing",
    "/adapter NAME": "answer with another adapter, by name or path, or with none; or list them",
    "/image FILE": "show the model an image with your next message; without FILE none",
    "/save FILE": "write the conversation, a JSON message a line",
    "/temperature X": "0 is greedy; higher values sample",
    "/undo": "take back your last message and its answer",
}
_NAMES = [command.split()[0] for command in _COMMANDS]


def name_adapters(paths: Sequence[Path]) -> dict[str, Path]:
    """Return adapters by short names: the ends of their paths, as long as it takes to differ.

    Example:
        >>> list(name_adapters([Path("runs/a/seed-0/dora"), Path("runs/a/seed-1/dora")]))
        ['seed-0/dora', 'seed-1/dora']
    """
    unique = list(dict.fromkeys(path.absolute() for path in paths))
    for length in range(1, max((len(path.parts) for path in unique), default=0) + 1):
        names = ["/".join(path.parts[-length:]) for path in unique]
        if len(set(names)) == len(names):
            return dict(zip(names, unique, strict=True))
    return {}


class Chat:
    """One conversation; feed it lines.

    Args:
        load: loads the model with an adapter, or with none.
        sampling: how answers are chosen; each answer has its own seed, counted from this one.
        adapters: to choose from, by name; the first one answers at the beginning.
        stop: strings that end an answer.
        system: the system message, if any.
        write: told of each piece of an answer.
        say: told of everything else, a message at a time.

    Attributes:
        messages: all that was said, as chat messages.
        ready: the model that answers now.
        adapter: the name of the adapter in it, or `none`.
    """

    def __init__(
        self,
        load: Callable[[Path | None], Answerer],
        sampling: Sampling,
        *,
        adapters: Mapping[str, Path] | None = None,
        stop: Sequence[str] = (),
        system: str | None = None,
        write: Callable[[str], None],
        say: Callable[[str], None],
    ):
        self._load, self._adapters = load, dict(adapters or {})
        self.sampling, self._stop = sampling, tuple(stop)
        self._write, self.say = write, say
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self._images: list[str] = []  # shown with the next message
        self._left_out = 0  # messages at the beginning that the model no longer sees
        self._answers = 0
        self.adapter = next(iter(self._adapters), NO_ADAPTER)
        self.ready = load(self._adapters.get(self.adapter))

    def feed(self, line: str) -> bool:
        """Take one line of the user's: a command, or something to be answered.

        A line that begins with `//` is said with one of the two.

        Returns:
            Whether the conversation goes on.
        """
        line = line.strip()
        try:
            if line.startswith("/") and not line.startswith("//"):
                word, _, rest = line.partition(" ")
                return self._command(word, rest.strip())
            if line:
                self._ask(line[1:] if line.startswith("//") else line)
        except (DoraError, OSError) as error:
            # Nothing that goes wrong with one line ends the conversation.
            self.say(str(error))
        return True

    def _command(self, word: str, rest: str) -> bool:
        if word == "/exit":
            return False
        if word not in _NAMES:
            raise DoraError(
                f"unknown command {word!r}{nearest(word, _NAMES)}; /help lists them, and // begins "
                "a message with a slash"
            )
        getattr(self, f"_{word[1:]}")(rest)
        return True

    def _help(self, rest: str) -> None:
        width = max(map(len, _COMMANDS))
        lines = [f"{command:<{width}}  {what}" for command, what in _COMMANDS.items()]
        self.say("\n".join([*lines, "Ctrl-C stops an answer."]))

    def _reset(self, rest: str) -> None:
        self.messages, self._left_out, self._images = [], 0, []
        self.say("forgotten; a new conversation begins")

    def _system(self, rest: str) -> None:
        if rest:
            check_text(rest, "the system message")
        if IMAGE in rest and self.ready.vision is not None:
            raise DoraError(f"a system message cannot hold {IMAGE}: show one with /image FILE")
        self.system = rest or None
        self.say("the system message is set" if rest else "there is no system message now")

    def _temperature(self, rest: str) -> None:
        try:
            temperature = float(rest)
        except ValueError:
            given = f"got {rest!r}" if rest else f"it is {self.sampling.temperature} now"
            raise DoraError(f"/temperature needs a number, such as 0.7; {given}") from None
        self.sampling = dataclasses.replace(self.sampling, temperature=temperature)
        self.say(f"temperature is {temperature}")

    def _image(self, rest: str) -> None:
        if not rest:
            taken, self._images = len(self._images), []
            self.say(f"{taken} images will not be shown" if taken else "no image is to be shown")
            return
        path = Path(rest).expanduser()
        self.ready.check_images(1)
        open_image(path)
        self._images.append(str(path.absolute()))
        self.say(f"{path.name} will be shown with your next message")

    def _undo(self, rest: str) -> None:
        asked = [n for n, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise DoraError("there is nothing to take back")
        taken = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        self._left_out = min(self._left_out, len(self.messages))
        self.say(f"taken back: {taken if len(taken) <= 60 else taken[:57] + '...'}")

    def _save(self, rest: str) -> None:
        if not rest:
            raise DoraError("/save needs a file, such as /save chat.jsonl")
        path = Path(rest).expanduser()
        if path.exists():
            raise DoraError(f"{path}: exists; choose another name")
        messages = self._with_system(self.messages)
        lines = [json.dumps(message, ensure_ascii=False) + "\n" for message in messages]
        write_text(path, "".join(lines))
        self.say(f"{len(messages)} messages written to {path}")

    def _adapter(self, rest: str) -> None:
        names = [*self._adapters, NO_ADAPTER]
        if not rest:
            self.say(f"now {self.adapter}; there are {', '.join(names)}, and any path")
            return
        path = None if rest == NO_ADAPTER else self._adapters.get(rest, Path(rest).expanduser())
        if path is not None and not path.exists():
            raise DoraError(
                f"no adapter {rest!r}{nearest(rest, names)}: not a folder, nor one of "
                f"{', '.join(names)}"
            )
        # The old one stays if this fails.
        self.ready = self._load(path)
        self.adapter = rest
        self.say(f"now {self.adapter}: {self.ready.name}")

    def _with_system(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *messages]

    def _fit(self) -> list[int]:
        """Return the ids of what the model sees: the latest turns that its context holds.

        Raises:
            DoraError: when the last message does not fit even alone, or the template refuses.
        """
        room = self.ready.context - self.sampling.max_new_tokens
        start = self._left_out
        while True:
            ids = self.ready.encode_messages(self._with_system(self.messages[start:]))
            if len(ids) <= room:
                break
            later = [
                n
                for n, message in enumerate(self.messages)
                if n > start and message["role"] == "user"
            ]
            if not later:
                raise DoraError(
                    f"that is too long: {len(ids)} tokens, and the model's context of "
                    f"{self.ready.context} holds {max(room, 0)} before an answer of "
                    f"{self.sampling.max_new_tokens}; shorten it{self._fewer()}, or lower "
                    "--max-new-tokens"
                )
            start = later[0]
        if start > self._left_out:
            gone = sum(m["role"] == "user" for m in self.messages[self._left_out : start])
            self.say(
                f"the conversation exceeds the model's context of {self.ready.context} tokens: "
                f"the oldest {f'{gone} turns are' if gone > 1 else 'turn is'} left out from now on"
            )
            self._left_out = start
        return ids

    def _fewer(self) -> str:
        images, vision = len(self._images), self.ready.vision
        if not images or vision is None:
            return ""
        return f", show fewer images (/image takes them back; each is {vision.tokens} tokens)"

    def _ask(self, text: str) -> None:
        check_text(text, "the message")
        if IMAGE in text and self.ready.vision is not None:
            raise DoraError(f"{IMAGE} in a message stands for one: show it with /image FILE")
        message: dict[str, Any] = {"role": "user", "content": with_marks(text, len(self._images))}
        if self._images:
            message["images"] = self._images
        self.messages.append(message)
        try:
            answer, notice = self._answer(self._fit())
        except BaseException:
            # What was not answered was not said.
            self.messages.pop()
            raise
        self._write("\n")
        self._images = []
        self.messages.append({"role": "assistant", "content": answer})
        if notice:
            self.say(notice)

    def _shown(self) -> list[str]:
        """Return the images of the messages that the model sees."""
        seen = self.messages[self._left_out :]
        return [path for message in seen for path in message.get("images", ())]

    def _answer(self, ids: list[int]) -> tuple[str, str]:
        """Return the answer, and what is to be said about it."""
        pieces: list[str] = []

        def told(piece: str) -> None:
            pieces.append(piece)
            self._write(piece)

        told_trimmed = trimmed(told)
        seed = (self.sampling.seed + self._answers) % 2**32
        self._answers += 1
        notice = ""
        try:
            (completion, *_) = self.ready.generate(
                [ids],
                dataclasses.replace(self.sampling, seed=seed),
                stop=[*self._stop, *self.ready.stop_texts],
                on_text=lambda _, piece: told_trimmed(piece),
                images=[self._shown()],
            )
            if completion.finish_reason == "length":
                most = self.sampling.max_new_tokens
                notice = f"(cut after {most} tokens; --max-new-tokens allows more)"
        except KeyboardInterrupt:
            if not pieces:
                raise
            notice = "(stopped)"
        return "".join(pieces), notice
