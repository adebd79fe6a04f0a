"""What cannot be read, or not be written for PEFT, is refused by one clear message."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from dora_jax.adapters import init_adapters
from dora_jax.checkpoint.peft_config import REFUSED, parse_config
from dora_jax.checkpoint.peft_load import load_peft
from dora_jax.checkpoint.peft_modules import current_name
from dora_jax.checkpoint.peft_save import save_peft
from dora_jax.errors import DoraError
from dora_jax.models.llama import Llama, param_shapes
from dora_jax.spec import AdapterRules, AdapterSpec
from tests.checkpoint.peft_cases import GOLDEN, base

Q_PROJ = "base_model.model.model.layers.2.self_attn.q_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return base(tmp_path_factory.mktemp("llama") / "base", "llama")


@pytest.fixture
def folder(tmp_path):
    """PEFT's DoRA adapter of q_proj and down_proj, to be spoilt."""
    return shutil.copytree(GOLDEN / "dora", tmp_path / "adapter")


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (config | fields).items() if v != "gone"}))


def refusal(folder, llama):
    with pytest.raises(DoraError) as caught:
        load_peft(folder, *llama)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_missing_tensor_is_named(folder, llama):
    change_tensors(folder, lambda tensors: tensors.pop(f"{Q_PROJ}.lora_magnitude_vector"))
    assert f"missing: {Q_PROJ}.lora_magnitude_vector" in refusal(folder, llama)


def test_an_extra_tensor_is_named(folder, llama):
    extra = Q_PROJ.replace("q_proj", "k_proj") + ".lora_A.weight"
    change_tensors(folder, lambda t: t.update({extra: np.zeros((2, 32), "f4")}))
    assert f"unexpected: {extra}" in refusal(folder, llama)


def test_another_base_model_is_refused_by_its_shapes(folder, tmp_path):
    change_config(folder, base_model_name_or_path="someone/big-model")
    other = base(tmp_path / "other", "mistral")
    message = refusal(folder, other)
    assert f"{Q_PROJ}.lora_B.weight (32, 2) instead of (48, 2)" in message
    assert "It was made for someone/big-model" in message


def test_another_base_model_is_refused_by_its_embedding(tmp_path):
    config, params = base(tmp_path / "base", "qwen2")
    embedding = params["embed_tokens"]["embedding"].copy()
    embedding[3, 4] += 1
    changed = {**params, "embed_tokens": {"embedding": embedding}}
    with pytest.raises(DoraError, match=r"embed_tokens\.base_layer\.weight .* is not the weight"):
        load_peft(GOLDEN / "embeddings", config, changed)


def test_a_type_that_is_no_float_is_refused(folder, llama):
    name = f"{Q_PROJ}.lora_A.weight"
    change_tensors(folder, lambda t: t.update({name: t[name].astype(np.int8)}))
    assert f"{name} is of type I8; supported: F32, BF16, F16" in refusal(folder, llama)


def test_a_pickle_is_refused_with_advice(folder, llama):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = refusal(folder, llama)
    assert "is pickled, and unpickling runs code" in message
    assert "save_pretrained writes safetensors" in message


def test_a_folder_without_weights(folder, llama):
    (folder / "adapter_model.safetensors").unlink()
    assert "holds no adapter_model.safetensors" in refusal(folder, llama)


