"""Adapters of LLaVA: older names, the authors' own, `dora-jax`, and what does not fit."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from dora_jax.checkpoint import peft
from dora_jax.checkpoint.adapter import load_model
from dora_jax.checkpoint.llava import read_projector
from dora_jax.checkpoint.peft_load import load_peft
from dora_jax.checkpoint.peft_save import save_peft
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.checkpoint.state import flatten
from dora_jax.cli import main
from dora_jax.data.images import ImageProcessor
from dora_jax.errors import DoraError
from dora_jax.models.llava import LlavaConfig
from tests.checkpoint.peft_cases import CASES, GOLDEN, base, inputs, is_llava
from tests.checkpoint.test_peft_golden import OUTPUTS, logits, stored
from tests.models import llavas
from tests.models.families import weight

WEIGHTS = "adapter_model.safetensors"
BESIDE = "non_lora_trainables.safetensors"
LLAVA_CASES = [case for case, (family, _) in CASES.items() if is_llava(family)]
every_case = pytest.mark.parametrize("case", LLAVA_CASES)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """Return (config, parameters) of the tiny LLaVA-1.5."""
    return base(tmp_path_factory.mktemp("llava") / "base", "llava-1.5")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return base(tmp_path_factory.mktemp("llama") / "base", "llama")


def renamed(folder, out, rename, **settings):
    """Copy an adapter's folder with other names of tensors, and other settings."""
    shutil.copytree(folder, out)
    tensors = safetensors.numpy.load_file(out / WEIGHTS)
    safetensors.numpy.save_file({rename(k): v for k, v in tensors.items()}, out / WEIGHTS)
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return out


def same(found, expected):
    assert found.rules == expected.rules
    jax.tree.map(np.testing.assert_array_equal, found.trainable, expected.trainable)


@every_case
def test_settings_are_written_as_they_were_read(tmp_path, case):
    config, plain = base(tmp_path / "base", CASES[case][0])
    adapter = load_peft(GOLDEN / case, config, plain)
    save_peft(tmp_path / "out", adapter.config, adapter.rules, adapter.trainable, plain)
    theirs, ours = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (GOLDEN / case, tmp_path / "out")
    )
    theirs["target_modules"] = by_name(theirs["target_modules"])
    for field, value in ours.items():
        found = sorted(value) if isinstance(value, list) else value
        expected = theirs[field]
        expected = sorted(expected) if isinstance(expected, list) else expected
        assert found == expected, field
    assert ours["auto_mapping"]["base_model_class"] == "LlavaForConditionalGeneration"


def by_name(targets):
    """Return target_modules as names: an expression is written so."""
    if targets != CASES["llava-projector"][1]["target_modules"]:
        return targets
    modules = ("self_attn.q_proj", "mlp.down_proj")
    # All of the latter are the language model's, of the former some are the tower's.
    named = [f"model.language_model.layers.{n}.{modules[0]}" for n in range(4)]
    return [*named, "down_proj"]


OLDER = {
    "as saved": ("language_model.model.", "vision_tower.", "multi_modal_projector."),
    "as saved, a nested tower": (
        "language_model.model.",
        "vision_tower.vision_model.",
        "multi_modal_projector.",
    ),
    "live, a nested tower": (
        "model.language_model.",
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
    ),
}


@pytest.mark.parametrize("older", OLDER)
@pytest.mark.parametrize("case", ["llava-lora", "llava-projector"])
def test_older_names_are_read(tmp_path, llava, case, older):
    live = ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector.")

    def rename(name):
        for new, old in zip(live, OLDER[older], strict=True):
            if name.startswith(f"base_model.model.{new}"):
                return name.replace(new, old)
        raise AssertionError(name)

    folder = renamed(GOLDEN / case, tmp_path / "older", rename)
    adapter = load_peft(folder, *llava)
    same(adapter, load_peft(GOLDEN / case, *llava))
    save_peft(tmp_path / "now", adapter.config, adapter.rules, adapter.trainable, llava[1])
    assert stored(tmp_path / "now") == stored(GOLDEN / case)


