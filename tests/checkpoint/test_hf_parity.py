"""What we write is what transformers reads, and the other way round."""

import json

import jax
import numpy as np
import pytest

from dora_jax.checkpoint.hf import read_hf_folder, write_hf_folder
from dora_jax.models.llama import Llama
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer

pytestmark = pytest.mark.parity
IDS = np.array([[1, 40, 77, 200, 5, 260, 33, 2], [9, 9, 120, 64, 65, 66, 250, 3]])


def ours(config, params):
    with jax.default_matmul_precision("highest"):
        return np.asarray(Llama(config).apply({"params": params}, IDS))


def theirs(model):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.float().numpy()


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="needs the parity extra")


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_transformers_loads_what_we_write(tmp_path, transformers, max_shard_bytes):
    params = our_params(hf_weights())
    out = tmp_path / "out"
    write_hf_folder(out, CONFIG, params, tokenizer(), max_shard_bytes=max_shard_bytes)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(theirs(model), ours(CONFIG, params), atol=1e-5)
    assert model.config.rope_parameters["rope_theta"] == CONFIG.rope.rope_theta
    assert model.config.rms_norm_eps == CONFIG.rms_norm_eps
    assert model.config.tie_word_embeddings is True
    assert model.config.max_position_embeddings == CONFIG.max_position_embeddings
    assert model.generation_config.eos_token_id == 2
    assert model.generation_config.bos_token_id == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_transformers_sees_the_dtype(tmp_path, transformers, dtype):
    write_hf_folder(tmp_path / "out", CONFIG, our_params(hf_weights()), tokenizer(), dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(next(model.parameters()).dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("tied", [True, False])
def test_we_load_what_transformers_writes(tmp_path, transformers, tied):
    config = transformers.LlamaConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 321.0},
        rms_norm_eps=1e-3,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    transformers.set_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    tokenizer().save(tmp_path)
    # This is the spelling that version 4 does not know.
    assert "rope_theta" not in json.loads((tmp_path / "config.json").read_text())
    read, params, _ = read_hf_folder(tmp_path)
    assert (read.rope.rope_theta, read.rms_norm_eps, read.head_dim) == (321.0, 1e-3, 16)
    assert read.tie_word_embeddings is tied
    np.testing.assert_allclose(ours(read, params), theirs(model), atol=1e-5)
