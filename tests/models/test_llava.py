"""LLaVA against what `transformers` made of the same weights."""

import functools
import json
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import init_adapters, merge_params
from dora_jax.checkpoint.llava import read_llava_folder, write_llava_folder
from dora_jax.data.images import ImageProcessor
from dora_jax.errors import DoraError
from dora_jax.models.llava import SHARDING, Llava, LlavaConfig
from dora_jax.partition import trainable_mask
from dora_jax.spec import AdapterRules, AdapterSpec
from tests.models.llavas import (
    IMAGE,
    IMAGE_TOKENS,
    IMAGES,
    LLAVAS,
    OF_ROWS,
    PATCHES,
    SEEN,
    SELECTIONS,
    TOKENS,
    golden,
    tokens,
    write_folder,
)

every_model = pytest.mark.parametrize("name", LLAVAS | SELECTIONS)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return a function of a model's name: what its folder holds."""

    @functools.cache
    def read(name):
        folder = tmp_path_factory.mktemp(name) / "folder"
        write_folder(folder, name)
        return read_llava_folder(folder)

    return read


@functools.lru_cache
def program(config, adapters=None):
    return jax.jit(Llava(config, adapters).apply)


@every_model
def test_logits_are_those_of_transformers(read, name):
    config, params, *_ = read(name)
    assert config.image_tokens == IMAGE_TOKENS[name]
    found = program(config)({"params": params}, tokens(config.image_tokens), images=IMAGES)
    np.testing.assert_allclose(found[:, list(SEEN)], golden(name)["logits"], atol=1e-4)


def test_what_rows_are_filled_up_with_does_not_matter(read):
    config, params, *_ = read("llava-1.5")
    changed = IMAGES.copy()
    for row, count in enumerate(OF_ROWS):
        changed[row, count:] = 7.0
    first, second = (
        program(config)({"params": params}, TOKENS, images=i) for i in (IMAGES, changed)
    )
    np.testing.assert_array_equal(first, second)


def test_each_image_stands_at_its_own_place(read):
    config, params, *_ = read("llava-1.5")
    exchanged = IMAGES[:, ::-1]
    first, second = (
        program(config)({"params": params}, TOKENS, images=i) for i in (IMAGES, exchanged)
    )
    assert np.abs(first[0, :2] - second[0, :2]).max() < 1e-5  # before the first image
    assert np.abs(first[0, 5] - second[0, 5]).max() > 1e-3
    np.testing.assert_allclose(first[2], second[2], atol=1e-5)  # text alone


def test_text_alone_needs_no_images(read):
    config, params, *_ = read("llava-1.5")
    alone = program(config)({"params": params}, TOKENS[2:])
    with_others = program(config)({"params": params}, TOKENS, images=IMAGES)
    np.testing.assert_allclose(alone[0], with_others[2], atol=1e-5)


def test_packed_examples_do_not_see_each_other(read):
    """Rows 0 and 1, one behind the other; the images of both, in order."""
    config, params, *_ = read("llava-1.5")
    length = TOKENS.shape[1]
    packed = TOKENS[:2].reshape(1, -1)
    images = np.concatenate([IMAGES[0], IMAGES[1, :1]])[None]
    positions = np.tile(np.arange(length), 2)[None]
    segments = np.repeat([1, 2], length)[None]
    found = Llava(config).apply({"params": params}, packed, positions, segments, images)
    apart = program(config)({"params": params}, TOKENS, images=IMAGES)
    np.testing.assert_allclose(found[0, :length], apart[0], atol=2e-5)
    np.testing.assert_allclose(found[0, length:], apart[1], atol=2e-5)


