"""Vision towers against what `transformers` made of the same weights."""

import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import column_norms, init_adapters, merge_params
from dora_jax.checkpoint.vision import read_vision_folder, write_vision_folder
from dora_jax.errors import DoraError
from dora_jax.models.vision_config import VisionConfig
from dora_jax.models.vit import SHARDING, VisionTower
from dora_jax.partition import trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from tests.models.towers import IMAGES, LAYERS, SEEN, TOWERS, golden, write_folder

every_tower = pytest.mark.parametrize("tower", TOWERS)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return a function of a tower's name: (config, parameters)."""
    found = {}

    def read(tower):
        if tower not in found:
            folder = tmp_path_factory.mktemp(tower) / "folder"
            write_folder(folder, tower)
            found[tower] = read_vision_folder(folder)
        return found[tower]

    return read


@every_tower
def test_features_are_those_of_transformers(read, tower):
    config, params = read(tower)
    found = VisionTower(config).apply({"params": params}, IMAGES, LAYERS)
    expected = golden(tower)
    for layer, values in zip(found.layers, expected["layers"], strict=True):
        np.testing.assert_allclose(layer[:, list(SEEN)], values, atol=1e-4)
    if expected["pooled"] is None:
        assert found.pooled is None
    else:
        np.testing.assert_allclose(found.pooled, expected["pooled"], atol=1e-4)


def test_nothing_is_pooled_that_is_not_asked_for(read):
    config, params = read("clip")
    found = VisionTower(config).apply({"params": params}, IMAGES, (-2,), pool=False)
    assert found.pooled is None
    assert found.layers[0].shape == (len(IMAGES), config.positions, config.hidden_size)


@every_tower
def test_a_tower_has_the_parameters_that_its_files_hold(read, tower):
    config, params = read(tower)
    shapes = jax.eval_shape(VisionTower(config).init, jax.random.key(0), IMAGES)["params"]
    # A last norm that nothing is made of is in the files all the same.
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)


@every_tower
def test_what_was_read_is_written_bit_by_bit(read, tower, tmp_path):
    config, params = read(tower)
    write_vision_folder(tmp_path / "out", config, params)
    again_config, again = read_vision_folder(tmp_path / "out")
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again, params)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = golden(tower)["config"]
    for name in ("architectures", "model_type", "hidden_size", "patch_size", "hidden_act"):
        assert written[name] == expected[name]


@pytest.mark.parametrize("prefix", ["vision_model."])
def test_older_names_are_read(read, tmp_path, prefix):
    write_folder(tmp_path / "old", "clip", prefix)
    config, params = read_vision_folder(tmp_path / "old")
    assert config == read("clip")[0]
    jax.tree.map(np.testing.assert_array_equal, params, read("clip")[1])


def test_of_a_whole_clip_the_text_half_is_left_out(read, tmp_path):
    import safetensors.numpy

    tensors = write_folder(tmp_path / "clip", "clip", "vision_model.")
    named = {f"vision_model.{name}": array for name, array in tensors.items()}
    text = {"text_model.final_layer_norm.weight": np.ones(8, np.float32)}
    extra = {"logit_scale": np.array(1, np.float32), "visual_projection.weight": np.eye(3)}
    ids = {"vision_model.embeddings.position_ids": np.arange(17)[None]}
    safetensors.numpy.save_file(
        {**named, **text, **extra, **ids}, tmp_path / "clip" / "model.safetensors"
    )
    raw = golden("clip")["config"]
    raw.pop("model_type")
    whole = {"model_type": "clip", "vision_config": raw}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(whole))
    config, params = read_vision_folder(tmp_path / "clip")
    assert config == read("clip")[0]
    jax.tree.map(np.testing.assert_array_equal, params, read("clip")[1])


