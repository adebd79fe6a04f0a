"""The rows and the example that docs/data.md shows."""

import json
import re
from pathlib import Path

from dora_jax import cli
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


def test_its_command_and_its_options_parse():
    (command,) = re.findall(r"```bash\n(.*?)\n```", TEXT, re.DOTALL)
    (mix,) = re.findall(r"`(--data\.mix .*?)`, in place", TEXT)
    _, method, *arguments = command.split()
    config = cli._parse_experiment(method, arguments)
    assert (config.data.packing, config.data.train) == ("pack", Path("train.jsonl.gz"))
    rest = ["experiments/quickstart.py", "--data.eval", "eval.jsonl", *mix.split()]
    assert cli._parse_experiment("train", rest).data.mix == (("a.jsonl", 3.0), ("b.jsonl", 1.0))
    options = set(re.findall(r"`--(data\.[\w-]+)", TEXT))
    names = {f"data.{name.replace('_', '-')}" for name in vars(config.data)}
    assert options <= names


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
