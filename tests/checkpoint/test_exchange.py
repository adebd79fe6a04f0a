"""`dora-jax import`, `export` and `adapters show`."""

import json
import re
import shutil

import numpy as np
import pytest

from dora_jax.checkpoint import peft
from dora_jax.checkpoint.adapter import load_model
from dora_jax.checkpoint.hf import read_hf_folder
from dora_jax.checkpoint.merge import merge_to_hf
from dora_jax.checkpoint.peft_load import load_peft
from dora_jax.checkpoint.pretrained import load_pretrained
from dora_jax.cli import main
from tests.checkpoint.peft_cases import CASES, GOLDEN, base
from tests.checkpoint.test_peft_golden import OUTPUTS, logits, stored
from tests.checkpoint.tiny_adapter import adapter_info, write_adapter, write_base
from tests.models.families import SEEN


def peft_folder(tmp_path, case):
    """Return PEFT's folder of a golden case, whose config names the base model."""
    base(tmp_path / "base", CASES[case][0])
    folder = shutil.copytree(GOLDEN / case, tmp_path / "peft")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", ["some-layers", "embeddings", "saved-modules"])
def test_an_imported_adapter_is_as_any_other(tmp_path, case, capsys):
    folder = peft_folder(tmp_path, case)
    main(["import", str(folder), "--out", str(tmp_path / "ours")])
    assert f"adapter written to {tmp_path / 'ours'}" in capsys.readouterr().out
    loaded = load_model(None, tmp_path / "ours")
    found = logits(loaded.pretrained.config, loaded.rules, loaded.params)[:, list(SEEN)]
    np.testing.assert_allclose(found, OUTPUTS[case]["logits"], atol=1e-5)
    main(["export", str(tmp_path / "ours"), "--out", str(tmp_path / "back")])
    assert stored(tmp_path / "back") == stored(folder)
    written = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    merge_to_hf(tmp_path / "ours", tmp_path / "merged")
    config, params, _ = read_hf_folder(tmp_path / "merged")
    merged = logits(config, None, params)[:, list(SEEN)]
    np.testing.assert_allclose(merged, OUTPUTS[case]["logits"], atol=2e-5)


def test_a_base_model_in_another_place(tmp_path, caplog):
    folder = peft_folder(tmp_path, "dora")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(SystemExit):
        main(["import", str(folder), "--out", str(tmp_path / "ours")])
    main(["import", str(folder), "--out", str(tmp_path / "ours"), "--model", f"{tmp_path}/moved"])
    assert f"was made for {tmp_path / 'base'}, and is put on" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["import", "PEFT", "--out", "new"], "names no base model; name it with --model"),
        (["export", "PEFT", "--out", "new"], "is a PEFT adapter; make it one of ours first"),
        (["export", "x", "--out", "new", "--as-lora"], "--as-lora goes with one of --rank R and"),
        (["export", "x", "--out", "new", "--rank", "3"], "--as-lora goes with one of"),
        (["adapters", "list"], "dora-jax adapters show FOLDER"),
        (["adapters", "show", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_answered_in_words(tmp_path, capsys, arguments, problem, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = str(GOLDEN / "dora")
    with pytest.raises(SystemExit) as caught:
        main([folder if argument == "PEFT" else argument for argument in arguments])
    assert caught.value.code == 1
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_an_adapter_holds_is_shown(tmp_path, capsys):
    main(["adapters", "show", str(GOLDEN / "dora")])
    shown = capsys.readouterr().out
    assert "PEFT adapter, DoRA, of None" in shown
    # q_proj 32 x 32 and down_proj 48 x 32, rank 2, four layers.
    assert "1,408 numbers: 640 in 8 lora_A, 512 in 8 lora_B, 256 in 8 lora_magnitude_vec" in shown
    folder = peft_folder(tmp_path, "some-layers")
    main(["import", str(folder), "--out", str(tmp_path / "ours")])
    shown = capsys.readouterr().out
    assert "dora adapter of" in shown
    assert "^(?:layers/self_attn/k_proj): dora, rank 2 to 2, in 2 of 4 layers, scale 2.5" in shown
    assert "magnitudes 0 to" in shown


def test_the_closest_lora_is_exported_with_its_losses(tmp_path, capsys):
    write_base(tmp_path / "base")
    info = adapter_info(tmp_path / "base", "dora", modules="qkv-dora")
    params = write_adapter(tmp_path / "adapter", info)
    arguments = ["export", str(tmp_path / "adapter"), "--as-lora", "--out"]
    main([*arguments, str(tmp_path / "one"), "--rank", "1"])
    shown = capsys.readouterr().out
    assert "layers/mlp/down_proj: " in shown  # magnitude alone, which PEFT has not
    assert "logits of a short text: moved by " in shown
    main([*arguments, str(tmp_path / "small-error"), "--error", "0.01"])
    lost = [float(x) for x in re.findall(r": ([\d.]+)% at most", capsys.readouterr().out)]
    assert len(lost) == 7
    assert 0 < max(lost) <= 1
    config, plain, _ = read_hf_folder(tmp_path / "base")
    own = logits(config, info.rules(), params)
    errors = []
    for name in ("one", "small-error"):
        adapter = load_peft(tmp_path / name, config, plain)
        assert {spec.method for _, spec in adapter.rules.rules} == {"lora"}
        found = logits(adapter.config, adapter.rules, adapter.params(plain))
        errors.append(np.abs(found - own).max())
    assert errors[1] < 0.05 * errors[0]


def test_the_library_s_own_way_is_load_and_save(tmp_path):
    folder = peft_folder(tmp_path, "dora")
    model = load_pretrained(tmp_path / "base")
    adapter = peft.load(folder, model)
    params = adapter.params(model.params)
    found = logits(adapter.config, adapter.rules, params)[:, list(SEEN)]
    np.testing.assert_allclose(found, OUTPUTS["dora"]["logits"], atol=1e-5)
    peft.save(tmp_path / "back", adapter.config, adapter.rules, params, model.params)
    assert stored(tmp_path / "back") == stored(folder)
