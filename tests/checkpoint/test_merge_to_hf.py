import functools
import json

import jax
import numpy as np
import pytest

from dora_jax.checkpoint.adapter import load_model
from dora_jax.checkpoint.hf import read_hf_folder
from dora_jax.checkpoint.merge import merge_to_hf
from dora_jax.checkpoint.state import flatten
from dora_jax.errors import DoraError
from dora_jax.models.llama import Llama
from tests.checkpoint.tiny_adapter import adapter_info, write_adapter, write_base
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer

IDS = np.array([[1, 40, 77, 200, 5, 260, 33, 2], [9, 9, 120, 64, 65, 66, 250, 3]])


@functools.partial(jax.jit, static_argnums=1)
def logits(params, rules=None):
    with jax.default_matmul_precision("highest"):
        return Llama(CONFIG, rules).apply({"params": params}, IDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def base_logits():
    return logits(our_params(hf_weights()))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """Return (a run's part with a DoRA adapter, the unmerged model's logits)."""
    part = tmp_path_factory.mktemp("runs") / "dora"
    info = adapter_info(base, "dora", modules="all-linear")
    params = write_adapter(part / "adapter", info)
    return part, logits(params, info.rules())


def test_the_merged_folder_is_a_plain_model_of_the_same_logits(tmp_path, adapter, base_logits):
    part, unmerged = adapter
    merge_to_hf(part, tmp_path / "out")
    config, params, read_tokenizer = read_hf_folder(tmp_path / "out")
    assert config == CONFIG
    assert read_tokenizer.encode("hello world") == tokenizer().encode("hello world")
    plain = our_params(hf_weights())
    assert jax.tree.structure(params) == jax.tree.structure(plain)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    np.testing.assert_allclose(logits(params), unmerged, atol=1e-4)
    assert np.abs(unmerged - base_logits).max() > 0.1
    # What is not tuned has the base model's bits.
    np.testing.assert_array_equal(
        params["embed_tokens"]["embedding"], plain["embed_tokens"]["embedding"]
    )
    np.testing.assert_array_equal(params["norm"]["scale"], plain["norm"]["scale"])


@pytest.mark.parametrize(
    ("method", "fields"),
    [("dora", {"norm_axis": "in", "modules": "o_proj"}), ("full", {"modules": "(q|down)_proj"})],
)
def test_other_adapters_merge_too(tmp_path, base, base_logits, method, fields):
    info = adapter_info(base, method, **fields)
    params = write_adapter(tmp_path / "adapter", info)
    merge_to_hf(tmp_path / "adapter", tmp_path / "out")
    merged = logits(read_hf_folder(tmp_path / "out")[1])
    rules = None if method == "full" else info.rules()
    np.testing.assert_allclose(merged, logits(params, rules), atol=1e-4)
    assert np.abs(merged - base_logits).max() > 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_merged_in_float32_and_rounded_once(tmp_path, adapter, dtype):
    part, _ = adapter
    assert merge_to_hf(part, tmp_path / "whole") is None
    lost = merge_to_hf(part, tmp_path / "half", dtype)
    whole, half = (read_hf_folder(tmp_path / name)[1] for name in ("whole", "half"))
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), whole)
    jax.tree.map(np.testing.assert_array_equal, half, rounded)
    error = {k: np.abs(x - flatten(whole)[k]) for k, x in flatten(half).items()}
    assert (lost.dtype, lost.path) == (dtype, max(error, key=lambda k: error[k].max()))
    assert lost.change == error[lost.path].max()
    plain = flatten(our_params(hf_weights()))
    moved = {k: x - plain[k] for k, x in flatten(whole).items() if (x != plain[k]).any()}
    sums = [sum(np.square(x[k], dtype=float).sum() for k in moved) for x in (error, moved)]
    np.testing.assert_allclose(lost.share, np.sqrt(sums[0] / sums[1]), rtol=1e-6)
    assert f"changes a weight by {lost.change:.3g} at most ({lost.path})" in str(lost)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path, adapter):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DoraError, match="exists and is not an empty folder; choose another name"):
        merge_to_hf(tmp_path / "no-adapter-is-read-before", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_written_where_there_is_no_adapter_or_no_such_dtype(tmp_path, adapter, base):
    with pytest.raises(DoraError, match="holds no finished adapter"):
        merge_to_hf(base, tmp_path / "out")
    with pytest.raises(DoraError, match="float99"):
        merge_to_hf(adapter[0], tmp_path / "out", "float99")
    assert not any(tmp_path.iterdir())


def test_the_merged_folder_can_be_the_base_of_another_adapter(tmp_path, adapter):
    merge_to_hf(adapter[0], tmp_path / "out")
    write_adapter(tmp_path / "adapter", adapter_info(tmp_path / "out", "lora"))
    assert load_model(None, tmp_path / "adapter").pretrained.name == str(tmp_path / "out")


def test_the_base_model_s_generation_config_goes_along(tmp_path):
    settings = {"eos_token_id": [2, 9], "top_p": 0.9}
    base = write_base(tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps(settings))
    write_adapter(tmp_path / "adapter", adapter_info(base, "lora"))
    merge_to_hf(tmp_path / "adapter", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == settings


@pytest.mark.parity
def test_transformers_loads_the_merged_folder_with_the_same_logits(tmp_path, adapter):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra")
    part, unmerged = adapter
    merge_to_hf(part, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model(torch.tensor(IDS)).logits.float().numpy()
    np.testing.assert_allclose(theirs, unmerged, atol=1e-4)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read.encode("hello world", add_special_tokens=False) == tokenizer().encode("hello world")
