"""Each benchmark on the toy shape: its figures are there, positive, and agree with one another."""

import dataclasses
import importlib
import json
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import gpu, scaling
from benchmarks.load_and_compile import write_random_folder
from benchmarks.processes import json_lines_of
from benchmarks.shapes import SHAPES
from benchmarks.training_step import random_base
from benchmarks.vlbart_generation import writing
from benchmarks.vlbart_setting import VLBartSetting
from dora_jax.checkpoint.hf import read_hf_folder, write_hf_folder
from tests.checkpoint import tiny_model

pytestmark = pytest.mark.slow
SETTING = ["--batch=2", "--seq=16", "--rank=4", "--steps=2"]
TOY = ["--model=toy", *SETTING]


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Compile fast, and the step that most benchmarks share only once; also in their processes."""
    seconds = "jax_persistent_cache_min_compile_time_secs"
    during_and_after = {
        "jax_compilation_cache_dir": (
            str(tmp_path_factory.mktemp("xla")),
            jax.config.jax_compilation_cache_dir,
        ),
        seconds: (0.0, getattr(jax.config, seconds)),
        "jax_disable_most_optimizations": (True, False),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, (value, _) in during_and_after.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
    for name, (_, value) in during_and_after.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a benchmark as a command; return the JSON that it prints first, and the text after it."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        importlib.import_module(f"benchmarks.{name}").main()
        text = capsys.readouterr().out
        if not text.startswith("{"):
            return None, text.strip()
        found, end = json.JSONDecoder().raw_decode(text)
        return found, text[end:].strip()

    return run


def check_row(row, method="dora"):
    assert (row["method"], row["batch"], row["seq"], row["rank"]) == (method, 2, 16, 4)
    assert 0 < row["step_time_min_s"] <= row["step_time_s"]
    assert row["tokens_per_s"] == pytest.approx(32 / row["step_time_s"])
    assert row["compile_s"] > 0
    assert row["temp_bytes"] > 0
    assert row["flops"] > 32 * 4 * 2 * 64 * 128  # down_proj's alone
    assert row["platform"] == jax.default_backend()


def check_ratios(row, lora):
    for name, ratio in row["ratio_to_lora"].items():
        assert ratio == pytest.approx(row[name] / lora[name])


def test_step_time(run):
    row, rest = run("step_time", *TOY)
    check_row(row)
    utilisation = row["flops"] / row["step_time_min_s"] / row["matmul_peak"]
    assert row["model_flop_utilisation"] == pytest.approx(utilisation)
    assert rest == ""


def test_compare_step_time(run):
    found, _ = run("compare_step_time", *TOY, "--methods", "lora", "dora")
    lora, dora = found["results"]["lora"], found["results"]["dora"]
    check_row(lora, "lora")
    check_row(dora)
    check_ratios(dora, lora)
    assert set(lora["ratio_to_lora"].values()) == {1.0}
    assert dora["flops"] > lora["flops"]
    assert dora["temp_bytes"] >= lora["temp_bytes"]


TOY_VLBART = ["--shape=toy", "--batch=2", "--prompt=3", "--target=2", "--rank=4", "--steps=2"]


def test_vlbart(run):
    found, _ = run("vlbart", *TOY_VLBART)
    rows = found["results"]
    assert list(rows) == ["lora", "dora", "full"]
    for method, row in rows.items():
        assert (row["method"], row["family"], row["batch"]) == (method, "image", 2)
        # 2 rows of 3 + 36 positions of the encoder, and 2 of the decoder.
        assert row["tokens_per_s"] == pytest.approx(82 / row["step_time_s"])
        utilisation = row["flops"] / row["step_time_min_s"] / row["matmul_peak"]
        assert row["model_flop_utilisation"] == pytest.approx(utilisation)
        check_ratios(row, rows["lora"])
    assert rows["full"]["flops"] > rows["dora"]["flops"] > rows["lora"]["flops"]
    compiled, _ = run("vlbart", *TOY_VLBART, "--compile-only", "--methods", "dora")
    (dora,) = compiled["results"].values()
    assert dora == {name: rows["dora"][name] for name in dora}


@pytest.mark.parametrize(("family", "visual"), [("image", 2 * 36), ("video", 2 * 64)])
def test_the_batch_of_vlbart_is_what_the_setting_says(family, visual):
    setting = VLBartSetting(family, "toy", batch=2, prompt=3, target=2, images=2, rank=4)
    batch, model = setting.random_batch(), setting.plain()
    inputs = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), batch.tokens, source=batch.source, method="hidden_states"
        )
    )
    assert setting.visual == visual
    assert inputs[0][0].shape == (2, 2, 64)
    read = jax.eval_shape(
        lambda p: model.apply({"params": p}, batch.source, method="source_inputs"),
        inputs[1]["params"],
    )
    assert read[0].shape == (2, 3 + visual, 64)
    assert setting.tokens == 2 * (3 + visual + 2)


def test_vlbart_generation(run):
    given = ["--shape=toy", "--prompt=3", "--target=3", "--steps=2", "--rows", "1", "2"]
    found, _ = run("vlbart_generation", *given, "--beams", "1", "2")
    rows = found["results"]
    assert [(row["beams"], row["rows"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    for row in rows:
        assert 0 < row["seconds_min"] <= row["seconds"]
        assert row["rows_per_s"] == pytest.approx(row["rows"] / row["seconds"])
        assert row["rows_per_s_max"] == pytest.approx(row["rows"] / row["seconds_min"])


def test_every_text_of_the_generation_benchmark_has_all_its_tokens():
    setting = VLBartSetting(shape="toy", prompt=3, target=3)
    texts = writing(setting, random_base(setting), rows=2, beams=2)()
    assert [len(text) for text in texts] == [3, 3]


def test_overhead_and_its_plot(run, tmp_path):
    out, plot = tmp_path / "overhead.json", tmp_path / "overhead.svg"
    sweep = ["--tokens", "2x16", "--ranks", "4"]
    _, text = run("overhead", *TOY, *sweep, "--out", out)
    found = json.loads(out.read_text())
    (row,) = found["by_tokens"]
    check_row(row)
    check_row(found["by_rank"][0])
    ratio = row["step_time_s"] / row["lora_step_time_s"]
    assert row["ratio_to_lora"]["step_time_s"] == pytest.approx(ratio)
    assert f"| 2 x 16 | 4 | {ratio:.3f} |" in text
    assert run("overhead", "--from", out, "--plot", plot)[1] == text
    assert "<svg" in plot.read_text()


def test_scaling(run, tmp_path):
    out = tmp_path / "scaling.json"
    sweep = ["--tokens", "2x16", "--ranks", "--depths", "2", "--widths", "64"]
    _, text = run("scaling", *TOY, *sweep, "--out", out)
    found = json.loads(out.read_text())
    assert found["rank"] == []
    for name, model in (("tokens", "toy"), ("depth", "toy-depth-2"), ("width", "toy-width-64")):
        (row,) = found[name]
        check_row(row)
        assert row["model"] == model
        ratio = row["step_time_s"] / row["lora_step_time_s"]
        assert row["ratio_to_lora"]["step_time_s"] == pytest.approx(ratio)
    assert "| width | 2 | 64 | 2 x 16 | 4 |" in text


def test_shapes_that_scaling_derives():
    deep, wide = SHAPES[scaling.with_depth("toy", 5)], SHAPES[scaling.with_width("toy", 96)]
    assert deep == dataclasses.replace(SHAPES["toy"], num_hidden_layers=5)
    assert (wide.hidden_size, wide.intermediate_size) == (96, 192)
    assert (wide.num_attention_heads, wide.num_key_value_heads, wide.head_dim) == (6, 3, 16)
    with pytest.raises(SystemExit, match="toy's are multiples of 32; got 40"):
        scaling.with_width("toy", 40)


def test_all_devices_give_one_device_s_loss(run):
    empty = ["--tokens", "--ranks", "--depths", "--widths"]
    found, _ = run("scaling", *TOY, *empty, "--devices", "--batch=8")
    found = found["over_devices"]
    assert (found["devices"], found["batch"]) == (8, 8)
    loss, times = found["loss"], found["step_time_min_s"]
    assert 0 < loss["one"] < 2 * np.log(512)
    assert found["loss_difference"] == pytest.approx(abs(loss["all"] / loss["one"] - 1))
    assert found["loss_difference"] < 1e-5
    assert found["speedup"] == pytest.approx(times["one"] / times["all"])


def test_a_batch_that_the_devices_cannot_share_is_refused(run):
    empty = ["--tokens", "--ranks", "--depths", "--widths"]
    with pytest.raises(SystemExit, match="must be a multiple of 8; got 2"):
        run("scaling", *TOY, *empty, "--devices")


def test_checkpoint(run):
    (found, *_) = run("checkpoint", "--model=toy", *SETTING, "--saves=2")
    assert found["state_bytes"] > found["bytes_on_disk"] / 10 > 0
    assert 0 < found["stall_s"] < found["written_s"]
    assert found["restore_s"] > 0


def test_evaluation(run, tmp_path):
    options = [f"the correct answer is {word}" for word in ("true", "false")]
    rows = [
        {"instruction": f"{n} is even", "output": options[n % 2], "options": options}
        for n in range(5)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = tiny_model.our_params(tiny_model.hf_weights())
    write_hf_folder(tmp_path / "tiny", tiny_model.CONFIG, params, tiny_model.tokenizer())
    tokenizer = f"--tokenizer={tmp_path / 'tiny'}"
    found, _ = run("evaluation", "--model=toy", f"--data={data}", tokenizer, "--batch=2")
    for protocol in ("likelihood", "generate"):
        row = found[protocol]
        assert row["rows"] == 5
        assert row["whole_s"] - row["model_s"] == pytest.approx(
            row["host_ms_a_row"] * row["rows"] / 1000
        )
        assert 0 < row["host_share"] < 1
    assert found["likelihood"]["calls"] == 3
    assert found["generate"]["calls"] == 6  # scored for the loss, and written


def test_load_and_compile(run):
    found, _ = run("load_and_compile", "--shape=toy", *SETTING, "--method=lora")
    assert found["model"] == "random toy"
    parameters = sum(leaf.size for leaf in jax.tree.leaves(random_base(toy_setting())))
    for row in (found["cold"], found["warm"]):
        moments = ("imported_s", "device_s", "on_device_s", "compiled_s", "first_step_s")
        times = [row[name] for name in moments]
        assert times[0] > 0
        assert times == sorted(times)
        assert row["compiled_s"] - row["on_device_s"] > row["compile_s"] > 0
        assert row["weights_bytes"] == 4 * parameters
        # More than the interpreter, less than all that the tests hold.
        assert 1e8 < row["peak_rss_bytes"] < 2e9
        assert row["peak_to_weights"] == pytest.approx(row["peak_rss_bytes"] / 4 / parameters)
        if row["load_peak_bytes"] is not None:  # Linux
            assert row["load_peak_bytes"] < row["peak_rss_bytes"]
            ratio = row["load_peak_bytes"] / 4 / parameters
            assert row["load_peak_to_weights"] == pytest.approx(ratio)
    assert found["warm"]["compile_s"] < found["cold"]["compile_s"]
    assert found["warm"]["cached_files"] >= found["cold"]["cached_files"] > 0


def toy_setting():
    return scaling.StepSetting(model="toy")


def test_the_random_folder_is_a_model_of_the_shape(tmp_path):
    write_random_folder(tmp_path / "model", SHAPES["toy"], "bfloat16")
    config, params, tokenizer = read_hf_folder(tmp_path / "model")
    assert config == SHAPES["toy"]
    base = random_base(toy_setting())
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, base)
    assert tokenizer.decode(tokenizer.encode("Grüße")) == "Grüße"


def test_gpu(run, tmp_path):
    out = tmp_path / "results" / "here.json"
    _, text = run("gpu", "--model=toy", "--quick", "--parts=steps", "--out", out)
    found = json.loads(out.read_text())
    (case,) = found["models"]["toy"]["steps"]
    assert (case["case"], list(case["rows"])) == ("headline", ["lora", "dora", "dora-exact"])
    for method, row in case["rows"].items():
        assert (row["method"], row["dtype"], row["remat"]) == (method, "bfloat16", "dots")
        assert row["step_time_min_s"] > 0
        assert row["temp_bytes"] > 0
        utilisation = row["flops"] / row["step_time_min_s"] / row["matmul_peak"]
        assert row["model_flop_utilisation"] == pytest.approx(utilisation)
        check_ratios(row, case["rows"]["lora"])
    assert found["device"] == case["device"] == jax.devices()[0].device_kind
    assert found["seconds"] > 0
    assert text.count("| toy | headline |") == 3


def test_what_fails_or_has_no_time_is_recorded(monkeypatch, capsys):
    def fail(*arguments):
        raise MemoryError("too large")

    count = len(gpu.cases(quick=False))
    monkeypatch.setattr(gpu, "measure", fail)
    gpu.run_cases("toy", False, float("inf"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["error"] for line in lines] == ["MemoryError: too large"] * count
    gpu.run_cases("toy", False, 0.0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["skipped"] for line in lines] == ["no time was left"] * count


def test_a_process_that_fails_is_recorded(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "part_command", lambda *_: ("benchmarks.lost", []))
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--model=toy", "--out", str(out)])
    gpu.main()
    for part in json.loads(out.read_text())["models"]["toy"].values():
        assert "No module named benchmarks.lost" in part[0]["error"]


def test_a_process_is_killed_in_time():
    with pytest.raises(RuntimeError, match="asyncio ended with -9"):
        list(json_lines_of("asyncio", ["-i"], timeout_s=0.01))


def test_the_results_are_named_after_the_device(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "_RESULTS", tmp_path)
    gpu.write({"device": "NVIDIA H100 80GB HBM3"}, None)
    assert (tmp_path / "nvidia-h100-80gb-hbm3.json").is_file()


def test_the_cases_for_an_accelerator_are_what_was_asked():
    fields = [case.fields for case in gpu.cases(quick=False)]
    tokens = {f["batch"] * f["seq"] for f in fields}
    assert tokens == {2048, 4096, 8192, 16384}
    at_8k = [f for f in fields if f["batch"] * f["seq"] == 8192]
    assert {f.get("rank", 16) for f in at_8k} == {16, 64, 128, 512}
    assert {f.get("labelled", 1.0) for f in at_8k} == {1.0, 0.1}
    assert {f["remat"] for f in at_8k} == {"dots", "full"}


@pytest.mark.parity
def test_against_peft(run):
    for name in ("torch", "transformers", "peft"):
        pytest.importorskip(name, reason="the parity extra is not installed")
    found, _ = run("against_peft", *TOY)
    steps = found["steps"]
    for method in ("lora", "dora"):
        ours, peft = steps["ours"][method], steps["peft"][method]
        assert 0 < ours["min_s"] <= ours["median_s"]
        assert 0 < peft["min_s"] <= peft["median_s"]
        assert found["ours_to_peft"][method] == {
            "median": pytest.approx(ours["median_s"] / peft["median_s"]),
            "min": pytest.approx(ours["min_s"] / peft["min_s"]),
        }
    for library, own in steps.items():
        ratio = own["dora"]["min_s"] / own["lora"]["min_s"]
        assert found["dora_to_lora"][library]["min"] == pytest.approx(ratio)
    assert list(found["forward"]) == ["unmerged", "cached", "merged"]
    for pair in found["forward"].values():
        ratio = pair["ours"]["min_s"] / pair["peft"]["min_s"]
        assert pair["ours_to_peft"]["min"] == pytest.approx(ratio)


@pytest.mark.parity
def test_memory_against_peft(monkeypatch):
    pytest.importorskip("peft", reason="the parity extra is not installed")
    from benchmarks import against_peft

    (peft,) = json_lines_of("benchmarks.against_peft", [*TOY, "--alone", "peft", "lora"])
    # torch's libraries are in the one figure and not in the other.
    assert 0 < peft["growth_bytes"] < peft["peak_rss_bytes"] - 1e8 < 2e9
    ours = {"peak_rss_bytes": 10, "growth_bytes": 5, "device_peak_bytes": None}
    answers = {"ours": ours, "peft": peft}
    monkeypatch.setattr(against_peft, "json_lines_of", lambda _, given: [answers[given[-2]]])
    memory = against_peft.compare_memory()["memory"]
    expected = {name: 10 / peft[name] / (1 if "peak" in name else 2) for name in list(peft)[:2]}
    assert memory["ours_to_peft"] == {method: expected for method in ("lora", "dora")}


@pytest.mark.parity
def test_peft_trains_the_same_parameters_on_the_same_tokens():
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    pytest.importorskip("peft", reason="the parity extra is not installed")
    from benchmarks import against_peft
    from dora_jax.models.llama import param_shapes
    from dora_jax.partition import count_parameters, trainable_mask

    setting = scaling.StepSetting(model="toy", batch=2, seq=16, rank=4, labelled=0.5)
    model = against_peft.peft_model(setting, "cpu")
    theirs = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adapted = setting.adapted()
    shapes = param_shapes(adapted)
    ours = count_parameters(shapes, trainable_mask(shapes, adapted.adapters))
    assert sum(p.numel() for p in theirs.values()) == ours
    before = {name: p.detach().clone() for name, p in theirs.items()}
    against_peft.peft_step(model, setting, "cpu")()
    moved = [name for name, p in theirs.items() if not torch.equal(p, before[name])]
    # All but A, whose gradient is zero while B is.
    assert sorted(moved) == sorted(name for name in theirs if "lora_A" not in name)
    tokens = against_peft.peft_tokens(setting, "cpu")
    np.testing.assert_array_equal(tokens.numpy(), setting.random_batch().tokens)
