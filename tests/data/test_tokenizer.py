import json
from pathlib import Path

import pytest
import tokenizers

from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from tests.checkpoint.smollm2 import smollm2
from tests.checkpoint.tiny_model import TEMPLATE, TOKENS, gguf_metadata, tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer_smollm2.json"
HELLO = [{"role": "user", "content": "hello"}]


def changed(**fields):
    """Metadata with fields of `tokenizer.ggml.` replaced, or left out when None."""
    metadata = gguf_metadata() | {f"tokenizer.ggml.{k}": v for k, v in fields.items()}
    return {name: value for name, value in metadata.items() if value is not None}


def with_template(template):
    metadata = gguf_metadata() | {"tokenizer.chat_template": template}
    return Tokenizer.from_gguf(metadata, "tiny.gguf")


@pytest.fixture
def folder(tmp_path):
    tokenizer().save(tmp_path)
    return tmp_path


def edit(path, **fields):
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.model
def test_ids_are_the_reference_ones():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    real = smollm2().tokenizer
    rows = golden["texts"]
    assert len(rows) > 40
    assert [real.encode(row["text"]) for row in rows] == [row["ids"] for row in rows]
    assert real.encode_batch([row["text"] for row in rows]) == [row["ids"] for row in rows]
    for row in rows:
        assert real.decode(row["ids"], skip_special_tokens=False) == row["text"]
    special = {"bos": real.bos_id, "eos": real.eos_id, "pad": real.pad_id}
    assert special == {k: v for k, v in golden["special"].items() if k != "unk"}
    assert real.vocab_size == golden["vocab_size"]


@pytest.mark.model
def test_chats_are_the_reference_ones():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    real = smollm2().tokenizer
    for chat in golden["chats"]:
        text = real.apply_chat_template(chat["messages"], chat["add_generation_prompt"])
        assert text == chat["text"]
        assert real.encode(text) == chat["ids"]


@pytest.mark.model
@pytest.mark.parity
def test_transformers_reads_the_real_tokenizer_back(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    smollm2().tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for row in golden["texts"]:
        assert theirs(row["text"], add_special_tokens=False)["input_ids"] == row["ids"]
        assert theirs(row["text"])["input_ids"] == row["ids"]  # nor is anything added
    for chat in golden["chats"]:
        text = theirs.apply_chat_template(
            chat["messages"], add_generation_prompt=chat["add_generation_prompt"], tokenize=False
        )
        assert text == chat["text"]


def test_merges_bytes_and_special_tokens():
    tiny = tokenizer()
    ids = [TOKENS.index(token) for token in ("hello", "Ġwor", "l", "d")]
    assert tiny.encode("hello world") == ids
    assert tiny.decode(ids) == "hello world"
    # Special tokens are one id each, wherever they stand, and only there.
    assert tiny.encode("<s>hello</s>") == [1, TOKENS.index("hello"), 2]
    assert 1 not in tiny.encode("<s >")
    assert tiny.decode([1, TOKENS.index("hello"), 2]) == "hello"
    assert tiny.decode([1, TOKENS.index("hello"), 2], skip_special_tokens=False) == "<s>hello</s>"
    assert tiny.encode("") == []
    assert tiny.decode(tiny.encode("é 日本 🙂\n\t")) == "é 日本 🙂\n\t"
    assert (tiny.bos_id, tiny.eos_id, tiny.vocab_size) == (1, 2, len(TOKENS))


def test_digits_are_cut_off_before_spaces_are_joined():
    merges = [*gguf_metadata()["tokenizer.ggml.merges"], "Ġ Ġ", "1 2", "Ġ 1"]
    tokens = [*TOKENS, "ĠĠ", "12", "Ġ1"]
    types = [3] * 3 + [1] * (len(tokens) - 3)
    names = {}
    for cut in ("smollm", "gpt-2"):
        fields = changed(pre=cut, merges=merges, tokens=tokens, token_type=types)
        tiny = Tokenizer.from_gguf(fields, "tiny")
        names[cut] = [tokens[i] for i in tiny.encode("  12 1")]
    assert names["smollm"] == ["ĠĠ", "1", "2", "Ġ", "1"]
    assert names["gpt-2"] == ["Ġ", "Ġ", "12", "Ġ1"]


def test_user_defined_tokens_are_recognised_but_not_skipped():
    types = gguf_metadata()["tokenizer.ggml.token_type"]
    fields = changed(tokens=[*TOKENS, "<tool>"], token_type=[*types, 4])
    tiny = Tokenizer.from_gguf(fields, "tiny")
    assert tiny.encode("hello<tool>") == [TOKENS.index("hello"), len(TOKENS)]
    assert tiny.decode([len(TOKENS), 2]) == "<tool>"


def test_pad_is_the_end_token_unless_there_is_one():
    assert tokenizer().pad_id == 2
    assert Tokenizer.from_gguf(changed(padding_token_id=0), "tiny").pad_id == 0


def test_a_model_may_have_no_bos_token():
    assert Tokenizer.from_gguf(changed(bos_token_id=None), "tiny").bos_id is None


def test_chat_template_trims_blocks():
    tiny = tokenizer()
    assert tiny.chat_template == TEMPLATE
    assert tiny.apply_chat_template(HELLO) == "<s>user: hello</s>\n"
    indented = with_template("a\n  {% if true %}\nb\n  {% endif %}\nc")
    assert indented.apply_chat_template(HELLO) == "a\nb\nc"
    assert tiny.apply_chat_template(HELLO, True) == "<s>user: hello</s>\n<s>assistant: "


def test_chat_template_has_what_hugging_face_gives_it():
    tiny = with_template(
        "{{ bos_token }}{{ eos_token }}{{ messages | tojson }}{{ strftime_now('%Y') | length }}"
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% break %}{% endfor %}"
    )
    text = tiny.apply_chat_template([{"role": "user", "content": "<é>"}] * 2)
    one = '{"role": "user", "content": "<é>"}'
    assert text == f"<s></s>[{one}, {one}]4<é>"