@every_model
def test_what_was_read_is_written_bit_by_bit(read, name, tmp_path):
    config, params, tokenizer, _ = read(name)
    processor = ImageProcessor(size=14, crop=(14, 14))
    write_llava_folder(tmp_path / "out", config, params, tokenizer, processor=processor)
    again = read_llava_folder(tmp_path / "out")
    assert again.config == config
    assert again.processor == processor
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    expected = golden(name)["config"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    for field in ("architectures", "model_type", "vision_feature_layer", "image_token_index"):
        assert written[field] == expected[field]
    assert written["image_seq_length"] == config.image_tokens
    whole = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    # As transformers' processor counts an image's tokens.
    is_default = whole["vision_feature_select_strategy"] == "default"
    counted = PATCHES + whole["num_additional_image_tokens"] - is_default
    assert counted == config.image_tokens


OLD = {
    "nested tower": lambda key: key.replace("vision_tower.", "vision_tower.vision_model."),
    "of the model": lambda key: (
        "lm_head.weight"
        if "lm_head" in key
        else "model." + key.replace("language_model.model.", "language_model.")
    ),
}


@pytest.mark.parametrize("spelling", OLD)
def test_other_spellings_are_read(read, tmp_path, spelling):
    write_folder(tmp_path / "old", "llava-1.5", OLD[spelling])
    found = read_llava_folder(tmp_path / "old")
    jax.tree.map(np.testing.assert_array_equal, found.params, read("llava-1.5").params)


RULES = AdapterRules(
    [
        (r"language_model/.*/(q|v)_proj", AdapterSpec("dora", rank=2, alpha=4)),
        (r"multi_modal_projector/linear_\d", AdapterSpec("full")),
        (r"vision_tower/.*/fc1", AdapterSpec("magnitude")),
    ]
)


def test_rules_choose_what_of_each_part_is_tuned(read):
    config, params, *_ = read("llava-1.5")
    model = Llava(config, RULES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, images=IMAGES)["params"]
    adapted = init_adapters(params, shapes, RULES, jax.random.key(1))
    plain = program(config)({"params": params}, TOKENS, images=IMAGES)
    fresh = program(config, RULES)({"params": adapted}, TOKENS, images=IMAGES)
    np.testing.assert_allclose(fresh, plain, atol=2e-5)
    mask = flax.traverse_util.flatten_dict(trainable_mask(adapted, RULES), sep="/")
    trained = {path for path, trains in mask.items() if trains}
    assert trained == {
        *(
            f"language_model/layers/self_attn/{m}_proj/{leaf}"
            for m in "qv"
            for leaf in ("lora_a", "lora_b", "magnitude")
        ),
        *(
            f"multi_modal_projector/linear_{n}/{leaf}"
            for n in (1, 2)
            for leaf in ("kernel", "bias")
        ),
        "vision_tower/layers/mlp/fc1/magnitude",
    }

    def moved(path, leaf):
        return leaf * 1.1 + 0.02 if "/".join(k.key for k in path) in trained else leaf

    changed = jax.tree_util.tree_map_with_path(moved, adapted)
    tuned = program(config, RULES)({"params": changed}, TOKENS, images=IMAGES)
    assert jnp.abs(tuned - plain).max() > 1e-2
    merged = program(config)({"params": merge_params(changed, RULES)}, TOKENS, images=IMAGES)
    np.testing.assert_allclose(merged, tuned, atol=5e-5)


def test_every_sharding_rule_matches_weights_of_a_llava(read):
    paths = {
        path
        for name in ("llava-1.5", "siglip-qwen")
        for path in flax.traverse_util.flatten_dict(read(name).params, sep="/")
    }
    for pattern, _ in SHARDING:
        assert any(re.fullmatch(pattern, path) for path in paths), pattern


def test_gradients_reach_every_part_that_is_tuned(read):
    config, params, *_ = read("llava-1.5")
    model = Llava(config, RULES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, images=IMAGES)["params"]
    adapted = init_adapters(params, shapes, RULES, jax.random.key(1))
    grads = jax.grad(lambda p: model.apply({"params": p}, TOKENS, images=IMAGES).std())(adapted)
    flat = flax.traverse_util.flatten_dict(grads, sep="/")
    for path in ("multi_modal_projector/linear_1/kernel", "vision_tower/layers/mlp/fc1/magnitude"):
        assert jnp.abs(flat[path]).max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_id": 10**6}, "must be a token of the language model"),
        ({"feature_layers": (9,)}, r"vision_feature_layer must be from -4 to 3"),
        ({"feature_layers": ()}, "vision_feature_layer must be"),
        ({"projector_act": "relu"}, "projector_hidden_act must be 'gelu'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(read, changes, message):
    config = read("llava-1.5").config
    fields = {name: getattr(config, name) for name in LlavaConfig.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        LlavaConfig(**fields | changes)
    assert config.image_tokens == PATCHES
    assert config.image_token_id == IMAGE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "blip"}, r"a model of type 'blip'; supported: 'llava'"),
        ({"vision_feature_select_strategy": "half"}, "must be one of default, full; got 'half'"),
        ({"text_config": {"model_type": "gpt2"}}, "model_type 'gpt2'; supported"),
        ({"text_config": "llama"}, "text_config must be an object; got 'llama'"),
        (
            {"vision_feature_select_strategy": ["full"]},
            r"must be one of default, full; got \['full",
        ),
        ({"vision_config": {"model_type": "dino"}}, "a vision tower of model_type 'dino'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act must be 'gelu'"),
        ({"vision_config": None}, "vision_config must be an object; got None"),
        ({"vision_feature_layer": 1.5}, "vision_feature_layer must be a whole number; got 1.5"),
        ({"vision_feature_layer": [-2, "1"]}, "vision_feature_layer must be .*; got '1'"),
        ({"image_token_index": True}, "image_token_index must be a whole number; got True"),
        ({"image_token_index": "5"}, "image_token_index must be a whole number; got '5'"),
        ({"multimodal_projector_bias": "no"}, "multimodal_projector_bias must be true or false"),
    ],
)
def test_a_config_that_cannot_be_is_named(tmp_path, changes, message):
    write_folder(tmp_path / "bad", "llava-1.5")
    file = tmp_path / "bad" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DoraError, match=message):
        read_llava_folder(tmp_path / "bad")