def test_an_older_adapter_s_expression_is_of_its_own_day(tmp_path, llava):
    folder = renamed(
        GOLDEN / "llava-projector",
        tmp_path / "older",
        lambda name: name.replace("model.language_model.", "language_model.model."),
        target_modules=r"^language_model\.model\..*\.(q_proj|down_proj)",
        rank_pattern={r"^language_model\.model\.layers\.[0-3]\.mlp\.down_proj": 2},
        r=3,
        modules_to_save=None,
    )
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    kept = {k: v for k, v in tensors.items() if "projector" not in k}
    for name in [name for name in kept if ".q_proj.lora_A" in name]:
        kept[name] = np.concatenate([kept[name], kept[name][:1]], axis=0)
        b = name.replace("lora_A", "lora_B")
        kept[b] = np.concatenate([kept[b], kept[b][:, :1]], axis=1)
    safetensors.numpy.save_file(kept, folder / WEIGHTS)
    rules = load_peft(folder, *llava).rules
    assert rules.spec_for("language_model/layers/self_attn/q_proj").rank == 3
    assert rules.spec_for("language_model/layers/mlp/down_proj").rank == 2
    assert rules.spec_for("vision_tower/layers/self_attn/q_proj").method == "frozen"


@pytest.mark.parametrize("saved", ["multi_modal_projector", "model.multi_modal_projector"])
def test_a_saved_container_means_the_modules_in_it(tmp_path, llava, saved):
    folder = renamed(
        GOLDEN / "llava-projector", tmp_path / "it", lambda name: name, modules_to_save=[saved]
    )
    same(load_peft(folder, *llava), load_peft(GOLDEN / "llava-projector", *llava))


def original(tmp_path, case="llava-projector"):
    """Write an adapter as the authors' LLaVA has it, over Vicuna; return (folder, projector).

    It adapts q_proj and down_proj of the language model alone; the tower has a q_proj too.
    """
    folder = renamed(
        GOLDEN / case,
        tmp_path / "original",
        lambda name: name.replace("model.language_model.", "model."),
        base_model_name_or_path="lmsys/vicuna-7b-v1.5",
        target_modules=["q_proj", "down_proj"],
        modules_to_save=None,
        task_type="CAUSAL_LM",
        auto_mapping=None,
    )
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    projector = {
        name.replace("multi_modal_projector.linear_1", "mm_projector.0").replace(
            "multi_modal_projector.linear_2", "mm_projector.2"
        ): tensors.pop(name)
        for name in list(tensors)
        if "projector" in name
    }
    assert "base_model.model.model.mm_projector.2.bias" in projector
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    safetensors.numpy.save_file(projector, folder / BESIDE)
    return folder, projector


def test_the_authors_adapters_are_read(tmp_path, llava):
    folder, _ = original(tmp_path)
    adapter = load_peft(folder, *llava)
    same(adapter, load_peft(GOLDEN / "llava-projector", *llava))
    found = logits(adapter.config, adapter.rules, adapter.params(llava[1]))
    expected = OUTPUTS["llava-projector"]["logits"]
    np.testing.assert_allclose(found[:, inputs("llava-1.5")[2]], expected, atol=1e-5)
    # And is written as PEFT's of today.
    save_peft(tmp_path / "now", adapter.config, adapter.rules, adapter.trainable, llava[1])
    assert stored(tmp_path / "now") == stored(GOLDEN / "llava-projector")


def test_what_the_authors_trained_beside_is_what_is_in_the_file(tmp_path, llava):
    """Here the projector was frozen, and the tower's norms were not."""
    folder, _ = original(tmp_path)
    prefix = "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers"
    norms = {
        f"{prefix}.{n}.layer_norm1.{leaf}": weight(f"{n} {leaf}", (24,))
        for n in range(3)
        for leaf in ("weight", "bias")
    }
    safetensors.numpy.save_file(norms, folder / BESIDE)
    adapter = load_peft(folder, *llava)
    full = {p for p in flatten(adapter.trainable) if p.startswith(("vision", "multi"))}
    norm = "vision_tower/layers/layer_norm1"
    assert full == {f"{norm}/scale", f"{norm}/bias"}
    scale = adapter.trainable["vision_tower"]["layers"]["layer_norm1"]["scale"]
    np.testing.assert_array_equal(scale[1], norms[f"{prefix}.1.layer_norm1.weight"])
    extra = {**norms, "base_model.model.model.mm_projector.0.weight": np.zeros((32, 24), "f4")}
    safetensors.numpy.save_file(extra, folder / BESIDE)
    with pytest.raises(
        DoraError, match=r"missing: base_model\.model\.model\.mm_projector\.0\.bias"
    ):
        load_peft(folder, *llava)


PROJECTOR = {
    "linear_1/kernel": ("0.weight", (32, 24)),
    "linear_1/bias": ("0.bias", (32,)),
    "linear_2/kernel": ("2.weight", (32, 32)),
    "linear_2/bias": ("2.bias", (32,)),
}


