"""Compiled programs kept between runs: the same command again starts at once."""

import hashlib
import os
import platform
from pathlib import Path

import jax

from dora_jax.checkpoint.files import cache_folder

VARIABLE = "DORA_JAX_COMPILATION_CACHE"


def _machine() -> str:
    """Return a short name of what a compiled program depends on and JAX's own key leaves out.

    A program compiled for one CPU may use instructions that another, sharing the home folder, does
    not have.
    """
    parts = [platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        parts += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def enable_compilation_cache() -> Path | None:
    """Let JAX keep what it compiles, and return where; None when it is off.

    `$DORA_JAX_COMPILATION_CACHE` names another folder, or is `off`. Where JAX has been told of a
    folder already (`$JAX_COMPILATION_CACHE_DIR`), that one is used.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off":
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    told: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if told and not wanted:
        return Path(told)
    folder = Path(wanted) if wanted else cache_folder() / "xla" / _machine()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
