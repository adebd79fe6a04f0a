import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from dora_jax.compilation_cache import VARIABLE, enable_compilation_cache


@pytest.fixture(autouse=True)
def own_setting(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    for name in (VARIABLE, "DORA_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_it_is_in_the_user_s_cache_by_machine(tmp_path):
    folder = enable_compilation_cache()
    assert folder.parent == tmp_path / "dora-jax" / "xla"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert enable_compilation_cache() == folder


def test_another_folder_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    assert enable_compilation_cache() == tmp_path / "own"
    monkeypatch.setenv(VARIABLE, "off")
    assert enable_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_what_jax_was_told_before_is_kept(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "told"))
    assert enable_compilation_cache() == tmp_path / "told"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "told")


PROGRAM = """
import jax, jax.numpy as jnp
from dora_jax.compilation_cache import enable_compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(enable_compilation_cache())
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(any("cache_hits" in name for name in hits))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    outputs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert [hit for _, hit in outputs] == ["False", "True"]
    assert list(Path(outputs[0][0]).iterdir())


def test_the_command_turns_it_on(monkeypatch, capsys):
    from dora_jax import cli, compilation_cache

    called = []
    monkeypatch.setattr(compilation_cache, "enable_compilation_cache", lambda: called.append(True))
    monkeypatch.setitem(cli._COMMANDS, "models", lambda argv: None)
    cli.main(["models"])
    assert called == [True]