@pytest.mark.parametrize("spelling", ["the authors'", "as saved"])
def test_a_projector_of_the_first_stage_is_read(tmp_path, llava, spelling):
    path = tmp_path / "mm_projector.safetensors"
    tensors, expected = {}, {}
    for ours, (theirs, shape) in PROJECTOR.items():
        name = f"model.mm_projector.{theirs}"
        if spelling == "as saved":
            theirs = theirs.replace("0.", "linear_1.").replace("2.", "linear_2.")
            name = f"multi_modal_projector.{theirs}"
        tensors[name] = weight(name, shape).astype("f2")
        expected[ours] = tensors[name].astype("f4").T
    safetensors.numpy.save_file(tensors, path)
    found = flatten(read_projector(path, llava[0]))
    assert found.keys() == expected.keys()
    for ours, array in expected.items():
        assert found[ours].dtype == np.float32
        np.testing.assert_array_equal(found[ours], array)


PROCESSOR = ImageProcessor(size=14, crop=(14, 14), pad=True)


def seeing_base(folder, family="llava-1.5"):
    llavas.write_folder(folder, family)
    text = json.dumps(PROCESSOR.to_dict())
    (folder / "preprocessor_config.json").write_text(text)
    return folder


def pretrained_logits(model, **changes):
    model = dataclasses.replace(model, **changes)
    return logits(model.config, None, model.params)[:, inputs("llava-1.5")[2]]


@pytest.mark.parametrize("case", ["llava-lora", "llava-dora", "llava-projector"])
def test_the_commands_take_llava(tmp_path, capsys, case):
    folder = str(seeing_base(tmp_path / "base", CASES[case][0]))
    ours = str(tmp_path / "ours")
    main(["import", str(GOLDEN / case), "--out", ours, "--model", folder])
    loaded = load_model(None, tmp_path / "ours")
    seen = inputs(CASES[case][0])[2]
    found = logits(loaded.pretrained.config, loaded.rules, loaded.params)[:, seen]
    np.testing.assert_allclose(found, OUTPUTS[case]["logits"], atol=1e-5)
    main(["export", ours, "--out", str(tmp_path / "back")])
    assert stored(tmp_path / "back") == stored(GOLDEN / case)
    capsys.readouterr()
    main(["adapters", "show", ours])
    shown = capsys.readouterr().out
    assert f"adapter of {folder}" in shown
    assert "language_model/layers/self_attn/q_proj" in shown
    main(["adapters", "show", str(tmp_path / "back")])
    # Of the authors' q, v or q, down, and of the tower's: as many as there are in the file.
    factors = sum(name.endswith("lora_A.weight") for name in stored(GOLDEN / case))
    assert f" in {factors} lora_A, " in capsys.readouterr().out
    main(["merge", "--adapter", ours, "--out", str(tmp_path / "merged")])
    merged = load_pretrained(tmp_path / "merged")
    assert isinstance(merged.config, LlavaConfig)
    assert merged.processor == PROCESSOR
    written, kept = (
        json.loads((tmp_path / name / "preprocessor_config.json").read_text())
        for name in ("merged", "base")
    )
    assert written == kept
    np.testing.assert_allclose(pretrained_logits(merged), OUTPUTS[case]["logits"], atol=4e-5)


def test_the_closest_lora_of_a_llava_is_exported(tmp_path, capsys):
    folder = str(seeing_base(tmp_path / "base"))
    main(["import", str(GOLDEN / "llava-projector"), "--out", f"{tmp_path}/o", "--model", folder])
    main(["export", f"{tmp_path}/o", "--out", f"{tmp_path}/l", "--as-lora", "--error", "0.001"])
    assert "language_model/layers/self_attn/q_proj: " in capsys.readouterr().out
    model = load_pretrained(folder)
    adapter = peft.load(tmp_path / "l", model)
    assert {spec.method for _, spec in adapter.rules.rules} == {"lora", "full"}
    found = logits(adapter.config, adapter.rules, adapter.params(model.params))
    expected = OUTPUTS["llava-projector"]["logits"]
    np.testing.assert_allclose(found[:, inputs("llava-1.5")[2]], expected, atol=1e-2)


