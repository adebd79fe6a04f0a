import json
import subprocess
import sys

import pytest

from dora_jax import cli

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


@pytest.mark.parametrize("command", ["compare", "train", "evaluate", "generate", "merge", "models"])
def test_help_of_a_command_names_fields_with_defaults(capsys, command):
    with pytest.raises(SystemExit) as error:
        cli.main([command, "--help"])
    assert error.value.code == 0
    out = capsys.readouterr().out
    expected = {"generate": "--max-new-tokens", "merge": "--out", "models": "--pull"}
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
        (["merge", "--adapter", "nowhere", "--out", "x"], "nowhere: no such folder"),
        (["models", "--pull", "smolm2-135m"], "unknown model 'smolm2-135m'"),
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
