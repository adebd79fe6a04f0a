import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy

from dora_jax.checkpoint import files
from dora_jax.checkpoint import folder as folders
from dora_jax.checkpoint.hf import (
    missing_files,
    read_generation_config,
    read_hf_folder,
    write_hf_folder,
)
from dora_jax.errors import DoraError
from dora_jax.models.rotary import Rotary
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer


def assert_same(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


def config_json(**changes):
    """A config.json as transformers 4 writes it, by hand; None leaves a field out."""
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": CONFIG.vocab_size,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 2e-5,
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    fields = {name: v for name, v in (fields | changes).items() if v is not None}
    return json.dumps(fields)


@pytest.fixture
def folder(tmp_path):
    """A folder made without the writer under test."""
    path = tmp_path / "model"
    path.mkdir()
    tokenizer().save(path)
    safetensors.numpy.save_file(hf_weights(), path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(config_json())
    return path


def rewrite(folder, **changes):
    """Replace tensors by name (dots spelled __), or leave them out when None."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    weights = {n: v for n, v in (hf_weights() | changes).items() if v is not None}
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_read(folder):
    config, params, loaded = read_hf_folder(folder)
    assert config == CONFIG
    assert_same(params, our_params(hf_weights()))
    assert loaded.encode("hello wor 12") == tokenizer().encode("hello wor 12")
    assert missing_files(folder) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip_is_bit_identical(tmp_path, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), our_params(hf_weights()))
    write_hf_folder(tmp_path / "out", CONFIG, params, tokenizer(), dtype)
    config, again, _ = read_hf_folder(tmp_path / "out", dtype)
    assert config == CONFIG
    assert_same(again, params)
    # Versions 4 and 5 of transformers look for it in different places.
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 5000.0
    assert fields["dtype"] == fields["torch_dtype"] == dtype
    # What is stored has that dtype, and Hugging Face's names and layout.
    stored = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert set(stored) == set(hf_weights())
    for name, value in hf_weights().items():
        assert stored[name].dtype.name == dtype
        np.testing.assert_array_equal(stored[name], value.astype(dtype))


def test_stored_weights_are_converted_to_the_dtype_asked_for(folder):
    half = {name: value.astype("bfloat16") for name, value in hf_weights().items()}
    safetensors.numpy.save_file(half, folder / "model.safetensors", {"format": "pt"})
    _, params, _ = read_hf_folder(folder)
    expected = our_params({name: value.astype("float32") for name, value in half.items()})
    assert_same(params, expected)


def test_files_are_as_readable_as_any_other(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "other").write_text("")
    mode = (tmp_path / "other").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {mode}


def test_jax_arrays_can_be_written(tmp_path):
    params = jax.tree.map(jax.numpy.asarray, our_params(hf_weights()))
    write_hf_folder(tmp_path / "out", CONFIG, params, tokenizer())
    assert_same(read_hf_folder(tmp_path / "out")[1], our_params(hf_weights()))


def test_large_models_are_written_in_several_files(tmp_path):
    out = tmp_path / "out"
    params = our_params(hf_weights())
    write_hf_folder(out, CONFIG, params, tokenizer(), max_shard_bytes=100_000)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in hf_weights().values())
    for name, shard in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(out / shard)
    assert all((out / shard).stat().st_size < 105_000 for shard in shards)
    assert_same(read_hf_folder(out)[1], params)
    (out / shards[1]).unlink()
    assert missing_files(out) == [shards[1]]
    with pytest.raises(DoraError, match=f"lacks {shards[1]}, named in model.safetensors.index"):
        read_hf_folder(out)


def test_an_untied_head_is_read_and_written(tmp_path, folder):
    head = hf_weights(seed=1)["model.embed_tokens.weight"]
    rewrite(folder, lm_head__weight=head)
    (folder / "config.json").write_text(config_json(tie_word_embeddings=False))
    config, params, loaded = read_hf_folder(folder)
    assert not config.tie_word_embeddings
    assert_same(params, our_params(hf_weights() | {"lm_head.weight": head}))
    write_hf_folder(tmp_path / "out", config, params, loaded)
    again, same, _ = read_hf_folder(tmp_path / "out")
    assert again == config
    assert_same(same, params)


def test_a_tied_head_may_be_stored_but_must_agree(folder):
    embedding = hf_weights()["model.embed_tokens.weight"]
    rewrite(folder, lm_head__weight=embedding)
    assert_same(read_hf_folder(folder)[1], our_params(hf_weights()))
    rewrite(folder, lm_head__weight=embedding + 1)
    with pytest.raises(
        DoraError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"
    ):
        read_hf_folder(folder)


def test_rotary_frequencies_of_old_files_are_ignored(folder):
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    rewrite(folder, **{name: np.ones(16, np.float32)})
    assert_same(read_hf_folder(folder)[1], our_params(hf_weights()))


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        # As transformers 5 writes it.
        (
            {
                "rope_theta": None,
                "rope_parameters": {"rope_theta": 777.0, "rope_type": "default"},
            },
            "rope",
            Rotary(777.0),
        ),
        ({"rope_theta": None}, "rope", Rotary(10000.0)),
        ({"rope_scaling": {"type": "default"}}, "rope", Rotary(5000.0)),
        # As transformers 4 writes it.
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "rope",
            Rotary(5000.0, "dynamic", factor=2.0),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 32}},
            "rope",
            Rotary(5000.0, "yarn", factor=4.0, original_max_position_embeddings=32),
        ),
        ({"rms_norm_eps": None}, "rms_norm_eps", 1e-6),
        ({"max_position_embeddings": None}, "max_position_embeddings", 2048),
        ({"eos_token_id": [7, 8]}, "eos_token_id", (7, 8)),
        ({"eos_token_id": []}, "eos_token_id", ()),
        ({"bos_token_id": 0}, "bos_token_id", 0),
        ({"bos_token_id": None}, "bos_token_id", 1),
        ({"architectures": None}, "hidden_size", 96),
    ],
)
def test_spellings_and_defaults_of_transformers(folder, changes, field, value):
    (folder / "config.json").write_text(config_json(**changes))
    assert getattr(read_hf_folder(folder)[0], field) == value


def test_defaults_that_depend_on_the_sizes(folder):
    (folder / "config.json").write_text(config_json(head_dim=None, num_key_value_heads=None))
    with pytest.raises(DoraError, match=r"q_proj\.weight \(128, 96\) instead of \(96, 96\)"):
        read_hf_folder(folder)
    (folder / "config.json").write_text(config_json(num_key_value_heads=None))
    with pytest.raises(DoraError, match=r"k_proj\.weight \(64, 96\) instead of \(128, 96\)"):
        read_hf_folder(folder)


def test_an_untied_head_is_the_default(folder):
    (folder / "config.json").write_text(config_json(tie_word_embeddings=None))
    with pytest.raises(DoraError, match=r"missing: lm_head\.weight"):
        read_hf_folder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertModel"]}, "BertModel; supported: LlamaForCausalLM, MistralForCau"),
        ({"architectures": ["LlavaNextForConditionalGeneration"]}, "encode: LlavaForConditional"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type 'gpt2'; supported: Llama"),
        ({"hidden_size": None, "vocab_size": None}, "lacks vocab_size, hidden_size"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "type llama3 need factor, low_freq_factor"),
        ({"rope_scaling": {"type": "linear"}}, "positions of type linear need factor"),
        ({"rope_scaling": {"type": "linaer", "factor": 2}}, "rope_type is 'linaer'.*mean 'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be at least 1, got 0.5"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "supported: mrope_section"),
        ({"partial_rotary_factor": 0.1}, "rotates 3 of 32 features; their number must be even"),
        ({"hidden_act": "gelu_tanh"}, "hidden_act must be one of silu, .*; got 'gelu_tanh'"),
        ({"mlp_bias": True}, r"missing: model\.layers\.0\.mlp\.gate_proj\.bias"),
        ({"attention_bias": True}, r"missing: model\.layers\.0\.self_attn\.q_proj\.bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"num_key_value_heads": 3}, "must be a multiple of"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"hidden_size": "wide"}, "config.json"),
    ],
)
def test_configs_that_cannot_be_used(folder, changes, message):
    (folder / "config.json").write_text(config_json(**changes))
    with pytest.raises(DoraError, match=message):
        read_hf_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "not a Hugging Face folder: it has no config.json"),
        ("config.json", "{", "config.json: cannot be read"),
        ("config.json", "[]", "must hold a JSON object"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "has neither model.safetensors nor"),
        ("model.safetensors", "", "model.safetensors: damaged, or cut off after 0 bytes"),
        ("model.safetensors", "nonsense", "model.safetensors: damaged, or cut off"),
    ],
)
def test_files_that_cannot_be_used(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DoraError, match=message):
        read_hf_folder(folder)
    assert missing_files(folder) == ([name] if content is None else [])


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9999])
def test_truncated_weights_are_refused(folder, share):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    kept = int(len(content) * share)
    path.write_bytes(content[:kept])
    with pytest.raises(DoraError, match=f"cut off after {kept} bytes"):
        read_hf_folder(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DoraError, match=r"unpickling runs code.*save_pretrained"):
        read_hf_folder(folder)


def test_pickled_weights_in_several_files_are_refused_with_the_command(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(DoraError) as error:
        read_hf_folder(folder)
    assert f"M.from_pretrained('{folder}').save_pretrained('{folder}')\"" in str(error.value)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_told(tmp_path):
    write(tmp_path / "out", max_shard_bytes=100_000)
    shard = sorted((tmp_path / "out").glob("*.safetensors"))[0]
    stored = safetensors.numpy.load_file(shard)
    name = next(iter(stored))
    del stored[name]
    safetensors.numpy.save_file(stored, shard)
    with pytest.raises(DoraError, match=f"missing: {name}"):
        read_hf_folder(tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DoraError, match=r"index\.json: cannot be read"):
        read_hf_folder(folder)


def test_no_folder(tmp_path):
    with pytest.raises(DoraError, match="no such folder"):
        read_hf_folder(tmp_path / "none")


def test_all_wrong_tensors_are_listed_at_once(folder):
    rewrite(
        folder,
        model__norm__weight=None,
        model__layers__2__mlp__up_proj__weight=None,
        model__layers__2__mlp__up_proj__bias=np.ones(160, np.float32),
        model__layers__0__self_attn__k_proj__weight=np.ones((64, 97), np.float32),
    )
    with pytest.raises(DoraError) as error:
        read_hf_folder(folder)
    text = str(error.value)
    assert "missing: model.layers.2.mlp.up_proj.weight, model.norm.weight" in text
    assert "unexpected: model.layers.2.mlp.up_proj.bias" in text
    assert "model.layers.0.self_attn.k_proj.weight (64, 97) instead of (64, 96)" in text


def test_a_long_list_of_wrong_tensors_is_cut(folder):
    rewrite(folder, **{name.replace(".", "__"): None for name in hf_weights()})
    with pytest.raises(DoraError, match="and 23 more"):
        read_hf_folder(folder)


def test_weights_of_a_type_that_is_not_a_float_are_refused(folder):
    rewrite(folder, model__norm__weight=np.ones(96, np.int8))
    with pytest.raises(DoraError, match="weights of type I8; supported: F32, BF16, F16"):
        read_hf_folder(folder)


def write(path, params=None, **options):
    write_hf_folder(path, CONFIG, params or our_params(hf_weights()), tokenizer(), **options)


def test_the_library_reads_what_is_written(tmp_path):
    write(tmp_path / "out")
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(hf_weights())
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert int.from_bytes(raw[:8], "little") % 8 == 0  # values are aligned


def test_one_tensor_at_a_time_is_held_for_writing(tmp_path):
    class Leaf:
        """Counts what is taken out of it."""

        def __init__(self, array):
            self.array, self.shape = array, array.shape

        def __getitem__(self, n):
            taken.append(self.array[n].nbytes)
            return self.array[n].copy()

        def __array__(self, dtype=None, copy=None):
            taken.append(self.array.nbytes)
            return self.array

    taken = []
    params = our_params(hf_weights())
    write(tmp_path / "out", jax.tree.map(Leaf, params))
    assert sorted(taken) == sorted(value.nbytes for value in hf_weights().values())
    assert_same(read_hf_folder(tmp_path / "out")[1], params)


def test_the_generation_config_goes_along(tmp_path):
    given = {"eos_token_id": [2, 5], "temperature": 0.6, "transformers_version": "4.50"}
    write(tmp_path / "out", generation=given)
    assert read_generation_config(tmp_path / "out") == given
    write(tmp_path / "without")
    assert read_generation_config(tmp_path / "without") is None
    assert not (tmp_path / "without" / "generation_config.json").exists()


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "a JSON object")])
def test_a_broken_generation_config_is_refused(folder, text, message):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(DoraError, match=rf"generation_config\.json: .*{message}"):
        read_generation_config(folder)


def test_an_empty_folder_is_filled_and_a_full_one_is_kept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DoraError, match="exists and is not an empty folder; choose another"):
        write(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DoraError, match="exists and is not an empty folder"):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_parameters_that_do_not_fit_are_refused(tmp_path):
    params = our_params(hf_weights())
    params["layers"]["mlp"]["up_proj"]["lora_a"] = np.ones((3, 96, 2), np.float32)
    params["layers"]["mlp"]["gate_proj"]["kernel"] = np.ones((3, 160, 96), np.float32)
    del params["norm"]
    with pytest.raises(DoraError) as error:
        write(tmp_path / "out", params)
    text = str(error.value)
    assert "missing: norm/scale" in text
    assert "unexpected: layers/mlp/up_proj/lora_a" in text
    assert "layers/mlp/gate_proj/kernel (3, 160, 96) instead of (3, 96, 160)" in text
    assert "merge_params" in text
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_float16_are_refused(tmp_path):
    params = our_params(hf_weights())
    params["norm"]["scale"] = params["norm"]["scale"] * 1e6
    with pytest.raises(DoraError, match=r"model\.norm\.weight has weights beyond what float16"):
        write(tmp_path / "out", params, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=10**6)
    )
    with pytest.raises(DoraError, match=r"float32 needs .* and 1 MB is free; free some"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_safetensors", fail)
    with pytest.raises(DoraError, match=r"could not be written .*No space left.*nothing was left"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folders_above_are_made(tmp_path):
    write(tmp_path / "a" / "b" / "out")
    assert read_hf_folder(tmp_path / "a" / "b" / "out")[0] == CONFIG
    shutil.rmtree(tmp_path / "a")
