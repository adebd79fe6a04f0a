import dataclasses
import json
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dora_jax.adapters import init_adapters
from dora_jax.checkpoint.adapter import attach, find_adapter, load_info, load_model, save_adapter
from dora_jax.checkpoint.pretrained import fingerprint
from dora_jax.checkpoint.state import flatten, load_tree
from dora_jax.errors import DoraError
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.partition import partition, trainable_mask
from tests.checkpoint.tiny_adapter import adapter_info, trained_params, write_adapter, write_base
from tests.checkpoint.tiny_model import CONFIG, hf_weights, our_params, tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def written_once(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    write_adapter(folder, adapter_info(base))
    return folder


@pytest.fixture
def written(written_once, tmp_path):
    """A run's part that holds an adapter."""
    shutil.copytree(written_once, tmp_path / "dora" / "adapter")
    return tmp_path / "dora"


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert flatten(found).keys() == flatten(expected).keys()


def trainable_alone(params, info):
    """Return the trained leaves as a nested dict without None leaves."""
    trainable, _ = partition(params, trainable_mask(params, info.rules()))
    return flax.traverse_util.unflatten_dict(flatten(trainable), sep="/")


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("dora", {}),
        ("dora", {"modules": "qkv-dora", "norm_axis": "in"}),
        ("lora", {"modules": "all-linear", "scaling": "rslora"}),
        ("dora", {"init": "pissa"}),
        ("magnitude", {}),
        ("full", {"modules": "(q|down)_proj"}),
    ],
)
def test_a_saved_adapter_comes_back_bit_for_bit(tmp_path, base, method, fields):
    info = adapter_info(base, method, **fields)
    params = write_adapter(tmp_path / "adapter", info)
    loaded = load_model(None, tmp_path / "adapter")
    assert_same(loaded.params, params)
    assert (loaded.info, loaded.rules) == (info, info.rules())
    assert loaded.pretrained.tokenizer.encode("hello") == tokenizer().encode("hello")
    # What is on disk is what was trained, and no weights of the base model.
    assert_same(load_tree(tmp_path / "adapter" / "weights"), trainable_alone(params, info))


def test_bfloat16_factors_and_a_bfloat16_base(tmp_path, base):
    info = dataclasses.replace(adapter_info(base), dtype="bfloat16")
    trainable = trainable_alone(trained_params(info), info)
    trainable = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), trainable)
    save_adapter(tmp_path / "adapter", info, trainable)
    q_proj = load_model(None, tmp_path / "adapter").params["layers"]["self_attn"]["q_proj"]
    # The base weights are those that were trained on: rounded, and float32 again.
    kernel = our_params(hf_weights())["layers"]["self_attn"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(q_proj["kernel"], kernel.astype("bfloat16").astype("float32"))
    assert q_proj["kernel"].dtype == np.float32
    np.testing.assert_array_equal(
        q_proj["lora_b"], trainable["layers"]["self_attn"]["q_proj"]["lora_b"]
    )


def test_a_residual_kernel_is_rounded_as_in_training(tmp_path, base):
    info = dataclasses.replace(adapter_info(base, "lora", init="olora"), dtype="bfloat16")
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), our_params(hf_weights()))
    shapes = param_shapes(Llama(CONFIG, info.rules()))
    params = init_adapters(rounded, shapes, info.rules(), jax.random.key(0))
    save_adapter(tmp_path / "adapter", info, trainable_alone(params, info))
    found = load_model(None, tmp_path / "adapter").params["layers"]["mlp"]["up_proj"]["kernel"]
    expected = params["layers"]["mlp"]["up_proj"]["kernel"]
    assert expected.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    plain = rounded["layers"]["mlp"]["up_proj"]["kernel"].astype(np.float32)
    assert np.abs(found - plain).max() > 0.01


def test_the_base_model_alone(base):
    loaded = load_model(str(base), None)
    assert_same(loaded.params, our_params(hf_weights()))
    assert loaded.rules is None
    assert loaded.info is None


