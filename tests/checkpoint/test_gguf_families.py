"""A GGUF file of each family holds the model that its Hugging Face folder holds."""

import dataclasses
import json

import flax.traverse_util
import jax
import numpy as np
import pytest

from dora_jax.checkpoint.gguf import read_gguf
from dora_jax.checkpoint.gguf_config import ARCHITECTURES
from dora_jax.checkpoint.hf import read_hf_folder
from dora_jax.errors import DoraError
from dora_jax.models.rotary import Rotary
from tests.checkpoint.gguf_family import architecture_of, write_family_gguf
from tests.models.families import golden, write_folder

# Llama 3.1's own constants, which files do not hold.
LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "eos_token_id": 2,
}
# What a folder may choose and a file cannot say.
GEMMA = {"query_pre_attn_scalar": 16}
CASES = {
    "llama": ({}, {}),
    "llama-biases": ({}, {}),
    "llama-linear": ({}, {}),
    "llama3": (LLAMA3, {}),
    "llama-yarn": ({}, {}),
    "mistral": ({}, {}),
    "mistral-no-window": ({}, {"model_type": "llama"}),
    "qwen2": ({}, {}),
    "qwen3": ({}, {}),
    "gemma": ({}, {}),
    "gemma2": ({}, GEMMA),
    "gemma3": ({}, GEMMA | {"sliding_rope": Rotary(10000.0)}),
    "phi3": ({}, {}),
    "phi3-long": ({}, {}),
    "smollm3": ({}, {}),
}
every_family = pytest.mark.parametrize("family", list(CASES))


@pytest.fixture
def files(tmp_path):
    """Return a function that writes a folder and a file of a family."""

    def write(family, extra=None, **config):
        weights = write_folder(tmp_path / "folder", family, **config)
        written = json.loads((tmp_path / "folder" / "config.json").read_text())
        write_family_gguf(tmp_path / "m.gguf", written, weights, extra)
        return tmp_path / "folder", tmp_path / "m.gguf"

    return write


@every_family
def test_the_config_is_the_folder_s(files, family):
    given, differs = CASES[family]
    folder, file = files(family, **given)
    expected = read_hf_folder(folder)[0]
    found = read_gguf(file).config
    # Padding is of no use in a model, and files name it seldom.
    differs = {**differs, "pad_token_id": None}
    assert found == dataclasses.replace(expected, **differs)


@every_family
def test_the_weights_are_the_folder_s(files, family):
    folder, file = files(family, **CASES[family][0])
    config, params, _ = read_hf_folder(folder)
    expected = flax.traverse_util.flatten_dict(params, sep="/")
    found = flax.traverse_util.flatten_dict(read_gguf(file).params, sep="/")
    assert set(found) == set(expected)
    for path, value in expected.items():
        if config.unit_offset and path.endswith("scale"):
            value = (value + np.float32(1)) - np.float32(1)  # as it went through the file
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_every_architecture_is_tried():
    found = {architecture_of(golden(family)["config"]) for family in CASES}
    assert found == set(ARCHITECTURES)


def test_a_rotation_with_a_factor_of_its_own_is_kept(files):
    _, file = files("phi3-long", {"rope.scaling.attn_factor": 1.5})
    assert read_gguf(file).config.rope.attention_factor == 1.5


def test_frequencies_that_are_not_llama_3s_are_refused(files):
    _, file = files("llama3", {"rope.freq_base": 400000.0}, **LLAMA3)
    with pytest.raises(DoraError, match=r"rope_freqs\.weight holds frequencies that are not Llama"):
        read_gguf(file)


def test_frequencies_that_change_nothing_are_taken(files):
    rope = {**LLAMA3["rope_parameters"], "rope_theta": 100.0}
    _, file = files("llama3", rope_parameters=rope)
    assert read_gguf(file).config.rope == Rotary(100.0)


def test_longrope_without_its_context_is_refused(files):
    _, file = files("phi3-long", {"rope.scaling.original_context_length": None})
    with pytest.raises(DoraError, match=r"lacks phi3\.rope\.scaling\.original_context_length"):
        read_gguf(file)


@pytest.mark.parametrize(
    ("family", "layers", "hidden", "scalar"),
    [("gemma2", 46, 36, 9), ("gemma3", 62, 44, 11), ("gemma2", 62, 36, 16)],
)
def test_the_largest_gemma_divides_attention_by_another_number(
    tmp_path, family, layers, hidden, scalar
):
    config = {**golden(family)["config"], "num_hidden_layers": layers, "hidden_size": hidden}
    # Nothing but the config is looked at: the tensors do not fit.
    write_family_gguf(tmp_path / "m.gguf", config, {"model.norm.weight": np.ones(3, np.float32)})
    from dora_jax.checkpoint import gguf as module

    reader = module._open(tmp_path / "m.gguf")
    metadata = module._metadata(reader, tmp_path / "m.gguf")
    found = module.read_config(metadata, frozenset(), {}, tmp_path / "m.gguf")
    assert found.query_pre_attn_scalar == scalar


def test_sliding_layers_may_be_listed(files):
    pattern = [True, False, True, True, False, True, False]
    _, file = files("gemma3", {"attention.sliding_window_pattern": pattern})
    found = read_gguf(file).config.layer_types
    assert [kind == "sliding_attention" for kind in found] == pattern


def test_all_that_ends_a_text_is_known(files, tmp_path):
    from tests.checkpoint.tiny_model import hf_weights, write_gguf

    ends = {"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 2}
    write_gguf(tmp_path / "ends.gguf", hf_weights(), metadata=ends)
    assert read_gguf(tmp_path / "ends.gguf").config.eos_token_id == (2, 9)


def test_weights_are_rounded_once_to_the_dtype_asked_for(files):
    _, file = files("smollm3")
    whole = read_gguf(file).params
    half = read_gguf(file, "bfloat16").params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype("bfloat16"), b), whole, half)
