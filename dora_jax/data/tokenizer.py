"""Text to token ids and back, over the `tokenizers` library."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from dora_jax.analysis.atomic import write_text
from dora_jax.data import gguf_tokenizer
from dora_jax.data.chat_answers import find_answers, marked_answers
from dora_jax.data.chat_template import (
    Message,
    as_text,
    compile_chat_template,
    in_parts,
    render_chat,
    shows_images_in_parts,
)
from dora_jax.data.vision import IMAGE
from dora_jax.errors import DoraError
from dora_jax.json_file import read_json_object

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# As processors of transformers 4 wrote it.
OLD_TEMPLATE_FILE = "chat_template.json"
SPECIAL_FILE = "special_tokens_map.json"


def _token_text(value: Any) -> str | None:
    """Return the text of a special token, which configs give bare or in a dict."""
    return value.get("content") if isinstance(value, dict) else value


class Tokenizer:
    """A tokenizer and its chat template.

    Args:
        backend: the `tokenizers` object that does the work.
        config: as Hugging Face's `tokenizer_config.json`: special tokens, chat template.
        where: the file or folder that it came from, named in errors.

    Attributes:
        bos_id: begins a text; None when the model has no such token.
        eos_id: ends a text.
        end_ids: end an answer: `eos_id`, and what the chat template writes behind one.
        pad_id: fills rows; the end token where the model has none of its own.
        start_ids: what a text begins with, such as the begin token; empty for many models. What
            tokenizer.json adds decides, as in transformers, not `add_bos_token` in the config.
        final_ids: what a text ends with, which is nothing for nearly all models.
        vocab_size: number of tokens, added ones included.
        chat_template: its source, or None.

    Raises:
        DoraError: when there is no end token, or a special token is not in the vocabulary.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], where: str | Path):
        self._backend = backend
        self._config = dict(config)
        self._special = {
            name: text
            for name, value in config.items()
            if name.endswith("_token") and isinstance(text := _token_text(value), str)
        }
        self._where = where
        self._mark_special()
        self.bos_id = self._id_of("bos_token")
        eos_id = self._id_of("eos_token")
        if eos_id is None:
            raise DoraError(f"{where}: the tokenizer names no eos_token, so answers would not end")
        self.eos_id: int = eos_id
        pad_id = self._id_of("pad_token")
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        self.start_ids, self.final_ids = self._find_ends()
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        templates = self._config.get("chat_template")
        if isinstance(templates, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in templates}
        else:
            named = {"default": templates}
        self.chat_template: str | None = named.get("default")
        self._template, self._tool_template = (
            None if source is None else self._compile(source)
            for source in (self.chat_template, named.get("tool_use"))
        )

    def _id_of(self, name: str) -> int | None:
        text = self._special.get(name)
        if text is None:
            return None
        token = self._backend.token_to_id(text)
        if token is None:
            raise DoraError(f"{self._where}: {name} {text!r} is not in the vocabulary")
        return token

    def _mark_special(self) -> None:
        """Recognise tokens in texts that the config alone names special, as transformers does."""
        more: list[Any] = []
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = self._config.get(name) or []
            more += value.values() if isinstance(value, dict) else value
        known = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        for text in dict.fromkeys([*self._special.values(), *map(_token_text, more)]):
            if text not in known and text and self._backend.token_to_id(text) is not None:
                token = tokenizers.AddedToken(text, special=True, normalized=False)
                self._backend.add_special_tokens([token])

    def _find_ends(self) -> tuple[list[int], list[int]]:
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a", add_special_tokens=True).ids
        starts = range(len(whole) - len(bare) + 1)
        at = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
        return whole[:at], whole[at + len(bare) :]

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Return the tokens that end an answer, `eos_id` first.

        What the chat template itself writes behind an answer tells which token ends one: many
        models end a turn with another token than a text, and a list of known names would end
        answers at tokens that a model was never trained to stop at. A model's configs may name
        more: see `Pretrained.stop_ids`.
        """
        ends = [self.eos_id]
        if self._template is not None:
            answer = "zyzzyva"
            turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
            try:
                text = self.apply_chat_template(turns)
            except DoraError:
                return tuple(ends)
            behind = text[text.rfind(answer) + len(answer) :].lstrip()
            tokens = self._backend.get_added_tokens_decoder()
            found = [(len(t.content), n) for n, t in tokens.items() if behind.startswith(t.content)]
            if found and (last := max(found)[1]) not in ends:
                ends.append(last)
        return tuple(ends)

    @cached_property
    def _line_break(self) -> list[int]:
        """Return the ids of a line break where texts get a space in front, else nothing."""
        tokens = self._backend.encode("a", add_special_tokens=False).tokens
        return self.encode("\n") if tokens and tokens[0].startswith("\u2581") else []

    def _compile(self, source: Any) -> Any:
        try:
            return compile_chat_template(str(source))
        except DoraError as error:
            raise DoraError(f"{self._where}: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text; special tokens in the text are recognised.

        Args:
            text: any text.
            add_special_tokens: whether to put `start_ids` before it and `final_ids` behind.
        """
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and which of its characters each one stands for."""
        found = self._backend.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of a text that goes on after another one.

        SentencePiece tokenizers such as Llama 2's put a space before a text; here they do not.
        """
        if self._line_break:
            # Nothing joins with a line break, so what is behind one begins without a space.
            ids = self.encode("\n" + text)
            if ids[: len(self._line_break)] == self._line_break:
                return ids[len(self._line_break) :]
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, as `encode` does of one; uses all cores."""
        return [row.ids for row in self._backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ids; bytes that are not UTF-8 become replacement characters."""
        ids = [int(i) for i in ids]
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def require_chat_template(self) -> Any:
        """Return the compiled chat template.

        Raises:
            DoraError: when the model has none.
        """
        if self._template is None:
            raise DoraError(
                f"{self._where}: this model has no chat template, so it was not trained on "
                "conversations; take the instruct version of the model, or another prompt "
                "template, such as --template plain (in experiments: --data.prompt plain)"
            )
        return self._template

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        *,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return a conversation as text, as `transformers` writes it.

        Args:
            messages: each with a `role` (system, user, assistant) and its `content`: a text, or a
                list of parts such as `{"type": "text", "text": ...}` where the template takes one.
            add_generation_prompt: whether to end with the opening of the assistant's answer.
            continue_final_message: whether to end inside the last message, to be continued.
            tools: JSON schemas of functions, for templates that know tools; others ignore them.
                A model with a template of its own for tools (`tool_use`) takes that one.
            documents: texts to answer from, likewise.
            **variables: whatever else the template reads, such as `enable_thinking=False`.

        Raises:
            DoraError: when the model has no template, or it refuses the messages.
        """
        template = self.require_chat_template()
        if tools and self._tool_template is not None:
            template = self._tool_template
        return render_chat(
            template,
            self._as_read(messages),
            add_generation_prompt,
            self._special,
            continue_final_message=continue_final_message,
            tools=tools,
            documents=documents,
            variables=variables,
        )

    def _as_read(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages in parts where the template takes parts, and else as texts."""
        reads, alone = shows_images_in_parts(self.chat_template or "")
        found: list[Message] = []
        for message in messages:
            text = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(text, str) and reads and (alone or IMAGE in text):
                message = {**message, "content": in_parts(text)}
            elif isinstance(text, list) and not reads and (whole := as_text(text)) is not None:
                message = {**message, "content": whole}
            found.append(message)
        return found

    def chat_with_answers(
        self, messages: Sequence[Message]
    ) -> tuple[str, list[tuple[int, int] | None]]:
        """Return a conversation that is to be answered, as text, and where its answers stand.

        Args:
            messages: the last one is to be answered.

        Returns:
            What `apply_chat_template(messages, True)` gives, and for each message of the assistant
            which characters it wrote, with the token that ends it; None where that cannot be told.

        Raises:
            DoraError: when the model has no template, or it refuses the messages.
        """
        ends = [text for n in self.end_ids if (text := self._backend.id_to_token(n))]
        text, spans = find_answers(self.apply_chat_template, messages, ends)
        if self._marking is not None:
            spans = marked_answers(
                render_chat(self._marking, self._as_read(messages), True, self._special),
                text,
                spans,
            )
        return text, spans

    @cached_property
    def _marking(self) -> Any:
        """The chat template that marks what the assistant says, where it knows."""
        if not re.search(r"{%-?\s*generation\b", self.chat_template or ""):
            return None
        return compile_chat_template(str(self.chat_template), marks_said=True)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **options: Any
    ) -> list[int]:
        """Return the ids of a conversation: of what `apply_chat_template` gives, nothing added."""
        return self.encode(self.apply_chat_template(messages, add_generation_prompt, **options))

    def with_special_token(self, text: str) -> tuple["Tokenizer", int]:
        """Return a tokenizer that knows a special token, and its id.

        Args:
            text: of the token; where it is known already, nothing changes.
        """
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        if text not in known:
            backend.add_special_tokens(
                [tokenizers.AddedToken(text, special=True, normalized=False)]
            )
        made = Tokenizer(backend, self._config, self._where)
        (token,) = made.encode(text)
        return made, token

    def token_text(self, token: int) -> str | None:
        """Return the text of one token, None where there is no such."""
        text: str | None = self._backend.id_to_token(token)
        return text

    def save(self, folder: str | Path) -> None:
        """Write the files that `transformers.AutoTokenizer` and `load` read.

        Raises:
            DoraError: when the file system refuses.
        """
        folder = Path(folder)
        write_text(folder / TOKENIZER_FILE, self._backend.to_str(pretty=True))
        write_text(folder / CONFIG_FILE, _to_json(self._config))
        write_text(folder / SPECIAL_FILE, _to_json(self._special))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read the tokenizer of a Hugging Face folder.

        Raises:
            DoraError: when its files are missing or broken.
        """
        folder = Path(folder)
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise DoraError(
                f"{folder}: has no {TOKENIZER_FILE}. Download it with the model, or let "
                "transformers write it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise DoraError(
                f"{path}: not a tokenizer ({error}); download the folder again"
            ) from error
        # Some files carry the settings of their training.
        backend.no_truncation()
        backend.no_padding()
        config: dict[str, Any] = {}
        for name in (SPECIAL_FILE, CONFIG_FILE):  # the latter wins
            if (folder / name).is_file():
                config |= read_json_object(folder / name, "download the folder again")
        if (folder / TEMPLATE_FILE).is_file():
            config["chat_template"] = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        elif (folder / OLD_TEMPLATE_FILE).is_file() and not config.get("chat_template"):
            config |= read_json_object(folder / OLD_TEMPLATE_FILE, "download the folder again")
        return cls(backend, config, folder)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], where: str | Path) -> "Tokenizer":
        """Rebuild the tokenizer that a GGUF file describes in its metadata.

        Args:
            metadata: the file's fields.
            where: the file, named in errors.

        Raises:
            DoraError: when the metadata is incomplete, or of a kind that is not supported.
        """
        backend, config = gguf_tokenizer.rebuild(metadata, where)
        return cls(backend, config, where)


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
