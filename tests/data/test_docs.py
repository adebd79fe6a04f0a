"""The rows and the example that docs/data.md shows."""

import json
import re
from pathlib import Path

from dora_jax.data.formats import read_row, row_format
from tests.checkpoint.tiny_model import tokenizer

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_its_rows_are_of_the_formats_that_it_names():
    parts = re.findall(r"\*\*([A-Z][\w ]+)\*\*[^*]*?```json\n(.*?)\n```", TEXT, re.DOTALL)
    formats = {name: row_format(json.loads(row), name) for name, row in parts}
    assert formats == {
        "Alpaca": "Alpaca",
        "Chat messages": "chat messages",
        "ShareGPT": "ShareGPT",
        "Prompt and completion": "prompt/completion",
        "Plain text": "plain text",
    }
    assert all(read_row(json.loads(row), name).answer for name, row in parts)


def test_its_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    rows = [json.dumps({"prompt": f"{n}?", "completion": f"{n}"}) for n in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows[2:]))
    (tmp_path / "eval.jsonl").write_text("\n".join(rows[:2]))
    monkeypatch.chdir(tmp_path)
    names = {"tokenizer": tokenizer()}
    exec(code, names)
    assert names["batch"].tokens.shape[0] == 4
    assert "train.jsonl, line " in capsys.readouterr().out