def test_the_same_weights_are_taken_from_another_place(written, base, tmp_path):
    path = written / "adapter" / "adapter.json"
    weights = fingerprint(our_params(hf_weights()))
    info = dataclasses.replace(adapter_info(base), weights=weights)
    path.write_text(json.dumps(dataclasses.asdict(info)))
    moved = shutil.copytree(base, tmp_path / "moved")
    assert load_model(str(moved), written).pretrained.name == str(moved)
    path.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(info, weights="0" * 16))))
    with pytest.raises(DoraError, match="was trained on other weights of"):
        load_model(str(moved), written)


def test_a_model_or_an_adapter_is_needed():
    with pytest.raises(ValueError, match="give a model, an adapter, or both"):
        load_model(None, None)


def test_saving_again_replaces_the_adapter_before(written, base):
    info = adapter_info(base, "lora")
    params = write_adapter(written / "adapter", info)
    loaded = load_model(None, written)
    assert loaded.info == info
    assert_same(loaded.params, params)


def test_weights_of_another_source_are_refused(written, base):
    info = dataclasses.replace(adapter_info(base), source="dora-smollm2 1.0 (GGUF, Q8_0)")
    (written / "adapter" / "adapter.json").write_text(json.dumps(dataclasses.asdict(info)))
    with pytest.raises(DoraError) as caught:
        load_model(None, written)
    assert str(caught.value) == (
        f"{written / 'adapter'}: was trained on {base} from dora-smollm2 1.0 (GGUF, Q8_0), but the "
        f"weights found now come from {base}: an adapter fits only the weights it was trained on"
    )


def test_an_adapter_is_found_by_its_own_folder_or_the_one_around_it(written):
    assert find_adapter(written) == written / "adapter"
    assert find_adapter(written / "adapter") == written / "adapter"


def test_adapters_further_inside_are_named(written):
    lora = written.parent / "seed-0" / "lora"
    shutil.copytree(written, lora)
    with pytest.raises(DoraError) as caught:
        find_adapter(written.parent)
    assert str(caught.value) == (
        f"{written.parent}: holds no finished adapter (adapter.json); there are {written}, {lora}"
    )
    for named in (written, lora):
        assert find_adapter(named) == named / "adapter"


def test_many_adapters_further_inside_are_counted(tmp_path):
    for n in range(10):
        (tmp_path / f"seed-{n}" / "adapter").mkdir(parents=True)
        (tmp_path / f"seed-{n}" / "adapter" / "adapter.json").write_text("{}")
    with pytest.raises(DoraError, match=r"seed-7 and 2 more$"):
        find_adapter(tmp_path)


def test_an_unfinished_adapter_is_not_trusted(written):
    (written / "adapter" / "adapter.json").unlink()
    for folder in (written, written / "adapter", written.parent):
        with pytest.raises(DoraError, match=r"holds no finished adapter \(adapter\.json\)$"):
            load_model(None, folder)
    with pytest.raises(DoraError, match="none: no such folder"):
        load_model(None, written / "none")


