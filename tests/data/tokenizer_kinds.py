"""Small tokenizers of the kinds that models come with, trained on a few texts."""

import functools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "",
    " ",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces   three    four     five",
    "\ttabs\t\tand\nbreaks\n\n\nhere\r\n\r\n \n x",
    "in 1969, 3.14159 and 1,000,000 or 12345678",
    "It's we'll they've I'M he'd don't CAN'T THEY'RE",
    "naïve café; combining e\u0301 against \u00e9",
    "日本語のテキスト, Привет, мир, مرحبا, नमस्ते, 한국어",
    "emoji 👩‍👩‍👧‍👦 🇫🇷 👍🏽 🙂",
    "zero\u200bwidth\u00a0nbsp\u3000wide \u2581 underline",
    "null\x00bell\x07 del\x7f",
    "def f(x):\n    return x ** 2  # square\n",
    "Ⅳ ½ ² ٣ $5 + 3 = 8; a|b ~c ^d",
    "<s>special</s> tokens <s></s><s > in text<extra>.",
    "</s>",
    "<s> space after",
    "<0x41> is no byte",
]
_CORPUS = [*TEXTS, "the theme then there other others hello hello world worlds 123 1234 12"] * 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST


def _split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {
    "llama-bpe": lambda: _split(LLAMA3),
    "qwen2": lambda: _split(QWEN2),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
}


def _add_tokens(backend):
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([tokenizers.AddedToken("<extra>", normalized=False)])


@functools.cache
def _trained_bytes(pre):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return backend.to_str()


def byte_level(pre):
    """Byte-level BPE: Llama 3's kind, Qwen's, GPT-2's or SmolLM's."""
    backend = tokenizers.Tokenizer.from_str(_trained_bytes(pre))
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.model.ignore_merges = pre == "llama-bpe"
    _add_tokens(backend)
    if pre == "llama-bpe":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return backend


@functools.cache
def sentence_piece_pieces():
    """The tokens, types and scores of a SentencePiece BPE model."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    texts = [text.translate({ord(c): None for c in "🙂日"}) for text in _CORPUS]
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=[])
    backend.train_from_iterator(texts, trainer)
    by_id = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    # White space but the space is not learned from; it becomes bytes.
    by_id = [(token, n) for token, n in by_id if not any(c.isspace() for c in token)]
    single = [token for token, _ in by_id if len(token) == 1]
    learned = (token for token, _ in by_id if len(token) > 1 and "<" not in token)
    joint = list(dict.fromkeys([*learned, "▁▁", "▁▁▁▁"]))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]
    scores = [0.0] * len(tokens)
    scores += [-float(n) for n in range(len(joint))]
    scores += [-float(len(joint) + n) for n in range(len(single))]
    tokens += [*joint, *single]
    types += [1] * (len(joint) + len(single))
    return [*tokens, "<extra>"], [*types, 4], [*scores, -1000.0]


def sentence_piece(merges, prefix=True):
    """Llama 2's kind of tokenizer.json (Gemma's without the prefix), from merges."""
    tokens, *_ = sentence_piece_pieces()
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>"])
    _add_tokens(backend)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def unigram():
    """A Unigram model over SentencePiece's spaces."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    _add_tokens(backend)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", backend.token_to_id("</s>"))]
    )
    return backend
