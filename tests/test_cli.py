import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dora_jax import cli
from tests.checkpoint.tiny_adapter import write_base

EXPERIMENT = """
from dora_jax.training.config import ExperimentConfig, ModelConfig
config = ExperimentConfig(name="mine", model=ModelConfig(name={model!r}))
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT.format(model=str(tmp_path / "no-model")))
    return path


def fails(capsys, *argv):
    """Run a command that must fail; return its exit code and what it said."""
    with pytest.raises(SystemExit) as error:
        cli.main([str(a) for a in argv])
    captured = capsys.readouterr()
    text = " ".join((captured.err + captured.out).split())
    assert "Traceback" not in text
    return error.value.code, text


def test_help(capsys):
    for argv in ([], ["--help"]):
        cli.main(argv)
        assert "dora-jax compare CONFIG.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "compare",
        "train",
        "evaluate",
        "generate",
        "chat",
        "merge",
        "import",
        "export",
        "adapters",
        "models",
    ],
)
def test_help_of_a_command_names_fields_with_defaults(capsys, command):
    with pytest.raises(SystemExit) as error:
        cli.main([command, "--help"])
    assert error.value.code == 0
    out = capsys.readouterr().out
    expected = {
        "generate": "--prompts",
        "chat": "--system",
        "merge": "--out",
        "import": "--model",
        "export": "--as-lora",
        "adapters": "adapters show",
        "models": "pull NAME",
    }
    assert expected.get(command, "--optim.learning-rate") in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["compar"], "unknown command 'compar' (did you mean 'compare'?)"),
        (["compare"], "dora-jax compare needs an experiment file first"),
        (["compare", "none.py"], "none.py: no such experiment file"),
        (["generate", "--prompt", " "], "the prompt is empty"),
        (
            ["generate", "--prompt", "a", "--model", "smollm2-135m"],
            "did you mean 'smollm2-135m-instruct'",
        ),
        (["generate", "--prompt", "a", "--adapter", "nowhere"], "nowhere: no such folder"),
        (["generate", "--prompt", "a", "--temperature", "-1"], "temperature must be at least 0"),
        (["generate"], "give --prompt TEXT, or --prompts FILE.jsonl together with --out"),
        (["generate", "--prompt", "a", "--prompts", "b"], "one of the two"),
        (["generate", "--prompts", "a.jsonl"], "one of the two"),
        (["generate", "--prompt", "a", "--out", "b"], "one of the two"),
        (["generate", "--prompts", "a.jsonl", "--out", "b.jsonl"], "a.jsonl: cannot be read"),
        (["generate", "--prompt", "a", "--top-p", "2"], "top_p must be over 0 and up to 1"),
        (["generate", "--prompt", "a", "--template", "chad"], "did you mean 'chat'"),
        (["chat", "--model", "smollm2-135m"], "did you mean 'smollm2-135m-instruct'"),
        (["chat", "--adapter", "nowhere"], "nowhere: no such folder"),
        (["chat", "--temperature", "-1"], "temperature must be at least 0"),
        (["chat", "--system", " "], "the system message is empty"),
        (["merge", "--adapter", "nowhere", "--out", "x"], "nowhere: no such folder"),
        (["models", "pull", "smolm2-135m"], "unknown model 'smolm2-135m'"),
        (["models", "pul", "smolm2-135m"], "knows no 'pul' (did you mean 'pull'?); it lists, or"),
    ],
)
def test_bad_commands(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, text = fails(capsys, *argv)
    assert code == 1
    assert message in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--adapter.rank", "0"], "adapter.rank must be a whole number of at least 1; got 0"),
        (["--adapter.alpha", "-2"], "adapter.alpha must be positive and finite; got -2.0"),
        (["--adapter.modules", "all-liner"], "(did you mean 'all-linear'?)"),
        (["--optim.learning-rat", "1"], "--optim.learning-rate"),
        (["--train.steps", "many"], "--train.steps"),
        (["--data.train", "a.jsonl"], "data.train is given without data.eval"),
        (["--seeds", "1", "1"], "seeds must be without repeats"),
        ([], "no-model: no such folder"),
    ],
)
def test_bad_fields(capsys, experiment, overrides, message):
    code, text = fails(capsys, "compare", experiment, *overrides)
    assert code != 0
    assert message in text
    assert not (experiment.parent / "runs").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nx / 0\n", "bad.py, line 2: ZeroDivisionError"),
        ("def f(:\n", "bad.py"),
        ("config = 3\n", "must set `config = ExperimentConfig(...)`"),
        (EXPERIMENT.format(model="m").replace("name=", "nam=", 1), "bad.py, line 3: TypeError"),
        (EXPERIMENT.format(model="m").replace("mine", "a/b"), "name must be a plain file name"),
    ],
)
def test_bad_experiment_files(capsys, tmp_path, monkeypatch, source, message):
    (tmp_path / "bad.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    code, text = fails(capsys, "compare", "bad.py")
    assert code == 1
    assert message in text


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    for command in ("compare", "models"):
        monkeypatch.setitem(cli._COMMANDS, command, interrupted)
        code, text = fails(capsys, command)
        assert code == 130
        assert "run the same command again" in text
        assert ("to continue where it stopped" in text) == (command == "compare")


def test_a_full_disk_is_said_in_words(capsys, monkeypatch):
    def full(argv):
        raise OSError(28, "No space left on device", "runs/x/metrics.jsonl")

    monkeypatch.setitem(cli._COMMANDS, "models", full)
    code, text = fails(capsys, "models")
    assert code == 1
    assert "runs/x/metrics.jsonl: No space left on device; mend that and run the same" in text


@pytest.fixture
def base(tmp_path):
    return str(write_base(tmp_path / "base"))


def run(capsys, *argv):
    cli.main([str(a) for a in argv])
    return capsys.readouterr().out


def test_generate_prints_one_answer_streamed_or_not_or_several(capsys, base):
    asked = ["generate", "--prompt", "hello", "--model", base, "--max-new-tokens", "4"]
    whole = run(capsys, *asked, "--no-stream")
    assert whole.strip()
    assert run(capsys, *asked, "--stream") == whole
    several = run(capsys, *asked, "--num-samples", "2", "--temperature", "1", "--seed", "5")
    assert [line[:4] for line in several.splitlines() if line.startswith("[")] == ["[1] ", "[2] "]
    beams = run(capsys, *asked, "--num-beams", "2")
    assert beams.strip()
    stopped = run(capsys, *asked, "--no-stream", "--stop", whole.strip()[0])
    assert stopped.strip() == ""


def test_generate_answers_a_file_and_continues_it(capsys, base, tmp_path):
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "hello"}\n{"prompt": "wor"}\n')
    asked = ["generate", "--prompts", prompts, "--out", out, "--model", base]
    asked += ["--max-new-tokens", "4", "--batch-size", "1"]
    assert run(capsys, *asked) == f"2 lines written to {out}\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["hello", "wor"]
    assert run(capsys, *asked) == f"{out} is complete already\n"
    code, text = fails(capsys, *asked, "--seed", "1")
    assert code == 1
    assert "seed is 0 there and 1 here" in text


def test_a_model_without_a_chat_template_says_so(capsys, base):
    for path in Path(base).glob("tokenizer_config.json"):
        config = json.loads(path.read_text())
        del config["chat_template"]
        path.write_text(json.dumps(config))
    for argv in (["generate", "--prompt", "hello"], ["chat"]):
        code, text = fails(capsys, *argv, "--model", base)
        assert code == 1
        assert "has no chat template" in text
        assert "--template plain" in text
    asked = ["generate", "--prompt", "a", "--model", base, "--template", "plain"]
    code, text = fails(capsys, *asked, "--max-new-tokens", "120")
    assert "prompt 1 has" in text
    assert "the model's context of 128" in text


def test_chat_talks_over_a_pipe(capsys, base, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/undo\n/exit\n"))
    out = run(capsys, "chat", "--model", base, "--max-new-tokens", "4", "--temperature", "0")
    assert "/help lists commands" in out
    assert out.splitlines()[-1] == "taken back: hello"


def test_an_interrupt_of_a_file_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "generate", interrupted)
    assert "to continue where it stopped" in fails(capsys, "generate", "--prompts", "a")[1]
    assert "to continue" not in fails(capsys, "generate", "--prompt", "a")[1]


def test_the_core_install_says_what_the_command_needs():
    """Without the extra, `import dora_jax` works and the command names the way out."""
    code = """
import sys
for name in ("tyro", "gguf", "tokenizers", "safetensors", "jinja2", "matplotlib", "scipy"):
    sys.modules[name] = None
import dora_jax
dora_jax.AdapterSpec("dora")
import dora_jax.cli
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    assert "pip install 'dora-jax[experiments]'" in found.stderr


def test_quickstart_is_an_experiment():
    config = cli.load_experiment("experiments/quickstart.py")
    assert config.compare.methods == ("lora", "dora")
    assert json.dumps(config.settings())