def test_a_damaged_file(folder, llama):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "damaged, or cut off" in refusal(folder, llama)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"peft_type": "gone"}, "has no peft_type; only LORA"),
        ({"peft_type": "IA3"}, "has peft_type 'IA3'; only LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS' is no language model's"),
        ({"target_modules": None}, "target_modules is empty"),
        ({"target_modules": "q_proj("}, "target_modules = 'q_proj(' is no regular expression"),
        ({"target_modules": ["c_attn"]}, "target_modules = ('c_attn',) match nothing in this"),
        ({"target_modules": ["q_proj", "norm"]}, "target_modules match model.norm, which"),
        ({"target_modules": ["q_proj", 3]}, "target_modules must be a text or a list of texts"),
        ({"bias": "some"}, "bias must be 'none', 'all' or 'lora_only'; got 'some'"),
        ({"r": 0}, "rank must be a whole number of at least 1; got 0"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights = 'loftq' cannot be honoured: LoftQ"),
        ({"init_lora_weights": "pissa_niter_4"}, "cannot be honoured: its base weights were"),
        ({"init_lora_weights": "surprise"}, "cannot be honoured: this version does not know it"),
        ({"modules_to_save": ["layers.1.mlp.up_proj"]}, "modules_to_save takes model.layers.1.mlp"),
        ({"from_the_future": 3}, "from_the_future = 3 cannot be honoured: this version"),
    ],
)
def test_settings_that_cannot_be_honoured(folder, llama, fields, problem):
    change_config(folder, **fields)
    assert problem in refusal(folder, llama)


def test_biases_of_some_layers_alone(tmp_path):
    given = {"r": 2, "bias": "lora_only", "target_modules": ["q_proj"], "layers_to_transform": [1]}
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | given))
    safetensors.numpy.save_file({}, folder / "adapter_model.safetensors")
    message = refusal(folder, base(tmp_path / "base", "qwen2"))
    assert "bias = 'lora_only' trains the bias of some layers" in message


@pytest.mark.parametrize("field", REFUSED)
def test_refused_fields_are_named_with_a_reason_and_a_way_out(field):
    given = {"peft_type": "LORA", "target_modules": ["q_proj"]}
    with pytest.raises(DoraError) as caught:
        parse_config({**given, field: [[0, 1]]}, "here")
    assert str(caught.value).startswith(f"here: {field} = [[0, 1]] cannot be honoured: ")
    assert REFUSED[field] in str(caught.value)
    assert "merge it in PEFT" in str(caught.value)
    for neutral in (None, False, {}, []):  # what it is where it is not used
        parse_config({**given, field: neutral}, "here")


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_broken_config(folder, llama, text):
    (folder / "adapter_config.json").write_text(text)
    assert "adapter_config.json: " in refusal(folder, llama)


def test_a_folder_without_a_config(folder, llama):
    (folder / "adapter_config.json").unlink()
    assert "holds no adapter_config.json, so it is no PEFT adapter" in refusal(folder, llama)


@pytest.mark.parametrize(
    ("older", "name"),
    [
        ("base_model.model.a.q.lora_magnitude_vector.weight", "a.q.lora_magnitude_vector"),
        ("base_model.model.a.q.lora_magnitude_vector.default", "a.q.lora_magnitude_vector"),
        ("base_model.model.a.q.lora_magnitude_vector.x.weight", "a.q.lora_magnitude_vector"),
        ("base_model.model.a.q.lora_A.default.weight", "a.q.lora_A.weight"),
        ("a.q.lora_B.weight", "a.q.lora_B.weight"),
        ("base_model.model.e.lora_embedding_A.default", "e.lora_embedding_A"),
        ("base_model.model.lm_head.modules_to_save.weight", "lm_head.weight"),
        ("base_model.model.lm_head.modules_to_save.default.bias", "lm_head.bias"),
        ("base_model.model.a.q.base_layer.bias", "a.q.base_layer.bias"),
    ],
)
def test_older_spellings(older, name):
    assert current_name(older) == f"base_model.model.{name}"
    assert current_name(current_name(older)) == current_name(older)