def test_an_adapter_of_the_authors_is_imported(tmp_path, caplog, capsys):
    folder, _ = original(tmp_path)
    base_folder = seeing_base(tmp_path / "base")
    settings = json.loads((base_folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (base_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    main(["import", str(folder), "--out", f"{tmp_path}/ours", "--model", str(base_folder)])
    assert "was made for lmsys/vicuna-7b-v1.5, and is put on" in caplog.text
    loaded = load_model(None, tmp_path / "ours")
    assert loaded.info.prompt == "vicuna"
    found = logits(loaded.pretrained.config, loaded.rules, loaded.params)
    expected = OUTPUTS["llava-projector"]["logits"]
    np.testing.assert_allclose(found[:, inputs("llava-1.5")[2]], expected, atol=1e-5)
    main(["adapters", "show", str(folder)])
    shown = capsys.readouterr().out
    assert "PEFT adapter, DoRA, of lmsys/vicuna-7b-v1.5" in shown
    assert "768 in 1 mm_projector.0, 1,024 in 1 mm_projector.2" in shown


def refusal(folder, model):
    with pytest.raises(DoraError) as caught:
        load_peft(folder, *model)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_an_adapter_of_a_language_model_is_no_llava_s(llava):
    message = refusal(GOLDEN / "dora", llava)
    assert "is an adapter of a language model (model.layers." in message
    assert "the base model a LLaVA" in message
    assert f"with {BESIDE} beside the adapter: it is missing here" in message


@pytest.mark.parametrize("case", ["llava-lora", "llava-projector"])
def test_an_adapter_of_llava_is_no_language_model_s(llama, case):
    message = refusal(GOLDEN / case, llama)
    assert "is an adapter of LLaVA (model." in message
    assert "the base model a language model alone" in message
    assert "does not name: name that base model" in message


def test_an_authors_adapter_is_not_taken_for_vicuna_s(tmp_path, llama):
    folder, _ = original(tmp_path)
    message = refusal(folder, llama)
    assert f"is an adapter of LLaVA ({BESIDE})" in message
    assert "It was made for lmsys/vicuna-7b-v1.5: name a LLaVA of that language model" in message


def test_a_projector_of_another_tower_is_refused(llava):
    config, params = llava
    wider = dataclasses.replace(config, feature_layers=(-2, 1))
    message = refusal(GOLDEN / "llava-projector", (wider, params))
    assert "multi_modal_projector.linear_1.weight (32, 24) instead of (32, 48)" in message


def test_an_adapter_of_a_deeper_tower_is_refused(llava):
    config, params = llava
    vision = dataclasses.replace(config.vision, num_hidden_layers=2)
    shallow = dataclasses.replace(config, vision=vision)
    message = refusal(GOLDEN / "llava-lora", (shallow, params))
    assert "unexpected: base_model.model.model.vision_tower.encoder.layers.2.self_attn" in message


def test_pickles_of_the_authors_are_refused_with_advice(tmp_path, llava):
    folder, _ = original(tmp_path)
    (folder / BESIDE).rename(folder / "non_lora_trainables.bin")
    message = refusal(folder, llava)
    assert (
        "non_lora_trainables.bin: is pickled, and unpickling may run code; convert it once"
        in message
    )
    assert "weights_only=True" in message
    (tmp_path / "mm_projector.bin").write_bytes(b"")
    for name in ("mm_projector.bin", "mm_projector.safetensors"):
        with pytest.raises(DoraError, match=r"mm_projector\.bin: is pickled"):
            read_projector(tmp_path / name, llava[0])


def test_a_projector_that_does_not_fit_is_refused(tmp_path, llava):
    path = tmp_path / "mm_projector.safetensors"
    with pytest.raises(DoraError, match=r"mm_projector\.safetensors: no such file"):
        read_projector(path, llava[0])
    safetensors.numpy.save_file({"model.mm_projector.weight": np.zeros((32, 24), "f4")}, path)
    with pytest.raises(DoraError, match=r"missing: model\.mm_projector\.0\.weight"):
        read_projector(path, llava[0])


@pytest.mark.parity
def test_the_advice_for_pickles_works(tmp_path, llava):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    folder, projector = original(tmp_path)
    (folder / BESIDE).unlink()
    pickled = {name: torch.from_numpy(array).bfloat16() for name, array in projector.items()}
    torch.save(pickled, folder / "non_lora_trainables.bin")
    code = refusal(folder, llava).split('python -c "')[1].rstrip('"')
    exec(code)
    adapter = load_peft(folder, *llava)
    kernel = adapter.trainable["multi_modal_projector"]["linear_1"]["kernel"]
    expected = projector["base_model.model.model.mm_projector.0.weight"].T
    np.testing.assert_allclose(kernel.astype("f4"), expected, rtol=2**-8)
