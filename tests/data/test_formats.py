import pytest

from dora_jax.data.examples import Example, Turn
from dora_jax.data.formats import NO_ANSWER, NO_IMAGE, NO_TEXT, LeftOut, read_row
from dora_jax.errors import DoraError

USER = {"role": "user", "content": "hello?"}
SAID = {"role": "assistant", "content": "hello"}
MORE = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
TWO_TURNS = (Turn("user", "hello?"), Turn("assistant", "hello", trains=True), Turn("user", "who?"))


def sharegpt(*turns):
    return [{"from": name, "value": text} for name, text in turns]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": " a ", "input": "b", "output": "c"}, Example("a\n\nb", "c")),
        (
            {"instruction": "a", "output": "c", "system": "Be kind.", "text": "all of it"},
            Example("a", "c", turns=(Turn("system", "Be kind."), Turn("user", "a"))),
        ),
        ({"messages": [USER, SAID]}, Example("hello?", "hello")),
        ({"messages": [USER, SAID, *MORE], "prompt": "x"}, Example("who?", "me", turns=TWO_TURNS)),
        # What stands behind the last answer is nothing to learn.
        ({"messages": [USER, SAID, USER]}, Example("hello?", "hello")),
        (
            {"messages": [USER, SAID | {"weight": 0}, *MORE]},
            Example(
                "who?",
                "me",
                turns=(TWO_TURNS[0], Turn("assistant", "hello", trains=False), TWO_TURNS[2]),
            ),
        ),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "hello?"}]}, SAID]},
            Example("hello?", "hello"),
        ),
        (
            {"conversations": sharegpt(("human", "hello?"), ("gpt", "hello"))},
            Example("hello?", "hello"),
        ),
        (
            {"system": "Be.", "conversations": sharegpt(("human", "hello?"), ("gpt", "hello"))},
            Example("hello?", "hello", turns=(Turn("system", "Be."), Turn("user", "hello?"))),
        ),
        ({"conversations": [USER, SAID]}, Example("hello?", "hello")),
        ({"prompt": "a ", "completion": " b"}, Example("a ", " b")),
        ({"prompt": [USER], "completion": [SAID]}, Example("hello?", "hello")),
        # The answers in a prompt were given, not asked for.
        (
            {"prompt": [USER, SAID, MORE[0]], "completion": [MORE[1]]},
            Example(
                "who?",
                "me",
                turns=(TWO_TURNS[0], Turn("assistant", "hello", trains=False), TWO_TURNS[2]),
            ),
        ),
        ({"question": "a", "answer": "b", "task": "maths"}, Example("a", "b", task="maths")),
        ({"query": "a", "response": "b", "type": "x"}, Example("a", "b")),
        ({"problem": "a", "solution": "b"}, Example("a", "b")),
        ({"text": "once upon a time"}, Example("", "once upon a time", is_text=True)),
    ],
)
def test_formats_are_told_by_their_fields(row, expected):
    assert read_row(row, "a") == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"title": "a", "body": "b"},
            "a.jsonl, line 3: is of no known format: its fields are 'title', 'body', and known are "
            "instruction and output; messages; conversations; prompt and completion",
        ),
        ({}, "its fields are none"),
        ({"output": "x"}, r"has no field 'instruction' \(its fields: 'output'\)"),
        (
            {"prompt": "a", "completion": "b", "response": "c"},
            "may mean prompt and completion or prompt and response: rename",
        ),
        ({"messages": []}, "'messages' must be a list of messages; got"),
        ({"messages": ["hello"]}, "line 3, message 1: must be an object; got 'hello'"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2: 'content' must be a text"),
        ({"messages": [{"content": "a"}]}, "message 1: has no field 'role'"),
        ({"question": "a", "answer": True}, "'answer' must be a text, not empty; got True"),
        ({"text": " "}, "'text' must be a text, not empty"),
        ({"instruction": "a", "output": "b", "system": 3}, "'system' must be a text; got 3"),
        ("hello", "must be a JSON object such as .*; got 'hello'"),
    ],
)
def test_other_rows_are_refused_by_file_and_line(row, message):
    with pytest.raises(DoraError, match=message):
        read_row(row, "a.jsonl, line 3")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER]}, NO_ANSWER),
        ({"messages": [SAID]}, NO_ANSWER),
        ({"messages": [USER, SAID | {"weight": 0}]}, NO_ANSWER),
        ({"messages": [USER, SAID | {"content": "  "}]}, NO_ANSWER),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, NO_TEXT),
        ({"messages": [USER | {"content": [{"type": "image"}]}, SAID]}, NO_IMAGE),
        ({"conversations": sharegpt(("human", "a"), ("function_call", "f"))}, NO_TEXT),
        ({"conversations": sharegpt(("human", "a"), ("narrator", "f"))}, "by 'narrator'"),
    ],
)
def test_sound_rows_with_nothing_to_learn_are_left_out_for_a_reason(row, reason):
    with pytest.raises(LeftOut, match=reason.replace("(", r"\(").replace(")", r"\)")):
        read_row(row, "a")


def test_what_is_asked_tells_examples_apart():
    plain = Example("who?", "me")
    assert plain.asked == Example("who?", "you").asked
    assert plain.asked != Example("who?", "me", turns=TWO_TURNS).asked
    texts = [Example("", text, is_text=True).asked for text in ("a", "b")]
    assert texts[0] != texts[1]
