import gzip
import json
import tracemalloc

import pytest

from dora_jax.data import jsonl
from dora_jax.data.examples import Example
from dora_jax.data.formats import SAMPLE
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


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_read_a_piece_at_a_time(tmp_path, monkeypatch, piece, indent):
    """Whatever the pieces; characters of several bytes, and strings with brackets, across them."""
    monkeypatch.setattr(jsonl, "_PIECE", piece)
    rows = [GOOD | {"input": 'é☃ ]},{[ \\" ', "n": -1.5e3}, {"a": [1, [2], {}]}, 12, "x", None]
    path = tmp_path / "a.json"
    path.write_text(f" \n{json.dumps(rows, indent=indent, ensure_ascii=False)}\n", "utf-8")
    found = list(jsonl.json_rows(path))
    assert found == [(f"{path}, row {n}", row) for n, row in enumerate(rows, 1)]
    path.write_text("[ ]")
    assert list(jsonl.json_rows(path)) == []


def test_of_an_array_a_piece_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_PIECE", 1 << 10)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD] * 40_000))
    rows = jsonl.json_rows(path)
    next(rows)
    tracemalloc.start()
    try:
        assert sum(1 for _ in rows) == 39_999
        assert tracemalloc.get_traced_memory()[1] < 100_000  # of 2 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2, column 8", "Expecting value"),
        ('[{"a": 1}\n\n {"a": 2}]', "line 3, column 2", "Expecting ','"),
        ('[{"a": 1},', "line 1, column 11", "Expecting value"),
        ('[{"a": 1}', "line 1, column 2", "the file ends within the array"),
        ('[{"a": 1', "line 1, column 9", "Expecting ',' delimiter"),
        ("[12", "line 1, column 2", "the file ends within the array"),
        ("[1] 2", "line 1, column 5", "Extra data"),
    ],
)
@pytest.mark.parametrize("piece", [1 << 4, 1 << 20])
def test_where_an_array_is_broken_is_said(tmp_path, monkeypatch, text, place, problem, piece):
    monkeypatch.setattr(jsonl, "_PIECE", piece)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DoraError, match=rf"a\.json, {place}.*: is not JSON \({problem}"):
        list(jsonl.json_rows(path))


@pytest.mark.parametrize("piece", [3, 1 << 20])
def test_the_way_out_of_a_broken_array_suits_its_rows(tmp_path, monkeypatch, piece):
    """LLaVA's rows are of another format than the sample; a file that is cut is fetched anew."""
    monkeypatch.setattr(jsonl, "_PIECE", piece)
    rows = [{"id": n, "conversations": [{"from": "human", "value": "Hm?"}]} for n in range(2)]
    text = json.dumps(rows, indent=1)

    def told(content):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DoraError) as error:
            list(jsonl.json_rows(tmp_path / "a.json"))
        return str(error.value)

    for end in range(2, len(text)):
        message = told(text[:end])
        assert message.endswith("the file is cut short: fetch or write it again"), text[:end]
    assert told(text.replace('"id": 1', '"id": ?')).endswith(
        "mend it there: what stands before it can be read"
    )
    assert told(text.replace('"id": 0', '"id": ?')).endswith(f"a row looks like {SAMPLE}")


def test_an_array_that_is_nested_too_deeply_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    with pytest.raises(DoraError, match=r"a\.json, line 1, column 2: .* nested too deeply"):
        list(jsonl.json_rows(path))
