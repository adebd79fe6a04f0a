"""Tokenizers of every kind give what transformers gives, from tokenizer.json and from GGUF."""

import functools
import itertools
import json

import pytest

from dora_jax.data.gguf_tokenizer import merges_from_scores
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from tests.data.tokenizer_kinds import (
    PRE_TOKENIZERS,
    TEXTS,
    byte_level,
    sentence_piece,
    sentence_piece_pieces,
    unigram,
)

CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}


@functools.cache
def merges():
    return merges_from_scores(*sentence_piece_pieces())


KINDS = {
    **{name: functools.partial(byte_level, name) for name in PRE_TOKENIZERS},
    "llama": lambda: sentence_piece(merges()),
    "gemma": lambda: sentence_piece(merges(), prefix=False),
    "unigram": unigram,
}


def folder_of(kind, path, **fields):
    KINDS[kind]().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(CONFIG | fields))
    return path


def gguf(kind, **fields):
    """The metadata of the GGUF file of the same model."""
    if kind in PRE_TOKENIZERS:
        state = json.loads(byte_level(kind).to_str())
        vocabulary = {t["content"]: t["id"] for t in state["added_tokens"]}
        vocabulary |= state["model"]["vocab"]
        tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
        special = {"<s>": 3, "</s>": 3, "<extra>": 4}
        found = {
            "model": "gpt2",
            "pre": kind,
            "tokens": tokens,
            "token_type": [special.get(token, 1) for token in tokens],
            "merges": [" ".join(merge) for merge in state["model"]["merges"]],
        }
    else:
        tokens, types, scores = sentence_piece_pieces()
        found = {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores}
        found |= {"unknown_token_id": 0, "add_space_prefix": kind == "llama"}
    found |= {"bos_token_id": tokens.index("<s>"), "eos_token_id": tokens.index("</s>")}
    found |= fields
    metadata = {f"tokenizer.ggml.{k}": v for k, v in found.items() if v is not None}
    return {"general.architecture": "llama", **metadata}


def without_loss(kind, text):
    """Whether the kind keeps every character of a text."""
    if kind == "unigram":
        return False
    if kind == "qwen2":
        return "\u0301" not in text
    # Its spaces are underlines; the one put in front is taken away again, once a text.
    underline = "▁" in text
    inner_special = any(token in text for token in ("<s>", "</s>", "<extra>"))
    return not (kind in ("llama", "gemma") and underline) and not (
        kind == "llama" and inner_special
    )


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_text_back(tmp_path, kind):
    ours = Tokenizer.load(folder_of(kind, tmp_path))
    kept = [text for text in TEXTS if without_loss(kind, text)]
    assert kind == "unigram" or len(kept) >= 14
    for text in kept:
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == text
    assert ours.encode_batch(TEXTS) == [ours.encode(text) for text in TEXTS]


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_read_as_by_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    ours = Tokenizer.load(folder_of(kind, tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        whole = ours.encode(text, add_special_tokens=True)
        assert whole == theirs(text)["input_ids"] == ours.start_ids + ids + ours.final_ids
        for skip in (True, False):
            assert ours.decode(whole, skip) == theirs.decode(whole, skip_special_tokens=skip)
    again = tmp_path / "again"
    ours.save(again)
    theirs = transformers.AutoTokenizer.from_pretrained(again)
    assert [theirs(text)["input_ids"] for text in TEXTS] == [
        ours.encode(text, add_special_tokens=True) for text in TEXTS
    ]


@pytest.mark.parity
@pytest.mark.parametrize("fields", [{"add_bos_token": False}, {"add_eos_token": True}])
def test_tokenizer_json_decides_what_is_put_around_a_text(tmp_path, fields):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    ours = Tokenizer.load(folder_of("llama", tmp_path, **fields))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.start_ids, ours.final_ids) == ([ours.bos_id], [])
    assert ours.encode("hello", add_special_tokens=True) == theirs("hello")["input_ids"]


@pytest.mark.parity
def test_tokens_that_the_config_names_become_special(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    fields = {"pad_token": "the", "additional_special_tokens": ["<extra>"]}
    ours = Tokenizer.load(folder_of("gpt-2", tmp_path, **fields))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("other <extra> there", "then<s>the"):
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ours.encode("a<extra>the")) == "a<extra>"  # tokenizer.json's word on it


@pytest.mark.parametrize("kind", [*PRE_TOKENIZERS, "llama", "gemma"])
def test_gguf_metadata_gives_what_the_folder_gives(tmp_path, kind):
    reference = Tokenizer.load(folder_of(kind, tmp_path))
    ours = Tokenizer.from_gguf(gguf(kind), "tiny.gguf")
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=True)
        assert ids == reference.encode(text, add_special_tokens=True)
        for skip in (True, False):
            assert ours.decode(ids, skip) == reference.decode(ids, skip)
    assert (ours.start_ids, ours.vocab_size) == (reference.start_ids, reference.vocab_size)


def joined_by_score(text, tokens, scores):
    """SentencePiece's byte-pair encoding, step by step."""
    score_of = dict(zip(tokens, scores, strict=True))
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        joint = [
            (score_of[a + b], -n)
            for n, (a, b) in enumerate(itertools.pairwise(symbols))
            if a + b in score_of
        ]
        if not joint:
            break
        at = -max(joint)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    pieces = [
        piece
        for symbol in symbols
        for piece in ([symbol] if symbol in score_of else [f"<0x{b:02X}>" for b in symbol.encode()])
    ]
    return [tokens.index(piece) for piece in pieces]


