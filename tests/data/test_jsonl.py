import gzip
import json

import pytest

from dora_jax.data.examples import Example
from dora_jax.data.sources import read_source
from dora_jax.errors import DoraError

GOOD = {"instruction": "Say hello.", "output": "hello"}


def read_jsonl(path):
    return read_source(path)[0]


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_rows(tmp_path):
    rows = [
        GOOD,
        "",
        GOOD | {"input": " To whom? ", "task": "greeting", "extra": 3, "answer": 3},
        GOOD | {"input": None},
        GOOD | {"options": ["hello", "bye"]},
    ]
    assert read_jsonl(write(tmp_path / "a.jsonl", *rows)) == [
        Example("Say hello.", "hello"),
        Example("Say hello.\n\nTo whom?", "hello", (), "greeting"),
        Example("Say hello.", "hello"),
        Example("Say hello.", "hello", ("hello", "bye")),
    ]


def test_gzip(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert read_jsonl(path) == [Example("Say hello.", "hello")]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(
        DoraError, match=r"a\.jsonl\.gz, after line 0: cannot be unpacked .* or cut sh"
    ):
        read_jsonl(path)


def commonsense(**changes):
    return {
        "task": "winogrande",
        "instruction": "Choose. Option1: a Option2: b Answer format: option1/option2",
        "output": "the correct answer is option2",
        "answer": "option2",
    } | changes


def test_options_of_the_paper_s_data_follow_from_the_answer_format(tmp_path):
    (example,) = read_jsonl(write(tmp_path / "a.jsonl", commonsense()))
    assert example.options == ("the correct answer is option1", "the correct answer is option2")
    assert example.answer == example.options[1]


@pytest.mark.parametrize(
    "changes", [{"answer": "option3"}, {"answer": ""}, {"output": "no"}, {"instruction": "Choose."}]
)
def test_no_options_where_they_do_not_fit(tmp_path, changes):
    (example,) = read_jsonl(write(tmp_path / "a.jsonl", commonsense(**changes)))
    assert example.options == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"instruction": "x", "outp', r"line 2, column \d+: is not JSON"),
        ("[1, 2]", "line 2: must be a JSON object"),
        ({"instruction": "x"}, r"line 2: has no field 'output' \(its fields: 'instruction'\)"),
        ({"instruction": 3, "output": "x"}, "line 2: 'instruction' must be a text, not empty"),
        ({"instruction": "x", "output": "  "}, "line 2: 'output' must be a text, not empty"),
        (GOOD | {"input": 3}, "line 2: 'input' must be a text; got 3"),
        ('{"instruction": "\\ud800", "output": "x"}', "line 2: holds half a character"),
        ('{"output": "x", "instruction": ' + "[" * 100_000, "line 2: is n"),
        (GOOD | {"options": "hello"}, "line 2: 'options' must be a list of texts"),
        (GOOD | {"options": ["bye", "ciao"]}, "line 2: 'options' must be at least two, with the"),
        (GOOD | {"options": ["hello"]}, "line 2: 'options' must be at least two, with the"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(DoraError, match=rf"a\.jsonl, {message}"):
        read_jsonl(write(tmp_path / "a.jsonl", GOOD, row))


def test_a_byte_order_mark_and_many_slashes_do_no_harm(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    path.write_text("\ufeff" + path.read_text())
    assert read_jsonl(path) == [Example("Say hello.", "hello")]
    slashes = commonsense(instruction="Answer format: " + "/" * 60 + " x")
    assert read_jsonl(write(path, slashes))[0].options == ()


def test_bad_files(tmp_path):
    with pytest.raises(DoraError, match=r"none\.jsonl: cannot be read \(No such file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DoraError, match=r"a\.jsonl: holds no rows"):
        read_jsonl(write(tmp_path / "a.jsonl", "", " "))
    (tmp_path / "b.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\nab\xff\xfe\n")
    with pytest.raises(
        DoraError, match=r"b\.jsonl, line 2, byte 3: is not UTF-8 .*save the file as"
    ):
        read_jsonl(tmp_path / "b.jsonl")
