"""The tokenizer that a GGUF file describes in its metadata, rebuilt for the `tokenizers` library.

GGUF has two kinds that matter here: `gpt2`, byte-level byte-pair encoding with its merges written
out, and `llama`, SentencePiece's byte-pair encoding, which gives every token a score instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from dora_jax.errors import DoraError
from dora_jax.spec import nearest

_PREFIX = "tokenizer.ggml."
# A token's type, as the format numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "\u2581"  # stands for a space in SentencePiece's tokens
_HF_FOLDER = "Use the model's Hugging Face folder instead"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _modern(digits: str) -> str:
    """Return the split that Llama 3 and Qwen share but for how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


@dataclass(frozen=True)
class _Cut:
    """How text is cut before byte-pair encoding, and what goes with it.

    Attributes:
        splits: applied one after another; what a pattern matches becomes a piece.
        whole_words: a piece that is a token is taken as it is, whatever the merges.
        begins: whether texts begin with the begin token when the file does not say.
        composed: whether text is brought to Unicode's composed form first.
    """

    splits: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        steps = [pre_tokenizers.Split(Regex(s), behavior="isolated") for s in self.splits]
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*steps, bytes_only])


_LLAMA3 = _Cut((_modern(r"\p{N}{1,3}"),), whole_words=True, begins=True)
_QWEN2 = _Cut((_modern(r"\p{N}"),), composed=True)
# GGUF names the way that text is cut; it does not describe it.
_CUTS = {
    "gpt-2": _Cut((_GPT2,)),
    "smollm": _Cut((r"\p{N}", _GPT2)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _Cut(_LLAMA3.splits),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    # What llama.cpp does when a converter did not recognise the tokenizer.
    "default": _Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
}


def rebuild(
    metadata: Mapping[str, Any], where: object
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Return a GGUF file's tokenizer and its `tokenizer_config.json`.

    Args:
        metadata: the file's fields.
        where: the file, named in errors.

    Raises:
        DoraError: when the metadata is incomplete, or of a kind that is not supported.
    """
    fields = {n.removeprefix(_PREFIX): v for n, v in metadata.items() if n.startswith(_PREFIX)}
    kinds = {"gpt2": (_byte_level, "merges"), "llama": (_sentence_piece, "scores")}
    kind = fields.get("model", "gpt2")
    if kind not in kinds:
        raise DoraError(
            f"{where}: a tokenizer of kind {kind!r}; from GGUF are read {', '.join(kinds)}. "
            f"{_HF_FOLDER}"
        )
    build, needed = kinds[kind]
    missing = [name for name in ("model", "tokens", needed) if name not in fields]
    if missing:
        raise DoraError(f"{where}: its metadata lacks {_PREFIX}{f', {_PREFIX}'.join(missing)}")
    tokens = list(fields["tokens"])
    types = list(fields.get("token_type", [_NORMAL] * len(tokens)))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise DoraError(
            f"{where}: {len(tokens)} tokens, {len(set(tokens))} of them different, with "
            f"{len(types)} types; download the file again"
        )
    architecture = str(metadata.get("general.architecture", ""))
    if architecture.startswith("gemma"):
        # Runs of spaces are written as spaces here, and as other tokens are in Gemma's own files.
        tokens = [t.replace(" ", _SPACE) if t.isspace() and " " in t else t for t in tokens]
    fields |= {"tokens": tokens, "token_type": types}
    config = _config(fields, metadata.get(f"{architecture}.context_length"), where)
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    try:
        backend, begins = build(fields, architecture, where)
    except DoraError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise DoraError(f"{where}: broken {needed} ({error}); download the file again") from error
    special = {_CONTROL} if kind == "gpt2" else {_CONTROL, _UNKNOWN}
    backend.add_tokens(
        [
            tokenizers.AddedToken(token, special=type_ in special, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ in special or (type_ == _USER_DEFINED and token.strip(_SPACE))
        ]
    )
    _add_ends(backend, config, fields, begins)
    return backend, config


def _byte_level(
    fields: Mapping[str, Any], architecture: str, where: object
) -> tuple[tokenizers.Tokenizer, bool]:
    name = fields.get("pre", "gpt-2")
    if name not in _CUTS:
        raise DoraError(
            f"{where}: text is cut by {name!r}{nearest(name, _CUTS)}; supported in GGUF: "
            f"{', '.join(_CUTS)}. {_HF_FOLDER}"
        )
    cut = _CUTS[name]
    vocabulary = {token: n for n, token in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut.whole_words)
    )
    if cut.composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, cut.begins


def _sentence_piece(
    fields: Mapping[str, Any], architecture: str, where: object
) -> tuple[tokenizers.Tokenizer, bool]:
    tokens, types, scores = fields["tokens"], fields["token_type"], list(fields["scores"])
    if len(scores) != len(tokens):
        raise DoraError(
            f"{where}: {len(tokens)} tokens with {len(scores)} scores; download the file again"
        )
    if architecture.startswith("gemma"):
        # Its tokens are in the order of the merges; its scores are not.
        scores = [-float(n) for n in range(len(tokens))]
    unknown = fields.get("unknown_token_id")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=merges_from_scores(tokens, types, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend, True


def merges_from_scores(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return the merges that SentencePiece's scores mean, the first to be made first.

    SentencePiece joins the two neighbours whose joint token scores highest; so every way to make a
    token out of two others is a merge, and tokens of higher scores come first. Among equal scores
    the order is that of `transformers`, which writes tokenizer.json from the same scores.
    """
    usable = {
        token: n
        for n, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_NORMAL, _USER_DEFINED)
    }
    merges = []
    for token, n in usable.items():
        for at in range(1, len(token)):
            left, right = usable.get(token[:at]), usable.get(token[at:])
            if left is not None and right is not None:
                merges.append((-scores[n], -at, at - len(token), n, left, right))
    return [(tokens[left], tokens[right]) for *_, left, right in sorted(merges)]


def _config(fields: Mapping[str, Any], context: int | None, where: object) -> dict[str, Any]:
    # The class that takes tokenizer.json as it stands; one with a model's name would rebuild it.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    if context is not None:
        config["model_max_length"] = context
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
    return config


def _add_ends(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    fields: Mapping[str, Any],
    begins: bool,
) -> None:
    """Let the tokenizer write the begin and end tokens that the file asks for."""
    adds = {"bos": fields.get("add_bos_token", begins), "eos": fields.get("add_eos_token", False)}
    named = {end: config[f"{end}_token"] for end in adds if adds[end] and f"{end}_token" in config}
    if named:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join([named.get("bos", ""), "$A", named.get("eos", "")]).strip(),
            special_tokens=[(token, backend.token_to_id(token)) for token in named.values()],
        )
