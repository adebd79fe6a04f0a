import builtins
import gzip
import json
import sys
import types

import pytest

from dora_jax.data.examples import Example
from dora_jax.data.sources import read_source
from dora_jax.errors import DoraError

ROWS = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(5)]
EXAMPLES = [Example(f"question {n}", f"answer {n}") for n in range(5)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_in_every_dress(tmp_path):
    texts = {
        "lines.jsonl": jsonl(ROWS),
        "lines.json": jsonl(ROWS),
        "array.json": json.dumps(ROWS),
        "indented.json": "\n" + json.dumps(ROWS, indent=2),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        assert read_source(tmp_path / name) == (EXAMPLES, {})
        assert read_source(str(tmp_path / f"{name}.gz")) == (EXAMPLES, {})
        unit = "line" if "lines" in name else "row"
        places = [example.where for example in read_source(tmp_path / name)[0]]
        assert places == [f"{tmp_path / name}, {unit} {n}" for n in range(1, 6)]


def test_folders_and_patterns_are_read_by_name(tmp_path):
    (tmp_path / "b.jsonl").write_text(jsonl(ROWS[3:]))
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:3]))
    (tmp_path / "notes.txt").write_text("not rows")
    assert read_source(tmp_path)[0] == EXAMPLES
    assert read_source(tmp_path / "*.js*")[0] == EXAMPLES
    assert read_source(tmp_path / "b*")[0] == EXAMPLES[3:]
    with pytest.raises(DoraError, match=r"c\*: no file matches"):
        read_source(tmp_path / "c*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DoraError, match=r"empty: this folder holds no \.jsonl, "):
        read_source(tmp_path / "empty")


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    (tmp_path / "a[1].jsonl").write_text(jsonl(ROWS))
    assert read_source(tmp_path / "a[1].jsonl")[0] == EXAMPLES


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [*ROWS, {"messages": messages}]
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    assert read_source(path)[0] == EXAMPLES
    chats = pyarrow.Table.from_pylist(rows[-1:])
    parquet.write_table(chats, tmp_path / "b.parquet")
    assert read_source(tmp_path / "b.parquet")[0] == [Example("hi", "hello")]
    # A table has every field in every row.
    nulls = {"messages": None, "instruction": None, "text": None, "input": None, "options": None}
    asked = [nulls | row for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(asked), tmp_path / "b.parquet")
    assert read_source(tmp_path / "b.parquet")[0] == EXAMPLES
    parquet.write_table(pyarrow.Table.from_pylist([{"x": 1}]), path)
    with pytest.raises(DoraError, match=r"a\.parquet, row 1: is of no known format"):
        read_source(path)
    path.write_bytes(b"PAR1, not quite")
    with pytest.raises(DoraError, match=r"a\.parquet: cannot be read"):
        read_source(path)


def test_what_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": rows, "train": rows.select([1])}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "three")
    assert read_source(tmp_path / "one")[0] == EXAMPLES
    assert read_source(tmp_path / "two")[0] == EXAMPLES[1:2]
    assert read_source(tmp_path / "two" / "test")[0] == EXAMPLES
    with pytest.raises(DoraError, match=r"three: holds the splits test; name one of them"):
        read_source(tmp_path / "three")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hub:owner/rows", ("owner/rows", None, "train")),
        ("hub:owner/rows:test", ("owner/rows", None, "test")),
        ("hub:owner/rows:main:test", ("owner/rows", "main", "test")),
    ],
)
def test_the_hub(monkeypatch, name, asked):
    def load_dataset(repository, subset, split):
        assert (repository, subset, split) == asked
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_source(name)[0] == EXAMPLES


def test_the_hub_s_refusals_are_named(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DoraError, match=r"hub:a/b: cannot be loaded \(no network\); check"):
        read_source("hub:a/b")
    with pytest.raises(DoraError, match="hub:a/b:c:d:e: give hub:OWNER/NAME"):
        read_source("hub:a/b:c:d:e")


def test_missing_extras_say_how_to_get_them(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] in ("datasets", "pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    for source in ("hub:a/b", tmp_path / "a.parquet"):
        with pytest.raises(DoraError, match=r"pip install 'dora-jax\[data\]'"):
            read_source(source)


def test_rows_left_out_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    unanswered = {"messages": [{"role": "user", "content": "hello?"}]}
    answered = {"messages": [*unanswered["messages"], {"role": "assistant", "content": "hello"}]}
    path.write_text(jsonl([unanswered, answered, unanswered]))
    expected = [Example("hello?", "hello")]
    assert read_source(path) == (expected, {"without an answer to train on": 2})
    path.write_text(jsonl([unanswered]))
    with pytest.raises(DoraError, match=r"holds no rows; 1 rows without an answer to train on"):
        read_source(path)


def test_a_bad_row_of_an_array_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*ROWS, {"x": 1}]))
    with pytest.raises(DoraError, match=r"a\.json, row 6: is of no known format"):
        read_source(path)
    path.write_text("[\n" + json.dumps(ROWS[0]) + ",\n oops]")
    with pytest.raises(DoraError, match=r"a\.json, line 3, column 2: is not JSON"):
        read_source(path)