def test_an_adapter_is_unfinished_until_all_of_it_is_written(written, base, monkeypatch):
    def killed(*_):
        assert (written / "adapter").is_dir()
        raise KeyboardInterrupt

    info = adapter_info(base, "lora")
    for step in ("save_tree", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(f"dora_jax.checkpoint.adapter.{step}", killed)
            with pytest.raises(KeyboardInterrupt):
                write_adapter(written / "adapter", info)
        with pytest.raises(DoraError, match="holds no finished adapter"):
            load_model(None, written)
    write_adapter(written / "adapter", info)
    assert load_model(None, written).info == info


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda info: "{", "Expecting property name"),
        (lambda info: json.dumps([info]), "must be an object"),
        (lambda info: json.dumps({**info, "prompt": 3}), "prompt: must be a text, got 3"),
        (lambda info: json.dumps({**info, "source": None}), "source: must be a text"),
        (lambda info: json.dumps({k: info[k] for k in info if k != "model"}), "model: is missing"),
        (lambda info: json.dumps({**info, "method": "dorra"}), "did you mean 'dora'"),
        (lambda info: json.dumps({**info, "adapter": {"rank": 0}}), "adapter.rank must be"),
        (lambda info: json.dumps({**info, "adapter": {"rnk": 4}}), "unexpected keyword"),
    ],
)
def test_a_broken_adapter_file_is_refused(written, base, change, problem):
    path = written / "adapter" / "adapter.json"
    path.write_text(change(dataclasses.asdict(adapter_info(base))))
    for read in (lambda: load_info(written / "adapter"), lambda: load_model(None, written)):
        with pytest.raises(DoraError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: cannot be read (")
        assert str(caught.value).endswith("; train the adapter again")
        assert problem in str(caught.value)


def test_lost_weights_are_refused(written):
    shutil.rmtree(written / "adapter" / "weights")
    with pytest.raises(DoraError, match="weights: no such checkpoint folder"):
        load_model(None, written)


def attached(base, change, method="dora", **fields):
    info = adapter_info(base, method, **fields)
    trainable = trainable_alone(trained_params(info), info)
    change(trainable["layers"]["self_attn"]["q_proj"], trainable)
    return attach(our_params(hf_weights()), trainable, Llama(CONFIG, info.rules()), "here")


def refusal(*args, **fields):
    with pytest.raises(DoraError) as caught:
        attached(*args, **fields)
    message = str(caught.value)
    start, end = "here: does not fit its base model (", "); train it again"
    assert message.startswith(start)
    assert message.endswith(end)
    return message.removeprefix(start).removesuffix(end)


def test_missing_leaves_are_listed(base):
    q_proj = "layers/self_attn/q_proj"
    assert refusal(base, lambda leaves, _: leaves.pop("lora_a")) == f"missing {q_proj}/lora_a"
    # A kernel tuned in full is not quietly taken from the base model instead.
    assert (
        refusal(base, lambda leaves, _: leaves.pop("kernel"), "full", modules="(q|k)_proj")
        == f"missing {q_proj}/kernel"
    )


def test_unexpected_leaves_are_listed(base):
    q_proj = "layers/self_attn/q_proj"

    def add_unknown(leaves, _):
        leaves["lora_c"] = np.zeros(2)

    assert refusal(base, add_unknown) == f"unexpected {q_proj}/lora_c"

    def add_frozen(leaves, tree):
        leaves["kernel"] = np.zeros((3, 96, 128), np.float32)
        tree["norm"] = {"scale": np.zeros(96, np.float32)}

    # What the rules freeze stays the base model's.
    assert refusal(base, add_frozen) == f"unexpected {q_proj}/kernel; unexpected norm/scale"


def test_leaves_of_another_shape_are_listed(base):
    def cut(leaves, _):
        leaves["lora_a"] = leaves["lora_a"][:, :-1]
        leaves["magnitude"] = leaves["magnitude"][0]

    assert refusal(base, cut) == (
        "layers/self_attn/q_proj/lora_a has shape (3, 95, 2), expected (3, 96, 2); "
        "layers/self_attn/q_proj/magnitude has shape (128,), expected (3, 128)"
    )


def test_rules_for_modules_that_the_model_lacks_are_refused(base):
    info = adapter_info(base, modules="c_proj")
    model = Llama(CONFIG, info.rules())
    with pytest.raises(DoraError, match=r"here: does not fit its base model \(rule 'c_proj' match"):
        attach(our_params(hf_weights()), {}, model, "here")


def test_a_base_model_of_another_shape_is_refused(base):
    other = our_params(hf_weights())
    other["norm"]["scale"] = other["norm"]["scale"][:-1]
    del other["layers"]["mlp"]
    info = adapter_info(base)
    trainable = trainable_alone(trained_params(info), info)
    with pytest.raises(DoraError) as caught:
        attach(other, trainable, Llama(CONFIG, info.rules()), "here")
    assert "missing layers/mlp/gate_proj/kernel" in str(caught.value)
    assert "norm/scale has shape (95,), expected (96,)" in str(caught.value)
