"""The loader's benchmark on the toy shape: its figures agree with one another."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import loader
from tests.checkpoint.tiny_adapter import write_base


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_best_fit_leaves_the_least_room(sizes):
    room = []
    for size in sizes:
        fits = [n for n, left in enumerate(room) if left >= size]
        if fits:
            room[min(fits, key=lambda n: room[n])] -= size
        else:
            room.append(20 - size)
    assert loader.best_fit(np.array(sizes), 20) == len(room)


@pytest.mark.slow
def test_its_figures(tmp_path, monkeypatch, capsys):
    rows = [{"prompt": "what " * (1 + n % 7), "completion": f"{n}"} for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    fields = {"data": path, "tokenizer": write_base(tmp_path / "base"), "model": "toy"}
    fields |= {"prompt": "none", "batch": 2, "max-length": 64, "steps": 3, "rounds": 1, "rank": 2}
    argv = [f"--{name}={value}" for name, value in fields.items()]
    monkeypatch.setattr(sys, "argv", ["loader.py", *argv])
    loader.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["left_out"]) == (60, {})
    shares = found["efficiency"]["max_length 64"]
    assert 0 < shares["none"] < min(shares["pack"], shares["bucket"], *shares["pack by"].values())
    assert found["steps"]["none"]["speed_up"] == 1
    for row in found["steps"].values():
        assert 0 < row["filled"] <= 1
        for ahead, wait_s in row["wait_s"].items():
            share = row["loader_share"][ahead]
            assert share == pytest.approx(wait_s / (wait_s + row["step_time_s"]))
            assert 0 < share < 1
    shapes = {way: row["shapes"] for way, row in found["steps"].items()}
    assert shapes["none"] == shapes["pack"] == 1