def test_an_adapter_in_older_spelling_is_the_same(folder, llama):
    def older(tensors):
        for name in list(tensors):
            renamed = name.replace(".lora_A.weight", ".lora_A.default.weight")
            renamed = renamed.replace("magnitude_vector", "magnitude_vector.default.weight")
            tensors[renamed.removeprefix("base_model.model.")] = tensors.pop(name)

    expected = load_peft(folder, *llama).trainable["layers"]["self_attn"]["q_proj"]
    change_tensors(folder, older)
    found = load_peft(folder, *llama).trainable["layers"]["self_attn"]["q_proj"]
    assert found.keys() == expected.keys() == {"lora_a", "lora_b", "magnitude"}
    for leaf in expected:
        np.testing.assert_array_equal(found[leaf], expected[leaf])


def exported(tmp_path, model, *rules):
    config, params = model
    rules = AdapterRules(rules)
    shapes = param_shapes(Llama(config, rules))

    trained = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), shapes)
    with pytest.raises(DoraError) as caught:
        save_peft(tmp_path / "out", config, rules, trained, params)
    assert not (tmp_path / "out").exists()
    assert "merge the adapter instead (dora-jax merge)" in str(caught.value)
    return str(caught.value)


def test_what_peft_cannot_express_is_refused_with_a_way_out(tmp_path, llama):
    dora, lora = AdapterSpec("dora", rank=2), AdapterSpec("lora", rank=2)
    magnitude = AdapterSpec("magnitude")
    inward = AdapterSpec("dora", rank=2, norm_axis="in")
    dropped = AdapterSpec("dora", rank=2, dropout=0.5)
    for rules, problem in [
        ([("q_proj", dora), ("up_proj", magnitude)], "up_proj': PEFT has no magnitude without low"),
        ([("q_proj", inward)], "q_proj': PEFT's magnitudes are one for each output"),
        ([("q_proj", dora), ("up_proj", lora)], "up_proj': is tuned by 'lora', others by 'dora'"),
        ([("q_proj", dora), ("up_proj", dropped)], "up_proj': has dropout 0.5, others 0.0"),
        ([("q_proj", AdapterSpec("full"))], "PEFT needs at least one module with low-rank"),
    ]:
        assert problem in exported(tmp_path, llama, *rules)


def test_a_tied_embedding_and_odd_biases_are_refused(tmp_path):
    qwen = base(tmp_path / "base", "qwen2")
    lora = AdapterSpec("lora", rank=2)
    assert "the tied head's too" in exported(tmp_path, qwen, ("embed_tokens", lora))
    frozen = AdapterSpec("frozen", train_bias=True)
    message = exported(tmp_path, qwen, ("q_proj", lora), ("k_proj", frozen))
    assert "biases of layers/self_attn/k_proj are trained, which PEFT cannot say" in message


def test_missing_leaves_and_a_folder_in_use(tmp_path, llama):
    config, params = llama
    rules = AdapterRules([("q_proj", AdapterSpec("lora", rank=2))])
    with pytest.raises(DoraError, match="hold no layers/self_attn/q_proj/lora_a"):
        save_peft(tmp_path / "out", config, rules, params, params)
    with pytest.raises(DoraError, match="exists and is not an empty folder"):
        save_peft(GOLDEN, config, rules, params, params)


def test_a_rule_for_biases_may_cover_modules_without_one(tmp_path):

    config, params = base(tmp_path / "base", "qwen2")
    lora = AdapterSpec("lora", rank=2, train_bias=True)
    rules = AdapterRules([("(q|o)_proj", lora), (".*", AdapterSpec("frozen", train_bias=True))])
    shapes = param_shapes(Llama(config, rules))
    trained = init_adapters(params, shapes, rules, jax.random.key(0))
    assert save_peft(tmp_path / "out", config, rules, trained, params).bias == "all"
    again = load_peft(tmp_path / "out", config, params)
    assert {"lora_a", "lora_b", "bias"} == set(again.trainable["layers"]["self_attn"]["q_proj"])
    assert {"lora_a", "lora_b"} == set(again.trainable["layers"]["self_attn"]["o_proj"])
    assert {"bias"} == set(again.trainable["layers"]["self_attn"]["k_proj"])
