"""The examples of docs/vl_data.md."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("h5py", reason="the features extra is not installed")
pytest.importorskip("PIL", reason="the vision extra is not installed")

import h5py

from dora_jax.data.vl import captions, clip_questions, nlvr2, questions, subtitles
from dora_jax.data.vl.batches import TaskData, VLBatching, multitask_batches
from dora_jax.data.vl.encode import encode_rows
from dora_jax.data.vl.feature_cache import MadeBy, cached_features
from dora_jax.data.vl.feature_files import H5Features
from dora_jax.data.vl.tower_features import TowerFeatures
from dora_jax.data.vl.visuals import row_visuals
from dora_jax.evaluation.vl_scores import score_task
from tests.checkpoint.tiny_model import tokenizer
from tests.data.vl import files
from tests.data.vl.tiny import CONFIG, PICTURES, PROCESSOR, TOWER

TEXT = (Path(__file__).parents[3] / "docs" / "vl_data.md").read_text()
BATCHES, CACHE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def h5(path, *names):
    with h5py.File(path, "w") as file:
        for name in names:
            file[f"{name}/features"] = np.ones((9, 3), np.float32)
    return path


def test_its_batches_and_scores(tmp_path, capsys):
    statement = {"identifier": "dev-1-0-0", "sentence": "Both are.", "label": "True"}
    names = {
        "QUESTIONS": files.write(tmp_path / "q.json", files.QUESTIONS),
        "ANNOTATIONS": files.write(tmp_path / "a.json", files.ANNOTATIONS),
        "STATEMENTS": files.write(tmp_path / "dev.jsonl", [statement]),
        "FEATURES": h5(tmp_path / "a.h5", "COCO_val2014_000000000042"),
        "PAIRS": h5(tmp_path / "b.h5", "dev-1-0-img0", "dev-1-0-img1"),
        "tokenizer": tokenizer(),
        "config": CONFIG,
        "read_vqa": questions.read_vqa,
        "read_nlvr2": nlvr2.read_nlvr2,
        **{
            found.__name__: found
            for found in (
                H5Features,
                TaskData,
                VLBatching,
                encode_rows,
                multitask_batches,
                row_visuals,
                score_task,
            )
        },
    }
    exec(BATCHES, names)
    assert names["batch"].tokens.shape[0] == 4
    assert [len(images) for images in names["images"]] == [1, 1]
    assert "{'accuracy': 0.0}" in capsys.readouterr().out


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


def test_it_names_the_readers():
    modules = (captions, clip_questions, nlvr2, questions, subtitles)
    readers = {
        name
        for module in modules
        for name, found in vars(module).items()
        if name.startswith("read_") and found.__module__ == module.__name__
    }
    assert set(re.findall(r"`(read_\w+)`", TEXT)) == readers
