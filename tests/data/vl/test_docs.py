"""The examples of docs/vl_data.md."""

import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from dora_jax.data.formats import read_row
from dora_jax.data.vl.__main__ import main
from dora_jax.data.vl.feature_cache import MadeBy, cached_features
from dora_jax.data.vl.tower_features import TowerFeatures
from tests.data.vl import files
from tests.data.vl.tiny import PICTURES, PROCESSOR, TOWER

TEXT = (Path(__file__).parents[3] / "docs" / "vl_data.md").read_text()
(COMMANDS,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
(ROW,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
(CACHE,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_its_first_command_writes_rows(tmp_path, monkeypatch):
    files.write(tmp_path / "questions.json", files.QUESTIONS)
    files.write(tmp_path / "annotations.json", files.ANNOTATIONS)
    (tmp_path / "train").mkdir()
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(COMMANDS.splitlines()[0].removeprefix("python -m "))
    assert program == "dora_jax.data.vl"
    main(arguments)
    lines = (tmp_path / "train" / "vqa.jsonl").read_text().splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"vqa"}


def test_its_row_is_read():
    example = read_row(json.loads(ROW), "")
    assert (example.metric, example.answer, len(example.targets)) == ("vqa", "dog", 2)


def test_its_cache(tmp_path):
    names = {
        "CACHE": tmp_path,
        "tower": TOWER,
        "params": jax.jit(TOWER.init)(jax.random.key(0), np.zeros((1, 8, 8, 3)))["params"],
        "processor": PROCESSOR,
        "names": ["0", "1"],
        "picture": lambda name: PICTURES[int(name)],
        "TowerFeatures": TowerFeatures,
        "MadeBy": MadeBy,
        "cached_features": cached_features,
    }
    exec(CACHE, names)
    assert names["cached"].get("1").features.shape == (4, 8)