def test_chat_template_cannot_reach_out_of_its_sandbox():
    tiny = with_template("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DoraError, match="unsafe"):
        tiny.apply_chat_template(HELLO)
    tiny = with_template("{{ messages.append(1) }}")
    with pytest.raises(DoraError, match="unsafe"):
        tiny.apply_chat_template(HELLO)


def test_a_template_that_refuses_says_so():
    tiny = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DoraError, match=r"these roles: user \(roles must alternate\)"):
        tiny.apply_chat_template(HELLO)


def test_messages_without_a_field_are_refused():
    with pytest.raises(DoraError, match="chat message 2 lacks role and content"):
        tokenizer().apply_chat_template([*HELLO, {"text": "x"}])


def test_a_broken_template_names_its_line():
    with pytest.raises(DoraError, match=r"tiny\.gguf: .*chat template is broken, line 2"):
        with_template("a\n{% for %}")


def test_no_template():
    with pytest.raises(DoraError, match="tiny: this model has no chat template"):
        Tokenizer.from_gguf(
            {k: v for k, v in gguf_metadata().items() if k != "tokenizer.chat_template"}, "tiny"
        ).apply_chat_template(HELLO)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "bert"}, "kind 'bert'; from GGUF are read gpt2, llama"),
        ({"merges": None}, "lacks tokenizer.ggml.merges"),
        ({"tokens": None, "model": None}, "lacks tokenizer.ggml.model, tokenizer.ggml.tokens"),
        ({"pre": "smolm"}, "did you mean 'smollm'"),
        ({"pre": "tekken"}, "supported in GGUF: gpt-2, smollm, llama-bpe"),
        ({"merges": ["h e", "broken"]}, "broken merges"),
        ({"merges": ["q z"]}, "broken merges"),
        ({"token_type": [1, 2]}, f"{len(TOKENS)} tokens, .* with 2 types"),
        ({"tokens": [*TOKENS[:-1], "<s>"]}, f"{len(TOKENS)} tokens, {len(TOKENS) - 1} of them"),
        ({"eos_token_id": None}, "names no eos_token"),
        ({"eos_token_id": 10**6}, "eos_token_id 1000000 is outside"),
        ({"bos_token_id": len(TOKENS)}, "bos_token_id .* is outside"),
    ],
)
def test_gguf_metadata_that_cannot_be_used(fields, message):
    with pytest.raises(DoraError, match=f"^tiny.gguf: .*{message}"):
        Tokenizer.from_gguf(changed(**fields), "tiny.gguf")


def test_save_and_load(folder):
    ours, loaded = tokenizer(), Tokenizer.load(folder)
    text = "<s>hello  12 wor\n\n3é</s>"
    assert loaded.encode(text) == ours.encode(text)
    assert loaded.decode(ours.encode(text)) == ours.decode(ours.encode(text))
    assert loaded.apply_chat_template(HELLO, True) == ours.apply_chat_template(HELLO, True)
    for name in ("bos_id", "eos_id", "pad_id", "vocab_size", "chat_template"):
        assert getattr(loaded, name) == getattr(ours, name)
    again = folder / "again"
    loaded.save(again)
    for path in folder.glob("*.json"):
        assert json.loads((again / path.name).read_text()) == json.loads(path.read_text())


def test_load_reads_every_spelling_of_hugging_face(folder):
    config = folder / "tokenizer_config.json"
    edit(config, eos_token={"content": "<s>", "special": True}, bos_token=None)
    edit(folder / "special_tokens_map.json", eos_token="</s>", bos_token="<unk>")
    loaded = Tokenizer.load(folder)
    # The config wins; what it leaves out comes from the map.
    assert (loaded.eos_id, loaded.bos_id) == (1, 0)
    edit(config, chat_template=[{"name": "tools", "template": "T"}])
    assert Tokenizer.load(folder).chat_template is None
    edit(
        config,
        chat_template=[{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}],
    )
    assert Tokenizer.load(folder).apply_chat_template(HELLO) == "D"
    assert Tokenizer.load(folder).apply_chat_template(HELLO, tools=[{"name": "f"}]) == "T"
    (folder / "chat_template.jinja").write_text("J")
    assert Tokenizer.load(folder).apply_chat_template(HELLO) == "J"


def test_encode_adds_and_cuts_nothing_whatever_the_file_says(folder):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    backend.enable_truncation(1)
    backend.enable_padding(length=9, pad_id=0, pad_token="<unk>")
    backend.save(str(folder / "tokenizer.json"))
    loaded = Tokenizer.load(folder)
    assert loaded.encode("hello wor") == tokenizer().encode("hello wor")
    assert loaded.encode_batch(["hello wor", ""]) == [tokenizer().encode("hello wor"), []]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json: not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: cannot be read"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"eos_token": "<x>"}', "eos_token '<x>' is not in the vocab"),
    ],
)
def test_folders_that_cannot_be_used(folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(DoraError, match=message):
        Tokenizer.load(folder)


@pytest.mark.parity
def test_transformers_reads_what_we_save(folder):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = tokenizer()
    text = "<s>hello  12 wor\n\n3é</s>"
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    rendered = theirs.apply_chat_template(HELLO, add_generation_prompt=True, tokenize=False)
    assert rendered == ours.apply_chat_template(HELLO, True)
