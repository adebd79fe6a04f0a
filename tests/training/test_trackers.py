import math

import pytest

from dora_jax.errors import DoraError
from dora_jax.training.trackers import Trackers

ROWS = [
    {"step": 1, "loss": 2.5, "grad_norm": 0.5, "mfu": None},
    {"step": 2, "loss": None, "grad_norm": math.inf, "skipped": True},
    {"step": 3, "loss": 1.5, "grad_norm": 0.25, "rows": [4, 5]},
]


def tensorboard_points(folder):
    """Return (step, value) of each series, in the order they were written."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 - the format below is its

    series = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            # Length (8 bytes), its checksum (4), the event, its checksum (4).
            size = int.from_bytes(content[place : place + 8], "little")
            event = Event.FromString(content[place + 12 : place + 12 + size])
            place += 16 + size
            for value in event.summary.value:
                series.setdefault(value.tag, []).append((event.step, value.simple_value))
    return series


def test_tensorboard_has_every_finite_number(tmp_path):
    with Trackers(("tensorboard",), tmp_path, {}, 0) as trackers:
        for row in ROWS:
            trackers.log(row)
    series = tensorboard_points(tmp_path)
    assert series["loss"] == [(1, 2.5), (3, 1.5)]
    assert series["grad_norm"] == [(1, 0.5), (3, 0.25)]
    assert set(series) == {"loss", "grad_norm", "skipped"}


def test_wandb_keeps_a_run_offline_and_goes_on_with_it(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **given: ids.append(given["id"]) or start(**given))
    for rows in (ROWS[:1], ROWS[1:]):
        with Trackers(("wandb",), tmp_path, {"rank": 4}, rows[0]["step"] - 1) as trackers:
            for row in rows:
                trackers.log(row)
    assert ids[0] == ids[1]
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(list(folder.glob("run-*.wandb")) for folder in folders)


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_what_is_not_installed_is_said(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(DoraError, match=rf"{module}: pip install 'dora-jax\[tracking\]', or leave"):
        Trackers((name,), tmp_path, {}, 0)


def test_without_trackers_nothing_is_written(tmp_path):
    with Trackers((), tmp_path, {}, 0) as trackers:
        trackers.log(ROWS[0])
    assert not list(tmp_path.iterdir())
