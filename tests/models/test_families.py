"""Every family: what transformers writes is read, and computes what transformers computes."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.checkpoint import hf_config
from dora_jax.checkpoint.hf import read_hf_folder, write_hf_folder
from dora_jax.checkpoint.names import file_shapes, tensors
from dora_jax.generation import Sampling, generate_ids
from dora_jax.models.llama import Llama, init_cache
from tests.checkpoint import tiny_model
from tests.models import families
from tests.models.families import FAMILIES, NEW_TOKENS, SEEN, TOKENS, golden, write_folder


@functools.lru_cache
def loaded(family):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), family)
        config, params, _ = read_hf_folder(folder)
    return Llama(config), params


@pytest.fixture
def model(request):
    return loaded(request.param)


all_families = pytest.mark.parametrize(
    ("family", "model"), [(name, name) for name in FAMILIES], indirect=["model"]
)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *args):
    return model.apply({"params": params}, *args)


@all_families
def test_logits_are_transformers(family, model):
    found = apply(*model, jnp.asarray(TOKENS))
    expected = np.array(golden(family)["logits"])
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(np.asarray(found)[:, SEEN], expected, rtol=1e-5, atol=1e-4)


@all_families
def test_greedy_continuation_is_transformers(family, model):
    model, params = model
    sampling = Sampling(max_new_tokens=NEW_TOKENS)
    found = generate_ids(model, {"params": params}, TOKENS.tolist(), sampling, ())
    assert found == golden(family)["greedy"]
    assert all(len(set(row)) > 5 for row in found)


@all_families
def test_tensor_names_and_shapes_are_transformers(family, model):
    expected = {name: tuple(shape) for name, shape in golden(family)["shapes"].items()}
    assert file_shapes(tensors(model[0].config), "hf") == expected


@pytest.mark.slow
@all_families
def test_padding_left_or_right_changes_nothing(family, model):
    if family in ("llama-dynamic", "phi3-long"):
        pytest.skip("the rotation depends on the longest row of the batch, in transformers too")
    plain = np.asarray(apply(*model, jnp.asarray(TOKENS)))
    pad = np.full((2, 5), 7)
    real = np.arange(29) >= 5
    left = np.concatenate([pad, TOKENS], axis=1)
    positions = np.broadcast_to(np.maximum(np.arange(29) - 5, 0), left.shape)
    segments = np.broadcast_to(np.where(real, 0, -1), left.shape)
    found = np.asarray(apply(*model, left, positions, segments))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 5:], plain, rtol=1e-4, atol=1e-4)
    right = np.concatenate([TOKENS, pad], axis=1)
    np.testing.assert_allclose(
        np.asarray(apply(*model, right))[:, :24], plain, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@all_families
def test_packed_sequences_do_not_see_each_other(family, model):
    first, second = TOKENS[:1, :15], TOKENS[1:, :9]
    packed = np.concatenate([first, second], axis=1)
    positions = np.concatenate([np.arange(15), np.arange(9)])[None]
    segments = np.concatenate([np.full(15, 1), np.full(9, 2)])[None]
    found = np.asarray(apply(*model, packed, positions, segments))
    for part, own in ((found[:, :15], first), (found[:, 15:], second)):
        alone = np.asarray(apply(*model, own))
        np.testing.assert_allclose(part, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@all_families
def test_a_shared_prefix_serves_several_continuations(family, model):
    prefix, ends = TOKENS[0, :10], (TOKENS[0, 10:16], TOKENS[1, :5])
    row = np.concatenate([prefix, *ends])[None]
    positions = np.concatenate([np.arange(10), 10 + np.arange(6), 10 + np.arange(5)])[None]
    segments = np.concatenate([np.zeros(10, int), np.full(6, 1), np.full(5, 2)])[None]
    found = np.asarray(apply(*model, row, positions, segments))[0]
    for start, end in ((10, ends[0]), (16, ends[1])):
        alone = np.asarray(apply(*model, np.concatenate([prefix, end])[None]))[0, 10:]
        np.testing.assert_allclose(found[start : start + len(end)], alone, rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def step(model, params, tokens, cache):
    hidden, cache = model.apply({"params": params}, tokens, cache=cache, method="hidden_states")
    return model.apply({"params": params}, hidden, method="head"), cache


@pytest.mark.parametrize("model", ["mistral", "phi3"], indirect=True)
def test_a_window_s_cache_needs_no_more_slots_than_the_window(model):
    model, params = model
    slots = max(model.config.sliding_window, 6)
    assert slots < TOKENS.shape[1]
    cache = init_cache(model.config, 2, slots)
    logits, cache = step(model, params, TOKENS[:, :6], cache)
    found = [logits]
    for n in range(6, TOKENS.shape[1]):
        logits, cache = step(model, params, TOKENS[:, n : n + 1], cache)
        found.append(logits)
    expected = apply(model, params, TOKENS)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=1e-4, atol=1e-5)


@all_families
def test_a_config_written_is_read_the_same(family, model, tmp_path):
    config = model[0].config
    path = tmp_path / "config.json"
    path.write_text(hf_config.to_json(config, "float32"))
    assert hf_config.read_config(path) == config


@all_families
def test_an_export_of_an_import_is_bit_identical(family, model, tmp_path):
    model, params = model
    write_hf_folder(tmp_path / "out", model.config, params, tiny_model.tokenizer())
    config, again, _ = read_hf_folder(tmp_path / "out")
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parity
@all_families
def test_transformers_reads_our_export(family, model, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    model, params = model
    write_hf_folder(tmp_path / "out", model.config, params, tiny_model.tokenizer())
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == golden(family)["config"]["architectures"][0]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    found = apply(model, params, jnp.asarray(TOKENS))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_every_supported_architecture_has_a_tiny_model():
    found = {golden(name)["config"]["architectures"][0] for name in families.FAMILIES}
    assert found == set(hf_config.ARCHITECTURES)
