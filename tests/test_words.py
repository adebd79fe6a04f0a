"""The LLaVA miniature's projector begins with the words for what lies in a patch."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the scenes extra is not installed")
pytest.importorskip("PIL", reason="the scenes extra is not installed")

import jax
import jax.numpy as jnp

from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.checkpoint.llava import read_llava_folder
from dora_jax.checkpoint.llava_parts import join_parts
from dora_jax.checkpoint.vision import write_vision_folder
from dora_jax.data.scenes.scene import DIGIT, Group, Object, Scene
from dora_jax.models.llava import Projector
from dora_jax.models.vit import VisionTower
from experiments.llava import tower, words
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer
from tests.test_tower import CONFIG as VISION


def test_words_say_what_lies_where():
    circle = Object("circle", "red", "small", "filled", 0.1, 0.1)
    digit = Object(DIGIT, "green", "large", "written", 0.9, 0.1, digit=7, instance=0)
    scene = Scene((circle, digit), "black", 64, Group("all"))
    found = words.words_of(tower.labels_of([scene, scene], 2))
    one = [[" small", " red", " circle"], [" large", " green", " 7"], [" empty"], [" empty"]]
    assert found == one + one


def test_a_patch_is_the_mean_of_its_words():
    class Letters:
        def encode(self, text):
            return [ord(letter) - ord("a") for letter in text.strip()]

    embedding = np.arange(52, dtype=np.float32).reshape(26, 2) ** 2
    found = words.embedded([["ab", "c"], ["d"]], Letters(), embedding)
    first = ((embedding[0] + embedding[1]) / 2 + embedding[2]) / 2
    np.testing.assert_allclose(found, [first, embedding[3]])


def test_the_written_projector_gives_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(words, "SCENES", 50)
    monkeypatch.setattr(words, "STEPS", 600)
    monkeypatch.setattr(words, "RATE", 1e-2)
    language = tmp_path / "language"
    write_hf_folder(language, CONFIG, our_params(hf_weights()), tokenizer())
    params = VisionTower(VISION).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    write_vision_folder(tmp_path / "tower", VISION, params)
    words.write_word_projector(tmp_path / "tower", str(language), tmp_path / "own.safetensors")
    (said,) = capsys.readouterr().out.splitlines()
    share = float(said.removeprefix("projector: ").split("%")[0])
    assert share > 30  # of the variance; a fresh projector knows nothing of it
    join_parts(
        tmp_path / "tower",
        str(language),
        tmp_path / "joined",
        projector=tmp_path / "own.safetensors",
        pad=False,
    )
    joined = read_llava_folder(tmp_path / "joined")
    pictures, labels = tower.pictures_of("train", 50, 4)
    seen = VisionTower(VISION).apply({"params": params}, tower.inputs(pictures), (tower.LAYER,))
    projector = Projector(joined.config, {"dtype": jnp.float32, "param_dtype": jnp.float32})
    own = joined.params["multi_modal_projector"]
    given = np.asarray(projector.apply({"params": own}, seen.layers[0][:, 1:]))
    embedding = np.asarray(joined.params["language_model"]["embed_tokens"]["embedding"])
    wanted = words.embedded(words.words_of(labels), joined.tokenizer, embedding)
    error = ((given.reshape(wanted.shape) - wanted) ** 2).mean() / wanted.var()
    assert 1 - error == pytest.approx(share / 100, abs=0.15)  # one batch's, and all patches'
