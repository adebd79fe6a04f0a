"""Text to token ids and back, over the `tokenizers` library."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from dora_jax.analysis.atomic import write_text
from dora_jax.data.chat_template import compile_chat_template, render_chat
from dora_jax.errors import DoraError
from dora_jax.spec import nearest

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_FILE = "special_tokens_map.json"

# A GGUF token's type: what the file format calls control and user-defined.
_CONTROL, _USER_DEFINED = 3, 4


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# GGUF names the way that text is cut before byte-pair encoding; it does not describe it.
_PRE_TOKENIZERS = {
    "gpt-2": _byte_level,
    "smollm": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _byte_level()]
    ),
}


def _token_text(value: Any) -> str | None:
    """Return the text of a special token, which configs give bare or in a dict."""
    return value.get("content") if isinstance(value, dict) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DoraError(f"{path}: cannot be read ({error}); download the folder again") from error
    if not isinstance(value, dict):
        raise DoraError(f"{path}: must hold a JSON object; download the folder again")
    return value


class Tokenizer:
    """A tokenizer and its chat template.

    Args:
        backend: the `tokenizers` object that does the work.
        config: as Hugging Face's `tokenizer_config.json`: special tokens, chat template.
        where: the file or folder that it came from, named in errors.

    Attributes:
        bos_id: begins a text; None when the model has no such token.
        eos_id: ends an answer.
        pad_id: fills rows; the end token where the model has none of its own.
        start_ids: what a text begins with, such as the begin token; empty for many models.
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
        self.bos_id = self._id_of("bos_token")
        eos_id = self._id_of("eos_token")
        if eos_id is None:
            raise DoraError(f"{where}: the tokenizer names no eos_token, so answers would not end")
        self.eos_id: int = eos_id
        pad_id = self._id_of("pad_token")
        self.pad_id: int = self.eos_id if pad_id is None else pad_id
        self.start_ids = self._find_start_ids()
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.chat_template: str | None = self._config.get("chat_template")
        self._template = None if self.chat_template is None else self._compile()

    def _id_of(self, name: str) -> int | None:
        text = self._special.get(name)
        if text is None:
            return None
        token = self._backend.token_to_id(text)
        if token is None:
            raise DoraError(f"{self._where}: {name} {text!r} is not in the vocabulary")
        return token

    def _find_start_ids(self) -> list[int]:
        bare = self._backend.encode("a", add_special_tokens=False).ids
        whole = self._backend.encode("a", add_special_tokens=True).ids
        starts = range(len(whole) - len(bare) + 1)
        return whole[: next((i for i in starts if whole[i : i + len(bare)] == bare), 0)]

    def _compile(self) -> Any:
        try:
            return compile_chat_template(str(self.chat_template))
        except DoraError as error:
            raise DoraError(f"{self._where}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; nothing is added, special tokens in the text are recognised."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, as `encode` does of one; uses all cores."""
        return [row.ids for row in self._backend.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ids; bytes that are not UTF-8 become replacement characters."""
        ids = [int(i) for i in ids]
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
    ) -> str:
        """Return a conversation as text.

        Args:
            messages: each with a `role` (system, user, assistant) and its `content`.
            add_generation_prompt: whether to end with the opening of the assistant's answer.

        Raises:
            DoraError: when the model has no template, or it refuses the messages.
        """
        if self._template is None:
            raise DoraError(
                f"{self._where}: this model has no chat template; choose another prompt template"
            )
        return render_chat(self._template, messages, add_generation_prompt, self._special)

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
                config |= _read_json(folder / name)
        template = config.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in template}
            config["chat_template"] = named.get("default")
        if (folder / TEMPLATE_FILE).is_file():
            config["chat_template"] = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
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
        prefix = "tokenizer.ggml."
        fields = {name[len(prefix) :]: v for name, v in metadata.items() if name.startswith(prefix)}
        missing = [name for name in ("model", "tokens", "merges") if name not in fields]
        if fields.get("model", "gpt2") != "gpt2":
            raise DoraError(
                f"{where}: a tokenizer of kind {fields['model']!r}; only byte-level byte-pair "
                "encoding ('gpt2') is read from GGUF. Use the model's Hugging Face folder instead"
            )
        if missing:
            raise DoraError(f"{where}: its metadata lacks {prefix}{f', {prefix}'.join(missing)}")
        cut = fields.get("pre", "gpt-2")
        if cut not in _PRE_TOKENIZERS:
            raise DoraError(
                f"{where}: text is cut by {cut!r}{nearest(cut, _PRE_TOKENIZERS)}; supported in "
                f"GGUF: {', '.join(_PRE_TOKENIZERS)}. Use the model's Hugging Face folder instead"
            )
        tokens, merges = fields["tokens"], [tuple(m.split(" ")) for m in fields["merges"]]
        types = fields.get("token_type", [1] * len(tokens))
        vocabulary = {token: n for n, token in enumerate(tokens)}
        if len(types) != len(tokens) or len(vocabulary) != len(tokens):
            raise DoraError(
                f"{where}: {len(tokens)} tokens, {len(vocabulary)} of them different, with "
                f"{len(types)} types; download the file again"
            )
        try:
            backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        except Exception as error:  # the library raises bare Exception
            raise DoraError(f"{where}: broken merges ({error}); download the file again") from error
        backend.pre_tokenizer = _PRE_TOKENIZERS[cut]()
        backend.decoder = decoders.ByteLevel()
        added = [
            tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
        backend.add_tokens(added)
        config = _config_from_gguf(fields, metadata, where)
        if fields.get("add_bos_token") and "bos_token" in config:
            bos = config["bos_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, fields["bos_token_id"])]
            )
        return cls(backend, config, where)


def _config_from_gguf(
    fields: Mapping[str, Any], metadata: Mapping[str, Any], where: str | Path
) -> dict[str, Any]:
    # The class that takes tokenizer.json as it stands; one with a model's name would rebuild it.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if "llama.context_length" in metadata:
        config["model_max_length"] = metadata["llama.context_length"]
    tokens = fields["tokens"]
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = fields.get(f"{theirs}_token_id")
        if number is None:
            continue
        if not 0 <= number < len(tokens):
            raise DoraError(
                f"{where}: {theirs}_token_id {number} is outside the vocabulary of {len(tokens)}"
            )
        config[f"{ours}_token"] = tokens[number]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
