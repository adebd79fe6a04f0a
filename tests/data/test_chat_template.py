import datetime
import json
from pathlib import Path

import pytest

from dora_jax.data import chat_template
from dora_jax.data.tokenizer import Tokenizer
from dora_jax.errors import DoraError
from tests.data.chat_templates import (
    CASES,
    ENDS,
    NOW,
    PARTS,
    SYSTEM,
    TEMPLATES,
    TOOLS,
    assistant,
    user,
)
from tests.golden.make_chat_golden import backend, reference, rendered_by_transformers

GOLDEN = Path(__file__).parents[1] / "golden" / "chat_templates.json"


@pytest.fixture(autouse=True)
def frozen_clock(monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    class Module:
        datetime = Clock

    monkeypatch.setattr(chat_template, "datetime", Module)


def tokenizer(name):
    template, bos, eos = TEMPLATES[name]
    config = {"bos_token": bos, "eos_token": eos, "chat_template": template}
    return Tokenizer(backend(), {k: v for k, v in config.items() if v is not None}, name)


def with_template(source):
    return Tokenizer(backend(), {"eos_token": "</s>", "chat_template": source}, "tiny")


def rendered(name):
    texts = {}
    for case, (messages, options) in CASES.items():
        try:
            texts[case] = tokenizer(name).apply_chat_template(messages, **options)
        except DoraError:
            texts[case] = None
    return texts


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_the_reference_ones(name):
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))["texts"][name]
    assert list(expected) == list(CASES)
    assert sum(text is not None for text in expected.values()) >= 10
    assert rendered(name) == expected


@pytest.mark.parity
@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(name):
    pytest.importorskip("transformers", reason="needs the parity extra")
    assert rendered(name) == rendered_by_transformers(name)


@pytest.mark.parity
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(name):
    pytest.importorskip("transformers", reason="needs the parity extra")
    messages = [user("Hi <|end|>"), assistant("ok"), user("1 + 1?")]
    with reference(name) as theirs:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer(name).encode_chat(messages) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_end_with_what_the_template_writes_behind_them(name):
    ours = tokenizer(name)
    ends = ENDS.get(name, (TEMPLATES[name][2],))
    assert [ours.decode([i], skip_special_tokens=False) for i in ours.end_ids] == list(ends)


def test_without_a_template_the_end_token_alone_ends_answers():
    ours = Tokenizer(backend(), {"eos_token": "</s>"}, "tiny")
    assert ours.end_ids == (ours.eos_id,)
    refusing = with_template("{{ raise_exception('no') }}")
    assert refusing.end_ids == (refusing.eos_id,)


def test_a_template_that_does_not_know_tools_ignores_them():
    ours = tokenizer("zephyr")
    assert ours.apply_chat_template([SYSTEM], tools=TOOLS) == ours.apply_chat_template([SYSTEM])
    knows = tokenizer("qwen2.5").apply_chat_template([SYSTEM], tools=TOOLS)
    assert '"name": "weather"' in knows
    with pytest.raises(DoraError, match="a tool must be a JSON schema in a dict"):
        ours.apply_chat_template([SYSTEM], tools=[print])


def test_variables_come_before_special_tokens():
    ours = with_template("{{ eos_token }}{{ mood }}")
    assert ours.apply_chat_template([SYSTEM], mood="!") == "</s>!"
    assert ours.apply_chat_template([SYSTEM], eos_token="E") == "E"


def test_messages_are_not_changed():
    messages = [user("Q"), assistant([dict(part) for part in PARTS], thinking=None)]
    before = json.dumps(messages)
    text = tokenizer("gemma3").apply_chat_template(messages, continue_final_message=True)
    assert text.endswith("Which?This one.")
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "needs at least one message"),
        ([SYSTEM, {"content": "a"}], {}, "chat message 2 lacks role: "),
        ([SYSTEM, "a"], {}, "chat message 2 must have a role and content; got 'a'"),
        ([{"role": "user", "content": None}], {}, "chat message 1 lacks content"),
        (
            [user("a")],
            {"continue_final_message": True, "add_generation_prompt": True},
            "choose one of them",
        ),
        ([user([{"type": "image"}])], {"continue_final_message": True}, "no text to continue"),
    ],
)
def test_conversations_that_cannot_be_written(messages, options, message):
    with pytest.raises(DoraError, match=message):
        tokenizer("gemma3").apply_chat_template(messages, **options)


def test_a_template_that_drops_the_last_message_cannot_continue_it():
    for source in ("nothing", "{{ messages[0]['content'][:2] }}"):
        with pytest.raises(DoraError, match="changes the last message"):
            with_template(source).apply_chat_template([user("abcd")], continue_final_message=True)


def test_no_template_names_the_way_out():
    ours = Tokenizer(backend(), {"eos_token": "</s>"}, "tiny")
    with pytest.raises(DoraError, match=r"tiny: this model has no chat template.*--template plain"):
        ours.apply_chat_template([SYSTEM])


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ messages.__class__ }}{{ messages.__class__.__mro__ }}",
        "{{ ''.format.__globals__ }}{{ messages.pop() }}",
    ],
)
def test_templates_cannot_reach_into_python(source):
    with pytest.raises(DoraError, match="refuses messages"):
        with_template(source).apply_chat_template([user("a")])


# Of models that see: a message is a list of parts, always, or where it is no text.
IN_PARTS = (
    "{% for m in messages %}{{ m.role | upper }}: "
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
EITHER = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ '[picture]' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{% endif %};{% endfor %}"
)
SHOWN = [user("<image>\nWhat is it?"), assistant("A dot."), user("Sure?")]


def test_messages_are_given_in_parts_where_a_template_takes_parts():
    found = with_template(IN_PARTS).apply_chat_template(SHOWN, True)
    assert found == "USER: <image>\nWhat is it? ASSISTANT: A dot. USER: Sure? ASSISTANT:"
    two = [user("Is <image> like <image>?")]
    assert with_template(IN_PARTS).apply_chat_template(two) == (
        "USER: <image>\n<image>\nIs   like  ? "
    )


def test_parts_become_text_where_a_template_takes_texts():
    plain = "{% for m in messages %}{{ 'said: ' + m.content }};{% endfor %}"
    parts = [{"type": "image"}, {"type": "text", "text": "What"}, {"type": "text", "text": "?"}]
    found = with_template(plain).apply_chat_template([user("Hello"), user(parts)])
    assert found == "said: Hello;said: <image>\nWhat?;"
    for parts in ([{"type": "image"}, {"type": "sound"}], [{"type": "text", "text": "a"}]):
        with pytest.raises(DoraError, match="refuses"):  # as transformers
            with_template(plain).apply_chat_template([user(parts)])


def test_text_stays_text_where_a_template_takes_both():
    found = with_template(EITHER).apply_chat_template(SHOWN)
    assert found == "user: [picture]What is it?;assistant: A dot.;user: Sure?;"


def test_a_template_of_texts_gets_the_mark_as_text():
    plain = "{% for m in messages %}{{ m.content }};{% endfor %}"
    assert with_template(plain).apply_chat_template(SHOWN) == ("<image>\nWhat is it?;A dot.;Sure?;")


def test_answers_are_found_in_a_conversation_of_parts():
    found, spans = with_template(IN_PARTS).chat_with_answers(SHOWN)
    assert [found[a:b] for a, b in spans] == [" A dot."]
