"""The miniatures' tower: labels lie where the pixels are, it learns, and it can be interrupted."""

import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")
pytest.importorskip("PIL", reason="the scenes extra is not installed")

import jax
import jax.numpy as jnp

from dora_jax.checkpoint.llava import read_processor
from dora_jax.checkpoint.vision import read_vision_folder
from dora_jax.data.images import as_image
from dora_jax.data.scenes.families import FAMILY_A, FAMILY_B
from dora_jax.data.scenes.palette import COLOURS
from dora_jax.data.scenes.sample import sample_scene
from dora_jax.data.scenes.scene import DIGIT, Group, Object, Scene
from dora_jax.errors import DoraError
from dora_jax.models.vision_config import VisionConfig
from dora_jax.models.vit import VisionTower
from experiments.llava import probe, tower

CONFIG = VisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    image_size=64,
    patch_size=16,
    hidden_act="gelu",
)
SIDE = 4


def test_labels_lie_where_the_pixels_are():
    pictures, labels = tower.pictures_of("train", 60, SIDE)
    checked = 0
    for picture, kind, colour, place in zip(
        pictures, labels.kind, labels.colour, labels.place, strict=True
    ):
        for patch in np.flatnonzero(kind):
            if tower.KINDS[kind[patch]] in ("ring", DIGIT):  # nothing is painted in the middle
                continue
            row, column = divmod(int(patch), SIDE)
            x, y = ((np.array([column, row]) + 0.5 + place[patch]) * 16).astype(int)
            there = picture[y, x].astype(int)
            name = FAMILY_A.colours[colour[patch]]
            assert abs(there - COLOURS[name]).max() < 30, (name, there)
            checked += 1
    assert checked > 60


def test_each_object_has_a_patch_and_the_larger_one_wins():
    small = Object("circle", "red", "small", "filled", 0.1, 0.9)
    large = Object("cross", "blue", "large", "filled", 0.2, 0.8)
    digit = Object(DIGIT, "green", "small", "written", 0.99, 0.05, digit=0, instance=0)
    scene = Scene((large, small, digit), "black", 64, Group("all"))
    (kind,), (colour,), (size,), (digits,), (place,) = tower.labels_of([scene], SIDE)
    assert {int(p): tower.KINDS[kind[p]] for p in np.flatnonzero(kind)} == {12: "cross", 3: DIGIT}
    assert [FAMILY_A.colours[colour[p]] for p in (12, 3)] == ["blue", "green"]
    assert list(size[[12, 3]]) == [1, 0]
    assert list(digits[[12, 3]]) == [-1, 0]
    np.testing.assert_allclose(place[[12, 3]], [[0.3, -0.3], [0.46, -0.3]], atol=1e-6)


def test_losses_are_those_of_the_patches_that_they_are_about():
    scenes = [sample_scene(FAMILY_A, "train", index) for index in range(3)]
    labels = tower.labels_of(scenes, SIDE)
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(3, 64, 64, 3)).astype(np.float32)
    model = tower.Labeller(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0), pictures)["params"]
    said = {
        k: np.asarray(v, np.float64) for k, v in model.apply({"params": params}, pictures).items()
    }
    found = tower.losses(said, pictures, labels, 16)
    wanted = {name: [] for name in ("kind", "colour", "size", "digit", "place", "pixels")}
    for row in range(3):
        for patch in range(16):
            for name in ("kind", "colour", "size", "digit"):
                logits, label = said[name][row, patch], getattr(labels, name)[row, patch]
                if label >= 0:
                    wanted[name].append(np.log(np.exp(logits).sum()) - logits[label])
            if labels.kind[row, patch]:
                away = said["place"][row, patch] - labels.place[row, patch]
                wanted["place"].append((away**2).sum())
            top, left = patch // 4 * 16, patch % 4 * 16
            own = pictures[row, top : top + 16, left : left + 16].ravel()
            wanted["pixels"].append(((said["pixels"][row, patch] - own) ** 2).mean())
    for name, values in wanted.items():
        assert float(found[name]) == pytest.approx(np.mean(values), rel=1e-4), name


def test_each_epoch_sees_every_scene_once():
    rows = np.concatenate([tower.batch_rows(step, 96) for step in range(3)])
    assert sorted(rows[:96]) == sorted(rows[96:]) == list(range(96))
    assert list(rows[:96]) != list(rows[96:])


def test_an_interrupted_training_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(tower, "_EVERY", 2)
    monkeypatch.setattr(tower, "TESTED", 64)
    tower.train_tower(CONFIG, 80, 5, tmp_path / "whole-run", tmp_path / "whole")
    true_rows = tower.batch_rows

    def interrupt(step, scenes):
        if step == 3:
            raise KeyboardInterrupt
        return true_rows(step, scenes)

    monkeypatch.setattr(tower, "batch_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tower.train_tower(CONFIG, 80, 5, tmp_path / "run", tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
    asked = []
    monkeypatch.setattr(tower, "batch_rows", lambda *a: asked.append(a[0]) or true_rows(*a))
    tower.train_tower(CONFIG, 80, 5, tmp_path / "run", tmp_path / "parts")
    assert asked == [2, 3, 4]
    (_, whole), (_, parts) = (read_vision_folder(tmp_path / n) for n in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    with pytest.raises(DoraError, match="not a checkpoint of this run"):
        tower.train_tower(CONFIG, 80, 6, tmp_path / "run", tmp_path / "other")


@pytest.mark.slow
def test_it_learns_to_see(tmp_path):
    tower.train_tower(CONFIG, 1000, 200, tmp_path / "run", tmp_path / "out")
    sees = json.loads((tmp_path / "out" / "sees.json").read_text())
    assert sees["colour"] > 0.5  # a quarter by chance
    assert sees["nothing"] > 0.9
    config, params = read_vision_folder(tmp_path / "out")
    assert config == CONFIG
    # What the labels were learnt from is what the written processor makes of the same picture.
    (picture,), _ = tower.pictures_of("test", 1, SIDE)
    made = read_processor(tmp_path / "out", config)([as_image(picture)])
    np.testing.assert_allclose(made[0], picture / 127.5 - 1, atol=1e-6)
    seen = VisionTower(config).apply({"params": params}, jnp.asarray(made), (tower.LAYER,))
    assert np.isfinite(seen.layers[0]).all()


def test_a_probe_tells_what_features_hold_and_nothing_else(monkeypatch):
    monkeypatch.setattr(probe, "STEPS", 200)
    rng = np.random.default_rng(0)
    label, other = rng.integers(0, 3, (2, 900))
    features = rng.normal(size=(900, 8)).astype(np.float32)
    features[:, :3] += 6 * np.eye(3, dtype=np.float32)[label]

    def told(of):
        return probe.linear((features[:600], of[:600]), (features[600:], of[600:]), 3)

    assert told(label) > 0.95
    assert 0.2 < told(other) < 0.5


def test_a_probe_s_labels_are_those_of_the_family():
    star = Object("star", "pink", "small", "striped", 0.1, 0.9)
    digit = Object(DIGIT, "red", "large", "written", 0.9, 0.1, digit=4, instance=0)
    found = probe.labels_of([Scene((star, digit), "white", 64, Group("all"))], 2, FAMILY_B)
    names = probe.names_of(FAMILY_B)
    told = {
        name: [names[name][n] if n >= 0 else None for n in label] for name, label in found.items()
    }
    assert told == {
        "kind": [None, DIGIT, "star", None],
        "colour": [None, "red", "pink", None],
        "size": [None, "large", "small", None],
        "style": [None, None, "striped", None],
        "digit": [None, 4, None, None],
    }