def test_rules_choose_what_of_a_tower_is_tuned(read):
    config, params = read("siglip")
    rules = AdapterRules(
        [
            (r"(q|v)_proj", AdapterSpec("dora", rank=2, alpha=4)),
            ("patch_embedding", AdapterSpec("lora", rank=2)),
            ("in_proj", AdapterSpec("magnitude")),
            ("fc1", AdapterSpec("full")),
        ]
    )
    model = VisionTower(config, rules)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    adapted = init_adapters(params, shapes, rules, jax.random.key(1))
    plain = VisionTower(config).apply({"params": params}, IMAGES)
    tuned = model.apply({"params": adapted}, IMAGES)
    np.testing.assert_allclose(tuned.pooled, plain.pooled, atol=1e-5)
    mask = flax.traverse_util.flatten_dict(trainable_mask(adapted, rules), sep="/")
    trained = {path for path, trains in mask.items() if trains}
    assert "layers/self_attn/q_proj/magnitude" in trained
    assert "embeddings/patch_embedding/lora_a" in trained
    assert "head/attention/in_proj/magnitude" in trained
    assert {"layers/mlp/fc1/kernel", "head/mlp/fc1/kernel"} <= trained
    assert not any("k_proj" in path or "position" in path for path in trained)

    def moved(path, leaf):
        return leaf + 0.05 if trained & {"/".join(k.key for k in path)} else leaf

    changed = jax.tree_util.tree_map_with_path(moved, adapted)
    found = model.apply({"params": changed}, IMAGES).pooled
    assert jnp.abs(found - plain.pooled).max() > 1e-3
    merged = VisionTower(config).apply({"params": merge_params(changed, rules)}, IMAGES).pooled
    np.testing.assert_allclose(merged, found, atol=1e-5)


def test_a_tower_takes_the_norms_that_it_is_given(read):
    """Computed once a step: each layer's are its own."""
    config, params = read("clip")
    rules = AdapterRules([("fc1", AdapterSpec("dora", rank=2, alpha=4))])
    model = VisionTower(config, rules)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    adapted = init_adapters(params, shapes, rules, jax.random.key(1))
    norms = column_norms(adapted, rules)
    own, given, doubled = (
        model.apply({"params": adapted, **more}, IMAGES).pooled
        for more in ({}, {"norms": norms}, {"norms": jax.tree.map(lambda x: 2 * x, norms)})
    )
    np.testing.assert_allclose(given, own, atol=1e-5)
    assert jnp.abs(doubled - own).max() > 1e-3


def test_every_sharding_rule_matches_weights_of_a_tower(read):
    import re

    paths = flax.traverse_util.flatten_dict(read("siglip")[1], sep="/")
    for pattern, _ in SHARDING:
        assert any(re.fullmatch(pattern, path) for path in paths), pattern


@pytest.mark.parametrize(
    ("images", "layers", "message"),
    [
        (IMAGES[:, :8], (-1,), r"images must be \(batch, \*\(14, 14, 3\)\); got \(2, 8, 14, 3\)"),
        (IMAGES, (4,), r"layers must be from -4 to 3; got \(4,\)"),
    ],
)
def test_what_a_tower_cannot_look_at_is_refused(read, images, layers, message):
    config, params = read("clip")
    with pytest.raises(ValueError, match=message):
        VisionTower(config).apply({"params": params}, images, layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dinov2"}, r"model_type 'dinov2'; supported: clip_vision_model, siglip"),
        ({"hidden_act": "relu"}, r"hidden_act must be one of .*; got 'relu'"),
        ({"num_attention_heads": 5}, r"must be a multiple of num_attention_heads \(5\)"),
        ({"patch_size": 99}, r"patch_size \(99\) must not be more than image_size"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1 is not supported"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"image_size": "14"}, "image_size must be a whole number; got '14'"),
        ({"patch_size": 4.5}, "patch_size must be a whole number; got 4.5"),
        ({"num_channels": True}, "num_channels must be a whole number; got True"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps must be a number; got 'x'"),
        ({"model_type": ["clip"]}, r"model_type \['clip'\]; supported"),
        ({"vision_config": None}, "vision_config must be an object; got None"),
        ({"patch_size": 7}, r"of another shape: .*embeddings\.patch_embedding\.weight"),
    ],
)
def test_a_config_that_cannot_be_is_named(tmp_path, changes, message):
    write_folder(tmp_path / "bad", "clip")
    file = tmp_path / "bad" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DoraError, match=message):
        read_vision_folder(tmp_path / "bad")


def test_tensors_that_are_missing_are_named_as_they_are_written_now(tmp_path):
    import safetensors.numpy

    tensors = write_folder(tmp_path / "part", "clip")
    del tensors["embeddings.patch_embedding.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "part" / "model.safetensors")
    with pytest.raises(DoraError, match=r"missing: embeddings\.patch_embedding\.weight"):
        read_vision_folder(tmp_path / "part")


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(DoraError, match="no such folder"):
        read_vision_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DoraError, match=r"not a Hugging Face folder: it has no config\.json"):
        read_vision_folder(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("[]")
    with pytest.raises(DoraError, match="must hold a JSON object"):
        read_vision_folder(tmp_path / "empty")
    assert VisionConfig().patches == 49
    assert VisionConfig().positions == 50
