import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

import jax
import pytest

from dora_jax.errors import DoraError
from dora_jax.training import runs
from dora_jax.training.runs import claim, environment, finish_part, finished_part, read_json

SETTINGS = {"optim": {"learning_rate": 0.1, "clip_norm": 1.0}, "seeds": [0, 1], "name": "a"}


def refusal(folder, settings=SETTINGS):
    with pytest.raises(DoraError) as caught, claim(folder, settings):
        pytest.fail("claimed")
    return str(caught.value)


def test_a_new_folder_gets_config_and_environment(tmp_path):
    folder = tmp_path / "runs" / "one"
    with claim(folder, SETTINGS):
        config = json.loads((folder / "config.json").read_text())
        assert config == SETTINGS
        assert json.loads((folder / "environment.json").read_text()) == [environment()]


def test_a_run_of_the_same_settings_continues(tmp_path):
    with claim(tmp_path, SETTINGS):
        (tmp_path / "base").mkdir()
    before = (tmp_path / "config.json").stat().st_ino
    with claim(tmp_path, json.loads(json.dumps(SETTINGS))):
        assert (tmp_path / "config.json").stat().st_ino == before
        assert (tmp_path / "base").is_dir()


def test_environments_are_kept_in_order_the_present_one_last(tmp_path, monkeypatch):
    for name in "abba":
        monkeypatch.setattr(runs, "environment", lambda name=name: {"git_commit": name})
        with claim(tmp_path, SETTINGS) as environments:
            pass
    assert [e["git_commit"] for e in environments] == ["b", "a"]
    assert json.loads((tmp_path / "environment.json").read_text()) == environments


def test_another_config_is_refused_and_its_fields_named(tmp_path):
    with claim(tmp_path, SETTINGS):
        pass
    other = SETTINGS | {"optim": {"learning_rate": 0.2, "clip_norm": 1.0}, "seeds": [0], "new": 3}
    assert refusal(tmp_path, settings=other) == (
        f"{tmp_path}: holds the run of another config (optim.learning_rate is 0.1 there and 0.2 "
        "here; seeds is [0, 1] there and [0] here; new is None there and 3 here); "
        f"choose another folder with --out, or delete {tmp_path}"
    )
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored == SETTINGS


def test_many_differences_are_counted(tmp_path):
    with claim(tmp_path, {str(i): 0 for i in range(7)}):
        pass
    found = refusal(tmp_path, settings={str(i): 1 for i in range(7)})
    assert "3 is 0 there and 1 here; and 3 more)" in found
    assert "4 is 0" not in found


@pytest.mark.parametrize("text", ["", '{"command": "comp', "[]"])
def test_a_broken_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    found = refusal(tmp_path)
    assert found.startswith(str(tmp_path))
    assert found.endswith(f"; choose another folder with --out, or delete {tmp_path}")
    assert (tmp_path / "config.json").read_text() == text


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    assert refusal(tmp_path) == (
        f"{tmp_path}: holds files that are not a run's (thesis.tex); "
        "choose another folder with --out"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_are_not_in_the_way_and_keep_their_content(tmp_path):
    # What a process killed while it wrote config.json leaves, and what file managers leave.
    for name in (".config.json.123.tmp", ".DS_Store", ".lock"):
        (tmp_path / name).write_text("kept")
    with claim(tmp_path, SETTINGS):
        pass
    for name in (".config.json.123.tmp", ".DS_Store", ".lock"):
        assert (tmp_path / name).read_text() == "kept"


HOLD = """
import sys
from pathlib import Path
from dora_jax.training import runs
runs.environment = dict
with runs.claim(Path(sys.argv[1]), {}):
    print("claimed", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "claimed\n"
        assert refusal(tmp_path, settings={}) == (
            f"{tmp_path}: another process is running in it; "
            "wait for it, or choose another folder with --out"
        )
    finally:
        holder.kill()
        holder.communicate()
    with claim(tmp_path, {}):
        pass


def test_a_claim_ends_with_its_context_even_by_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), claim(tmp_path, {}):
        raise KeyboardInterrupt
    with claim(tmp_path, {}):
        assert "another process" in refusal(tmp_path, settings={})


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        found = refusal(path)
        assert found.startswith(f"{path}: cannot be used as a run folder (")
        assert found.endswith("; choose another folder with --out")


def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # root may write anywhere
        os.seteuid(65534)
    try:
        for folder in (tmp_path, tmp_path / "new"):
            assert "cannot be used as a run folder ([Errno 13]" in refusal(folder)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


def test_file_systems_without_locks_are_named_as_such(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", no_locks)
    assert "cannot be locked ([Errno 37] No locks available)" in refusal(tmp_path)


@dataclass(frozen=True)
class Part:
    loss: float
    correct: tuple[int, ...]
    note: str | None = None


def test_a_part_is_finished_when_its_result_is_written(tmp_path):
    folder = tmp_path / "seed-0" / "dora"
    assert finished_part(folder, Part) is None
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("")
    assert finished_part(folder, Part) is None
    finish_part(folder, Part(0.1 + 0.2, (1, 0), "é"))
    assert finished_part(folder, Part) == Part(0.1 + 0.2, (1, 0), "é")


def test_a_part_that_diverged_keeps_its_nan(tmp_path):
    finish_part(tmp_path, Part(math.nan, ()))
    assert math.isnan(finished_part(tmp_path, Part).loss)
    assert "NaN" in json.loads((tmp_path / "results.json").read_text()).values()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"loss": 1.0, "corr', "cannot be read"),
        ("", "cannot be read"),
        ("[]", "must be an object"),
        ('{"loss": 1.0}', "correct: is missing"),
        ('{"loss": "low", "correct": []}', "loss: must be a number, got 'low'"),
        ('{"loss": 1.0, "correct": [], "lost": 1}', "lost: unknown field; did you mean 'loss'"),
    ],
)
def test_a_broken_result_is_refused_with_the_way_out(tmp_path, text, problem):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DoraError) as caught:
        finished_part(tmp_path, Part)
    assert str(caught.value).startswith(f"{tmp_path / 'results.json'}: {problem}")
    assert str(caught.value).endswith(f"; delete {tmp_path} to do this part again")


def test_read_json_says_what_and_the_way_out(tmp_path):
    with pytest.raises(DoraError, match=r"none\.json: cannot be read .*; go away"):
        read_json(tmp_path / "none.json", "go away")
    (tmp_path / "latin.json").write_bytes('"é"'.encode("latin-1"))
    with pytest.raises(DoraError, match=r"latin\.json: cannot be read .*; go away"):
        read_json(tmp_path / "latin.json", "go away")
    (tmp_path / "good.json").write_text('{"a": ["é"]}', encoding="utf-8")
    assert read_json(tmp_path / "good.json", "") == {"a": ["é"]}


def test_the_environment_is_plain_json_with_versions_and_devices():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"] == [f"cpu: {jax.devices()[0].device_kind}"] * 8
    assert found["python"] == sys.version.split()[0]


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_code_alone(tmp_path, monkeypatch):
    package = tmp_path / "package" / "training"
    package.mkdir(parents=True)
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    (package / "runs.py").write_text("1")
    assert environment()["git_commit"] is None  # no checkout
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "somebody's project")
    assert environment()["git_commit"] is None  # installed in somebody else's
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "the code")
    assert environment()["git_commit"] == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("not code")
    assert environment()["git_commit"] == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "package" / "layers.py").write_text("2")
    assert environment()["git_commit"].endswith(" with uncommitted changes")
    monkeypatch.setenv("PATH", "")
    assert environment()["git_commit"] is None
