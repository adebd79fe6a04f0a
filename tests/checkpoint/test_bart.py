"""Hugging Face folders of BART."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from dora_jax.checkpoint.bart import read_bart_folder, write_bart_folder
from dora_jax.errors import DoraError
from dora_jax.models.bart import POSITION_OFFSET
from tests.models.barts import BARTS, SIZES, golden, write_folder

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart") / "folder"
    return folder, write_folder(folder, "bart")


def rewrite(folder, change, config=None):
    """Write the tiny BART with its tensors changed, and settings of its config."""
    tensors = change(write_folder(folder, "bart"))
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    return folder


def test_every_tensor_stands_in_its_place(written):
    folder, tensors = written
    found = read_bart_folder(folder)
    params = found.params
    decoder = params["decoder"]
    for n in range(SIZES["decoder_layers"]):
        layer = f"model.decoder.layers.{n}"
        np.testing.assert_array_equal(
            decoder["layers"]["encoder_attn"]["v_proj"]["kernel"][n],
            tensors[f"{layer}.encoder_attn.v_proj.weight"].T,
        )
        np.testing.assert_array_equal(
            decoder["layers"]["fc1"]["bias"][n], tensors[f"{layer}.fc1.bias"]
        )
        np.testing.assert_array_equal(
            decoder["layers"]["encoder_attn_layer_norm"]["scale"][n],
            tensors[f"{layer}.encoder_attn_layer_norm.weight"],
        )
    np.testing.assert_array_equal(params["shared"]["embedding"], tensors["model.shared.weight"])
    positions = params["encoder"]["embed_positions"]["embedding"]
    np.testing.assert_array_equal(positions, tensors["model.encoder.embed_positions.weight"])
    assert len(positions) == SIZES["max_position_embeddings"] + POSITION_OFFSET
    np.testing.assert_array_equal(
        params["final_logits_bias"]["buffer"], tensors["final_logits_bias"]
    )
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(x.size for x in tensors.values())
    assert found.tokenizer.eos_id == SIZES["eos_token_id"]


@pytest.mark.parametrize("name", BARTS)
def test_what_was_read_is_written_bit_by_bit(name, tmp_path):
    tensors = write_folder(tmp_path / "in", name)
    config, params, tokenizer, _ = read_bart_folder(tmp_path / "in")
    generation = {"num_beams": 4, "no_repeat_ngram_size": 3}
    write_bart_folder(tmp_path / "out", config, params, tokenizer, generation=generation)
    found = safetensors.numpy.load_file(tmp_path / "out" / WEIGHTS)
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(found[key], array)
    again = read_bart_folder(tmp_path / "out")
    assert again.config == config
    assert again.generation == generation
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    for key, value in golden(name)["config"].items():
        assert saved.get(key, value) == value


# How files have spelt what is tied, and left out what is zero.
def _all_names(tensors):
    shared = tensors["model.shared.weight"]
    names = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    return tensors | {f"{name}.weight": shared.copy() for name in names}


def _head_alone(tensors):
    kept = {key: a for key, a in tensors.items() if key != "model.shared.weight"}
    return kept | {"lm_head.weight": tensors["model.shared.weight"]}


def _encoder_alone(tensors):
    kept = {key: a for key, a in tensors.items() if key != "model.shared.weight"}
    return kept | {"model.encoder.embed_tokens.weight": tensors["model.shared.weight"]}


def _bare(tensors):
    versions = {"encoder.version": np.ones(1, np.float32)}
    return versions | {key.removeprefix("model."): a for key, a in tensors.items()}


@pytest.mark.parametrize("spelling", [_all_names, _head_alone, _encoder_alone, _bare])
def test_other_spellings_are_read(written, spelling, tmp_path):
    found = read_bart_folder(rewrite(tmp_path / "old", spelling))
    jax.tree.map(np.testing.assert_array_equal, found.params, read_bart_folder(written[0]).params)


@pytest.mark.parametrize("where", [None, jax.sharding.SingleDeviceSharding(jax.devices()[1])])
def test_a_bare_model_has_no_bias_of_its_logits(written, where, tmp_path):
    def bare(tensors):
        return {key: a for key, a in _bare(tensors).items() if key != "final_logits_bias"}

    found = read_bart_folder(rewrite(tmp_path / "bare", bare), "bfloat16", where).params
    bias = found["final_logits_bias"]["buffer"]
    assert (bias.shape, bias.dtype.name) == ((1, SIZES["vocab_size"]), "bfloat16")
    assert not np.asarray(bias).any()
    if where is not None:
        assert {x.sharding for x in jax.tree.leaves(found)} == {where}


def test_generation_settings_come_from_the_newer_file(written, tmp_path):
    own = {"num_beams": 4, "forced_bos_token_id": 0, "no_repeat_ngram_size": 3}
    folder = rewrite(tmp_path / "old", lambda tensors: tensors, own)
    assert own.items() <= read_bart_folder(folder).generation.items()
    (folder / "generation_config.json").write_text('{"num_beams": 2}')
    assert read_bart_folder(folder).generation == {"num_beams": 2}


def _differing(tensors):
    return tensors | {"lm_head.weight": tensors["model.shared.weight"] + 1}


def _lacking(tensors):
    return {key: a for key, a in tensors.items() if "layers.1.fc2.bias" not in key}


def _renamed(tensors):
    return {
        key.replace("encoder.layers.0.fc1", "encoder.layers.0.up"): a for key, a in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (dict, {"model_type": "mbart"}, "a model of type 'mbart'; supported: 'bart'"),
        (dict, {"activation_function": "relu"}, "activation_function 'relu' is not supported"),
        (dict, {"tie_word_embeddings": False}, "tie_word_embeddings False is not supported"),
        (dict, {"normalize_before": True}, "normalize_before True is not supported"),
        (dict, {"d_model": None}, "lacks d_model"),
        (dict, {"decoder_attention_heads": 5}, r"multiple of decoder_attention_heads \(5\)"),
        (dict, {"encoder_ffn_dim": "wide"}, "config.json: .*Download the folder again"),
        (dict, {"max_position_embeddings": 50}, r"of another shape: .*embed_positions\.weight"),
        (_differing, {}, "lm_head.weight differs from model.shared.weight"),
        (_lacking, {}, r"missing: model\.encoder\.layers\.1\.fc2\.bias, model\.decoder"),
        (_renamed, {}, r"unexpected: model\.encoder\.layers\.0\.up\.bias"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(tmp_path, change, config, message):
    with pytest.raises(DoraError, match=message):
        read_bart_folder(rewrite(tmp_path / "bad", change, config))


def test_pickled_weights_are_refused_with_the_class_that_converts_them(tmp_path):
    write_folder(tmp_path / "old", "bart")
    (tmp_path / "old" / WEIGHTS).rename(tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(DoraError, match="import AutoModelForSeq2SeqLM as M"):
        read_bart_folder(tmp_path / "old")
    with pytest.raises(DoraError, match="no such folder"):
        read_bart_folder(tmp_path / "none")


@pytest.mark.parity
def test_transformers_reads_what_we_wrote(written, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    config, params, tokenizer, _ = read_bart_folder(written[0])
    write_bart_folder(tmp_path / "out", config, params, tokenizer)
    model = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "out")
    for key, tensor in model.state_dict().items():
        name = (
            "model.shared.weight"
            if key.endswith(("embed_tokens.weight", "lm_head.weight"))
            else key
        )
        assert torch.equal(tensor, torch.from_numpy(written[1][name])), key
    assert model.config.forced_eos_token_id is None