def test_scores_are_joined_as_sentence_piece_joins_them():
    tokens, types, scores = sentence_piece_pieces()
    ours = Tokenizer.from_gguf(gguf("llama"), "tiny.gguf")
    usable = [n for n, kind in enumerate(types) if kind in (1, 6)]
    plain = [text for text in TEXTS if text and "<" not in text]
    assert len(plain) >= 13
    for text in plain:
        expected = joined_by_score(
            text, [t if n in usable else "" for n, t in enumerate(tokens)], scores
        )
        assert ours.encode(text) == expected


@pytest.mark.parity
def test_merges_from_scores_are_those_of_transformers():
    base = pytest.importorskip("transformers.tokenization_utils_base", reason="the parity extra")
    tokens, types, scores = sentence_piece_pieces()
    learned = [n for n, kind in enumerate(types) if kind in (1, 4)]
    # Some scores are equal.
    scores = [float(int(score) // 4) for score in scores]
    vocabulary = {tokens[n]: n for n in learned}
    expected = base.generate_merges(vocabulary, {tokens[n]: scores[n] for n in learned})
    assert merges_from_scores(tokens, types, scores) == expected
    assert len(expected) > 150


def test_gguf_of_gemma_writes_runs_of_spaces_as_spaces():
    tokens, types, _ = sentence_piece_pieces()
    spaced = [t.replace("▁", " ") if set(t) == {"▁"} and len(t) > 1 else t for t in tokens]
    assert "    " in spaced
    types = [4 if t.isspace() else kind for t, kind in zip(spaced, types, strict=True)]
    metadata = gguf("gemma", tokens=spaced, token_type=types, scores=[0.0] * len(tokens))
    ours = Tokenizer.from_gguf(metadata | {"general.architecture": "gemma2"}, "tiny")
    plain = Tokenizer.from_gguf(gguf("gemma"), "tiny")
    for text in TEXTS:
        assert ours.encode(text) == plain.encode(text)


def pieces(pre, text):
    state = gguf("gpt-2")
    ours = Tokenizer.from_gguf(
        state | {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": []}, "tiny"
    )
    cut = ours._backend.pre_tokenizer.pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cut]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["it", "'s", " 12345", ".", "50", ",", "\n", "\n", "A", "'", "S"]),
        ("smollm", ["it", "'s", " ", *"12345", ".", *"50", ",", "\n", "\n", "A", "'", "S"]),
        ("llama-bpe", ["it", "'s", " ", "123", "45", ".", "50", ",\n\n", "A", "'S"]),
        ("qwen2", ["it", "'s", " ", *"12345", ".", *"50", ",\n\n", "A", "'S"]),
        ("default", ["it", "'", "s", " ", "123", "45", ".", "50", ",", "\n", "\n", "A", "'", "S"]),
    ],
)
def test_how_each_kind_cuts_text(pre, expected):
    assert pieces(pre, "it's 12345.50,\n\nA'S") == expected


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("smaug-bpe", False)])
def test_a_word_that_is_a_token_needs_no_merges_where_the_kind_says_so(pre, whole):
    state = gguf("gpt-2", pre=pre, merges=[])
    ours = Tokenizer.from_gguf(state, "tiny")
    words = [t for t in state["tokenizer.ggml.tokens"] if t.isalpha() and t.isascii() and t[1:]]
    assert len(words) > 20
    for word in words:
        assert len(ours.encode(word)) == (1 if whole else len(word))


def test_whether_a_text_begins_with_the_begin_token():
    def start(kind, **fields):
        ours = Tokenizer.from_gguf(gguf(kind, **fields), "tiny")
        return [ours.decode([i], False) for i in ours.start_ids]

    # Where the file does not say, Llama's kinds do.
    assert start("llama-bpe") == start("llama") == start("gpt-2", add_bos_token=True) == ["<s>"]
    assert start("qwen2") == start("llama", add_bos_token=False) == []
    ends = Tokenizer.from_gguf(gguf("qwen2", add_eos_token=True), "tiny")
    assert ends.final_ids == [ends.eos_id]


def test_a_continuation_gets_no_space_in_front():
    for kind in ("llama", "gemma", "llama-bpe"):
        ours = Tokenizer.from_gguf(gguf(kind), "tiny")
        whole = ours.encode("the question: hello\nworld")
        for text in (" hello\nworld", "hello\nworld"):
            head = ours.encode("the question:")
            together = ours.decode(head + ours.encode_continuation(text))
            assert together == "the question:" + text
        assert ours.encode("the question:") + ours.encode_continuation(" hello\nworld") == whole
    assert ours.encode_continuation("") == []


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("llama", {"scores": None}, "lacks tokenizer.ggml.scores"),
        ("llama", {"scores": [1.0]}, "tokens with 1 scores"),
        ("gpt-2", {"pre": "tekken"}, "text is cut by 'tekken'; supported in GGUF: gpt-2, smollm"),
        ("gpt-2", {"pre": "llama-bpa"}, "did you mean 'llama-bpe'.*Hugging Face folder instead"),
        ("gpt-2", {"model": "t5"}, "a tokenizer of kind 't5'; from GGUF are read gpt2, llama"),
    ],
)
def test_metadata_that_cannot_be_used(kind, fields, message):
    with pytest.raises(DoraError, match=f"^tiny.gguf: .*{message}"):
        Tokenizer.from_gguf(gguf(kind, **fields), "tiny.gguf")
