"""What people give by mistake: one message each, of the file, the line, the field, the way out."""

import gzip
import json

import pytest

from dora_jax.data.formats import SAMPLE
from dora_jax.data.splits import read_examples
from dora_jax.errors import DoraError
from dora_jax.evaluation.task import encode_task
from dora_jax.training.config import DataConfig
from tests.checkpoint.tiny_model import tokenizer

ROWS = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in range(40)]
LONG = {"instruction": "why", "output": "because " * 50}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def a_tenth(row):
    """Return the rows with another one in the tenth line."""
    return lines([*ROWS[:9], row, *ROWS[9:]])


# The name and bytes of the file, other fields of the config, and what the error says.
CASES = {
    "empty file": ("a.jsonl", b"", {}, [": holds no rows; give one JSON object a line", SAMPLE]),
    "wrong type": (
        "a.jsonl",
        a_tenth({"instruction": "why", "output": 5}),
        {},
        [", line 10: 'output' must be a text, not empty; got 5"],
    ),
    "long value of a wrong type": (
        "a.jsonl",
        a_tenth({"instruction": "why", "output": ["x" * 5000]}),
        {},
        [", line 10: 'output' must be a text, not empty; got ['xxx", "xxx..."],
    ),
    "unknown format": (
        "a.jsonl",
        a_tenth({"title": "a", "body": None}),
        {},
        [
            ", line 10: is of no known format: its fields are 'title', 'body' (null), and known",
            "instruction and output; messages;",
        ],
    ),
    "mixed formats": (
        "a.jsonl",
        a_tenth({"text": "once upon a time"}),
        {},
        [
            ", line 10: is plain text, and ",
            "a.jsonl, line 1 is Alpaca: a file holds one format; give several files as a folder",
        ],
    ),
    "not UTF-8": (
        "a.jsonl",
        lines(ROWS[:9]) + '{"instruction": "où", "output": "là"}'.encode("latin-1"),
        {},
        [", line 10, byte 19: is not UTF-8 (invalid", "save the file as UTF-8"],
    ),
    "UTF-16": (
        "a.jsonl",
        lines(ROWS).decode().encode("utf-16"),
        {},
        [", line 1, byte 1: is not UTF-8 (invalid start byte); save the file as UTF-8"],
    ),
    "gzip cut short": (
        "a.jsonl.gz",
        gzip.compress(lines(ROWS))[:-20],
        {},
        [", after line ", ": cannot be unpacked (Compressed file ended", "fetch or write it again"],
    ),
    "gzip in name alone": (
        "a.jsonl.gz",
        lines(ROWS),
        {},
        [", after line 0: cannot be unpacked (Not a gzipped file", "fetch or write it again"],
    ),
    "JSON cut short": (
        "a.jsonl",
        lines(ROWS)[:-9],
        {},
        [", line 40, column ", ": is not JSON (Unterminated string", SAMPLE],
    ),
    "answer too long": (
        "a.jsonl",
        a_tenth(LONG),
        {"max_length": 60, "too_long": "error"},
        [", line 10: is ", "more than data.max_length (60): raise --data.max-length", "'why'"],
    ),
    "all too long": (
        "a.jsonl",
        lines(ROWS),
        {"max_length": 5, "validation_rows": 0},
        [
            "a.jsonl, evaluated on eval.jsonl: no rows are left for train (40 longer than "
            "data.max_length (5 tokens)): give more rows, raise --data.max-length",
        ],
    ),
}


def refusal(config):
    with pytest.raises(DoraError) as refused:
        encode_task(read_examples(config), config, tokenizer())
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.fixture
def evaluation(tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_bytes(lines([{"instruction": "other", "output": "answer"}]))
    return path


@pytest.mark.parametrize("name", CASES)
def test_bad_input(tmp_path, evaluation, name):
    file, content, fields, said = CASES[name]
    path = tmp_path / file
    path.write_bytes(content)
    text = refusal(DataConfig(train=path, eval=evaluation, **fields))
    assert str(path) in text or name == "all too long"
    assert [part for part in said if part not in text] == []


def test_parquet_cut_short(tmp_path, evaluation):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-100])
    text = refusal(DataConfig(train=path, eval=evaluation))
    assert f"{path}: cannot be read (" in text
    assert "check the path and the file" in text


def test_a_mixture_without_one_of_its_files(tmp_path, evaluation):
    path, gone = tmp_path / "a.jsonl", tmp_path / "gone.jsonl"
    path.write_bytes(lines(ROWS))
    text = refusal(DataConfig(mix={str(path): 1, str(gone): 2}, eval=evaluation))
    assert (
        text == f"{gone}: cannot be read (No such file or directory); check the path and the file"
    )


def test_a_mixture_with_nothing_left_of_one_of_its_files(tmp_path, evaluation):
    path, long = tmp_path / "a.jsonl", tmp_path / "long.jsonl"
    path.write_bytes(lines(ROWS))
    long.write_bytes(lines([LONG]))
    config = DataConfig(
        mix={str(path): 1, str(long): 2}, eval=evaluation, max_length=60, validation_rows=0
    )
    task = encode_task(read_examples(config), config, tokenizer())
    with pytest.raises(DoraError, match=rf"data\.mix: no row of {long} is left to train on: give"):
        task.describe()


def test_each_file_of_a_folder_may_have_its_own_format(tmp_path, evaluation):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    (folder / "b.jsonl").write_bytes(lines([{"text": f"once {n}"} for n in range(5)]))
    examples = read_examples(DataConfig(train=folder, eval=evaluation, validation_rows=0))
    assert len(examples.splits["train"]) == 45
