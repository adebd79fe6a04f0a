from dataclasses import replace

import pytest

from dora_jax.data.encode import digest_rows, encode_all
from dora_jax.data.examples import Example
from dora_jax.data.prompts import TEMPLATES, get_template
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from tests.checkpoint.tiny_model import gguf_metadata, tokenizer

HELLO = Example("hello?", "wor", ("wor", "hello hello"), "greeting")


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_answer_are_the_rendered_text(name):
    tiny, template = tokenizer(), get_template(name)
    ids = template.encode_prompt(HELLO.prompt, tiny) + template.encode_answer(HELLO.answer, tiny)
    assert tiny.decode(ids, skip_special_tokens=False) == template.render(HELLO, tiny)


def test_texts_of_the_templates():
    tiny = tokenizer()
    assert get_template("plain").render(HELLO, tiny) == "Question: hello?\nAnswer: wor"
    assert get_template("chat").render(HELLO, tiny) == "<s>user: hello?</s>\n<s>assistant: wor"
    assert get_template("alpaca").render(HELLO, tiny) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nhello?\n\n### Response:\nwor"
    )


def test_the_begin_token_comes_once():
    tiny = tokenizer()
    assert tiny.start_ids == []
    tiny.start_ids = [tiny.bos_id]
    for name, starts in (("plain", 1), ("chat", 2)):  # the chat template writes one a turn
        ids = get_template(name).encode_prompt("hello?", tiny)
        assert ids[0] == tiny.bos_id
        assert ids.count(tiny.bos_id) == starts


def test_a_chat_template_alone_decides_how_a_conversation_begins():
    metadata = gguf_metadata() | {"tokenizer.chat_template": "{{ messages[0].content }}"}
    tiny = Tokenizer.from_gguf(metadata, "tiny")
    tiny.start_ids = [tiny.bos_id]
    assert get_template("chat").encode_prompt("hello", tiny) == tiny.encode("hello")
    assert get_template("plain").encode_prompt("hello", tiny)[0] == tiny.bos_id


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(DoraError, match=r"'alpacca' \(did you mean 'alpaca'\?\); there are plain,"):
        get_template("alpacca")


def test_rows():
    tiny, template = tokenizer(), get_template("plain")
    found = encode_all([HELLO], template, tiny, 100)
    (row,) = found.rows
    assert (found.left_out, found.cut) == ({}, {})
    assert tiny.decode(row.prompt) == "Question: hello?\nAnswer:"
    assert [tiny.decode(o) for o in row.options] == [" wor", " hello hello"]
    assert (row.correct, row.answer, row.text) == (0, row.options[0], "wor")
    assert (row.option_texts, row.task) == (HELLO.options, "greeting")
    (other,) = encode_all([replace(HELLO, answer="hello hello")], template, tiny, 100).rows
    assert (other.correct, other.answer) == (1, row.options[1])


def test_what_does_not_fit_is_left_out_and_counted():
    tiny, template = tokenizer(), get_template("plain")
    (row,) = encode_all([HELLO], template, tiny, 100).rows
    # The longest option and the end token count.
    fits = len(row.prompt) + len(row.options[1]) + 1
    assert encode_all([HELLO], template, tiny, fits).rows == [row]
    longer = Example("hello? " * 5, "wor")
    found = encode_all([HELLO, longer, HELLO], template, tiny, fits)
    reason = f"longer than data.max_length ({fits} tokens)"
    assert (found.rows, found.left_out) == ([row, row], {reason: 1})
    assert encode_all([HELLO], template, tiny, fits - 1).rows == []


def test_an_answer_that_is_no_option_is_refused():
    with pytest.raises(ValueError, match="answer 'x' is not one of the options"):
        Example("p", "x", ("a", "b"))


def test_the_digest_depends_on_rows_and_order():
    tiny, template = tokenizer(), get_template("plain")
    rows = encode_all([HELLO, Example("a", "b")], template, tiny, 100).rows
    assert digest_rows(rows) == digest_rows(list(rows))
    assert len({digest_rows(rows), digest_rows(rows[::-1]), digest_rows(rows[:1])}) == 3
    # What changes training counts too; where a row was read from does not.
    changes = {"earlier": ((0, 1),), "is_cut": True, "source": 1}
    changed = [digest_rows([replace(rows[0], **{k: v}), rows[1]]) for k, v in changes.items()]
    assert len({digest_rows(rows), *changed}) == 4
    assert digest_rows([replace(row, where="elsewhere") for row in rows]) == digest_rows(rows)
